"""What stands inside a graph's nodes, as JSON: trees of plain values, data edges, and names of host functions.

Called by ``graph_json``, which owns the document around it. JSON has no tuples, bytes, edges, or keys that are no text, so an object
with one key that begins with ``$`` stands for them: ``{"$tuple": [...]}``, ``{"$node": 5, "name": "grade"}``. A function is its name,
``"json:loads"``. Names of builtins and of methods of ``str`` are understood from closed tables; any other is looked up among the
functions that the reader was given, so that a file never chooses what is run.

Everything that is read is checked where it stands. What does not fit is a ``GraphError`` that says where; nothing else is raised.
"""

from __future__ import annotations

import base64
import binascii
import builtins
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from types import BuiltinFunctionType, MappingProxyType
from typing import Any, Final

from sgl_core.errors import GraphError
from sgl_core.language.graph import StreamState
from sgl_core.language.ir import ArgumentValue, JoinedValue, NodeValue, Value
from sgl_core.language.readable import quoted

__all__ = [
    "EDGES",
    "PLAIN",
    "RETURNS",
    "FunctionNames",
    "Functions",
    "array_of",
    "bytes_of",
    "checked_fields",
    "flag_of",
    "integer_of",
    "misfit",
    "text_of_bytes",
    "text_value",
    "tree_as_json",
    "tree_of",
]

_MOST_DEPTH: Final = 64
_MOST_INT_BITS: Final = 4096  # Python refuses to write or read much longer ones as decimal digits
_LARGEST: Final = 2**31 - 1
_OTHERS: Final = frozenset({"$tuple", "$dict", "$bytes"})

PLAIN: Final = frozenset[str]()
"""Kinds of edges that a tree may hold: none, in arguments and options;"""
EDGES: Final = frozenset({"$argument", "$node", "$joined"})
"""values, in nodes;"""
RETURNS: Final = EDGES | {"$stream"}
"""and states of streams, in what a program returns."""

_BUILTINS: Final = (
    "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "float", "int", "len", "list", "max", "min", "range", "repr",
    "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip",
)  # fmt: skip
_STR_METHODS: Final = frozenset(
    name for name in dir(str) if not name.startswith("_") and name not in ("format", "format_map", "maketrans")
)  # a format reaches the attributes of what it is given
_TABLE: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {f"builtins:{name}": getattr(builtins, name) for name in _BUILTINS}
    | {f"builtins:str.{name}": getattr(str, name) for name in _STR_METHODS}
    | {"_operator:add": operator.add}  # text + value, handed to host code or set as a variable
)


# ---- checks of what is read ------------------------------------------------------------------------------------------
def misfit(at: str, value: object, expected: str) -> GraphError:
    """The error for something that is not what belongs at ``at``."""
    return GraphError(f"{at}: got {_kind(value)}, expected {expected}")


def checked_fields(value: object, at: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """An object that has all required fields and no unknown ones."""
    if not isinstance(value, dict):
        raise misfit(at, value, "an object")
    required = tuple(required)
    known = (*required, *optional)
    for name in value:
        if name not in known:
            raise GraphError(f"{at}: unknown field {quoted(name, 40)}; known: {', '.join(known)}")
    for name in required:
        if name not in value:
            raise GraphError(f"{at}: field {name!r} is missing")
    return value


def text_value(value: object, at: str) -> str:
    """A str."""
    if not isinstance(value, str):
        raise misfit(at, value, "a text")
    return value


def integer_of(value: object, at: str) -> int:
    """An int of at least 0, of an ordinary size."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise misfit(at, value, f"an int from 0 to {_LARGEST}")
    return value


def flag_of(value: object, at: str) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        raise misfit(at, value, "true or false")
    return value


def array_of(value: object, at: str) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise misfit(at, value, "a list")
    return value


def text_of_bytes(value: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(value).decode("ascii")


def bytes_of(value: object, at: str) -> bytes:
    """Bytes from base64."""
    try:
        return base64.b64decode(text_value(value, at).encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise misfit(at, value, "base64") from error


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return type(value).__name__


# ---- trees -----------------------------------------------------------------------------------------------------------
def tree_as_json(value: Any, at: str, edges: frozenset[str] = PLAIN, depth: int = _MOST_DEPTH) -> Any:
    """A tree for ``json.dumps``.

    Args:
        value: None, bool, int, float, str, bytes, and lists, tuples and dicts of them; with ``edges``, values, too.
        at: where it stands, for the error.
        edges: PLAIN, EDGES or RETURNS.
        depth: how many more levels it may have.

    Raises:
        GraphError: it holds anything else, a number that JSON cannot write, or is nested too deeply.
    """
    if not depth:
        raise GraphError(f"{at}: it is nested more than {_MOST_DEPTH} levels deep, or contains itself")
    kind = type(value)  # exactly: a subclass would not come back
    if value is None or kind in (bool, str):
        return value
    if (kind is int and value.bit_length() <= _MOST_INT_BITS) or (kind is float and math.isfinite(value)):
        return value
    if kind is list or kind is tuple:
        items = [tree_as_json(item, f"{at}[{index}]", edges, depth - 1) for index, item in enumerate(value)]
        return items if kind is list else {"$tuple": items}
    if kind is dict:
        return _dict_as_json(value, at, edges, depth)
    if kind is bytes:
        return {"$bytes": text_of_bytes(value)}
    edge = _edge_as_json(value)
    if edge is not None and next(iter(edge)) in edges:
        return edge
    what = "a number that JSON cannot write" if kind in (int, float) else f"a {kind.__name__}, which JSON cannot express"
    raise GraphError(f"{at}: it is {what}")


def _dict_as_json(value: dict[Any, Any], at: str, edges: frozenset[str], depth: int) -> dict[str, Any]:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: tree_as_json(item, f"{at}[{quoted(key, 40)}]", edges, depth - 1) for key, item in value.items()}
    pairs = enumerate(value.items())
    return {"$dict": [[tree_as_json(part, f"{at}[{i}]", edges, depth - 1) for part in pair] for i, pair in pairs]}


def _edge_as_json(value: Any) -> dict[str, Any] | None:
    match value:
        case ArgumentValue(name=name):
            return {"$argument": name}
        case NodeValue(node=node, name=name):
            return {"$node": node, "name": name} if name else {"$node": node}
        case JoinedValue(node=node, name=name, index=index):
            return {"$joined": node, "name": name, "index": index}
        case StreamState(stream=stream):
            return {"$stream": stream}
        case _:
            return None


def tree_of(value: Any, at: str, edges: frozenset[str] = PLAIN, depth: int = _MOST_DEPTH) -> Any:
    """The tree that ``tree_as_json`` made this of."""
    if not depth:
        raise GraphError(f"{at}: it is nested more than {_MOST_DEPTH} levels deep")
    if isinstance(value, list):
        return [tree_of(item, f"{at}[{index}]", edges, depth - 1) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: tree_of(item, f"{at}[{quoted(key, 40)}]", edges, depth - 1) for key, item in value.items()}
    if tag not in edges | _OTHERS:
        raise GraphError(f"{at}: {quoted(tag, 40)} does not belong here; known: {', '.join(sorted(edges | _OTHERS))}")
    if tag in edges:
        return _edge_of(tag, value, at)
    content = checked_fields(value, at, (tag,))[tag]
    if tag == "$bytes":
        return bytes_of(content, at)
    items = [tree_of(item, f"{at}[{index}]", edges, depth - 1) for index, item in enumerate(array_of(content, at))]
    return tuple(items) if tag == "$tuple" else _dict_of(items, at)


def _dict_of(pairs: list[Any], at: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise misfit(f"{at}[{index}]", pair, "a list of key and value")
        try:
            is_new = pair[0] not in found
        except TypeError as error:
            raise misfit(f"{at}[{index}]", pair[0], "a key that can be hashed") from error
        if not is_new:
            raise GraphError(f"{at}[{index}]: the key stands there twice")
        found[pair[0]] = pair[1]
    return found


def _edge_of(tag: str, value: dict[str, Any], at: str) -> Value | StreamState:
    if tag == "$argument":
        return ArgumentValue(text_value(checked_fields(value, at, (tag,))[tag], at))
    if tag == "$stream":
        return StreamState(integer_of(checked_fields(value, at, (tag,))[tag], at))
    if tag == "$node":
        fields = checked_fields(value, at, (tag,), ("name",))
        return NodeValue(integer_of(fields[tag], at), text_value(fields.get("name", ""), f"{at}.name"))
    fields = checked_fields(value, at, (tag, "name", "index"))
    return JoinedValue(
        integer_of(fields[tag], at), text_value(fields["name"], f"{at}.name"), integer_of(fields["index"], f"{at}.index")
    )


# ---- functions -------------------------------------------------------------------------------------------------------
class FunctionNames:
    """Names of the functions of one graph, for writing it."""

    def __init__(self) -> None:
        """None has been seen."""
        self._seen: dict[str, Callable[..., Any]] = {}

    def as_json(self, fn: Callable[..., Any], at: str) -> Any:
        """A name by which ``Functions`` finds it again.

        Raises:
            GraphError: it has no name, or shares it with another function of the graph.
        """
        owner = getattr(fn, "__self__", None)
        if isinstance(fn, BuiltinFunctionType) and type(owner) is str and fn.__name__ in _STR_METHODS:
            return {"method": fn.__name__, "of": owner}
        name = next((name for name, known in _TABLE.items() if known is fn), None)
        if name is not None:
            return name
        module, qualified = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
        if not isinstance(module, str) or not isinstance(qualified, str) or type(owner) is str:
            raise GraphError(f"{at}: a {type(fn).__name__} has no name to write; call a function of a module instead")
        name = f"{module}:{qualified}"
        if self._seen.setdefault(name, fn) != fn:
            raise GraphError(f"{at}: another function of this graph is called {name}, too; give them names of their own")
        return name


class Functions:
    """The functions that a graph may call, for reading it.

    Args:
        given: by the names that ``FunctionNames`` wrote.
    """

    def __init__(self, given: Mapping[str, Callable[..., Any]]) -> None:
        """Nothing is missing yet."""
        self._given = given
        self._missing: dict[str, None] = {}

    def of(self, value: object, at: str) -> Callable[..., Any]:
        """The function of a name; one that is not known is noted for ``check``, and another one stands in for it."""
        if isinstance(value, dict):
            fields = checked_fields(value, at, ("method", "of"))
            method, owner = text_value(fields["method"], f"{at}.method"), text_value(fields["of"], f"{at}.of")
            if method not in _STR_METHODS:
                raise GraphError(f"{at}.method: got {quoted(method, 40)}, expected a method of str that needs no attributes")
            return getattr(owner, method)  # type: ignore[no-any-return]
        name = text_value(value, at)
        fn = self._given.get(name, _TABLE.get(name))
        if fn is None:
            self._missing[name] = None
            return len
        return fn

    def check(self) -> None:
        """Say what was missing.

        Raises:
            GraphError: names all of them.
        """
        if self._missing:
            names = ", ".join(quoted(name, 100) for name in self._missing)
            raise GraphError(f"functions: the graph calls {names}, which are not given; pass functions={{name: function, ...}}")
