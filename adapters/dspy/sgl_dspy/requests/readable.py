"""Prompts for people. Pure; called by the engines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from sgl_core.backend import TextCodec

__all__ = ["readable"]


def readable(ids: Sequence[int], codec: TextCodec) -> str:
    """The text of a prompt, with its control tokens as they are spelled."""
    pieces: list[str] = []
    for is_control, run in groupby(ids, key=lambda token: not codec.decode((token,))):
        tokens = list(run)
        pieces += map(codec.spell, tokens) if is_control else [codec.decode(tokens)]
    return "".join(pieces)
