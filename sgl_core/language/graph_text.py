"""A graph as a listing: a line for each node, streams under the node that begins them, the program's lines at the right.

Called when a graph is printed, by ``explain`` and by ``sgl graph``. A graph that breaks rules can be listed, too: whoever looks
for the mistake needs to see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, Final

from sgl_core.language.graph import (
    Call,
    GetForkItem,
    Graph,
    GraphNode,
    GraphStream,
    Join,
    Place,
    Read,
    SetVar,
    StreamBegin,
    StreamKind,
)
from sgl_core.language.ir import (
    Argument,
    CommutativeMark,
    ConstantText,
    Expr,
    Fork,
    Gen,
    Image,
    Prefetch,
    RawText,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Variable,
)
from sgl_core.language.readable import function_name, one_line, quoted, shortened, shown, value_name

__all__ = ["describe", "signature", "to_text"]

_WIDTH: Final = 128
_MOST_TEXT: Final = 60  # characters of a text that is shown
_INDENT: Final = "    "
_MOST_DEPTH: Final = 12  # what lies deeper is not indented further
_SOURCE: Final = 64  # column of the program's lines, where nodes leave it free
_LEAST_SOURCE: Final = 24  # characters of a line of the program; where there is less room, its number alone is shown


def to_text(graph: Graph, *, width: int = _WIDTH) -> str:
    """The listing of a graph.

    Args:
        graph: valid or not.
        width: characters of a line; only a node that needs more takes more.

    Returns:
        Lines such as ``%3 = Fork(%2, 2)``: ``%2`` is the node that the fork goes on from, and ``%12.judgement`` in another one
        stands for a value that node 12 makes.
    """
    lines = [signature(graph), *_Listing(graph, width).lines()]
    if graph.returns is not None:
        lines.append(f"return {shown(graph.returns, _MOST_TEXT)}")
    return "\n".join(lines)


def describe(op: Expr, before: int | None = None) -> str:
    """What a node does, as the listing says it.

    Args:
        op: of the node.
        before: the node of the same stream that it goes on from, where that is worth saying.
    """
    return f"{type(op).__name__}({', '.join(_fields(op, before))})"


def signature(graph: Graph, most: int = _MOST_TEXT) -> str:
    """The program's name with its arguments, those to come and those that are fixed.

    Args:
        graph: of the program.
        most: characters of a text among them.
    """
    parameters = [
        f"{parameter.name}={_short(parameter.default, most)}" if parameter.has_default else parameter.name
        for parameter in graph.parameters
    ]
    static = ", ".join(f"{name}={_short(value, most)}" for name, value in graph.static.items())
    return f"{one_line(graph.name)}({', '.join(parameters)})" + (f" with static {static}" if static else "")


def _short(value: Any, most: int = _MOST_TEXT) -> str:
    return shortened(shown(value, most), 2 * _MOST_TEXT)


class _Listing:
    """The lines of one graph's streams, each below the node that begins it."""

    def __init__(self, graph: Graph, width: int) -> None:
        self._width = width
        self._nodes: dict[int, list[GraphNode]] = {}
        self._children: dict[tuple[int, int | None], list[int]] = {}  # by stream and the node that they stand below
        self._listed: set[int] = set()
        self._streams = {stream.id: stream for stream in graph.streams}
        self._file = next((node.place.file for node in graph.nodes if node.place is not None), "")
        for node in graph.nodes:
            self._add(node)

    def _add(self, node: GraphNode) -> None:
        earlier = self._nodes.setdefault(node.stream, [])
        stream = self._streams.get(node.stream)
        if not earlier and stream is not None and stream.parent is not None:
            above = self._nodes.get(stream.parent)
            anchor = node.op.fork if isinstance(node.op, GetForkItem) else above[-1].id if above else None
            self._children.setdefault((stream.parent, anchor), []).append(node.stream)
        earlier.append(node)

    def lines(self) -> Iterator[str]:
        """All of them; a stream that no listed one begins comes at the end."""
        for stream in (*self._streams, *self._nodes):
            if stream not in self._listed:
                yield from self._tree(stream)

    def _tree(self, root: int) -> Iterator[str]:
        """A stream with those that begin in it. Own stack: forks may be nested deeper than Python calls."""
        stack = [self._stream(root, 0)]
        while stack:
            for item in stack[-1]:
                if isinstance(item, str):
                    yield item
                elif item not in self._listed:
                    stack.append(self._stream(item, len(stack)))
                    break
            else:
                stack.pop()

    def _stream(self, stream: int, depth: int) -> Iterator[str | int]:
        """Lines of one stream, and the ids of the streams that stand between them."""
        self._listed.add(stream)
        nodes = self._nodes.get(stream, [])
        indent = _INDENT * min(depth, _MOST_DEPTH)
        yield f"{indent}stream {stream}: {self._title(stream, nodes)}"
        yield from self._children.get((stream, None), ())
        before: GraphNode | None = None
        for node in nodes:
            yield self._line(node, before, indent + _INDENT)
            yield from self._children.get((stream, node.id), ())
            before = node

    def _title(self, stream: int, nodes: Sequence[GraphNode]) -> str:
        info = self._streams.get(stream)
        match nodes[0].op if nodes else None:
            case GetForkItem(fork=fork, index=index):
                return f"fork {index} of %{fork}"
            case StreamBegin(function=function):
                return f"call of {one_line(function)}"
            case _:
                return "the program" if info is not None and info.kind is StreamKind.ROOT else _kind(info)

    def _line(self, node: GraphNode, before: GraphNode | None, indent: str) -> str:
        left = f"{indent}%{node.id} = {describe(node.op, None if before is None else before.id)}{_notes(node)}"
        is_known = before is not None and before.place == node.place
        if node.place is None or is_known or isinstance(node.op, GetForkItem):  # its Fork has shown the line
            return left
        column = max(len(left) + 2, _SOURCE)
        right = self._source(node.place, self._width - column - 2)
        return f"{left:<{column}}| {right}" if right else left

    def _source(self, place: Place, room: int) -> str:
        """A line of the program in so much room; nothing where there is none."""
        number = f"{place.line}" if place.file == self._file else f"{one_line(PurePath(place.file).name)}:{place.line}"
        room_for_text = room - len(number) - 2
        if place.text and room_for_text >= min(_LEAST_SOURCE, len(place.text)):
            return f"{number}: {shortened(one_line(place.text), room_for_text)}"
        return number if len(number) <= room else ""


def _kind(stream: GraphStream | None) -> str:
    return "not declared" if stream is None else str(stream.kind)


def _notes(node: GraphNode) -> str:
    notes = []
    if node.is_automatic:
        notes.append("unnamed")
    if node.same_as is not None:
        notes.append(f"same as %{node.same_as}")
    if node.last_use:
        notes.append("last use")
    if node.commit:
        notes.append("commit")
    return f"  # {', '.join(notes)}" if notes else ""


def _fields(op: Expr, before: int | None) -> list[str]:
    match op:
        case ConstantText(text=text) | RawText(text=text):
            return [quoted(text, _MOST_TEXT)]
        case Image(source=source):
            return [quoted(source, _MOST_TEXT) if isinstance(source, str) else f"{len(source):,} bytes"]
        case Argument(name=name):
            return [one_line(name)]
        case Variable(source=source) | Read(source=source):
            return [one_line(value_name(source))]
        case Gen(name=name, options=options):
            return [quoted(name or "", _MOST_TEXT), *(f"{key}={_short(value)}" for key, value in options.items()), *_extras(op)]
        case Select(name=name, choices=choices, choices_method=method):
            return [quoted(name or "", _MOST_TEXT), _short(list(choices)), one_line(method)]
        case RoleBegin(role=word) | RoleEnd(role=word) | ScopeBegin(name=word) | ScopeEnd(name=word):
            return [quoted(word, _MOST_TEXT)]
        case StreamBegin(function=word) | CommutativeMark(place=word):
            return [quoted(word, _MOST_TEXT)]
        case Fork(number=number):
            return [str(number)] if before is None else [f"%{before}", str(number)]
        case GetForkItem(fork=fork, index=index):
            return [f"%{fork}", str(index)]
        case Join(fork=fork, mode=mode, errors=errors):
            kept = [] if errors == "raise" else [f"errors={quoted(errors, _MOST_TEXT)}"]
            return [f"%{fork}", quoted(mode, _MOST_TEXT), *kept]
        case Call(fn=fn, args=args, kwargs=kwargs):
            named = (f"{one_line(name)}={_short(value)}" for name, value in kwargs.items())
            return [function_name(fn), *(_short(value) for value in args), *named]
        case SetVar(name=name, value=value):
            return [quoted(name, _MOST_TEXT), _short(value)]
        case Prefetch(min_tokens=number):
            return [f"min_tokens={number}"]
        case _:
            return ["?"]  # no node of a graph; the verifier says so


def _extras(gen: Gen) -> Iterator[str]:
    if gen.dtype is not str:
        yield f"dtype={gen.dtype.__name__}"
    if gen.heal != "space":
        yield f"heal={shown(gen.heal, _MOST_TEXT)}"
    if gen.reasoning is not None:
        yield f"reasoning={quoted(gen.reasoning, _MOST_TEXT)}"
