"""The codec of a backend that has none: a text-only API gets segments, and there are no ids to be exact about."""

from __future__ import annotations

from collections.abc import Sequence

from sgl_core.types import TurnState

__all__ = ["TextOnlyCodec"]


class TextOnlyCodec:
    """A ``TextCodec`` without vocabulary and template, so that streams need no second way of working."""

    fingerprint = "text-only"
    knows_tools = False

    def encode(self, text: str) -> tuple[int, ...]:  # noqa: ARG002
        """No ids."""
        return ()

    def encode_trusted(self, text: str) -> tuple[int, ...]:  # noqa: ARG002
        """No ids."""
        return ()

    def decode(self, ids: Sequence[int]) -> str:  # noqa: ARG002
        """No text."""
        return ""

    def spell(self, token: int) -> str:  # noqa: ARG002
        """No spelling."""
        return ""

    def special_spelling(self, text: str) -> str | None:  # noqa: ARG002
        """Nothing is special."""
        return None

    def begin(self) -> tuple[int, ...]:
        """No ids."""
        return ()

    def open_turn(self, role: str, turns: TurnState) -> tuple[int | str, ...]:  # noqa: ARG002
        """The segment says the role."""
        return ()

    def close_turn(self, role: str, turns: TurnState) -> tuple[int | str, ...]:  # noqa: ARG002
        """The next segment ends it."""
        return ()

    def body_lead(self, role: str, turns: TurnState) -> tuple[int | str, ...]:  # noqa: ARG002
        """Nothing."""
        return ()

    def body_trim(self, role: str, turns: TurnState) -> tuple[bool, bool]:  # noqa: ARG002
        """Bodies stay as they are."""
        return False, False

    def stable_len(self, text: str) -> int:  # noqa: ARG002
        """No ids."""
        return 0
