"""Turns what a body hands over (to host code, to a variable, to its caller) into the trees of values that graphs hold.

Called by ``traced_state`` and ``tracer``. Values may stand in lists, tuples and dicts. Where a graph could not follow them, in
other objects, in a function's closure, or behind an iterator that can be walked only once, they are refused.
"""

from __future__ import annotations

import functools
import gc
import operator
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinMethodType, FunctionType, ModuleType
from typing import Any, Final, Protocol

from sgl_core.errors import TraceError
from sgl_core.language.abstract import (
    Abstract,
    AbstractValue,
    entries_of,
    is_list,
    is_text,
    is_value,
    origin_of,
    parts_of,
    source_of,
)
from sgl_core.language.graph import Call
from sgl_core.language.group import ForkGroup
from sgl_core.language.ir import Argument, Expr, Variable
from sgl_core.language.state import ProgramState

__all__ = ["Host", "check_host_function", "copied", "is_same_tree", "lowered"]

_PLAIN: Final = (str, bytes, int, float, complex, type(None), type, ModuleType)
_MAX_LOOKED_AT: Final = 1000  # objects of the host program that are searched for captured values
_CHANGING: Final[Mapping[type, frozenset[str]]] = {
    list: frozenset({"append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse", "__setitem__"}),
    dict: frozenset({"update", "pop", "popitem", "setdefault", "clear", "__setitem__"}),
    set: frozenset({"add", "discard", "remove", "pop", "clear", "update"}),
    deque: frozenset({"append", "appendleft", "extend", "extendleft", "pop", "popleft", "clear"}),
    bytearray: frozenset({"append", "extend", "pop", "clear"}),
}


class Host(Protocol):
    """What lowering needs of the trace."""

    def call(self, call: Call) -> AbstractValue:
        """Record a call of host code."""

    def state(self, state: ProgramState) -> Any:
        """The leaf that stands for a state; raises where there can be none."""

    def refuse(self, what: str, cure: str) -> TraceError:
        """The error for it."""


def lowered(tree: Any, where: str, host: Host) -> Any:
    """The same tree with graph values in place of a trace's, and every container new.

    Args:
        tree: lists, tuples and dicts with values, states and anything else as leaves.
        where: what takes it, for errors.
        host: the trace.

    Raises:
        TraceError: a value stands where a graph cannot follow it.
    """
    kind = type(tree)
    if issubclass(kind, Expr):
        return _lowered_expr(tree, where, host)
    if issubclass(kind, ProgramState):
        return host.state(tree)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return kind(*(lowered(item, where, host) for item in tree))
    if kind in (list, tuple):
        return kind([lowered(item, where, host) for item in tree])
    if kind is dict:
        return {key: lowered(item, where, host) for key, item in tree.items()}
    if issubclass(kind, Iterator):
        what = f"{where} gets an iterator ({kind.__name__}), which only one run could walk"
        raise host.refuse(what, "Give it a list: list(...) or [... for ... in ...].")
    _check_leaf(tree, where, host)
    return tree


def check_host_function(fn: Callable[..., Any], host: Host) -> None:
    """Refuse host code that runs of a graph would share state through.

    Raises:
        TraceError: it captures a value or state of this trace, or changes a container of it.
    """
    kind = type(fn)
    if issubclass(kind, Expr):
        raise host.refuse(
            "the function given to sgl.call is a value of the trace", "Give sgl.call a function, and the value as argument."
        )
    held = _captured(fn)
    if held is not None:
        raise host.refuse(
            f"the function given to sgl.call holds {_described(held)}, which no run of the graph could give it",
            "Give it as an argument: sgl.call(lambda x: ..., value).",
        )
    if kind is BuiltinMethodType and fn.__name__ in _CHANGING.get(type(fn.__self__), ()):  # type: ignore[attr-defined]
        owner = type(fn.__self__).__name__  # type: ignore[attr-defined]
        raise host.refuse(
            f"sgl.call({owner}.{fn.__name__}, ...) changes an object that every run of the graph would share",
            "Have the function return what is new: sgl.call(lambda xs, x: [*xs, x], ...).",
        )


def copied(tree: Any) -> Any:
    """The same containers anew, around the very same leaves."""
    if type(tree) in (list, tuple):
        return type(tree)([copied(item) for item in tree])
    if type(tree) is dict:
        return {key: copied(item) for key, item in tree.items()}
    return tree


def is_same_tree(one: Any, other: Any) -> bool:
    """Whether two trees have equal containers around the very same leaves."""
    kind = type(one)
    if kind is not type(other):
        return False
    if kind in (list, tuple):
        return len(one) == len(other) and all(is_same_tree(a, b) for a, b in zip(one, other, strict=True))
    if kind is dict:
        return list(one) == list(other) and all(is_same_tree(one[key], other[key]) for key in one)
    return one is other


def _lowered_expr(expr: Expr, where: str, host: Host) -> Any:
    """The leaf for a value; an expression without values is an object like any other."""
    if is_value(expr):
        return source_of(expr)
    if is_list(expr):
        return [lowered(entry, where, host) for entry in entries_of(expr)]
    if is_text(expr):
        operands = [source_of(part) if isinstance(part, Expr) else part for part in parts_of(expr)]
        return functools.reduce(lambda left, right: source_of(host.call(Call(operator.add, (left, right)))), operands)
    if any(isinstance(node, Argument | Variable) for node in expr.nodes()):
        raise host.refuse(
            f"{where} gets an expression that holds values which are not there yet",
            "Append the expression with s += ..., and hand over plain values.",
        )
    return expr


def _check_leaf(leaf: Any, where: str, host: Host) -> None:
    if issubclass(type(leaf), _PLAIN):
        return
    held = _captured(leaf)
    if held is None:
        return
    kind = type(leaf).__name__
    cure = "Give states as they are, or their values."
    if not issubclass(type(leaf), ForkGroup):
        cure = f"Make it of values at run time: sgl.call({kind}, ...)."
    raise host.refuse(f"{where} gets an object of type {kind} that holds {_described(held)}", cure)


def _captured(thing: Any) -> Any:
    """A value or state of a trace that is found in an object, or None."""
    seen = {id(thing)}
    waiting = deque([thing])
    while waiting and len(seen) < _MAX_LOOKED_AT:
        item = waiting.popleft()
        if issubclass(type(item), Abstract | ProgramState):
            return item
        for held in _held_by(item):
            if id(held) not in seen and not issubclass(type(held), _PLAIN):
                seen.add(id(held))
                waiting.append(held)
    return None


def _held_by(item: Any) -> list[Any]:
    if type(item) is FunctionType:  # not its globals: they are the whole program
        return [*(item.__closure__ or ()), *(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
    return gc.get_referents(item)


def _described(held: Any) -> str:
    return origin_of(held).described if issubclass(type(held), Abstract) else "the state of a program"
