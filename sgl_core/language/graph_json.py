"""Graphs as JSON: a document with a version, whose nodes are written by a table of their fields.

``to_json`` and ``from_json`` are each other's inverse. A document is input like any other: every field is checked where it
stands, unknown ones are refused, no function is imported because a document names it (see ``graph_values``), and what was
read keeps every rule of graphs (``verifier``).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NoReturn

from sgl_core.errors import GraphError, InvalidArgumentError
from sgl_core.language.graph import (
    Call,
    GetForkItem,
    Graph,
    GraphNode,
    GraphStream,
    Join,
    Parameter,
    Place,
    Read,
    SetVar,
    StreamBegin,
    StreamKind,
)
from sgl_core.language.graph_values import (
    EDGES,
    RETURNS,
    FunctionNames,
    Functions,
    array_of,
    bytes_of,
    checked_fields,
    flag_of,
    integer_of,
    misfit,
    text_of_bytes,
    text_value,
    tree_as_json,
    tree_of,
)
from sgl_core.language.healing import check_heal
from sgl_core.language.ir import (
    Argument,
    CommutativeMark,
    ConstantText,
    Expr,
    Fork,
    Gen,
    Image,
    Prefetch,
    RawText,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Value,
    Variable,
)
from sgl_core.language.readable import quoted
from sgl_core.language.reasoning import check_model_type
from sgl_core.language.sampling import DTYPES
from sgl_core.language.verifier import verify
from sgl_core.types import SamplingParams

__all__ = ["FORMAT", "from_json", "to_json"]

FORMAT: Final = 1
"""The version that is written, and the only one that is read."""

_MOST_CHARACTERS: Final = 2**26
_OPTIONS: Final = SamplingParams.field_names() - {"choices"}
_NUMBERS: Final = ("id", "stream", "index", "same_as", "place")
_ANNOTATIONS: Final = ("is_automatic", "last_use", "commit")


def to_json(graph: Graph, *, indent: int | None = None) -> str:
    """A graph as JSON.

    Args:
        graph: to write.
        indent: spaces a level; None is all on one line.

    Raises:
        GraphError: an argument, or another value inside, cannot be expressed in JSON, or a function has no name; says where.
    """
    names = FunctionNames()
    places: dict[Place, int] = {}
    document = {
        "format": FORMAT,
        "name": graph.name,
        "parameters": [_parameter_as_json(parameter) for parameter in graph.parameters],
        "static": {name: tree_as_json(value, f"static argument {name!r}") for name, value in graph.static.items()},
        "streams": [_stream_as_json(stream) for stream in graph.streams],
        "nodes": [_node_as_json(node, names, places) for node in graph.nodes],
        "places": [dataclasses.asdict(place) for place in places],
        "returns": tree_as_json(graph.returns, "returns", RETURNS),
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be written as an escape
        return json.dumps(document, allow_nan=False, indent=indent)
    return text


def from_json(text: str, *, functions: Mapping[str, Callable[..., Any]] | None = None) -> Graph:
    """The graph that ``to_json`` wrote.

    Args:
        text: the document.
        functions: what its ``Call`` nodes may run, by the names in it, ``"module:qualname"``; builtins and methods of str
            need not be given.

    Raises:
        GraphError: it is no such document, it breaks a rule of graphs, or functions are missing (all of them are named).
    """
    document = checked_fields(
        _parsed(text), "the document", ("format", "name", "parameters", "static", "streams", "nodes", "places", "returns")
    )
    if document["format"] != FORMAT or isinstance(document["format"], bool):
        raise GraphError(f"format: expected {FORMAT}, which is the only one that this version reads")
    known = Functions(functions or {})
    places = [_place_of(item, f"places[{i}]") for i, item in enumerate(array_of(document["places"], "places"))]
    static = document["static"]
    if not isinstance(static, dict):
        raise misfit("static", static, "an object")
    graph = Graph(
        name=text_value(document["name"], "name"),
        parameters=tuple(
            _parameter_of(item, f"parameters[{i}]") for i, item in enumerate(array_of(document["parameters"], "parameters"))
        ),
        static={name: tree_of(value, f"static[{quoted(name, 40)}]") for name, value in static.items()},
        streams=tuple(_stream_of(item, i) for i, item in enumerate(array_of(document["streams"], "streams"))),
        nodes=tuple(
            _node_of(item, f"nodes[{i}]", known, places) for i, item in enumerate(array_of(document["nodes"], "nodes"))
        ),
        returns=tree_of(document["returns"], "returns", RETURNS),
    )
    known.check()
    verify(graph)
    return graph


def _parsed(text: str) -> Any:
    if not isinstance(text, str):
        raise misfit("text", text, "a JSON text")
    if len(text) > _MOST_CHARACTERS:
        raise GraphError(f"text: got {len(text):,} characters, expected at most {_MOST_CHARACTERS:,}")
    try:
        return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant, parse_float=_finite)
    except GraphError:
        raise
    except (ValueError, RecursionError) as error:
        where = (
            f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too long or too deep"
        )
        raise GraphError(f"text: this is no JSON that can be read ({where})") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise GraphError("text: an object has the same field twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise GraphError(f"text: {name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise GraphError("text: a number is too large")
    return number


# ---- around the nodes ------------------------------------------------------------------------------------------------
def _parameter_as_json(parameter: Parameter) -> dict[str, Any]:
    if not parameter.has_default:
        return {"name": parameter.name}
    default = tree_as_json(parameter.default, f"default of argument {parameter.name!r}")
    return {"name": parameter.name, "default": default}


def _parameter_of(value: object, at: str) -> Parameter:
    fields = checked_fields(value, at, ("name",), ("default",))
    name = text_value(fields["name"], f"{at}.name")
    return Parameter(name, tree_of(fields.get("default"), f"{at}.default"), "default" in fields)


def _stream_as_json(stream: GraphStream) -> dict[str, Any]:
    own = {"kind": str(stream.kind), "path": list(stream.path)}
    return own if stream.parent is None else {**own, "parent": stream.parent}


def _stream_of(value: object, index: int) -> GraphStream:
    at = f"streams[{index}]"
    fields = checked_fields(value, at, ("kind", "path"), ("parent",))
    kind = text_value(fields["kind"], f"{at}.kind")
    if kind not in set(StreamKind):
        raise GraphError(f"{at}.kind: got {quoted(kind, 40)}, expected one of {', '.join(StreamKind)}")
    path = tuple(integer_of(item, f"{at}.path[{i}]") for i, item in enumerate(array_of(fields["path"], f"{at}.path")))
    parent = integer_of(fields["parent"], f"{at}.parent") if "parent" in fields else None
    return GraphStream(index, StreamKind(kind), path, parent)


def _place_of(value: object, at: str) -> Place:
    fields = checked_fields(value, at, ("file", "line", "text"))
    line = integer_of(fields["line"], f"{at}.line")
    return Place(text_value(fields["file"], f"{at}.file"), line, text_value(fields["text"], f"{at}.text"))


def _node_as_json(node: GraphNode, names: FunctionNames, places: dict[Place, int]) -> dict[str, Any]:
    at = f"%{node.id}"
    document = {"id": node.id, "stream": node.stream, "op": _op_as_json(node.op, at, names)}
    if node.index:
        document["index"] = node.index
    if node.same_as is not None:
        document["same_as"] = node.same_as
    document |= {name: True for name in _ANNOTATIONS if getattr(node, name)}
    if node.place is not None:
        document["place"] = places.setdefault(node.place, len(places))
    return document


def _node_of(value: object, at: str, functions: Functions, places: list[Place]) -> GraphNode:
    fields = checked_fields(value, at, ("id", "stream", "op"), ("index", "same_as", *_ANNOTATIONS, "place"))
    number = {name: integer_of(fields[name], f"{at}.{name}") for name in _NUMBERS if name in fields}
    flag = {name: flag_of(fields[name], f"{at}.{name}") for name in _ANNOTATIONS if name in fields}
    if number.get("place", -1) >= len(places):
        raise GraphError(f"{at}.place: there is no place {number['place']}")
    return GraphNode(
        id=number["id"],
        stream=number["stream"],
        op=_op_of(fields["op"], f"{at}.op", functions),
        index=number.get("index", 0),
        place=places[number["place"]] if "place" in number else None,
        same_as=number.get("same_as"),
        **flag,
    )


# ---- a node ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Field:
    """How a field of a node is written and read; both get where it stands, and what knows the functions.

    Args:
        write: makes JSON of the field.
        read: makes the field of JSON, and checks it.
    """

    write: Callable[[Any, str, FunctionNames], Any]
    read: Callable[[Any, str, Functions], Any]


def _plain(read: Callable[[Any, str], Any], write: Callable[[Any], Any] = lambda value: value) -> _Field:
    """A field that is one value of JSON."""
    return _Field(lambda value, _at, _names: write(value), lambda value, at, _functions: read(value, at))


def _tree(read: Callable[[Any, str], Any]) -> _Field:
    return _Field(lambda value, at, _names: tree_as_json(value, at, EDGES), lambda value, at, _functions: read(value, at))


def _edge_of(value: Any, at: str) -> Value:
    edge = tree_of(value, at, EDGES)
    if not isinstance(edge, Value):
        raise misfit(at, value, "a value: $argument, $node or $joined")
    return edge


def _tuple_of(value: Any, at: str) -> tuple[Any, ...]:
    found = tree_of(value, at, EDGES)
    if not isinstance(found, tuple):
        raise misfit(at, value, "a $tuple")
    return found


def _mapping_of(value: Any, at: str) -> dict[str, Any]:
    found = tree_of(value, at, EDGES)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise misfit(at, value, "an object")
    return found


def _image_as_json(source: str | bytes) -> Any:
    return source if isinstance(source, str) else {"$bytes": text_of_bytes(source)}


def _image_of(value: Any, at: str) -> str | bytes:
    return value if isinstance(value, str) else bytes_of(checked_fields(value, at, ("$bytes",))["$bytes"], at)


def _choices_of(value: Any, at: str) -> tuple[str, ...]:
    return tuple(text_value(item, f"{at}[{i}]") for i, item in enumerate(array_of(value, at)))


def _name_of(value: Any, at: str) -> str | None:
    return None if value is None else text_value(value, at)


def _dtype_of(value: Any, at: str) -> type:
    for dtype in DTYPES:
        if value == dtype.__name__:
            return dtype
    raise misfit(at, value, f"one of {', '.join(dtype.__name__ for dtype in DTYPES)}")


def _heal_of(value: Any, at: str) -> Any:
    return _checked(check_heal, value, at)


def _reasoning_of(value: Any, at: str) -> Any:
    return value if value is None else _checked(check_model_type, value, at)


def _checked(check: Callable[[Any], Any], value: Any, at: str) -> Any:
    try:
        check(value)
    except (InvalidArgumentError, TypeError) as error:
        raise GraphError(f"{at}: {error}") from error
    return value


def _options_as_json(options: Mapping[str, Any], at: str, _names: FunctionNames) -> dict[str, Any]:
    return {name: _option_as_json(name, value, f"{at}[{name!r}]") for name, value in options.items()}


def _option_as_json(name: str, value: Any, at: str) -> Any:
    if name == "json_schema" and isinstance(value, type):
        describe = getattr(value, "model_json_schema", None)
        if not callable(describe):
            raise GraphError(f"{at}: {value.__name__} has no model_json_schema()")
        return json.dumps(describe(), ensure_ascii=False)
    if name == "logit_bias" and value is not None:
        return {str(token): bias for token, bias in value.items()}
    return tree_as_json(list(value) if isinstance(value, tuple) else value, at)


def _options_of(value: Any, at: str, _functions: Functions) -> Mapping[str, Any]:
    fields = checked_fields(value, at, (), sorted(_OPTIONS))
    options = {name: tree_of(item, f"{at}[{name!r}]") for name, item in fields.items()}
    if isinstance(options.get("logit_bias"), dict):
        options["logit_bias"] = {_token_of(token, at): bias for token, bias in options["logit_bias"].items()}
    try:
        checked = SamplingParams(**options)
    except (InvalidArgumentError, TypeError, ValueError) as error:
        raise GraphError(f"{at}: {error}") from error
    return MappingProxyType({name: getattr(checked, name) for name in options})


def _token_of(token: object, at: str) -> int:
    if not isinstance(token, str) or not token.isascii() or not token.isdigit() or len(token) > 10:
        raise misfit(f"{at}['logit_bias']", token, "ids of tokens as keys")
    return int(token)


_TEXT: Final = _plain(text_value)
_NAME: Final = _plain(_name_of)
_NUMBER: Final = _plain(integer_of)
_EDGE: Final = _tree(_edge_of)

_OPS: Final[Mapping[str, tuple[type[Expr], Mapping[str, _Field]]]] = {
    kind.__name__: (kind, fields)
    for kind, fields in (
        (ConstantText, {"text": _TEXT}),
        (RawText, {"text": _TEXT}),
        (Argument, {"name": _TEXT}),
        (Variable, {"source": _EDGE}),
        (Image, {"source": _plain(_image_of, _image_as_json)}),
        (
            Gen,
            {
                "name": _NAME,
                "options": _Field(_options_as_json, _options_of),
                "dtype": _plain(_dtype_of, lambda dtype: dtype.__name__),
                "heal": _plain(_heal_of),
                "reasoning": _plain(_reasoning_of),
            },
        ),
        (Select, {"name": _NAME, "choices": _plain(_choices_of, list), "choices_method": _TEXT}),
        (RoleBegin, {"role": _TEXT}),
        (RoleEnd, {"role": _TEXT}),
        (ScopeBegin, {"name": _TEXT}),
        (ScopeEnd, {"name": _TEXT}),
        (Fork, {"number": _NUMBER}),
        (CommutativeMark, {"place": _TEXT}),
        (Prefetch, {"min_tokens": _NUMBER}),
        (GetForkItem, {"fork": _NUMBER, "index": _NUMBER}),
        (StreamBegin, {"function": _TEXT}),
        (Join, {"fork": _NUMBER, "mode": _TEXT, "errors": _TEXT}),
        (
            Call,
            {
                "fn": _Field(lambda fn, at, names: names.as_json(fn, at), lambda value, at, functions: functions.of(value, at)),
                "args": _tree(_tuple_of),
                "kwargs": _Field(
                    lambda kwargs, at, _names: tree_as_json(dict(kwargs), at, EDGES),
                    lambda value, at, _functions: _mapping_of(value, at),
                ),
            },
        ),
        (Read, {"source": _EDGE}),
        (SetVar, {"name": _TEXT, "value": _tree(lambda value, at: tree_of(value, at, EDGES))}),
    )
}


def _op_as_json(op: Expr, at: str, names: FunctionNames) -> dict[str, Any]:
    kind = type(op).__name__
    if kind not in _OPS:
        raise GraphError(f"{at}: a graph has no node of kind {kind}")
    document = {"kind": kind}
    defaults = _defaults(type(op))
    for name, field in _OPS[kind][1].items():
        value = getattr(op, name)
        if name not in defaults or value != defaults[name]:
            document[name] = field.write(value, f"{at}.{name}", names)
    return document


def _op_of(value: object, at: str, functions: Functions) -> Expr:
    if not isinstance(value, dict):
        raise misfit(at, value, "an object")
    kind = text_value(value.get("kind"), f"{at}.kind")
    if kind not in _OPS:
        raise GraphError(f"{at}.kind: got {quoted(kind, 40)}, expected one of {', '.join(_OPS)}")
    op, fields = _OPS[kind]
    defaults = _defaults(op)
    given = checked_fields(value, at, ("kind", *(name for name in fields if name not in defaults)), defaults)
    return op(**{name: field.read(given[name], f"{at}.{name}", functions) for name, field in fields.items() if name in given})


def _defaults(op: type[Expr]) -> dict[str, Any]:
    """Fields that need not be written, with what they are then."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(op):  # type: ignore[arg-type]  # every node is a dataclass; their base is none
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found
