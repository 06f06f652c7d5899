"""The rules of graphs, and a check that a graph keeps them all.

Called after every pass, before a graph is drawn, and on every graph that was read from a file: whoever runs a graph may rely on
them. The check walks the nodes once, in program order, as the program's body would go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from sgl_core.errors import GraphError
from sgl_core.language.choices import CHOICE_METHODS
from sgl_core.language.graph import (
    Call,
    GetForkItem,
    Graph,
    GraphNode,
    GraphStream,
    Join,
    Read,
    SetVar,
    StreamBegin,
    StreamKind,
    StreamState,
    leaves,
    sources_of,
)
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    CommutativeMark,
    ConstantText,
    Expr,
    Fork,
    Gen,
    Image,
    JoinedValue,
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
from sgl_core.language.readable import one_line, shortened
from sgl_core.language.reasoning import reasoning_name

__all__ = ["RULES", "verify"]

RULES: Final = (
    "ids",  # node ids are unique and not negative; stream ids are indices
    "streams",  # root first, parents before children, paths unique and one index longer than the parent's
    "begin",  # a stream begins as its kind says, and with nothing else: the root with any node, the others with theirs
    "nodes",  # only nodes of known kinds, each with fields that it can be run with
    "annotations",  # index, names, same_as, last_use and commit stand where they mean something
    "forks",  # every Fork has each of its streams once, in order, begun behind it
    "joins",  # a fork is joined once at most, in the stream that it was made in; nothing is added to its streams behind that
    "values",  # a value comes from an earlier node that makes it, or from a parameter
    "arguments",  # names of parameters and static arguments are unique
    "turns",  # turns do not nest, and only the open one is closed; a fork inherits it
    "scopes",  # what a stream captures it ends
    "commutative",  # commutative parts begin and end in one stream, and do not nest
)

_OPS: Final = (
    ConstantText,
    RawText,
    Argument,
    Variable,
    Image,
    Gen,
    Select,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Fork,
    CommutativeMark,
    Prefetch,
    GetForkItem,
    StreamBegin,
    Join,
    Call,
    Read,
    SetVar,
)
_SILENT: Final = (Read, Call)  # they add nothing to their stream, so it may be joined


def verify(graph: Graph) -> None:
    """Check that a graph keeps every rule.

    Args:
        graph: it is not changed.

    Raises:
        GraphError: for the first rule that is broken; names the rule, the node and its line.
    """
    _check_arguments(graph)
    _check_streams(graph)
    _Walk(graph).run()


def _check_arguments(graph: Graph) -> None:
    names = [parameter.name for parameter in graph.parameters]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise _broken("arguments", f"parameter {name!r} stands there twice")
        if name in graph.static:
            raise _broken("arguments", f"{name!r} is a parameter and static, too")


def _check_streams(graph: Graph) -> None:
    paths: set[tuple[int, ...]] = set()
    for index, stream in enumerate(graph.streams):
        at = f"stream {index}"
        if stream.id != index:
            raise _broken("ids", f"{at} has id {stream.id}; the id of a stream is its index")
        if (index == 0) != (stream.kind is StreamKind.ROOT):
            raise _broken("streams", f"{at} is of kind {stream.kind}; the first one is the root, and no other")
        if stream.path in paths:
            raise _broken("streams", f"{at} has the path of another one")
        paths.add(stream.path)
        if index == 0:
            if stream.parent is not None or stream.path:
                raise _broken("streams", f"{at} is the root; it has no parent and an empty path")
            continue
        if stream.parent is None or not 0 <= stream.parent < index:
            raise _broken("streams", f"{at} needs a parent that stands before it")
        if stream.path[:-1] != graph.streams[stream.parent].path or not stream.path:
            raise _broken("streams", f"the path of {at} is not its parent's and one index")
    if not graph.streams:
        raise _broken("streams", "there is no stream")


@dataclass(slots=True)
class _Stream:
    """What is known of a stream where the walk stands."""

    info: GraphStream
    has_begun: bool = False
    is_joined: bool = False
    turn: str | None = None
    is_turn_known: bool = True
    scopes: list[str] = field(default_factory=list)
    is_commutative: bool = False
    last_index: int = -1
    defined: set[str] = field(default_factory=set)  # variables that a join of this stream gathers


@dataclass(slots=True)
class _Fork:
    """A ``Fork`` where the walk stands."""

    node: GraphNode
    turn: str | None
    is_turn_known: bool
    children: list[int] = field(default_factory=list)
    is_joined: bool = False


class _Walk:
    """One walk over the nodes."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._parameters = {parameter.name for parameter in graph.parameters}
        self._streams = [_Stream(stream) for stream in graph.streams]
        self._nodes: dict[int, GraphNode] = {}
        self._forks: dict[int, _Fork] = {}

    def run(self) -> None:
        """Walk, then look at what is still open."""
        self._streams[0].has_begun = True
        for node in self._graph.nodes:
            self._check(node)
        for fork in self._forks.values():
            if len(fork.children) != _number_of(fork):
                raise _broken("forks", f"{len(fork.children)} streams begin at a fork of {_number_of(fork)}", fork.node)
        for stream in self._streams:
            at = f"stream {stream.info.id}"
            if not stream.has_begun:
                raise _broken("begin", f"{at} has no node")
            if stream.scopes:
                raise _broken("scopes", f"{at} ends inside the capture of {stream.scopes[-1]!r}")
            if stream.is_commutative:
                raise _broken("commutative", f"{at} ends inside commutative parts")
        self._check_returns()

    def _check(self, node: GraphNode) -> None:
        if isinstance(node.id, bool) or not isinstance(node.id, int) or node.id < 0 or node.id in self._nodes:
            raise _broken("ids", "its id is used twice, or is none", node)
        if not 0 <= node.stream < len(self._streams):
            raise _broken("streams", f"there is no stream {node.stream}", node)
        stream = self._streams[node.stream]
        self._check_begin(node, stream)
        _check_fields(node)
        self._check_annotations(node, stream)
        for value in sources_of(node.op):
            self._check_value(value, node)
        self._check_place(node, stream)
        self._nodes[node.id] = node

    # ---- how a stream begins -----------------------------------------------------------------------------------------
    def _check_begin(self, node: GraphNode, stream: _Stream) -> None:
        begins = isinstance(node.op, GetForkItem | StreamBegin)
        if begins and stream.has_begun:
            raise _broken("begin", f"stream {node.stream} has begun already", node)
        if stream.has_begun:
            return
        wanted = GetForkItem if stream.info.kind is StreamKind.FORK else StreamBegin
        if not isinstance(node.op, wanted):
            raise _broken("begin", f"stream {node.stream} is a {stream.info.kind} and begins with {wanted.__name__}", node)
        stream.has_begun = True
        if isinstance(node.op, GetForkItem):
            self._begin_fork(node, node.op, stream)
        elif not self._parent(stream).has_begun:
            raise _broken("begin", "its parent has not begun", node)

    def _begin_fork(self, node: GraphNode, item: GetForkItem, stream: _Stream) -> None:
        fork = self._forks.get(item.fork)
        if fork is None or fork.node.stream != stream.info.parent:
            raise _broken("forks", f"%{item.fork} is no earlier Fork of its parent, stream {stream.info.parent}", node)
        if item.index != len(fork.children) or item.index >= _number_of(fork):
            raise _broken("forks", f"index {item.index} of %{item.fork} is out of order, doubled or too large", node)
        if fork.children and self._streams[fork.children[-1]].info.path > stream.info.path:
            raise _broken("forks", f"its path stands before that of the stream with index {item.index - 1}", node)
        fork.children.append(stream.info.id)
        stream.turn, stream.is_turn_known = fork.turn, fork.is_turn_known

    def _parent(self, stream: _Stream) -> _Stream:
        return self._streams[stream.info.parent or 0]

    # ---- values ------------------------------------------------------------------------------------------------------
    def _check_value(self, value: Value, node: GraphNode | None) -> None:
        if isinstance(value, ArgumentValue):
            if value.name not in self._parameters:
                raise _broken("values", f"{value.name!r} is no parameter", node)
            return
        maker = self._nodes.get(value.node)
        if maker is None:
            raise _broken("values", f"no earlier node is %{value.node}", node)
        if isinstance(value, JoinedValue):
            self._check_joined(value, maker, node)
        elif value.name not in _made_by(maker.op):
            what = f"variable {value.name!r}" if value.name else "a value without a name"
            raise _broken("values", f"%{value.node} does not make {what}", node)

    def _check_joined(self, value: JoinedValue, maker: GraphNode, node: GraphNode | None) -> None:
        if not isinstance(maker.op, Join) or maker.op.mode != "gather_variable" or maker.op.errors != "keep":
            raise _broken("values", f'%{value.node} is no gathering Join with errors="keep"', node)
        children = self._forks[maker.op.fork].children
        if not 0 <= value.index < len(children):
            raise _broken("values", f"%{value.node} joins {len(children)} streams; there is no index {value.index}", node)
        if not any(value.name in self._streams[child].defined for child in children):
            raise _broken("values", f"no stream that %{value.node} joins sets variable {value.name!r}", node)

    def _check_returns(self) -> None:
        for leaf in leaves(self._graph.returns):
            if isinstance(leaf, Value):
                self._check_value(leaf, None)
            elif isinstance(leaf, StreamState) and not 0 <= leaf.stream < len(self._streams):
                raise _broken("values", f"what is returned names stream {leaf.stream}, which is not there")

    # ---- annotations -------------------------------------------------------------------------------------------------
    def _check_annotations(self, node: GraphNode, stream: _Stream) -> None:
        op = node.op
        is_request = isinstance(op, Gen | Select)
        if is_request:
            if node.index <= stream.last_index:
                raise _broken("annotations", f"index {node.index} does not come behind {stream.last_index}", node)
            stream.last_index = node.index
        elif node.index or node.is_automatic or node.last_use:
            raise _broken("annotations", "index, is_automatic and last_use are for a Gen or Select", node)
        if node.commit and not isinstance(op, Fork):
            raise _broken("annotations", "commit is for a Fork", node)
        if node.same_as is None:
            return
        other = self._nodes.get(node.same_as)
        if not isinstance(op, Gen) or other is None or not isinstance(other.op, Gen):
            raise _broken("annotations", f"same_as is for a Gen and names an earlier one, not %{node.same_as}", node)
        if replace(other.op, name=op.name) != op:
            raise _broken("annotations", f"it differs from %{node.same_as} in more than its name", node)

    # ---- what it does where it stands --------------------------------------------------------------------------------
    def _check_place(self, node: GraphNode, stream: _Stream) -> None:
        if stream.is_joined and not self._may_follow_join(node.op):
            raise _broken("joins", f"stream {node.stream} has been joined; nothing can be added to it", node)
        match node.op:
            case RoleBegin() | RoleEnd():
                _take_turn(node, stream)
            case ScopeBegin(name=name):
                stream.scopes.append(name)
            case ScopeEnd(name=name):
                _end_scope(node, stream, name)
            case CommutativeMark(place=place):
                if (place == "begin") == stream.is_commutative:
                    raise _broken(
                        "commutative", f"a {place!r} mark {'inside' if place == 'begin' else 'outside'} of parts", node
                    )
                stream.is_commutative = place != "end"
            case Argument(name=name) if name not in self._parameters:
                raise _broken("values", f"{name!r} is no parameter", node)
            case Fork():
                self._forks[node.id] = _Fork(node, stream.turn, stream.is_turn_known)
            case Join() as join:
                self._join(node, join, stream)
        if not node.is_automatic:
            stream.defined.update(_names_set_by(node.op))

    def _may_follow_join(self, op: Expr) -> bool:
        if isinstance(op, Join) and op.mode == "gather_variable" and op.fork in self._forks:
            return not any(self._streams[child].defined for child in self._forks[op.fork].children)
        return isinstance(op, _SILENT)

    def _join(self, node: GraphNode, join: Join, stream: _Stream) -> None:
        fork = self._forks.get(join.fork)
        if fork is None or fork.node.stream != node.stream:
            raise _broken("joins", f"%{join.fork} is no earlier Fork of its stream", node)
        if fork.is_joined:
            raise _broken("joins", f"%{join.fork} has been joined before", node)
        if len(fork.children) != _number_of(fork):
            raise _broken("joins", f"a stream of %{join.fork} begins behind it", node)
        fork.is_joined = True
        children = [self._streams[child] for child in fork.children]
        for child in children:
            child.is_joined = True
            if join.mode == "gather_variable":
                stream.defined |= child.defined
            elif child.turn != fork.turn or not child.is_turn_known:
                stream.is_turn_known = False  # which turns it appends depends on which forks succeed


def _number_of(fork: _Fork) -> int:
    return fork.node.op.number if isinstance(fork.node.op, Fork) else 0


def _made_by(op: Expr) -> tuple[str, ...]:
    """Names under which the node's values are known; the empty one is that of a ``Call``.

    Not those of ``SetVar``: reading its variable gives the value that it holds.
    """
    match op:
        case Gen(name=str() as name, reasoning=reasoning):
            return (name,) if reasoning is None else (name, reasoning_name(name))
        case Select(name=str() as name) | ScopeEnd(name=name):
            return (name,)
        case Call():
            return ("",)
        case _:
            return ()


def _names_set_by(op: Expr) -> tuple[str, ...]:
    """Variables that the stream has from this node on, apart from what a ``Join`` gathers."""
    if isinstance(op, Call):
        return ()
    return (op.name,) if isinstance(op, SetVar) else _made_by(op)


def _take_turn(node: GraphNode, stream: _Stream) -> None:
    opened = isinstance(node.op, RoleBegin)
    role = node.op.role if isinstance(node.op, RoleBegin | RoleEnd) else None
    if stream.is_turn_known and opened and stream.turn is not None:
        raise _broken("turns", f"a {role!r} turn is opened inside a {stream.turn!r} turn", node)
    if stream.is_turn_known and not opened and stream.turn != role:
        raise _broken("turns", f"a {role!r} turn is closed, but {_open(stream.turn)}", node)
    stream.turn, stream.is_turn_known = (role if opened else None), True


def _open(turn: str | None) -> str:
    return "no turn is open" if turn is None else f"the open turn is {turn!r}"


def _end_scope(node: GraphNode, stream: _Stream, name: str) -> None:
    if name not in stream.scopes:
        raise _broken("scopes", f"a capture of {name!r} is ended that its stream has not begun", node)
    for index in reversed(range(len(stream.scopes))):
        if stream.scopes[index] == name:
            del stream.scopes[index]
            return


def _check_fields(node: GraphNode) -> None:
    for trouble in _troubles(node.op):
        raise _broken("nodes", trouble, node)


def _troubles(op: Expr) -> Iterator[str]:
    """What keeps a node from being run, whatever stands around it."""
    match op:
        case Gen(name=name) | Select(name=name) if not isinstance(name, str) or not name:
            yield "a Gen or Select of a graph has a name, be it an automatic one"
        case Select(choices=choices) if not choices or not all(choices):
            yield "a Select needs choices, none of them empty"
        case Select(choices_method=method) if method not in CHOICE_METHODS:
            yield f"there is no choices_method {method!r}"
        case Fork(number=number) if number < 1:
            yield f"a Fork starts at least one stream, not {number}"
        case Join(mode=mode) if mode not in ("gather_variable", "concate_and_append"):
            yield f"there is no mode {mode!r}"
        case Join(errors=errors) if errors not in ("raise", "keep"):
            yield f"errors is 'raise' or 'keep', not {errors!r}"
        case CommutativeMark(place=place) if place not in ("begin", "next", "end"):
            yield f"a mark is 'begin', 'next' or 'end', not {place!r}"
        case Call(fn=fn) if not callable(fn):
            yield "a Call needs something to call"
        case _ if not isinstance(op, _OPS):
            yield f"a graph has no node of kind {type(op).__name__}"


def _broken(rule: str, what: str, node: GraphNode | None = None) -> GraphError:
    if node is None:
        return GraphError(f"{rule}: {what}")
    line = f" ({shortened(one_line(str(node.place)), 160)})" if node.place is not None else ""
    return GraphError(f"{rule}: %{node.id} = {type(node.op).__name__}: {what}{line}")
