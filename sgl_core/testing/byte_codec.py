"""A codec that needs no model: one id per byte, one for the beginning, and two per role."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sgl_core.errors import InvalidArgumentError, TemplateError
from sgl_core.types import TurnState

__all__ = ["ByteCodec"]

_ROLES: Final = ("system", "user", "assistant")
_BEGIN: Final = 256
_SPELLINGS: Final = {
    _BEGIN: "<|begin|>",
    **{257 + 2 * i: f"<|{role}|>" for i, role in enumerate(_ROLES)},
    **{258 + 2 * i: f"<|end_{role}|>" for i, role in enumerate(_ROLES)},
}
_IDS: Final = {spelling: token for token, spelling in _SPELLINGS.items()}
_SPECIAL: Final = re.compile("|".join(re.escape(spelling) for spelling in _IDS))


class ByteCodec:
    """A ``TextCodec`` over UTF-8 bytes; ``spell`` and ``special_spelling`` know its seven control ids.

    A turn is ``<|role|>``, the text, ``<|end_role|>`` and a newline, which is text and joins what follows. The first turn
    is preceded by ``<|begin|>``.
    """

    fingerprint = "bytes"
    knows_tools = False
    vocab_size = _BEGIN + len(_SPELLINGS)

    def encode(self, text: str) -> tuple[int, ...]:
        """One id per byte; a lone surrogate becomes a question mark."""
        return tuple(text.encode("utf-8", errors="replace"))

    def encode_trusted(self, text: str) -> tuple[int, ...]:
        """Bytes, and control ids where they are spelled."""
        ids: list[int] = []
        end = 0
        for match in _SPECIAL.finditer(text):
            ids += self.encode(text[end : match.start()])
            ids.append(_IDS[match.group()])
            end = match.end()
        return (*ids, *self.encode(text[end:]))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the bytes; an incomplete character becomes U+FFFD."""
        return bytes(token for token in ids if token < _BEGIN).decode("utf-8", errors="replace")

    def spell(self, token: int) -> str:
        """The spelling of a control id.

        Raises:
            InvalidArgumentError: it is none.
        """
        if token not in _SPELLINGS:
            raise InvalidArgumentError("token", token, f"a control id, {_BEGIN} to {self.vocab_size - 1}")
        return _SPELLINGS[token]

    def special_spelling(self, text: str) -> str | None:
        """The first spelling of a control id in ``text``."""
        match = _SPECIAL.search(text)
        return None if match is None else match.group()

    def begin(self) -> tuple[int, ...]:
        """The id of the beginning."""
        return (_BEGIN,)

    def open_turn(self, role: str, turns: TurnState) -> tuple[int | str, ...]:
        """The opening id, after the beginning for a first turn.

        Raises:
            TemplateError: the role is unknown.
        """
        opener = self._id(f"<|{role}|>", role)
        return (opener,) if turns.roles else (_BEGIN, opener)

    def close_turn(self, role: str, turns: TurnState) -> tuple[int | str, ...]:  # noqa: ARG002
        """The closing id and a newline.

        Raises:
            TemplateError: the role is unknown.
        """
        return (self._id(f"<|end_{role}|>", role), "\n")

    def body_lead(self, role: str, turns: TurnState) -> tuple[int | str, ...]:  # noqa: ARG002
        """Nothing."""
        return ()

    def body_trim(self, role: str, turns: TurnState) -> tuple[bool, bool]:  # noqa: ARG002
        """Bodies stay as they are."""
        return False, False

    def stable_len(self, text: str) -> int:
        """All of it: bytes never merge."""
        return len(self.encode(text))

    def _id(self, spelling: str, role: str) -> int:
        if role not in _ROLES:
            raise TemplateError(f"role: got {role!r}, expected one of {', '.join(_ROLES)}.")
        return _IDS[spelling]
