"""Makes text of a model or of a program safe to show: on a terminal it could move the cursor, in XML it could be illegal.

Used by whatever shows such text: the chat, the drawings of the cache.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from sgl_core.backend import TextCodec
from sgl_core.errors import InvalidArgumentError
from sgl_core.language.readable import one_line, shortened

__all__ = ["one_line", "readable", "shortened", "without_controls"]


def without_controls(text: str) -> str:
    """The text without control characters but newlines and tabs, so that it cannot command a terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs"))


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
