"""Fork commit: what the streams of a fork share is computed once, before they start.

A backend that shares in flight lets the second of two requests wait for the prefix that the first is computing. On any other
each stream of a fork computes the shared text for itself, because all of them ask at once. A fork marked here makes the executor
ask for that text first, and start its streams when it is there. It is marked if two of its streams or more go on to request
something and a few new tokens, or text of unknown length, stand between it and the last request of its history.

It holds because the only difference is when requests are made; a prefetch changes no result, and one that is refused is ignored.
Gains the shared text for each stream but the first, on those backends.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Final

from sgl_core.language.graph import GetForkItem, Graph, GraphNode
from sgl_core.language.ir import Fork
from sgl_core.language.passes.base import PassContext, PassReport, line_of, requested_behind
from sgl_core.language.passes.new_text import NewText, NewTextMeter

__all__ = ["NAME", "run"]

NAME: Final = "fork commit"

_MIN_SHARED_TOKENS: Final = 8
"""Computing fewer again in every stream costs less than the wait for one more request."""


def run(graph: Graph, context: PassContext) -> tuple[Graph, PassReport]:
    """Mark forks."""
    num_requesting = _requesting_streams(graph)
    meter = NewTextMeter(context.codec)
    nodes: list[GraphNode] = []
    notes: list[str] = []
    changes = 0
    for node in graph.nodes:
        new_text = meter.of(node.stream)
        if isinstance(node.op, Fork) and node.op.number > 1:
            streams = num_requesting[node.id]
            commit = streams > 1 and new_text.may_reach(_MIN_SHARED_TOKENS)
            notes.append(_note(node, streams, _size(new_text, context), commit=commit))
            changes += commit != node.commit
            node = replace(node, commit=commit)
            if commit:
                meter.settle(node.stream)
        meter.feed(node)
        nodes.append(node)
    gained = None if any(node.commit for node in nodes) else 0
    return (replace(graph, nodes=tuple(nodes)) if changes else graph), PassReport(NAME, changes, gained, tuple(notes))


def _requesting_streams(graph: Graph) -> Counter[int]:
    """How many streams of each fork go on to request something."""
    behind = requested_behind(graph)
    return Counter(node.op.fork for node in graph.nodes if isinstance(node.op, GetForkItem) and node.id in behind)


def _size(new_text: NewText, context: PassContext) -> str:
    about = "about " if context.codec is None else ""
    return f"{'at least ' if new_text.is_open else ''}{about}{new_text.tokens}"


def _note(node: GraphNode, streams: int, size: str, *, commit: bool) -> str:
    fork = f"%{node.id}{line_of(node)}"
    if commit:
        return f"{fork} computes {size} tokens once for {streams} streams, on backends that do not share in flight."
    if streams < 2:
        return f"{fork} stays: fewer than two of its streams request anything."
    return f"{fork} stays: {size} new tokens are too few for a request of their own."
