"""Planted faults of a compiler, SGLang's own three among them: the generated programs find each within 500."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sgl_core.language import compiled, executor
from sgl_core.language.abstract import Abstract
from sgl_core.language.graph import Call, GetForkItem, Graph, GraphNode, Read, leaves, sources_of
from sgl_core.language.ir import ConstantText, Gen, NodeValue, RoleBegin, RoleEnd, ScopeEnd
from sgl_core.language.passes import dedupe, folding
from sgl_core.language.position import Position
from sgl_core.language.stream import StreamExecutor
from sgl_core.testing.programs import Kind, fault, generate

MOST_PROGRAMS = 500

Plant = Callable[[pytest.MonkeyPatch], None]


def num_until_found(kind: Kind | None = None) -> int | None:
    """How many programs it takes to see a fault; None if all of them look well."""
    for seed in range(MOST_PROGRAMS):
        if fault(generate(seed, kind)):
            return seed + 1
    return None


def of_graphs(change: Callable[[Graph], Graph]) -> Plant:
    """A tracer that makes another graph."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        trace = compiled.trace
        monkeypatch.setattr(compiled, "trace", lambda *args, **kwargs: change(trace(*args, **kwargs)))

    return plant


def with_nodes(graph: Graph, nodes: Sequence[GraphNode]) -> Graph:
    return replace(graph, nodes=tuple(nodes))


def lose_role_bodies(graph: Graph) -> Graph:
    kept, inside = [], set()
    for node in graph.nodes:
        if isinstance(node.op, RoleBegin):
            inside.add(node.stream)
        elif isinstance(node.op, RoleEnd):
            inside.discard(node.stream)
        if not (node.stream in inside and isinstance(node.op, ConstantText)):
            kept.append(node)
    return with_nodes(graph, kept)


def shift_paths(graph: Graph) -> Graph:
    moved = [
        replace(stream, path=(*stream.path[:-1], stream.path[-1] + 1)) if stream.path else stream for stream in graph.streams
    ]
    return replace(graph, streams=tuple(moved))


def count_gens_of_the_program(graph: Graph) -> Graph:
    """Instead of those of the stream."""
    numbers = iter(range(len(graph.nodes)))
    return with_nodes(graph, [replace(node, index=next(numbers)) if isinstance(node.op, Gen) else node for node in graph.nodes])


def end_scopes_early(graph: Graph) -> Graph:
    nodes = list(graph.nodes)
    for index, node in enumerate(nodes):
        before = [i for i in range(index) if nodes[i].stream == node.stream]
        if isinstance(node.op, ScopeEnd) and isinstance(nodes[before[-1]].op, ConstantText | Gen):
            nodes[before[-1]], nodes[index] = node, nodes[before[-1]]
    return with_nodes(graph, nodes)


def forget_reads(graph: Graph) -> Graph:
    return with_nodes(graph, [node for node in graph.nodes if not isinstance(node.op, Read)])


def forget_calls_of_no_use(graph: Graph) -> Graph:
    """Host code that may fail is not to be left out because nobody needs what it gives."""
    values = {value for node in graph.nodes for value in sources_of(node.op)} | {
        leaf for leaf in leaves(graph.returns) if isinstance(leaf, NodeValue)
    }
    needed = {value.node for value in values if isinstance(value, NodeValue)}
    return with_nodes(graph, [node for node in graph.nodes if not isinstance(node.op, Call) or node.id in needed])


def fork_without_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, begin = StreamExecutor.fork_traced, StreamExecutor.begin
    forked: set[StreamExecutor] = set()

    def fork_traced(self: StreamExecutor, *args: Any) -> tuple[StreamExecutor, ...]:
        children = fork(self, *args)
        forked.update(children)
        return children

    def begin_anew(self: StreamExecutor, position: Position, requested_len: int) -> None:
        if self in forked:
            position, requested_len = Position(), 0
        begin(self, position, requested_len)

    monkeypatch.setattr(StreamExecutor, "fork_traced", fork_traced)
    monkeypatch.setattr(StreamExecutor, "begin", begin_anew)


def join_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = executor.gather
    monkeypatch.setattr(executor, "gather", lambda streams, name: gather(streams[::-1], name))


def dedupe_whatever_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the pass; and in the stream, which looks again."""
    monkeypatch.setattr(dedupe, "_temperature", lambda gen: dedupe._Temperature.GREEDY)
    submit = StreamExecutor.submit_traced

    def submit_greedy(self: StreamExecutor, node: GraphNode, *args: Any, **kwargs: Any) -> Any:
        if isinstance(node.op, Gen) and node.same_as is not None:
            node = replace(node, op=replace(node.op, options={**node.op.options, "temperature": 0}))
        return submit(self, node, *args, **kwargs)

    monkeypatch.setattr(StreamExecutor, "submit_traced", submit_greedy)


def fold_across_gens(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = folding._folded

    def fold(nodes: tuple[GraphNode, ...]) -> tuple[GraphNode, ...]:
        """Gens go to the back of the text that stands behind them."""
        order = list(nodes)
        for index in range(len(order) - 1):
            first, second = order[index], order[index + 1]
            if isinstance(first.op, Gen) and isinstance(second.op, ConstantText) and first.stream == second.stream:
                order[index], order[index + 1] = second, first
        return folded(tuple(order))

    monkeypatch.setattr(folding, "_folded", fold)


def let_the_first_fork_speak(graph: Graph) -> Graph:
    """Every fork says what the first of its siblings says first."""
    firsts = {node.op.fork: node.stream for node in graph.nodes if isinstance(node.op, GetForkItem) and not node.op.index}
    texts = [node for node in graph.nodes if isinstance(node.op, ConstantText)]
    ops = {stream: next((text.op for text in texts if text.stream == stream), None) for stream in firsts.values()}
    forks = {node.stream: node.op.fork for node in graph.nodes if isinstance(node.op, GetForkItem)}
    changed = []
    for node in graph.nodes:
        first = ops.get(firsts[forks[node.stream]]) if node.stream in forks else None
        changed.append(replace(node, op=first) if first is not None and isinstance(node.op, ConstantText) else node)
    return with_nodes(graph, changed)


PLANTS: dict[str, Plant] = {
    "role bodies lost": of_graphs(lose_role_bodies),
    "forks without their parent's prefix": fork_without_prefix,
    "seeds by another path": of_graphs(shift_paths),
    "seeds by another count": of_graphs(count_gens_of_the_program),
    "joined in another order": join_in_another_order,
    "equal gens that sample made once": dedupe_whatever_the_temperature,
    "a scope that ends one node early": of_graphs(end_scopes_early),
    "text folded across a gen": fold_across_gens,
    "reads that fail forgotten": of_graphs(forget_reads),
    "host code that nobody needs forgotten": of_graphs(forget_calls_of_no_use),
    "every fork says what the first says": of_graphs(let_the_first_fork_speak),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    found = num_until_found()
    assert found is not None
    print(f"{name}: found by program {found}")


LIES: dict[str, Callable[..., Any]] = {
    "__bool__": lambda self: False,
    "__eq__": lambda self, other: False,
    "__contains__": lambda self, item: False,
    "__len__": lambda self: 0,
    "__format__": lambda self, spec: "value",
    "__iter__": lambda self: iter(()),
}


@pytest.mark.parametrize("name", LIES)
def test_a_branch_taken_in_silence_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The else-branch without a word, as SGLang's tracer took it, and other answers that nobody can know."""
    monkeypatch.setattr(Abstract, name, LIES[name])
    assert num_until_found(Kind.BRANCHING) is not None


def test_without_a_planted_fault_these_programs_show_none() -> None:
    assert [seed for seed in range(40) if fault(generate(seed))] == []
