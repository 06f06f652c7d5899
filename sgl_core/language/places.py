"""Warnings that point at the user's line instead of ours."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path
from typing import Final

from sgl_core.backend import TextCodec
from sgl_core.language.ir import ConstantText, Expr

__all__ = ["warn_of_special_spellings", "warn_user"]

_OUR_CODE: Final = str(Path(__file__).parent)

_warned: set[tuple[str, str]] = set()
_warned_lock = threading.Lock()


def warn_user(message: str) -> None:
    """Warn, at the nearest caller outside this package."""
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OUR_CODE):
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level)


def warn_of_special_spellings(nodes: tuple[Expr, ...], codec: TextCodec) -> None:
    """Warn of text that looks like a control token and is none; once for each codec and spelling."""
    for node in nodes:
        if not isinstance(node, ConstantText):
            continue
        spelling = codec.special_spelling(node.text)
        if spelling is None:
            continue
        with _warned_lock:
            is_new = (codec.fingerprint, spelling) not in _warned
            _warned.add((codec.fingerprint, spelling))
        if is_new:
            warn_user(
                f"the text {spelling!r} is the spelling of a control token; in a plain str it stays text. "
                f"Write sgl.user(...) and the like for turns, or sgl.raw({spelling!r}) if you mean the token."
            )
