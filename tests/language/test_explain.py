"""What a user reads after ``print(f.explain())``."""

import pytest

from sgl_core.errors import TraceError
from sgl_core.language.explain import CompileReport, render
from sgl_core.language.graph import StreamState
from sgl_core.language.ir import Gen
from sgl_core.language.movement_report import MoveReport
from sgl_core.language.passes import PassContext, PassReport, run_passes
from sgl_core.testing import ByteCodec
from sgl_core.testing.graphs import GraphBuilder, essay_judge_graph


def test_a_compiled_program_in_full() -> None:
    graph, reports = run_passes(essay_judge_graph(), PassContext(ByteCodec(), min_prefetch_tokens=16))
    assert render(CompileReport.compiled(graph, reports)) == (
        "essay_judge: compiled with static dimensions (3 values)\n"
        "\n"
        "4 streams, 46 nodes, 5 generations\n"
        "\n"
        "folding            0 changes\n"
        "dead streams       0 changes\n"
        "equal generations  0 changes\n"
        "fork commit         1 change  gain: only a run can tell\n"
        "prefetch            1 change  gain: only a run can tell\n"
        "last use           4 changes  gain: only a run can tell\n"
        "prefixes           0 changes  87 tokens gained\n"
        "\n"
        "fork commit: %7 (line 4) computes at least 24 tokens once for 3 streams, on backends that do not share in flight.\n"
        "last use: Nothing extends the prompts of 4 of 5 requests.\n"
        "prefixes: 29 tokens are the same in every run; a second run finds them computed."
    )


def test_an_interpreted_program_names_the_line_and_the_cure() -> None:
    error = TraceError(
        's["next"] is compared', "Run it interpreted, or use sgl.call.", place='/home/a b/react.py:41: if s["next"] == "stop":'
    )
    assert render(CompileReport.interpreted("react", error)) == (
        'react: interpreted because of line 41: s["next"] is compared\n'
        '  if s["next"] == "stop":\n'
        "  Run it interpreted, or use sgl.call."
    )


@pytest.mark.parametrize("place", ["", "C:\\react.py:41"])
def test_a_place_without_source_is_no_trouble(place: str) -> None:
    text = render(CompileReport.interpreted("react", TraceError("it branches", "Do not.", place=place)))
    where = "line 41: " if place else ""
    assert text == f"react: interpreted because of {where}it branches\n  Do not."


@pytest.mark.parametrize(
    ("value", "shown"),
    [(["a"], " (1 value)"), ((), " (0 values)"), (None, " (None)"), (True, " (True)"), (3, " (3)"), ("a long text", "")],
)
def test_static_arguments_are_shown_by_their_size_and_never_by_their_text(value: object, shown: str) -> None:
    graph = GraphBuilder("p", other="x", argument=value).build()
    assert render(CompileReport.compiled(graph, ())).splitlines()[0] == f"p: compiled with static other, argument{shown}"


def test_functions_that_are_called_have_a_line_each_with_the_generations_of_their_forks() -> None:
    b = GraphBuilder("main")
    for _ in range(2):
        called = b.call("expand")
        for fork in b.fork(2, called):
            b.say("q", Gen("x"), stream=fork)
    inner = b.call("polish", called)
    b.say("q", Gen("x"), stream=inner)
    text = render(CompileReport.compiled(b.build(StreamState(inner)), ()))
    assert text == (
        "main: compiled\n\n8 streams, 19 nodes, 5 generations\ncalls expand 2 times: 4 generations\ncalls polish 1 time: 1 generation"
    )


def test_what_was_moved_stands_last() -> None:
    graph = GraphBuilder("p").build()
    passes = (PassReport("folding", 2, 0, ("A note.",)),)
    lines = render(CompileReport.compiled(graph, passes, MoveReport("safe", (), ()))).splitlines()
    assert lines[-3:] == ["folding: A note.", "", "moved (safe): nothing."]


def test_many_notes_of_one_pass_are_cut_short() -> None:
    passes = (PassReport("last use", 1200, None, tuple(f"note {index}" for index in range(20))),)
    lines = render(CompileReport.compiled(GraphBuilder("p").build(), passes)).splitlines()
    assert "last use  1,200 changes  gain: only a run can tell" in lines
    assert lines[-2:] == ["last use: note 7", "last use: and 12 more like these."]
