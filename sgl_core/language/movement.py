"""Code movement: text that is always the same goes before what differs, so that runs share a longer beginning.

It changes the prompt, so nothing moves unless the author asks: ``f.compile(move="safe")`` permutes only parts that the author
declared commutative, ``move="aggressive"`` also the text and arguments of any one region, in an order that a proposer
suggests. Whoever proposes, the checker of ``movement_rules`` decides.

Called by the compiler before the passes, so that the author's parts are still apart and no node says "same as". Owns nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from sgl_core.backend import TextCodec
from sgl_core.errors import InvalidArgumentError, MoveError
from sgl_core.language.graph import GetForkItem, Graph, GraphNode, Join
from sgl_core.language.ir import (
    Argument,
    CommutativeMark,
    ConstantText,
    Expr,
    Fork,
    Gen,
    Image,
    RawText,
    RoleBegin,
    RoleEnd,
    Select,
    Variable,
)
from sgl_core.language.movement_report import KeptRegion, MovedRegion, MoveReport
from sgl_core.language.movement_rules import RULES, OrderChecker, check_order, is_movable, rule_of
from sgl_core.language.passes.prefixes import constant_prefixes
from sgl_core.language.proposers import HeuristicProposer, Proposer, Region

__all__ = ["RULES", "check_move", "check_order", "move", "regions_of"]


def check_move(how: object, proposer: object) -> None:
    """Refuse what ``compile`` cannot do.

    Raises:
        InvalidArgumentError: ``how`` is no kind of movement, or does not ask the proposer.
    """
    if how not in (None, "safe", "aggressive"):
        raise InvalidArgumentError("move", how, '"safe", "aggressive" or None')
    if proposer is not None and how != "aggressive":
        cure = 'Only move="aggressive" asks a proposer.'
        raise InvalidArgumentError("proposer", type(proposer).__name__, f"None with move={how!r}", cure)


def move(
    graph: Graph,
    how: Literal["safe", "aggressive"] = "safe",
    *,
    proposer: Proposer | None = None,
    codec: TextCodec | None = None,
) -> tuple[Graph, MoveReport]:
    """Move what may move and is a gain.

    Args:
        graph: as traced; it stays as it is.
        how: "safe": inside commutative groups only, whole parts, those without arguments first. "aggressive": the same, and
            then text and arguments of every region, in the order that ``proposer`` suggests.
        proposer: None is ``HeuristicProposer()``. Only for "aggressive".
        codec: measures gains in tokens.

    Returns:
        The graph with its nodes in their new order, and what was done.
    """
    moving = _Moving(graph, codec)
    moving.permute_groups()
    if how == "aggressive":
        moving.permute_regions(proposer or HeuristicProposer())
    return moving.graph, MoveReport(how, tuple(moving.moved), tuple(moving.kept))


def regions_of(graph: Graph) -> tuple[Region, ...]:
    """Every region of ``graph``, by its first node in program order."""
    found: list[tuple[list[GraphNode], str]] = []
    open_runs: dict[int, list[GraphNode]] = {}
    for node, behind in _starts(graph):
        if not is_movable(node):
            open_runs.pop(node.stream, None)
        elif node.stream in open_runs:
            open_runs[node.stream].append(node)
        else:
            open_runs[node.stream] = [node]
            found.append((open_runs[node.stream], behind))
    return tuple(Region(run[0].stream, tuple(run), behind) for run, behind in found)


# ---- where things stand ----------------------------------------------------------------------------------------------


def _starts(graph: Graph) -> Iterator[tuple[GraphNode, str]]:
    """Every node, in program order, with the first thing before it that differs from run to run; empty if there is none.

    Before it is in its stream and, for a fork, in the streams that it was forked from.
    """
    streams: dict[int, str] = {}
    forks: dict[int, str] = {}
    for node in graph.nodes:
        behind = streams.get(node.stream, "")
        if isinstance(node.op, GetForkItem):
            behind = forks.get(node.op.fork, "")
        elif isinstance(node.op, Fork):
            forks[node.id] = behind
        yield node, behind
        streams[node.stream] = behind or _what_differs(node.op)


def _what_differs(op: Expr) -> str:
    match op:
        case Argument(name=name):
            return f"argument {name!r}"
        case Gen(name=name) | Select(name=name):
            return f"the output {name!r}"
        case Variable():
            return "a value"
        case Join(mode="concate_and_append"):
            return "the text of forks"
        case Image():
            return "an image"
    return ""


def _leading(nodes: Sequence[GraphNode]) -> str:
    """The text before the first node whose text differs from run to run."""
    constant = itertools.takewhile(lambda node: not _what_differs(node.op), nodes)
    return "".join(node.op.text for node in constant if isinstance(node.op, ConstantText | RawText))


# ---- moving ----------------------------------------------------------------------------------------------------------


class _Moving:
    """A graph on its way to another order, and what was done to it."""

    def __init__(self, graph: Graph, codec: TextCodec | None) -> None:
        """Start with the order that it has."""
        self.graph = graph
        self.moved: list[MovedRegion] = []
        self.kept: list[KeptRegion] = []
        self._codec = codec

    def permute_groups(self) -> None:
        """Inside every commutative group, parts without arguments first."""
        taken = []
        for group, behind in _groups(self.graph):
            reason = _why_it_stays(group)
            if reason:
                self._keep(group, reason)
            else:
                taken.append((group, _constant_parts_first(group), behind))
        self._reorder(taken)

    def permute_regions(self, proposer: Proposer) -> None:
        """Inside every region in which something stands behind an argument, what ``proposer`` suggests."""
        checker = OrderChecker(self.graph)
        taken = []
        for region in regions_of(self.graph):
            if not any(isinstance(node.op, Argument) for node in region.nodes[:-1]):
                continue
            try:
                after = checker.accepted(proposer.propose(region), region)
            except MoveError as refusal:
                self._keep(region.nodes, str(refusal), refusal.rule)
                continue
            if len(_leading(after)) < len(_leading(region.nodes)):
                self._keep(region.nodes, "the order is legal, but the constant beginning would get shorter")
            else:
                taken.append((region.nodes, after, region.behind))
        self._reorder(taken)

    def _keep(self, nodes: Sequence[GraphNode], reason: str, rule: str = "") -> None:
        self.kept.append(KeptRegion(nodes[0].stream, tuple(node.id for node in nodes), reason, rule))

    def _reorder(self, taken: Sequence[tuple[tuple[GraphNode, ...], tuple[GraphNode, ...], str]]) -> None:
        """Put nodes into their new places; those of other streams between them stay where they are."""
        changed = [entry for entry in taken if entry[0] != entry[1]]
        places = {old.id: new for before, after, _ in changed for old, new in zip(before, after, strict=True)}
        old_graph = self.graph
        self.graph = replace(old_graph, nodes=tuple(places.get(node.id, node) for node in old_graph.nodes))
        # What is known of a stream ends in its first region with an argument: one moved region of it at most is not behind.
        sizes_before, sizes_after = self._constant_sizes(old_graph), self._constant_sizes(self.graph)
        for before, after, behind in changed:
            stream = before[0].stream
            if behind:
                sizes = self._stable_len(_leading(before)), self._stable_len(_leading(after))
            else:
                sizes = sizes_before.get(stream), sizes_after.get(stream)
            self.moved.append(MovedRegion(stream, before, after, *sizes, behind))

    def _constant_sizes(self, graph: Graph) -> dict[int, int]:
        """Of each stream the tokens that it begins with whatever the arguments."""
        if self._codec is None:
            return {}
        least = len(self._codec.begin())  # where the first thing differs, prompts still begin alike
        return {stream: max(least, len(ids)) for stream, ids in constant_prefixes(graph, self._codec).items()}

    def _stable_len(self, text: str) -> int | None:
        return None if self._codec is None else self._codec.stable_len(text)


# ---- commutative groups ----------------------------------------------------------------------------------------------


def _groups(graph: Graph) -> list[tuple[tuple[GraphNode, ...], str]]:
    """Every commutative group from its first mark to its last, and what before it differs from run to run."""
    found: list[tuple[tuple[GraphNode, ...], str]] = []
    open_groups: dict[int, tuple[list[GraphNode], str]] = {}
    for node, behind in _starts(graph):
        if node.op == CommutativeMark("begin"):
            open_groups[node.stream] = ([], behind)
        if node.stream in open_groups:
            nodes, before = open_groups[node.stream]
            nodes.append(node)
            if node.op == CommutativeMark("end"):
                found.append((tuple(nodes), before))
                del open_groups[node.stream]
    return found


def _parts(group: Sequence[GraphNode]) -> list[list[GraphNode]]:
    """The parts between the marks."""
    parts: list[list[GraphNode]] = []
    for node in group[:-1]:
        if isinstance(node.op, CommutativeMark):
            parts.append([])
        else:
            parts[-1].append(node)
    return parts


def _constant_parts_first(group: tuple[GraphNode, ...]) -> tuple[GraphNode, ...]:
    marks = [node for node in group if isinstance(node.op, CommutativeMark)]
    parts = sorted(_parts(group), key=lambda part: any(isinstance(node.op, Argument) for node in part))
    ordered: list[GraphNode] = []
    for mark, part in zip(marks, parts, strict=False):
        ordered += [mark, *part]
    return (*ordered, marks[-1])


def _why_it_stays(group: Sequence[GraphNode]) -> str:
    """Why the parts of a group cannot change places; empty if they can."""
    for number, part in enumerate(_parts(group), 1):
        for node in part:
            if not isinstance(node.op, ConstantText | Argument | RawText | Image | RoleBegin | RoleEnd):
                return (
                    f"part {number} of the commutative group is not text alone: {RULES[rule_of(node)]} "
                    f"(%{node.id}, {type(node.op).__name__})"
                )
        if not _is_balanced(part):
            return f"part {number} of the commutative group opens or closes a turn that it does not hold whole"
    return ""


def _is_balanced(part: Sequence[GraphNode]) -> bool:
    is_open = False
    for node in part:
        if isinstance(node.op, RoleBegin | RoleEnd):
            if is_open == isinstance(node.op, RoleBegin):
                return False
            is_open = not is_open
    return not is_open
