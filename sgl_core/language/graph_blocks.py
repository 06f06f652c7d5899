"""What the drawings of a graph have in common: its nodes put together to what a reader sees as one thing.

A turn with its text and generations is one block, a fork, a join and a call of host code are each one. ``graph_drawing`` writes
blocks as DOT and Mermaid, ``graph_svg`` lays them out itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal

from sgl_core.language.graph import Call, GetForkItem, Graph, GraphNode, Join, Read, SetVar, StreamBegin, sources_of
from sgl_core.language.graph_text import describe
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
from sgl_core.language.readable import function_name, one_line, shown
from sgl_core.language.verifier import verify

__all__ = ["Block", "BlockKind", "Blocks", "Edge", "Part", "PartKind", "blocks_of"]

BlockKind = Literal["begin", "turn", "fork", "join", "call"]
PartKind = Literal["text", "raw", "argument", "value", "image", "gen", "select", "note"]

_MOST_VALUE: Final = 40
_CONSTRAINTS: Final = ("regex", "json_schema", "grammar")


@dataclass(frozen=True, slots=True)
class Part:
    """One node inside a block.

    Args:
        node: its id.
        kind: how it is drawn.
        label: its text or name, whole and unescaped.
        detail: what a drawing may leave out.
        title: all of it.
    """

    node: int
    kind: PartKind
    label: str
    detail: str = ""
    title: str = ""


@dataclass(slots=True)
class Block:
    """Something that is drawn as one; finished when ``blocks_of`` returns.

    Args:
        id: its index.
        stream: id of its stream.
        kind: what it is.
        label: the role of a turn (empty: text outside of turns), or what else stands at its head.
        node: of a fork, join or call, and of what begins a stream other than the root: the node.
        is_continued: a turn that began in an earlier block.
        parts: what a turn holds.
        note: more about a fork, join or call.
    """

    id: int
    stream: int
    kind: BlockKind
    label: str
    node: GraphNode | None = None
    is_continued: bool = False
    parts: list[Part] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """A value that a node of one stream makes and a node of another uses."""

    source: int
    target: int
    name: str


@dataclass(frozen=True, slots=True)
class Blocks:
    """A graph as blocks.

    Args:
        graph: it.
        blocks: each behind the blocks of other streams whose values it uses.
        by_stream: the same by stream, in order.
        block_of: id of a node -> its block.
        edges: values between streams, each pair of blocks once for a value.
        forked: id of a ``Fork`` -> its streams.
    """

    graph: Graph
    blocks: tuple[Block, ...]
    by_stream: dict[int, list[Block]]
    block_of: dict[int, Block]
    edges: tuple[Edge, ...]
    forked: dict[int, list[int]]

    def summary(self) -> str:
        """What there is, in numbers."""
        number = Counter(type(node.op) for node in self.graph.nodes)
        counts = (
            (len(self.graph.streams), "stream", "streams"),
            (number[Gen], "generation", "generations"),
            (number[Select], "choice", "choices"),
            (number[Call], "call of host code", "calls of host code"),
        )
        return ", ".join(f"{n:,} {one if n == 1 else many}" for n, one, many in counts if n)


def blocks_of(graph: Graph) -> Blocks:
    """Put the nodes of a graph together.

    Raises:
        GraphError: it breaks a rule of graphs.
    """
    verify(graph)
    return _Builder(graph).build()


class _Builder:
    """One walk over the nodes."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes = {node.id: node for node in graph.nodes}
        self._order = {node.id: index for index, node in enumerate(graph.nodes)}
        self._used = {(node.stream, node.op.source) for node in graph.nodes if isinstance(node.op, Variable)}
        self._blocks: list[Block] = []
        self._by_stream: dict[int, list[Block]] = {stream.id: [] for stream in graph.streams}
        self._block_of: dict[int, Block] = {}
        self._forked: dict[int, list[int]] = {}
        self._open: dict[int, Block] = {}  # by stream, the turn that takes further parts
        self._began: dict[int, int] = {}  # by block, where in the program its first part stands
        self._role: dict[int, str | None] = {0: None}  # by stream
        self._role_at: dict[int, str | None] = {}  # by Fork

    def build(self) -> Blocks:
        self._add(0, "begin", self._graph.name)
        for node in self._graph.nodes:
            self._take(node)
        return Blocks(
            self._graph, tuple(self._blocks), self._by_stream, self._block_of, tuple(dict.fromkeys(self._edges())), self._forked
        )

    def _take(self, node: GraphNode) -> None:
        stream = node.stream
        match node.op:
            case GetForkItem(fork=fork, index=index):
                self._forked[fork].append(stream)
                self._role[stream] = self._role_at[fork]
                self._add(stream, "begin", f"fork {index}", node)
            case StreamBegin(function=function):
                self._role[stream] = None
                self._add(stream, "begin", function, node)
            case RoleBegin(role=role):
                self._role[stream] = role
                self._open[stream] = self._block_of[node.id] = self._add(stream, "turn", role)
                self._began[self._open[stream].id] = self._order[node.id]
            case RoleEnd():
                self._role[stream] = None
                self._open.pop(stream, None)
            case Fork(number=number):
                self._role_at[node.id] = self._role[stream]
                self._forked[node.id] = []
                note = "shared prefix computed once, before they start" if node.commit else ""
                self._add(stream, "fork", "copy" if number == 1 else f"fork \u00d7 {number}", node, note)
            case Join(mode=mode, errors=errors):
                notes = ("text appended",) if mode == "concate_and_append" else ()
                self._add(stream, "join", "join", node, ", ".join((*notes, *(("errors kept",) if errors == "keep" else ()))))
            case Call(fn=fn):
                self._add(stream, "call", function_name(fn), node)
            case Read(source=source) if (stream, source) in self._used or self._is_own(source, stream):
                pass  # what it waits for is drawn where its text is used, or stands above
            case _:
                self._take_part(node)

    def _is_own(self, value: Value, stream: int) -> bool:
        return isinstance(value, ArgumentValue) or self._nodes[value.node].stream == stream

    def _add(self, stream: int, kind: BlockKind, label: str, node: GraphNode | None = None, note: str = "") -> Block:
        block = Block(len(self._blocks), stream, kind, label, node, note=note)
        self._blocks.append(block)
        self._by_stream[stream].append(block)
        self._open.pop(stream, None)
        if node is not None:
            self._block_of[node.id] = block
        return block

    def _take_part(self, node: GraphNode) -> None:
        block = self._open.get(node.stream)
        if block is None or self._waits_for_later(node, block):
            role = self._role[node.stream]
            block = self._add(node.stream, "turn", role or "")
            block.is_continued = role is not None
            self._open[node.stream] = block
            self._began[block.id] = self._order[node.id]
        block.parts.append(self._part(node))
        self._block_of[node.id] = block

    def _waits_for_later(self, node: GraphNode, block: Block) -> bool:
        """Whether it uses a value of another stream that was made behind the block's beginning: the two may wait in turn."""
        makers = [self._nodes[value.node] for value in sources_of(node.op) if not isinstance(value, ArgumentValue)]
        return any(m.stream != node.stream and self._order[m.id] > self._began[block.id] for m in makers)

    def _edges(self) -> list[Edge]:
        found = []
        for node in self._graph.nodes:
            if node.id not in self._block_of:
                continue
            for value in sources_of(node.op):
                if not isinstance(value, ArgumentValue) and self._nodes[value.node].stream != node.stream:
                    found.append(Edge(value.node, node.id, self._name(value)))
        return found

    def _part(self, node: GraphNode) -> Part:
        kind, label, detail = self._look(node.op)
        notes = [detail] if detail else []
        if node.same_as is not None:
            notes.append(f"same as %{node.same_as}")
        title = label if kind in ("text", "raw") else describe(node.op)
        return Part(node.id, kind, label, ", ".join(notes), title)

    def _look(self, op: Expr) -> tuple[PartKind, str, str]:
        match op:
            case ConstantText(text=text):
                return "text", text, ""
            case RawText(text=text):
                return "raw", text, ""
            case Argument(name=name):
                return "argument", name, ""
            case Variable(source=source):
                return ("argument" if isinstance(source, ArgumentValue) else "value"), self._name(source), ""
            case Image(source=source):
                return "image", "image", source if isinstance(source, str) else f"{len(source):,} bytes"
            case Gen(name=name, options=options):
                shape = [word for word in _CONSTRAINTS if options.get(word) is not None]
                budget = options.get("max_new_tokens")
                return "gen", name or "", ", ".join([*shape, *([] if budget is None else [f"\u2264 {budget}"])])
            case Select(name=name, choices=choices):
                return "select", name or "", " | ".join(choices)
            case _:
                return "note", self._note(op), ""

    def _note(self, op: Expr) -> str:
        match op:
            case ScopeBegin(name=name):
                return f"capture {name}"
            case ScopeEnd(name=name):
                return f"end of {name}"
            case SetVar(name=name, value=value):
                return f"{name} = {shown(value, _MOST_VALUE)}"
            case Prefetch():
                return "prefetch"
            case CommutativeMark(place=place):
                return {"begin": "in any order:", "next": "and", "end": "in this order again"}[place]
            case Read(source=source):
                return f"wait for {self._name(source)}"
            case _:
                return type(op).__name__

    def _name(self, value: Value) -> str:
        if isinstance(value, ArgumentValue):
            return value.name
        if isinstance(value, JoinedValue):
            return f"{value.name}[{value.index}]"
        maker = self._nodes[value.node].op
        return one_line(value.name) if not isinstance(maker, Call) else f"{function_name(maker.fn)}(\u2026)"
