"""Equal-gen deduplication: generations with provably the same prompt and options are made once, if they are greedy.

Two gens are equal if their options, type, healing and reasoning are, each makes one completion, and the histories of their
streams are: the same text, turns, raw literals, pictures, and texts of the same values, in the same order, generations included.
The later one is marked ``same_as`` the earlier. It holds because a greedy output is a function of prompt and options; whether a
gen is greedy that does not say so itself is a default of the run, so the executor looks at the temperature again.

Behind equal gens histories are equal again, but only if these were greedy. So there are two notions of an equal history: for a
gen with an explicit temperature of 0 the generations in it must have one, too; for a gen that leaves it to the run they may
also leave it, as the same default decides for all. A generation that samples, and a choice, whose scores are computed
separately, are equal to nothing but themselves.

Gains prompts that need not be submitted and generations that need not be made, which only a run can tell.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from sgl_core.language.graph import GetForkItem, Graph, GraphNode, Join
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    ConstantText,
    Fork,
    Gen,
    Image,
    RawText,
    RoleBegin,
    RoleEnd,
    Select,
    Variable,
)
from sgl_core.language.passes.base import PassContext, PassReport, line_of

__all__ = ["NAME", "run"]

NAME: Final = "equal generations"


def run(graph: Graph, context: PassContext) -> tuple[Graph, PassReport]:  # noqa: ARG001 - passes are called alike
    """Mark equal generations."""
    histories = _Histories(graph)
    nodes = tuple(replace(node, same_as=histories.first_equal(node)) for node in graph.nodes)
    notes = tuple(
        f"%{node.id}{line_of(node)} has the prompt and options of %{node.same_as}: made once if greedy."
        for node in nodes
        if node.same_as is not None
    )
    changes = sum(new.same_as != old.same_as for new, old in zip(nodes, graph.nodes, strict=True))
    return (replace(graph, nodes=nodes) if changes else graph), PassReport(NAME, changes, None if notes else 0, notes)


class _Temperature(Enum):
    """What a gen itself says about being greedy."""

    GREEDY = "greedy"
    LEFT_TO_THE_RUN = "left to the run"
    SAMPLES = "samples"


@dataclass(frozen=True, slots=True)
class _History:
    """What a stream has appended.

    Args:
        strict, loose: numbers of what stands before the open text; ``loose`` takes it that the run's default is greedy.
        text: constant text behind it; however it was put together, it is one string to the stream.
    """

    strict: int = 0
    loose: int = 0
    text: str = ""


class _Histories:
    """Numbers equal histories equally. Goes through a graph once, node by node."""

    def __init__(self, graph: Graph) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._streams = dict.fromkeys((stream.id for stream in graph.streams), _History())
        self._forks: dict[int, _History] = {}
        self._gens: dict[Hashable, int] = {}

    def first_equal(self, node: GraphNode) -> int | None:
        """Go past a node; the id of the first gen that equals it, if it is a gen and there is one."""
        history = self._streams[node.stream]
        match node.op:
            case ConstantText(text=text):
                self._streams[node.stream] = replace(history, text=history.text + text)
            case Argument(name=name) | Variable(source=ArgumentValue(name=name)):
                self._append(node, ("argument", name))
            case Variable(source=source):
                self._append(node, ("value", source))
            case RawText() | RoleBegin() | RoleEnd() | Image():
                self._append(node, (type(node.op), node.op))
            case Select() | Join(mode="concate_and_append"):
                self._append(node, ("node", node.id))
            case Fork():
                self._forks[node.id] = history
            case GetForkItem(fork=fork):
                self._streams[node.stream] = self._forks[fork]
            case Gen():
                return self._first_equal_gen(node, node.op)
        return None

    def _first_equal_gen(self, node: GraphNode, gen: Gen) -> int | None:
        history, itself = self._streams[node.stream], ("node", node.id)
        asked = ("gen", _frozen(gen.options), gen.dtype, gen.heal, gen.reasoning)
        temperature = _temperature(gen)
        if gen.options.get("n", 1) != 1:
            temperature = _Temperature.SAMPLES
        strict = asked if temperature is _Temperature.GREEDY else itself
        loose = asked if temperature is not _Temperature.SAMPLES else itself
        self._append(node, strict, loose)
        if temperature is _Temperature.SAMPLES:
            return None
        number = history.strict if temperature is _Temperature.GREEDY else history.loose
        first = self._gens.setdefault((temperature, number, history.text, asked), node.id)
        return None if first == node.id else first

    def _append(self, node: GraphNode, strict: Hashable, loose: Hashable | None = None) -> None:
        history = self._streams[node.stream]
        self._streams[node.stream] = _History(
            self._number(history.strict, history.text, strict),
            self._number(history.loose, history.text, strict if loose is None else loose),
        )

    def _number(self, before: int, text: str, added: Hashable) -> int:
        return self._numbers.setdefault((before, text, added), len(self._numbers) + 1)


def _temperature(gen: Gen) -> _Temperature:
    temperature = gen.options.get("temperature")
    if temperature is None:
        return _Temperature.LEFT_TO_THE_RUN
    return _Temperature.GREEDY if temperature == 0 else _Temperature.SAMPLES


def _frozen(value: Any) -> Hashable:
    """A hashable stand-in that is equal for equal values; an object that has no hash is equal to itself alone."""
    if isinstance(value, Mapping):
        return frozenset((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return value if isinstance(value, Hashable) else ("object", id(value))
