"""Dead-stream removal: a stream that nobody wants and that cannot fail goes.

Nobody wants a stream if no node outside uses a value that it makes, the body reads none, none is returned and neither is its
state, its fork is not joined, and no living stream continues it. If it also holds nothing that can fail, generates nothing and
calls nothing, then no run can tell whether it was there, and it goes. A turn can fail, as a template may refuse it, and so can
text that comes from elsewhere. With ``drop_unread`` the author has said that generations whose result nobody wants are not
wanted either, nor their errors; host code and what the body itself reads stay even so.

A fork whose streams are all dead goes with them; where some live, the dead ones keep nothing but their beginning. Paths and
indices of the other streams and generations stay as they were, and so do their seeds.

Gains what the streams would have computed, which only a run can tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

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
    map_leaves,
    sources_of,
)
from sgl_core.language.ir import (
    ArgumentValue,
    CommutativeMark,
    ConstantText,
    Expr,
    Fork,
    Gen,
    JoinedValue,
    NodeValue,
    Prefetch,
    RawText,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
)
from sgl_core.language.passes.base import PassContext, PassReport, line_of

__all__ = ["NAME", "run"]

NAME: Final = "dead streams"

_HARMLESS: Final = (
    GetForkItem,
    StreamBegin,
    ConstantText,
    RawText,
    ScopeBegin,
    ScopeEnd,
    SetVar,
    CommutativeMark,
    Prefetch,
    Fork,
)
_THE_BODY_S_OWN: Final = (Read, Call, Join)
_ROOT: Final = 0


def run(graph: Graph, context: PassContext) -> tuple[Graph, PassReport]:
    """Remove dead streams."""
    streams = _Streams(graph)
    dead = _dead(graph, streams, drop_unread=context.drop_unread)
    pruned, new_ids = _without(graph, streams, dead)
    notes = [
        f"Stream {new_ids[stream]}{line_of(streams.nodes[stream][0])} is read by nobody, but stays: {_why_kept(ops)}."
        for stream in sorted(_unwanted(graph, streams, dead))
        if (ops := [node.op for node in streams.nodes[stream]])
    ]
    changes = len(graph.nodes) - len(pruned.nodes)
    num_requests = sum(isinstance(node.op, Gen | Select) for node in graph.nodes if node.stream in dead)
    if num_requests:
        notes.insert(0, f"Gone, with their errors: {num_requests} requests whose results nobody reads.")
    return (pruned if changes else graph), PassReport(NAME, changes, None if num_requests else 0, tuple(notes))


class _Streams:
    """The streams of a graph: their nodes, and how they hang together."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: dict[int, list[GraphNode]] = {stream.id: [] for stream in graph.streams}
        self.of_node: dict[int, int] = {}
        self.of_fork: dict[int, list[int]] = defaultdict(list)
        self.children: dict[int, list[int]] = defaultdict(list)
        for node in graph.nodes:
            self.nodes[node.stream].append(node)
            self.of_node[node.id] = node.stream
            if isinstance(node.op, GetForkItem):
                self.of_fork[node.op.fork].append(node.stream)
        for stream in graph.streams:
            if stream.parent is not None:
                self.children[stream.parent].append(stream.id)


def _dead(graph: Graph, streams: _Streams, *, drop_unread: bool) -> set[int]:
    """The dead streams. One that goes may have been the only reader of another, so this looks until nothing more dies."""
    dead: set[int] = set()
    while True:
        before = len(dead)
        for stream in _unwanted(graph, streams, dead):
            if all(_may_go(node.op, drop_unread=drop_unread) for node in streams.nodes[stream]):
                dead.add(stream)
        if len(dead) == before:
            return dead


def _unwanted(graph: Graph, streams: _Streams, dead: set[int]) -> set[int]:
    """The living streams that nobody wants and no living stream continues."""
    wanted = {_ROOT}
    for leaf in leaves(graph.returns):
        if isinstance(leaf, StreamState):
            wanted.add(leaf.stream)
        elif isinstance(leaf, NodeValue | JoinedValue):
            wanted.add(streams.of_node[leaf.node])
    for node in graph.nodes:
        if node.stream not in dead:
            wanted.update(_wanted_by(node, streams))
    return {
        stream.id
        for stream in graph.streams
        if stream.id not in dead and stream.id not in wanted and dead.issuperset(streams.children[stream.id])
    }


def _wanted_by(node: GraphNode, streams: _Streams) -> Iterator[int]:
    if isinstance(node.op, Join):
        yield from streams.of_fork[node.op.fork]
    if node.same_as is not None:
        yield streams.of_node[node.same_as]
    for source in sources_of(node.op):
        if isinstance(source, ArgumentValue):
            continue
        stream = streams.of_node[source.node]
        if stream != node.stream or isinstance(node.op, Read):
            yield stream


def _may_go(op: Expr, *, drop_unread: bool) -> bool:
    return not isinstance(op, _THE_BODY_S_OWN) if drop_unread else isinstance(op, _HARMLESS)


def _without(graph: Graph, streams: _Streams, dead: set[int]) -> tuple[Graph, dict[int, int]]:
    """The graph without them, and the new ids of the streams that remain."""
    dead_forks = {fork for fork, children in streams.of_fork.items() if dead.issuperset(children)}
    gone = {child for fork in dead_forks for child in streams.of_fork[fork]}
    gone |= {stream.id for stream in graph.streams if stream.id in dead and stream.kind is StreamKind.CALL}
    kept = [stream for stream in graph.streams if stream.id not in gone]
    new_ids = {stream.id: index for index, stream in enumerate(kept)}

    def renumbered(stream: GraphStream) -> GraphStream:
        return replace(stream, id=new_ids[stream.id], parent=None if stream.parent is None else new_ids[stream.parent])

    def stays(node: GraphNode) -> bool:
        if node.stream in dead:
            return node.stream not in gone and isinstance(node.op, GetForkItem)
        return node.id not in dead_forks

    pruned = replace(
        graph,
        streams=tuple(renumbered(stream) for stream in kept),
        nodes=tuple(replace(node, stream=new_ids[node.stream]) for node in graph.nodes if stays(node)),
        returns=map_leaves(
            lambda leaf: StreamState(new_ids[leaf.stream]) if isinstance(leaf, StreamState) else leaf, graph.returns
        ),
    )
    return pruned, new_ids


def _why_kept(ops: Sequence[Expr]) -> str:
    """What in a stream that nobody wants may not go; the reason that is hardest to do away with."""
    if any(isinstance(op, _THE_BODY_S_OWN) for op in ops):
        return "the program's body reads values or calls host code there"
    if any(isinstance(op, Gen | Select) for op in ops):
        return "it generates, and its errors count; drop_unread=True drops it"
    if any(isinstance(op, RoleBegin | RoleEnd) for op in ops):
        return "a chat template may refuse its turns; drop_unread=True drops it"
    return "what it appends may be refused; drop_unread=True drops it"
