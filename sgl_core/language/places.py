"""The user's line instead of ours: for warnings, errors and the nodes of a graph."""

from __future__ import annotations

import functools
import linecache
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from sgl_core.backend import TextCodec
from sgl_core.language.graph import Place
from sgl_core.language.ir import ConstantText, Expr

__all__ = ["at_user_line", "is_user_code", "place_of", "user_frame", "user_place", "warn_of_special_spellings", "warn_user"]

_OUR_CODE: Final = str(Path(__file__).parent)
_OUR_VALUES: Final = frozenset({"sgl_core.backend", "sgl_core.errors", "sgl_core.types"})

_warned: set[tuple[str, str]] = set()
_warned_lock = threading.Lock()


def user_frame() -> FrameType | None:
    """The nearest frame that runs code of the program's author; see ``is_user_code``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_code(frame):
        frame = frame.f_back
    return frame


def user_place() -> Place | None:
    """The line of the nearest frame that runs code of the program's author, if there is one."""
    frame = user_frame()
    return None if frame is None else place_of(frame, frame.f_lineno)


def place_of(frame: FrameType, line: int) -> Place:
    """A line of a frame's file, with its text if that is there."""
    file = frame.f_code.co_filename
    return Place(file, line, linecache.getline(file, line, frame.f_globals).strip())


def at_user_line(message: str) -> str:
    """A message with the author's line behind it."""
    place = user_place()
    return message if place is None else f"{message} ({place})"


def is_user_code(frame: FrameType) -> bool:
    """Whether a frame is neither of the language, of the values it checks, nor of the standard library.

    It goes by the module's name: code that a dataclass generates has no file, and a ``with`` block of ours runs through
    the standard library.
    """
    return _is_users(frame.f_globals.get("__name__"))


@functools.lru_cache(maxsize=4096)
def _is_users(module: object) -> bool:
    if not isinstance(module, str):
        return True
    if module.startswith("sgl_core.language") or module in _OUR_VALUES:
        return False
    return module.partition(".")[0] not in sys.stdlib_module_names


def warn_user(message: str) -> None:
    """Warn, at the nearest caller outside this package."""
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OUR_CODE):
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _spellings_in(text: str, codec: TextCodec) -> Iterator[str]:
    """Each spelling of a control token once: which of them a text has does not depend on how it was put together."""
    while (spelling := codec.special_spelling(text)) is not None:
        yield spelling
        text = text.replace(spelling, "")


def warn_of_special_spellings(nodes: Iterable[Expr], codec: TextCodec, place: Place | None = None) -> None:
    """Warn of text that looks like a control token and is none; once for each codec and spelling.

    Args:
        nodes: what is appended.
        codec: knows the spellings.
        place: the line to point at; None is the nearest caller outside this package.
    """
    texts = (node.text for node in nodes if isinstance(node, ConstantText))
    for spelling in (spelling for text in texts for spelling in _spellings_in(text, codec)):
        with _warned_lock:
            is_new = (codec.fingerprint, spelling) not in _warned
            _warned.add((codec.fingerprint, spelling))
        if is_new:
            message = (
                f"the text {spelling!r} is the spelling of a control token; in a plain str it stays text. "
                f"Write sgl.user(...) and the like for turns, or sgl.raw({spelling!r}) if you mean the token."
            )
            if place is None:
                warn_user(message)
            else:
                warnings.warn_explicit(message, UserWarning, place.file, place.line)
