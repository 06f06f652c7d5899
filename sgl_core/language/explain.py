"""What ``explain()`` shows of a program: whether and how it compiles, how large its graph is, and what the passes gained.

A compiled function makes a ``CompileReport`` of each of its graphs; ``render`` makes the text that a user reads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from sgl_core.errors import TraceError
from sgl_core.language.graph import Graph, GraphStream, StreamBegin, StreamKind
from sgl_core.language.ir import Gen, Select
from sgl_core.language.movement_report import MoveReport
from sgl_core.language.passes.base import PassReport

__all__ = ["CompileReport", "Status", "render"]

Status = Literal["compiled", "compiled with static", "interpreted"]

_PLACE: Final = re.compile(r"(?P<file>.+?):(?P<line>\d+)(?:: (?P<text>.*))?", re.DOTALL)
_NUM_NOTES: Final = 8
"""Of one pass; a program that is unrolled a thousand times has a note for each."""


@dataclass(frozen=True, slots=True)
class CompileReport:
    """What became of a program.

    Args:
        name: of the function.
        status: how it runs.
        static: the arguments that are fixed in the graph.
        reason: of a program that is interpreted, what cannot be compiled; one sentence.
        place: the line of that, as ``file:line: source``; see ``TraceError.place``.
        cure: what to write instead.
        graph: behind all passes; None if there is none.
        passes: their reports, in order.
        move: what code movement did; None if nobody asked for it.
    """

    name: str
    status: Status
    static: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    place: str = ""
    cure: str = ""
    graph: Graph | None = None
    passes: tuple[PassReport, ...] = ()
    move: MoveReport | None = None

    def __post_init__(self) -> None:
        """Keep the mapping from changing."""
        object.__setattr__(self, "static", MappingProxyType(dict(self.static)))

    @classmethod
    def compiled(cls, graph: Graph, passes: Sequence[PassReport], move: MoveReport | None = None) -> CompileReport:
        """Of a program that was traced, and whose graph came out of these passes."""
        status: Status = "compiled with static" if graph.static else "compiled"
        return cls(graph.name, status, graph.static, graph=graph, passes=tuple(passes), move=move)

    @classmethod
    def interpreted(cls, name: str, error: TraceError) -> CompileReport:
        """Of a program that falls back to the interpreter."""
        return cls(name, "interpreted", reason=error.what, place=error.place, cure=error.cure)


def render(report: CompileReport) -> str:
    """The report as text, without a line end behind it."""
    blocks = [list(_head(report)), list(_graph_lines(report)), list(_pass_lines(report.passes)), list(_notes(report.passes))]
    if report.move is not None:
        blocks.append(report.move.render().splitlines())
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _head(report: CompileReport) -> Iterator[str]:
    if report.status == "interpreted":
        place = _PLACE.fullmatch(report.place)
        where = f"line {place['line']}: " if place else ""
        yield f"{report.name}: interpreted because of {where}{report.reason.rstrip('.')}"
        if place and place["text"]:
            yield f"  {place['text']}"
        if report.cure:
            yield f"  {report.cure}"
    elif report.static:
        yield f"{report.name}: compiled with static {', '.join(map(_static, report.static.items()))}"
    else:
        yield f"{report.name}: compiled"


def _static(item: tuple[str, Any]) -> str:
    """The argument's name, with its size or what it is where that is short."""
    name, value = item
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"{name} ({len(value)} value{'' if len(value) == 1 else 's'})"
    if value is None or isinstance(value, bool | int | float):
        return f"{name} ({value})"
    return name


def _graph_lines(report: CompileReport) -> Iterator[str]:
    graph = report.graph
    if graph is not None:
        requests = [node.stream for node in graph.nodes if isinstance(node.op, Gen | Select)]
        sizes = (_count(len(graph.streams), "stream"), _count(len(graph.nodes), "node"), _count(len(requests), "generation"))
        yield ", ".join(sizes)
        yield from _called(graph, Counter(requests))


def _called(graph: Graph, requests: Counter[int]) -> Iterator[str]:
    """A line for each function that is called in streams of its own."""
    functions = {node.stream: node.op.function for node in graph.nodes if isinstance(node.op, StreamBegin)}
    calls = Counter(functions.values())
    generations: Counter[str] = Counter()
    for stream in graph.streams:
        caller = _call_of(stream, graph.streams)
        if caller is not None:
            generations[functions[caller]] += requests[stream.id]
    for function, num_calls in calls.items():
        yield f"calls {function} {_count(num_calls, 'time')}: {_count(generations[function], 'generation')}"


def _call_of(stream: GraphStream, streams: Sequence[GraphStream]) -> int | None:
    """The stream of the innermost call that a stream belongs to."""
    while stream.kind is StreamKind.FORK and stream.parent is not None:
        stream = streams[stream.parent]
    return stream.id if stream.kind is StreamKind.CALL else None


def _pass_lines(reports: Sequence[PassReport]) -> Iterator[str]:
    width = max((len(report.name) for report in reports), default=0)
    changes = [_count(report.changes, "change") for report in reports]
    change_width = max(map(len, changes), default=0)
    for report, change in zip(reports, changes, strict=True):
        yield f"{report.name:<{width}}  {change:>{change_width}}  {_gain(report)}".rstrip()


def _gain(report: PassReport) -> str:
    if report.gained_tokens is None:
        return "gain: only a run can tell"
    return f"{_count(report.gained_tokens, 'token')} gained" if report.gained_tokens else ""


def _notes(reports: Sequence[PassReport]) -> Iterator[str]:
    for report in reports:
        for note in report.notes[:_NUM_NOTES]:
            yield f"{report.name}: {note}"
        if len(report.notes) > _NUM_NOTES:
            yield f"{report.name}: and {len(report.notes) - _NUM_NOTES} more like these."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
