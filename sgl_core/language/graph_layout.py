"""Where the parts of a graph's picture stand. Called by ``graph_svg``, which draws them; pure arithmetic.

A stream is a lane: one column. Streams of a fork stand below it, side by side, where their parent says nothing until it joins
them; the others stand to the right of their parent's lane. A box stands below what came before it in its lane, below the fork or
the streams that it comes from, and below every box whose values it uses. So what stands at the same height can run at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Final

from sgl_core.language.graph import GetForkItem, Graph, Join, StreamBegin, StreamKind
from sgl_core.language.graph_blocks import Block, Blocks, Part, blocks_of
from sgl_core.language.readable import one_line, shortened

__all__ = ["CHAR", "HEAD", "PADDING", "WIDTH", "Box", "Item", "Layout", "Route", "Row", "Wire", "lay_out"]

WIDTH: Final = 272
"""Of a lane's cards."""
PADDING: Final = 14
"""Inside a card, at its sides."""
HEAD: Final = 20
"""Height of a card's head, where its role stands."""
CHAR: Final = 6.63
"""Width of a character of the fixed-width font."""

_GAP: Final = 52  # between lanes
_STEP: Final = 18  # between the boxes of a lane
_SPREAD: Final = 34  # between a fork and its streams, and between those and the join
_LINE: Final = 18
_BAR: Final = 26
_PILL: Final = 24
_COLUMNS: Final = int((WIDTH - 2 * PADDING) / CHAR)
_MOST_TEXT: Final = 2 * _COLUMNS  # characters of a text that is shown
_AROUND: Final = 2.0  # columns that a name in a frame takes beside its own
_MOST_BREAKS: Final = 2  # newlines of a text that begin a line
_MOST_FORKS: Final = 8  # streams of a fork that are shown
_LEFT_OUT: Final = 70  # width of the lane that says how many are not
_FORK_HEAD: Final = 76
_TRACKS: Final = (0, 9, -9, 18, -18)  # of the values that go down between the same two lanes


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of a line in a card.

    Args:
        part: what it belongs to.
        text: what is shown of it.
        column: where it begins, in characters.
    """

    part: Part
    text: str
    column: float


@dataclass(slots=True)
class Row:
    """A line of a card: ``y`` is its top below the card's."""

    y: float
    height: float
    items: list[Item] = field(default_factory=list)


@dataclass(slots=True)
class Box:
    """A block in its place: ``x`` is its middle, ``y`` its top."""

    block: Block
    x: float
    y: float
    width: float
    height: float
    rows: list[Row]
    title: str = ""

    @property
    def bottom(self) -> float:
        """Where it ends."""
        return self.y + self.height

    def row_of(self, node: int) -> float:
        """The height at which a node is drawn."""
        for row in self.rows:
            if any(item.part.node == node for item in row.items):
                return self.y + row.y + row.height / 2
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Route:
    """A line along a lane or from one to another."""

    x1: float
    y1: float
    x2: float
    y2: float
    is_call: bool = False


@dataclass(frozen=True, slots=True)
class Wire:
    """A value's way: from a box's side to ``track``, a vertical between two lanes, and on to another box's side."""

    name: str
    x1: float
    y1: float
    track: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True)
class Layout:
    """A picture.

    Args:
        blocks: what is drawn.
        boxes, routes, wires: where.
        left_out: for forks with streams that are not drawn: where to say so, and how many they are.
        width, height: of all of it.
    """

    blocks: Blocks
    boxes: tuple[Box, ...]
    routes: tuple[Route, ...]
    wires: tuple[Wire, ...]
    left_out: tuple[tuple[float, float, int], ...]
    width: float
    height: float


def lay_out(graph: Graph) -> Layout:
    """Find a place for everything.

    Raises:
        GraphError: the graph breaks a rule of graphs.
    """
    return _Layouter(blocks_of(graph)).layout()


@dataclass(slots=True)
class _Group:
    """The streams of a fork that are shown, from left to right; None stands for those that are not."""

    lanes: list[int | None]
    is_below: bool


class _Layouter:
    """Lanes first, then one walk over the boxes from top to bottom."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._streams = blocks.graph.streams
        self._join_of = {block.node.op.fork: block for block in blocks.blocks if block.node and isinstance(block.node.op, Join)}
        self._groups: dict[int, _Group] = {}
        self._hidden: set[int] = set()
        self._middle: dict[int, float] = {}
        self._width = 0.0
        self._boxes: dict[int, Box] = {}  # by block
        self._last: dict[int, Box] = {}  # by stream
        self._routes: list[Route] = []
        self._left_out: list[tuple[float, float, int]] = []

    def layout(self) -> Layout:
        self._choose_lanes()
        self._place_lanes()
        needed = self._boxes_needed()
        for block in self._blocks.blocks:
            if block.stream not in self._hidden:
                self._place(block, needed.get(block.id, ()))
        boxes = tuple(self._boxes.values())
        height = max(box.bottom for box in boxes)
        wires = tuple(self._wires())
        return Layout(self._blocks, boxes, tuple(self._routes), wires, tuple(self._left_out), self._width, height)

    # ---- lanes -------------------------------------------------------------------------------------------------------
    def _choose_lanes(self) -> None:
        last = self._last_blocks()
        for fork, streams in self._blocks.forked.items():
            lanes: list[int | None] = list(streams)
            if len(streams) > _MOST_FORKS:
                lanes = [*streams[: _MOST_FORKS - 2], None, streams[-1]]
                self._hidden.update(streams[_MOST_FORKS - 2 : -1])
            self._groups[fork] = _Group(lanes, self._is_below(fork, streams, last))
        for stream in self._streams:
            if stream.parent in self._hidden:
                self._hidden.add(stream.id)

    def _last_blocks(self) -> list[int]:
        """By stream, the last block of it and of all streams that begin in it."""
        last = [self._blocks.by_stream[stream.id][-1].id for stream in self._streams]
        for stream in reversed(self._streams):
            if stream.parent is not None:
                last[stream.parent] = max(last[stream.parent], last[stream.id])
        return last

    def _is_below(self, fork: int, streams: Sequence[int], last: Sequence[int]) -> bool:
        """Whether the parent says nothing before it joins them, and they nothing afterwards: then its lane is free."""
        block, join = self._blocks.block_of[fork], self._join_of.get(fork)
        if join is None:
            return False
        own = self._blocks.by_stream[block.stream]
        return own[own.index(block) + 1] is join and all(last[stream] < join.id for stream in streams)

    def _place_lanes(self) -> None:
        left = dict.fromkeys(range(len(self._streams)), WIDTH / 2)
        right = dict(left)
        offsets: dict[int, float] = {}  # from the parent's lane
        for stream in reversed(self._streams):
            if stream.id not in self._hidden:
                self._arrange(stream.id, left, right, offsets)
        self._width = left[0] + right[0]
        for stream in self._streams:
            if stream.id not in self._hidden:
                parent = left[0] if stream.parent is None else self._middle[stream.parent]
                self._middle[stream.id] = parent + offsets.get(stream.id, 0.0)

    def _arrange(self, stream: int, left: dict[int, float], right: dict[int, float], offsets: dict[int, float]) -> None:
        """Find the places of the lanes that begin in one, and how far they reach to both sides of it."""
        beside: list[int | None] = []
        for lanes, is_below in self._lanes_of(stream):
            if not is_below:
                beside += lanes
                continue
            spans = [(_LEFT_OUT / 2, _LEFT_OUT / 2) if lane is None else (left[lane], right[lane]) for lane in lanes]
            total = sum(a + b for a, b in spans) + _GAP * (len(spans) - 1)
            x = -total / 2
            for lane, (a, b) in zip(lanes, spans, strict=True):
                if lane is not None:
                    offsets[lane] = x + a
                x += a + b + _GAP
            left[stream], right[stream] = max(left[stream], total / 2), max(right[stream], total / 2)
        for lane in beside:
            if lane is None:
                right[stream] += _GAP + _LEFT_OUT
            else:
                offsets[lane] = right[stream] + _GAP + left[lane]
                right[stream] = offsets[lane] + right[lane]

    def _lanes_of(self, stream: int) -> Iterator[tuple[list[int | None], bool]]:
        """The lanes that begin in one, in the order of the program: forks and calls."""
        for block in self._blocks.blocks:
            if block.kind == "fork" and block.stream == stream and block.node is not None:
                yield self._groups[block.node.id].lanes, self._groups[block.node.id].is_below
            elif block.kind == "begin" and self._is_call_in(block.stream, stream):
                yield [block.stream], False

    def _is_call_in(self, stream: int, parent: int) -> bool:
        info = self._streams[stream]
        return info.kind is StreamKind.CALL and info.parent == parent

    # ---- boxes -------------------------------------------------------------------------------------------------------
    def _boxes_needed(self) -> dict[int, list[int]]:
        """By block, the blocks of other lanes whose values it uses."""
        needed: dict[int, list[int]] = {}
        for edge in self._blocks.edges:
            source, target = self._blocks.block_of[edge.source], self._blocks.block_of[edge.target]
            needed.setdefault(target.id, []).append(source.id)
        return needed

    def _place(self, block: Block, needed: Sequence[int]) -> None:
        x = self._middle[block.stream]
        before = self._last.get(block.stream)
        from_above = list(self._comes_from(block, before))
        tops = [box.bottom + step for box, step in from_above]
        tops += [self._boxes[source].bottom + _STEP for source in needed if source in self._boxes]
        rows = list(_rows(block)) if block.kind == "turn" else []
        width, height = _size(block, self._streams[block.stream].kind, rows)
        box = Box(block, x, max(tops, default=0.0), width, height, rows, _title(block))
        self._boxes[block.id] = self._last[block.stream] = box
        is_call = block.kind == "begin" and self._streams[block.stream].kind is StreamKind.CALL
        for above, _ in from_above:
            start = (above.x + above.width / 2, above.y + above.height / 2) if is_call else (above.x, above.bottom)
            self._routes.append(Route(*start, x, box.y, is_call))
        if block.kind == "fork" and block.node is not None:
            self._say_left_out(self._groups[block.node.id].lanes, box)

    def _comes_from(self, block: Block, before: Box | None) -> Iterator[tuple[Box, float]]:
        """The boxes that a line leads from, and the distance to keep from each."""
        if block.kind == "begin":
            parent = self._streams[block.stream].parent
            match block.node.op if block.node is not None else None:
                case GetForkItem(fork=fork):
                    yield self._boxes[self._blocks.block_of[fork].id], _SPREAD
                case StreamBegin() if parent is not None:
                    yield self._last[parent], _STEP
            return
        joined = block.node.op.fork if block.node is not None and isinstance(block.node.op, Join) else None
        if before is not None and (joined is None or not self._groups[joined].is_below):
            yield before, _STEP
        if joined is not None:
            yield from ((self._last[lane], _SPREAD) for lane in self._groups[joined].lanes if lane is not None)

    def _say_left_out(self, lanes: Sequence[int | None], fork: Box) -> None:
        if None in lanes:
            at = lanes.index(None)
            before, after = lanes[at - 1], lanes[at + 1]
            if before is not None and after is not None:
                x = (self._middle[before] + self._middle[after]) / 2
                number = len(self._blocks.forked[fork.block.node.id]) - len(lanes) + 1 if fork.block.node else 0
                self._left_out.append((x, fork.bottom + _SPREAD + _PILL / 2 + 4, number))

    # ---- values ------------------------------------------------------------------------------------------------------
    def _wires(self) -> Iterator[Wire]:
        used: dict[float, int] = {}
        for edge in self._blocks.edges:
            source = self._boxes.get(self._blocks.block_of[edge.source].id)
            target = self._boxes.get(self._blocks.block_of[edge.target].id)
            if source is None or target is None:
                continue
            side = 1 if target.x >= source.x else -1  # on which the value leaves
            base = source.x + side * (WIDTH + _GAP) / 2
            number = used[base] = used.get(base, -1) + 1
            track = base + _TRACKS[number % len(_TRACKS)]
            leaves = (source.x + side * source.width / 2, source.row_of(edge.source))
            if abs(track - target.x) < target.width / 2:
                yield Wire(edge.name, *leaves, track, track, target.y)
            else:
                arrives = target.x + (1 if track > target.x else -1) * target.width / 2
                yield Wire(edge.name, *leaves, track, arrives, target.row_of(edge.target))


def _title(block: Block) -> str:
    """The line of the program that a box is made of, without the folder of its file."""
    place = None if block.node is None else block.node.place
    return "" if place is None else str(replace(place, file=PurePath(place.file).name))


def _size(block: Block, kind: StreamKind, rows: Sequence[Row]) -> tuple[float, float]:
    if block.kind == "turn":
        bottom = rows[-1].y + rows[-1].height if rows else HEAD
        return WIDTH, bottom + 7
    if block.kind == "call" or (block.kind == "begin" and kind is not StreamKind.FORK):
        return WIDTH, _PILL
    return _FORK_HEAD, _PILL


# ---- the lines of a card ---------------------------------------------------------------------------------------------
def _rows(block: Block) -> Iterator[Row]:
    """Text flows from line to line, with names of values in it; a generation has a line of its own."""
    y = float(HEAD if block.label else 7)
    row = Row(y, _LINE)
    for part in block.parts:
        for word, width in _words(part):
            used = _end_of(row)
            is_bar = part.kind in ("gen", "select", "note")
            if row.items and (is_bar or width is None or used + width > _COLUMNS or _is_bar(row)):
                yield row
                y += row.height
                row = Row(y, _LINE)
            if width is None:
                continue
            if is_bar and part.kind != "note":
                row.height = _BAR
            _append(row, part, word)
    if row.items:
        yield row


def _words(part: Part) -> Iterator[tuple[str, float | None]]:
    """Pieces that are not broken, with the columns that they take; None ends a line."""
    if part.kind not in ("text", "raw"):
        label = shortened(one_line(part.label), _COLUMNS - 10)
        yield label, len(label) + _AROUND
        return
    breaks = 0
    for piece in re.findall(r"\n|[^\S\n]+|\S+[^\S\n]?", shortened(part.label, _MOST_TEXT)):
        for start in range(0, len(piece), _COLUMNS):
            chunk = one_line(piece[start : start + _COLUMNS])
            yield chunk, (0 if piece == "\n" else len(chunk.rstrip()))  # its sign may stand in the margin
        if piece == "\n" and breaks < _MOST_BREAKS:
            breaks += 1
            yield "", None


def _append(row: Row, part: Part, word: str) -> None:
    last = row.items[-1] if row.items else None
    if last is not None and last.part is part and part.kind in ("text", "raw"):
        row.items[-1] = Item(part, last.text + word, last.column)
    else:
        row.items.append(Item(part, word, _end_of(row)))


def _end_of(row: Row) -> float:
    if not row.items:
        return 0.0
    last = row.items[-1]
    return last.column + len(last.text) + (0.0 if last.part.kind in ("text", "raw") else _AROUND)


def _is_bar(row: Row) -> bool:
    return row.items[-1].part.kind in ("gen", "select", "note")
