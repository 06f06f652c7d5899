"""Faults on order: make the n-th call of something raise, for every n until a run is clean.

The way SQLite tests running out of memory: whatever call fails, and however often the program gets past it, the damage must
stay where it belongs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

__all__ = ["FaultPoint", "PlantedFault", "fail_each_call"]

_MAX_CALLS = 10_000
"""Calls after which a program that still meets its fault is taken to run for ever."""


class PlantedFault(RuntimeError):
    """The fault of a ``FaultPoint``."""


class FaultPoint:
    """While entered, the ``nth`` call of ``owner.method`` raises instead of doing anything; the others go through.

    Args:
        owner: an object, or a class for all its objects.
        method: the name of the method.
        nth: which call raises, counted from 1.
        error: what it raises; None is a ``PlantedFault``.

    Attributes:
        calls: calls so far.
    """

    def __init__(self, owner: object, method: str, nth: int, error: Exception | None = None) -> None:
        """Change nothing yet."""
        self.calls = 0
        self.error = error or PlantedFault(f"call {nth} of {method} was told to fail")
        self._owner, self._method, self._nth = owner, method, nth
        self._restore: Callable[[], None]

    @property
    def has_fired(self) -> bool:
        """Whether the call came that was to fail."""
        return self.calls >= self._nth

    def __enter__(self) -> Self:
        """Plant it."""
        owner, method = self._owner, self._method
        original = getattr(owner, method)
        if method in vars(owner):
            self._restore = lambda: setattr(owner, method, original)
        else:
            self._restore = lambda: delattr(owner, method)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._nth:
                raise self.error
            return original(*args, **kwargs)

        setattr(owner, method, guarded)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Put the method back."""
        self._restore()


def fail_each_call(attempt: Callable[[int], FaultPoint]) -> Iterator[FaultPoint]:
    """Run ``attempt(n)`` for n = 1, 2, .. until its fault was not reached any more.

    Args:
        attempt: plays one program with a fault at its n-th call, from scratch, and returns that fault.

    Yields:
        The faults that were reached, after their attempt.

    Raises:
        AssertionError: there is no end to them.
    """
    for nth in itertools.count(1):
        assert nth <= _MAX_CALLS, f"the program still met its fault at call {nth}"
        fault = attempt(nth)
        if not fault.has_fired:
            return
        yield fault
