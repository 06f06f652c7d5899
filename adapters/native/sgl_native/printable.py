"""Makes text of a model or of a program safe to show: on a terminal it could move the cursor, in XML it could be illegal.

Used by whatever shows such text: the chat, the drawings of the cache.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from sgl_core.backend import TextCodec
from sgl_core.errors import InvalidArgumentError

__all__ = ["one_line", "readable", "shortened", "without_controls"]

_NEWLINE = "\u21b5"  # an arrow that turns back
_ELLIPSIS = "\u2026"
_UNPRINTABLE = "\u00b7"  # a middle dot


def without_controls(text: str) -> str:
    """The text without control characters but newlines and tabs, so that it cannot command a terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs"))


def one_line(text: str) -> str:
    """The text on one line: newlines as arrows, other white space as spaces, what cannot be printed as dots."""
    return "".join(_shown(char) for char in text)


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters of a line: its beginning and, where it is longer, its end around an ellipsis."""
    if len(text) <= most:
        return text
    tail = most // 3
    return text[: most - tail - 1] + _ELLIPSIS + text[len(text) - tail :]


def readable(codec: TextCodec, token_ids: Sequence[int]) -> str:
    """The text of some ids with control tokens spelled out, where ``codec.decode`` would leave them out."""
    parts: list[str] = []
    start = 0
    for index, token in enumerate(token_ids):
        spelled = _spelling(codec, token)
        if spelled is not None:
            parts += (codec.decode(token_ids[start:index]), spelled)
            start = index + 1
    return "".join((*parts, codec.decode(token_ids[start:])))


def _spelling(codec: TextCodec, token: int) -> str | None:
    try:
        return codec.spell(token)
    except InvalidArgumentError:  # an ordinary token
        return None


def _shown(char: str) -> str:
    if char.isprintable():
        return char
    if char == "\n":
        return _NEWLINE
    return " " if char.isspace() else _UNPRINTABLE
