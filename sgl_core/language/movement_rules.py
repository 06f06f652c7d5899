"""What an order of a prompt's nodes may not do, and the checker that holds every order to it, whoever proposes it.

Called by ``movement``. It looks at a graph and changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from sgl_core.errors import MoveError
from sgl_core.language.graph import Call, GetForkItem, Graph, GraphNode, Join, Read, SetVar, StreamBegin
from sgl_core.language.ir import (
    Argument,
    ConstantText,
    Expr,
    Fork,
    Gen,
    Image,
    RawText,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Variable,
)
from sgl_core.language.proposers import Region

__all__ = ["RULES", "OrderChecker", "check_order", "is_movable", "rule_of"]

RULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "added": "an order holds nodes of the graph, by number or as they are, and nothing else",
        "edited": "a node stays as it is: its text, its argument, its options, its place",
        "doubled": "a node stands once",
        "generation": "nothing crosses a gen or a select: what a model reads before it answers stays what it was",
        "value": "nothing crosses a value: a variable, a call, a join, or where one is read or set",
        "image": "nothing crosses an image",
        "raw": "nothing crosses a raw literal",
        "scope": "nothing goes into or out of a var_scope",
        "fork": "nothing crosses a fork: what the forks share stays what it was",
        "effect": "nothing crosses the bounds of a commutative part, or a prefetch",
        "turn": "nothing goes into or out of a turn, or from one to another",
        "stream": "a node stays in its stream, behind the stream's beginning",
        "dropped": "no node is left out",
    }
)
"""What an order may not do. Where it breaks several, the first of these is named."""

_RULE_OF: Final[Mapping[type[Expr], str]] = {
    Gen: "generation",
    Select: "generation",
    Variable: "value",
    Call: "value",
    Join: "value",
    Read: "value",
    SetVar: "value",
    Image: "image",
    RawText: "raw",
    ScopeBegin: "scope",
    ScopeEnd: "scope",
    Fork: "fork",
    RoleBegin: "turn",
    RoleEnd: "turn",
    StreamBegin: "stream",
    GetForkItem: "stream",
}
_RANK: Final = {rule: rank for rank, rule in enumerate(RULES)}


def check_order(graph: Graph, proposal: Sequence[int] | Sequence[GraphNode], region: Region | None = None) -> None:
    """Accept an order of nodes, or say which rule it breaks.

    Args:
        graph: whose nodes they are.
        proposal: all nodes of one region, or all nodes of one stream, by id or as they are, in their new order.
        region: one of ``regions_of(graph)`` that it is for; None takes the one that its nodes lie in, or else their stream.

    Raises:
        MoveError: names the first of ``RULES`` that is broken, and the node.
    """
    OrderChecker(graph).accepted(proposal, region)


class OrderChecker:
    """Checks orders of the nodes of one graph."""

    def __init__(self, graph: Graph) -> None:
        """Number the places of each stream, and its segments: a region is one, every other node one by itself."""
        self._known = {node.id: node for node in graph.nodes}
        self._streams: dict[int, list[GraphNode]] = {}
        self._places: dict[int, int] = {}
        self._segments: dict[int, int] = {}
        for node in graph.nodes:
            ours = self._streams.setdefault(node.stream, [])
            joins = bool(ours) and is_movable(ours[-1]) and is_movable(node)
            self._segments[node.id] = self._segments[ours[-1].id] if joins else len(ours)
            self._places[node.id] = len(ours)
            ours.append(node)

    def accepted(self, proposal: object, region: Region | None) -> tuple[GraphNode, ...]:
        """The nodes of an order that breaks no rule.

        Raises:
            MoveError: it breaks one.
        """
        nodes = self._known_nodes(proposal)
        _check_once(nodes)
        if not nodes:
            raise MoveError("dropped", "the order names no node")
        stream = nodes[0].stream if region is None else region.stream
        self._check_crossings([node for node in nodes if node.stream == stream], region)
        strange = next((node for node in nodes if node.stream != stream), None)
        if strange is not None:
            raise MoveError("stream", f"%{strange.id} belongs to stream {strange.stream}, not to stream {stream}")
        self._check_complete(nodes, region)
        return nodes

    def _known_nodes(self, proposal: object) -> tuple[GraphNode, ...]:
        if isinstance(proposal, str) or not isinstance(proposal, Sequence):
            raise MoveError("added", f"a {type(proposal).__name__} is no list of nodes")
        nodes = tuple(self._known_node(item) for item in proposal)
        for item, node in zip(proposal, nodes, strict=True):
            if isinstance(item, GraphNode) and item != node:
                raise MoveError("edited", f"%{node.id} is not the node that the graph has")
        return nodes

    def _known_node(self, item: object) -> GraphNode:
        number = item.id if isinstance(item, GraphNode) else item
        if isinstance(number, bool) or not isinstance(number, int):
            raise MoveError("added", f"a {type(number).__name__} is no node and no number of one")
        if number not in self._known:
            raise MoveError("added", f"the graph has no node %{number}")
        return self._known[number]

    def _check_crossings(self, nodes: Sequence[GraphNode], region: Region | None) -> None:
        """Nodes cross something where one of a later segment comes first, or one from elsewhere comes into the region."""
        pairs = [
            (later, earlier)
            for later, earlier in itertools.pairwise(nodes)
            if self._segments[later.id] > self._segments[earlier.id]
        ]
        if region is not None:
            inside = set(region.ids)
            pairs += [(node, region.nodes[0]) for node in nodes if node.id not in inside]
        crossed = [(barrier, *pair) for pair in pairs for barrier in self._barriers(*pair)]
        if crossed:
            raise _crossing(*min(crossed, key=lambda entry: _RANK[rule_of(entry[0])]))

    def _barriers(self, one: GraphNode, other: GraphNode) -> list[GraphNode]:
        """What may not be crossed from the one to the other, themselves included."""
        first, last = sorted((self._places[one.id], self._places[other.id]))
        return [node for node in self._streams[one.stream][first : last + 1] if not is_movable(node)]

    def _check_complete(self, nodes: Sequence[GraphNode], region: Region | None) -> None:
        """All of the region is there if it is one region's order, else all of the stream."""
        expected: Sequence[GraphNode] = self._streams[nodes[0].stream]
        segments = {self._segments[node.id] for node in nodes}
        if region is not None:
            expected = region.nodes
        elif len(segments) == 1 and is_movable(nodes[0]):
            expected = [node for node in expected if self._segments[node.id] in segments]
        given = {node.id for node in nodes}
        missing = next((node for node in expected if node.id not in given), None)
        if missing is not None:
            raise MoveError("dropped", f"%{missing.id} is missing")


def _check_once(nodes: Sequence[GraphNode]) -> None:
    seen: set[int] = set()
    for node in nodes:
        if node.id in seen:
            raise MoveError("doubled", f"%{node.id} stands twice")
        seen.add(node.id)


def _crossing(barrier: GraphNode, one: GraphNode, other: GraphNode) -> MoveError:
    between = f"%{barrier.id} ({type(barrier.op).__name__})"
    if barrier.id in (one.id, other.id):
        rest = other if barrier.id == one.id else one
        return MoveError(rule_of(barrier), f"%{rest.id} and {between} change places")
    return MoveError(rule_of(barrier), f"%{one.id} and %{other.id} have {between} between them")


def rule_of(barrier: GraphNode) -> str:
    """The rule that is broken when something crosses this node."""
    return _RULE_OF.get(type(barrier.op), "effect")


def is_movable(node: GraphNode) -> bool:
    """Whether a node may change places with its like."""
    return isinstance(node.op, ConstantText | Argument)
