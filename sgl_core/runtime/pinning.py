"""What a user holds of a pinned prefix. Made by ``Engine.pin``; the pin itself is the scheduler's memory's."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["PinnedPrefix"]


class PinnedPrefix:
    """The report of one pin, and the way to end it.

    Args:
        unpin: ends the pin of a number; False if it has ended already.
        number: of this pin.
        pinned_tokens: length of the prefix. ``cached_tokens``: of these, not computed for the pin because their KV was there.
    """

    def __init__(self, unpin: Callable[[int], bool], number: int, pinned_tokens: int, cached_tokens: int) -> None:
        self._unpin = unpin
        self._number = number
        self.pinned_tokens = pinned_tokens
        self.cached_tokens = cached_tokens

    def unpin(self) -> bool:
        """Let the prefix be evicted in its turn; False if it expired, gave way or was unpinned before.

        Raises:
            EngineError: the engine is closed, and the prefix gone with it.
        """
        return self._unpin(self._number)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Unpin."""
        self.unpin()

    def __repr__(self) -> str:
        """Counts; no prompt text."""
        return f"PinnedPrefix(pinned_tokens={self.pinned_tokens}, cached_tokens={self.cached_tokens})"
