"""Makes text and values fit to be shown: on one line, short, and without characters that command a terminal or break XML.

Used by the listing and the drawings of a graph, and by the drawings of the cache. Pure functions.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, Final

from sgl_core.language.graph import StreamState
from sgl_core.language.ir import ArgumentValue, JoinedValue, NodeValue, Value

__all__ = ["escaped", "function_name", "one_line", "quoted", "shortened", "shown", "value_name"]

_NEWLINE: Final = "\u21b5"  # an arrow that turns back
_ELLIPSIS: Final = "\u2026"
_UNPRINTABLE: Final = "\u00b7"  # a middle dot
_ESCAPES: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_MOST_DEPTH: Final = 20


def one_line(text: str) -> str:
    """The text on one line: newlines as arrows, other white space as spaces, what cannot be printed as dots."""
    return "".join(_visible(char) for char in text)


def escaped(text: str) -> str:
    """``one_line``, for XML."""
    return html.escape(one_line(text))


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters of a text: its beginning and, where it is longer, its end around an ellipsis."""
    if len(text) <= most:
        return text
    tail = most // 3
    return text[: most - tail - 1] + _ELLIPSIS + text[len(text) - tail :]


def quoted(text: str, most: int) -> str:
    """The text as a literal of Python, shortened to ``most`` characters between its quotes; no more than ASCII escapes."""
    return '"' + "".join(_as_escape(char) for char in shortened(text, most)) + '"'


def shown(value: Any, most: int) -> str:
    """A value as the author would write it, as far as that can be said; texts are shortened to ``most`` characters."""
    return _shown(value, most, _MOST_DEPTH)


def value_name(value: Value) -> str:
    """A data edge: ``%5.name``, ``%5.name[2]``, ``%5``, or the name of an argument."""
    match value:
        case ArgumentValue(name=name):
            return name
        case NodeValue(node=node, name=name):
            return f"%{node}.{name}" if name else f"%{node}"
        case JoinedValue(node=node, name=name, index=index):
            return f"%{node}.{name}[{index}]"


def function_name(fn: Callable[..., Any]) -> str:
    """What the author would call a function: ``len``, ``", ".join``, ``parsed``."""
    owner = getattr(fn, "__self__", None)
    name = getattr(fn, "__qualname__", None) or type(fn).__name__
    if type(owner) is str:
        return f"{quoted(owner, 20)}.{name.rpartition('.')[2]}"
    return one_line(name)


def _shown(value: Any, most: int, depth: int) -> str:
    if isinstance(value, Value):
        return value_name(value)
    if isinstance(value, StreamState):
        return f"stream {value.stream}"
    kind = type(value)
    if kind is str:
        return quoted(value, most)
    if depth and kind is list:
        return f"[{', '.join(_shown(item, most, depth - 1) for item in value)}]"
    if depth and kind is tuple:
        items = [_shown(item, most, depth - 1) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if depth and kind is dict:
        return "{" + ", ".join(f"{_shown(k, most, 0)}: {_shown(v, most, depth - 1)}" for k, v in value.items()) + "}"
    if value is None or kind in (bool, int, float):
        return shortened(repr(value), most)
    if callable(value):
        return function_name(value)
    return f"<{one_line(kind.__name__)}>"  # its repr may be anything, an error included


def _visible(char: str) -> str:
    if char.isprintable():
        return char
    if char == "\n":
        return _NEWLINE
    return " " if char.isspace() else _UNPRINTABLE


def _as_escape(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
