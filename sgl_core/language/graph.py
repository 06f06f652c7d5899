"""The graph of a traced program: typed nodes in program order, each in one stream, with data edges between streams.

The tracer makes graphs, the passes turn them into others, the executor runs them. A graph is frozen. Nodes keep their ids
through every pass, so a report can name them.

The order of ``Graph.nodes`` is the order in which the program's body would do things; the nodes of one stream run in that
order, streams run side by side, and a ``Value`` in a node is an edge from the node that makes it. What the interpreter would
wait for in the body (``Read``, ``Join``, ``Call``) keeps its place, so that the first thing that fails is the same one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sgl_core.language.ir import Expr, Value, Variable

__all__ = [
    "Call",
    "GetForkItem",
    "Graph",
    "GraphNode",
    "GraphStream",
    "Join",
    "Parameter",
    "Place",
    "Read",
    "SetVar",
    "StreamBegin",
    "StreamKind",
    "StreamState",
    "leaves",
    "map_leaves",
    "sources_of",
]


@dataclass(frozen=True, slots=True)
class GetForkItem(Expr):
    """First node of a fork's stream: it starts where node ``fork``, a ``Fork`` of the parent, stands.

    Args:
        fork: id of the ``Fork``.
        index: which of its streams.
    """

    fork: int
    index: int


@dataclass(frozen=True, slots=True)
class StreamBegin(Expr):
    """First node of the stream of a function that is called inside the program; it starts empty."""

    function: str


@dataclass(frozen=True, slots=True)
class Join(Expr):
    """Wait for the streams of a fork, in the parent's stream.

    Args:
        fork: id of the ``Fork``.
        mode: "gather_variable" defines every variable that any of the forks set as a list in the parent;
            "concate_and_append" appends the forks' own text in order.
        errors: "raise" or "keep".
    """

    fork: int
    mode: str = "gather_variable"
    errors: str = "raise"


@dataclass(frozen=True, slots=True, eq=False)
class Call(Expr):
    """Host code on values. Calls of a program run one after another, each once all that stands before it has succeeded.

    Args:
        fn: what is called.
        args, kwargs: trees (see ``leaves``) with values at their leaves.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Read(Expr):
    """The body reads a value: it fails here if the value did. It appends nothing."""

    source: Value


@dataclass(frozen=True, slots=True)
class SetVar(Expr):
    """Define a variable of the stream.

    Args:
        name: the variable.
        value: a tree with values at its leaves; often a plain constant.
    """

    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class StreamState:
    """A leaf of ``Graph.returns``: the state of a stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the program.

    Args:
        file: as Python knows it.
        line: from 1.
        text: the line without its indentation; empty if the source is not there.
    """

    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        """``file:line: source``."""
        return f"{self.file}:{self.line}: {self.text}".removesuffix(": ")


class StreamKind(enum.StrEnum):
    """How a stream began."""

    ROOT = "root"
    FORK = "fork"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class GraphStream:
    """A stream.

    Args:
        id: its index in ``Graph.streams``.
        kind: see ``StreamKind``.
        path: fork and call indices from the root, as in the interpreter: seeds are made of it.
        parent: the stream that it was forked from or called in; None for the root.
    """

    id: int
    kind: StreamKind
    path: tuple[int, ...]
    parent: int | None


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node in its place.

    Args:
        id: unique in the graph, and kept through passes; not an index.
        stream: id of its stream.
        op: what it does. Of ``ir``: ConstantText, RawText, Argument, Variable, Image, Gen, Select, RoleBegin, RoleEnd,
            ScopeBegin, ScopeEnd, Fork, CommutativeMark, Prefetch; of this module: GetForkItem, StreamBegin, Join, Call,
            Read, SetVar. A Gen or Select always has a name: the automatic one if ``is_automatic``.
        index: of a Gen or Select, which of its stream's it is, from 0, as in the interpreter: seeds are made of it.
        place: the line of the program that made it, if one did.
        is_automatic: of a Gen or Select, the author gave no name.
        same_as: of a Gen, the id of an earlier one with the same prompt and options, whose result it shares when it is greedy.
        last_use: of a Gen or Select, no later request of this program continues its prompt.
        commit: of a Fork, compute what its streams share before they start.
    """

    id: int
    stream: int
    op: Expr
    index: int = 0
    place: Place | None = None
    is_automatic: bool = False
    same_as: int | None = None
    last_use: bool = False
    commit: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument whose value comes when the graph is run.

    Args:
        name: its name.
        default: used where it is not given; only if ``has_default``.
        has_default: whether there is one.
    """

    name: str
    default: Any = None
    has_default: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """A traced program.

    Args:
        name: of the function.
        parameters: arguments to come, in order.
        static: arguments that are fixed in the graph.
        streams: by id; 0 is the root.
        nodes: in program order.
        returns: what the body returns: a tree with values and ``StreamState`` at its leaves.
    """

    name: str
    parameters: tuple[Parameter, ...]
    static: Mapping[str, Any]
    streams: tuple[GraphStream, ...]
    nodes: tuple[GraphNode, ...]
    returns: Any = None

    def __post_init__(self) -> None:
        """Keep the mapping from changing."""
        object.__setattr__(self, "static", MappingProxyType(dict(self.static)))

    def __str__(self) -> str:
        """A listing, stream by stream."""
        from sgl_core.language.graph_text import to_text  # which walks graphs, so it imports this module

        return to_text(self)

    def node(self, node_id: int) -> GraphNode:
        """The node of that id.

        Raises:
            KeyError: there is none.
        """
        for node in self.nodes:
            if node.id == node_id:
                return node
        raise KeyError(node_id)

    def of_stream(self, stream: int) -> tuple[GraphNode, ...]:
        """The nodes of one stream, in order."""
        return tuple(node for node in self.nodes if node.stream == stream)

    def next_id(self) -> int:
        """An id that no node has."""
        return max((node.id for node in self.nodes), default=-1) + 1


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of lists, tuples and dict values, nested as they may be; anything else is a leaf."""
    if _is_sequence(tree):
        for item in tree:
            yield from leaves(item)
    elif type(tree) is dict:
        for item in tree.values():
            yield from leaves(item)
    else:
        yield tree


def map_leaves(fn: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree with ``fn(leaf)`` in place of every leaf; a named tuple stays one."""
    if _is_sequence(tree):
        items = [map_leaves(fn, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if type(tree) is dict:
        return {key: map_leaves(fn, item) for key, item in tree.items()}
    return fn(tree)


def _is_sequence(tree: Any) -> bool:
    """A list, a tuple or a named tuple; other kinds of them cannot be made again from their items."""
    return type(tree) in (list, tuple) or (isinstance(tree, tuple) and hasattr(tree, "_fields"))


def sources_of(op: Expr) -> tuple[Value, ...]:
    """The values that a node uses: its data edges, in order."""
    match op:
        case Variable(source=source) | Read(source=source):
            return (source,)
        case Call(args=args, kwargs=kwargs):
            found = [*leaves(list(args)), *leaves(dict(kwargs))]
        case SetVar(value=value):
            found = list(leaves(value))
        case _:
            return ()
    return tuple(leaf for leaf in found if isinstance(leaf, Value))
