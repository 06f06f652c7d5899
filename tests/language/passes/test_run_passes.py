"""All passes, one after another."""

import dataclasses

import pytest

from sgl_core.errors import GraphError
from sgl_core.language import passes
from sgl_core.language.graph import Graph
from sgl_core.language.ir import Fork, Gen
from sgl_core.language.passes import PASSES, Pass, PassContext, PassReport, run_passes
from sgl_core.testing import ByteCodec
from sgl_core.testing.graphs import GraphBuilder, essay_judge_graph, roles_graph, tip_suggestion_graph

SAMPLES = [essay_judge_graph(), tip_suggestion_graph(), roles_graph()]


@pytest.mark.parametrize("graph", SAMPLES, ids=lambda graph: graph.name)
@pytest.mark.parametrize("context", [PassContext(), PassContext(ByteCodec(), drop_unread=True, min_prefetch_tokens=16)])
def test_there_is_a_report_of_each_pass_and_a_second_time_changes_nothing(graph: Graph, context: PassContext) -> None:
    after, reports = run_passes(graph, context)
    assert [report.name for report in reports] == [one.name for one in PASSES]
    again, reports = run_passes(after, context)
    assert again is after
    assert not any(report.changes for report in reports)


@pytest.mark.parametrize("graph", SAMPLES, ids=lambda graph: graph.name)
def test_the_graph_that_was_given_stays_as_it_was(graph: Graph) -> None:
    before = dataclasses.replace(graph)
    run_passes(graph, PassContext(ByteCodec()))
    assert graph == before


def test_seeds_stay_as_every_generation_keeps_its_path_and_index() -> None:
    for graph in SAMPLES:
        after, _ = run_passes(graph, PassContext(ByteCodec(), drop_unread=True, min_prefetch_tokens=1))
        before = {node.id: (graph.streams[node.stream].path, node.index) for node in graph.nodes if isinstance(node.op, Gen)}
        kept = {node.id: (after.streams[node.stream].path, node.index) for node in after.nodes if isinstance(node.op, Gen)}
        assert kept.items() <= before.items()


def test_a_gen_that_a_later_equal_one_extends_is_no_last_use() -> None:
    b = GraphBuilder("p")
    one, other = b.fork(2)
    _, first = b.say("q", Gen("x"), stream=one)
    b.say("q", Gen("x"), "then", Gen("y"), stream=other)
    graph, _ = run_passes(b.build())
    assert not graph.node(first).last_use


def test_a_pass_that_breaks_a_rule_of_graphs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_a_stream(graph: Graph, context: PassContext) -> tuple[Graph, PassReport]:
        nodes = tuple(node for node in graph.nodes if not isinstance(node.op, Fork))
        return dataclasses.replace(graph, nodes=nodes), PassReport("careless")

    monkeypatch.setattr(passes, "PASSES", (Pass("careless", lose_a_stream),))
    with pytest.raises(GraphError):
        run_passes(essay_judge_graph())
