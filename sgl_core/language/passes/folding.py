"""Constant folding: neighbouring constant text becomes one node, empty text goes, and so do reads that say nothing new.

Texts. Two constants of one stream become one node, in the place of the first, if nothing of that stream stands between them
and nothing of any other stream at which the program's body can fail. It holds because a stream encodes all open text as one
string, and because whatever makes the body stop before the second then stops it before the first as well.

Reads. A ``Read`` is where the body fails if a value did. It goes if the value cannot have failed by then: it was read or handed
to a call before, a call or a join made it, it was made in a fork whose join has raised nothing, or it is an argument. It also
goes if the next node of the program is a call with that value and no other: nothing lies between that could fail first or run
in vain, and the call fails with the same error.

Gains no tokens; the nodes that remain say what the program does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from sgl_core.language.graph import Call, GetForkItem, Graph, GraphNode, Join, Read, sources_of
from sgl_core.language.ir import ArgumentValue, ConstantText, JoinedValue, NodeValue, Value
from sgl_core.language.passes.base import PassContext, PassReport, is_checkpoint

__all__ = ["NAME", "run"]

NAME: Final = "folding"


def run(graph: Graph, context: PassContext) -> tuple[Graph, PassReport]:  # noqa: ARG001 - passes are called alike
    """Fold."""
    nodes = _without_superfluous_reads(graph)
    num_reads = len(graph.nodes) - len(nodes)
    folded = _folded(nodes)
    num_texts = len(nodes) - len(folded)
    notes = []
    if num_texts:
        notes.append(f"{num_texts} pieces of constant text joined their neighbours or were empty.")
    if num_reads:
        notes.append(f"{num_reads} reads of values that cannot have failed there are gone.")
    changes = num_texts + num_reads
    return (replace(graph, nodes=folded) if changes else graph), PassReport(NAME, changes, 0, tuple(notes))


@dataclass(slots=True)
class _Run:
    """Constant text that may still grow."""

    first: GraphNode
    texts: list[str]

    def node(self) -> GraphNode:
        if len(self.texts) == 1:
            return self.first
        return replace(self.first, op=ConstantText("".join(self.texts)))


def _folded(nodes: tuple[GraphNode, ...]) -> tuple[GraphNode, ...]:
    kept: list[GraphNode | _Run] = []
    open_runs: dict[int, _Run] = {}
    for node in nodes:
        if isinstance(node.op, ConstantText):
            text = node.op.text
            if not text:
                continue
            if node.stream in open_runs:
                open_runs[node.stream].texts.append(text)
                continue
            open_runs[node.stream] = _Run(node, [text])
            kept.append(open_runs[node.stream])
            continue
        if is_checkpoint(node.op):
            open_runs.clear()
        else:
            open_runs.pop(node.stream, None)
        kept.append(node)
    return tuple(item.node() if isinstance(item, _Run) else item for item in kept)


def _without_superfluous_reads(graph: Graph) -> tuple[GraphNode, ...]:
    succeeded = _Succeeded(graph)
    needed: list[GraphNode] = []
    for node in graph.nodes:
        if not (isinstance(node.op, Read) and node.op.source in succeeded):
            needed.append(node)
        succeeded.pass_by(node)
    kept: list[GraphNode] = []
    for node in reversed(needed):
        behind = kept[-1].op if kept else None
        if isinstance(node.op, Read) and isinstance(behind, Call) and set(sources_of(behind)) == {node.op.source}:
            continue
        kept.append(node)
    kept.reverse()
    return tuple(kept)


class _Succeeded:
    """The values that cannot have failed if the body gets past the nodes so far."""

    def __init__(self, graph: Graph) -> None:
        self._streams_of_fork: dict[int, list[int]] = {}
        self._stream_of: dict[int, int] = {}
        for node in graph.nodes:
            self._stream_of[node.id] = node.stream
            if isinstance(node.op, GetForkItem):
                self._streams_of_fork.setdefault(node.op.fork, []).append(node.stream)
        self._values: set[Value] = set()
        self._passed: set[int] = set()  # calls and joins: the body gets past them only if they succeed
        self._joined: set[int] = set()  # streams that none of their nodes has failed

    def __contains__(self, value: Value) -> bool:
        match value:
            case ArgumentValue() | JoinedValue():
                return True
            case NodeValue(node=node):
                return value in self._values or node in self._passed or self._stream_of[node] in self._joined

    def pass_by(self, node: GraphNode) -> None:
        match node.op:
            case Read(source=source):
                self._values.add(source)
            case Call():
                self._passed.add(node.id)
                self._values.update(sources_of(node.op))
            case Join(fork=fork, errors=errors):
                self._passed.add(node.id)
                if errors == "raise":
                    self._joined.update(self._streams_of_fork[fork])
