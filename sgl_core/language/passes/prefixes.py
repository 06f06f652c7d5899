"""Prefix extraction: what each stream is known to begin with before anything runs, as token ids.

A stream's constant prefix is its text, raw literals and turns up to the first thing that a run decides, inherited through
forks. The ids come out of the very steps that a stream takes when it runs (``Position``), so they are the ids that its requests
begin with: up to a request all of them (less a token that it may heal, or score), and elsewhere only those that no
continuation of the text can change.

Changes nothing. Gains what the streams of one run share of their constant prefixes, and what every further run finds computed;
the runtime's tree shares both by itself. ``CompiledFunction.prefetch`` and ``SglFunction.cache`` ask it what to compute ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sgl_core.backend import Capabilities, TextCodec
from sgl_core.errors import SglError
from sgl_core.language.graph import GetForkItem, Graph, GraphNode, Join
from sgl_core.language.healing import prompt_of
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
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
from sgl_core.language.passes.base import PassContext, PassReport
from sgl_core.language.position import Position
from sgl_core.spans import plan_spans

__all__ = ["NAME", "constant_prefixes", "distinct_tokens", "known_prefixes", "run"]

NAME: Final = "prefixes"

_HEALING: Final = Capabilities(heal=True)


def constant_prefixes(graph: Graph, codec: TextCodec) -> Mapping[int, tuple[int, ...]]:
    """For each stream the ids that all its requests begin with, whatever the arguments; empty where there are none."""
    return _prefixes(graph, codec, {})


def known_prefixes(graph: Graph, codec: TextCodec, arguments: Mapping[str, Any]) -> Mapping[int, tuple[int, ...]]:
    """Like ``constant_prefixes``, for given arguments.

    Args:
        graph: a program.
        codec: of the model.
        arguments: values by name; defaults of the program stand in for others, and those without stay unknown.
    """
    defaults = {parameter.name: parameter.default for parameter in graph.parameters if parameter.has_default}
    return _prefixes(graph, codec, {**defaults, **arguments})


def distinct_tokens(prefixes: Iterable[tuple[int, ...]]) -> int:
    """Tokens that have to be computed when every prefix is computed once and shared: the size of their tree."""
    total = 0
    previous: tuple[int, ...] = ()
    for ids in sorted(set(prefixes)):  # the longest common prefix with any earlier one is the one with the neighbour
        total += len(ids) - _common_length(previous, ids)
        previous = ids
    return total


def run(graph: Graph, context: PassContext) -> tuple[Graph, PassReport]:
    """Measure."""
    if context.codec is None:
        return graph, PassReport(NAME, notes=("Not counted: tokens need a model; compile(backend=...) names one.",))
    requesting = {node.stream for node in graph.nodes if isinstance(node.op, Gen | Select)}
    prefixes = [ids for stream, ids in constant_prefixes(graph, context.codec).items() if stream in requesting]
    distinct = distinct_tokens(prefixes)
    note = f"{distinct} tokens are the same in every run; a second run finds them computed."
    return graph, PassReport(NAME, 0, sum(map(len, prefixes)) - distinct, (note,) if distinct else ())


@dataclass(frozen=True, slots=True)
class _Known:
    """Where a stream stands, or all ids that are known of it once something unknown has come."""

    position: Position
    ids: tuple[int, ...] | None = None


def _prefixes(graph: Graph, codec: TextCodec, texts: Mapping[str, Any]) -> Mapping[int, tuple[int, ...]]:
    streams = {stream.id: _Known(Position()) for stream in graph.streams}
    forks: dict[int, _Known] = {}
    for node in graph.nodes:
        match node.op:
            case Fork():
                forks[node.id] = streams[node.stream]
            case GetForkItem(fork=fork):
                streams[node.stream] = forks[fork]
            case _ if streams[node.stream].ids is None:
                streams[node.stream] = _step(streams[node.stream].position, node, codec, texts)
    return {stream: known.position.stable_ids(codec) if known.ids is None else known.ids for stream, known in streams.items()}


def _step(position: Position, node: GraphNode, codec: TextCodec, texts: Mapping[str, Any]) -> _Known:
    try:
        moved = _moved(position, node.op, codec, texts)
        return _Known(position, _ids_before(position, node.op, codec)) if moved is None else _Known(moved)
    except SglError:  # a template refuses the turn: a run fails here and asks for nothing more
        return _Known(position, position.stable_ids(codec))


def _moved(position: Position, op: Expr, codec: TextCodec, texts: Mapping[str, Any]) -> Position | None:
    """The position behind a node; None if only a run can tell."""
    match op:
        case ConstantText(text=text):
            return position.add_text(text)
        case RawText(text=text):
            return position.add_raw(text, codec)
        case RoleBegin(role=role):
            return position.open_turn(role, codec)
        case RoleEnd(role=role):
            return position.close_turn(role, codec)
        case Argument(name=name) | Variable(source=ArgumentValue(name=name)):
            value = texts.get(name)
            return position.add_text(value) if isinstance(value, str) else None
        case Gen() | Select() | Variable() | Image() | Join(mode="concate_and_append"):
            return None
        case _:
            return position


def _ids_before(position: Position, op: Expr, codec: TextCodec) -> tuple[int, ...]:
    """What is certain to stand before a node that only a run can do."""
    match op:
        case Gen(heal=heal):
            return prompt_of(position, codec, heal, _HEALING).ids.flat()
        case Select(choices=choices):
            return position.begun(codec).ids.flat() + plan_spans(codec, position.tail, choices).shared
        case _:
            return position.stable_ids(codec)


def _common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(index for index in range(length) if one[index] != other[index])
