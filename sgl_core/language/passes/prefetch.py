"""Prefetch: while a stream waits for a value from elsewhere, the text before it is computed already.

A ``Prefetch`` node goes right before the node that has to wait: text whose value is made in another stream or by host code, or
a join that appends its forks' text. Streams run ahead of the program's body, so this one gets there at once, and all the text
that can be known by then stands before it. It goes in only where the wait is a new one (a value is there if something later
from the same stream has been waited for, or if the fork began behind it), where text has been appended since the last request,
and where a request follows that needs it; the constant beginning of a called function, before the first value that its caller
has yet to make, is the common case.

It holds because a prefetch appends nothing, fails nothing, and nobody waits for it. What it gains is time, which only a run can
tell: the backend computes the text while it has nothing better to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from sgl_core.language.graph import Call, GetForkItem, Graph, GraphNode, Join
from sgl_core.language.ir import ArgumentValue, Expr, Fork, Prefetch, Variable
from sgl_core.language.passes.base import PassContext, PassReport, line_of, requested_behind
from sgl_core.language.passes.new_text import NewTextMeter

__all__ = ["NAME", "run"]

NAME: Final = "prefetch"

_HOST_CODE: Final = -1
"""Stands for a stream: calls run one after another. Joins are below it."""


def run(graph: Graph, context: PassContext) -> tuple[Graph, PassReport]:
    """Insert ``Prefetch`` nodes."""
    behind = requested_behind(graph)
    waits = _Waits(graph)
    meter = NewTextMeter(context.codec)
    next_id = graph.next_id()
    nodes: list[GraphNode] = []
    notes: list[str] = []
    for node in graph.nodes:
        if waits.is_new(node) and node.id in behind and not meter.of(node.stream).is_empty:
            if context.codec is None or meter.of(node.stream).may_reach(context.min_prefetch_tokens):
                nodes.append(GraphNode(next_id, node.stream, Prefetch(context.min_prefetch_tokens), place=node.place))
                meter.settle(node.stream)
                next_id += 1
            else:
                tokens = meter.of(node.stream).tokens
                notes.append(f"%{node.id}{line_of(node)} waits behind {tokens} new tokens: too few for a prefetch.")
        meter.feed(node)
        if isinstance(node.op, Prefetch):
            meter.settle(node.stream)
        waits.pass_by(node)
        nodes.append(node)
    changes = len(nodes) - len(graph.nodes)
    prefetched = replace(graph, nodes=tuple(nodes)) if changes else graph
    return prefetched, PassReport(NAME, changes, None if changes else 0, tuple(notes))


class _Waits:
    """Which values a stream has certainly got: for each stream, how far it has seen every other one."""

    def __init__(self, graph: Graph) -> None:
        self._origin_of: dict[int, int] = {}
        self._order: dict[int, int] = {}
        self._streams_of_fork: dict[int, list[int]] = {}
        for order, node in enumerate(graph.nodes):
            self._order[node.id] = order
            self._origin_of[node.id] = _origin(node)
            if isinstance(node.op, GetForkItem):
                self._streams_of_fork.setdefault(node.op.fork, []).append(node.stream)
        self._seen: dict[int, dict[int, int]] = {stream.id: {} for stream in graph.streams}
        self._at_fork: dict[int, Mapping[int, int]] = {}

    def is_new(self, node: GraphNode) -> bool:
        """Whether a node may have to wait for something that its stream has not got yet."""
        if isinstance(node.op, Join):
            return node.op.mode == "concate_and_append"
        if (made_by := _made_by(node.op)) is None:
            return False
        origin = self._origin_of[made_by]
        return origin != node.stream and self._seen[node.stream].get(origin, -1) < self._order[made_by]

    def pass_by(self, node: GraphNode) -> None:
        """The stream has what the node waited for."""
        seen = self._seen[node.stream]
        match node.op:
            case Fork():
                self._at_fork[node.id] = {**seen, node.stream: self._order[node.id]}
            case GetForkItem(fork=fork):
                seen.update(self._at_fork[fork])
            case Join(fork=fork, mode="concate_and_append"):
                seen.update(dict.fromkeys(self._streams_of_fork[fork], self._order[node.id]))
            case op if (made_by := _made_by(op)) is not None:
                origin = self._origin_of[made_by]
                seen[origin] = max(seen.get(origin, -1), self._order[made_by])


def _origin(node: GraphNode) -> int:
    """Where the value of a node comes from: a stream, host code, or a join, which waits for other streams than its own."""
    if isinstance(node.op, Call):
        return _HOST_CODE
    return _HOST_CODE - 1 - node.id if isinstance(node.op, Join) else node.stream


def _made_by(op: Expr) -> int | None:
    """The node whose value another node appends, if it is the value of a node."""
    if isinstance(op, Variable) and not isinstance(op.source, ArgumentValue):
        return op.source.node
    return None
