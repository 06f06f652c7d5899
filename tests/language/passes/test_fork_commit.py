"""A fork is marked if its streams would compute the same text at once."""

import pytest

from sgl_core.language.graph import Graph, Parameter
from sgl_core.language.ir import Argument, Fork, Gen, NodeValue, Prefetch, RoleBegin, RoleEnd, Variable
from sgl_core.language.passes import PassContext, PassReport
from sgl_core.language.passes.fork_commit import run
from sgl_core.language.verifier import verify
from sgl_core.testing import ByteCodec
from sgl_core.testing.graphs import GraphBuilder

LONG = "more than a few tokens "
SHORT = "few"


def program() -> GraphBuilder:
    return GraphBuilder("p", Parameter("a"))


def committed(builder: GraphBuilder, codec: ByteCodec | None = ByteCodec()) -> tuple[list[bool], PassReport]:  # noqa: B008
    graph, report = run(builder.build(), PassContext(codec))
    verify(graph)
    assert run(graph, PassContext(codec))[0] is graph
    return [node.commit for node in graph.nodes if isinstance(node.op, Fork)], report


def asking(builder: GraphBuilder, number: int, stream: int = 0) -> tuple[int, ...]:
    """Fork, and generate in every stream."""
    streams = builder.fork(number, stream)
    for one in streams:
        builder.say(Gen("x"), stream=one)
    return streams


def test_a_fork_behind_new_text_is_marked_and_the_report_has_the_figures() -> None:
    b = program()
    b.at(3)
    b.say(LONG)
    asking(b, 3)
    marks, report = committed(b)
    assert marks == [True]
    assert report.changes == 1
    assert report.gained_tokens is None
    assert report.notes == (
        f"%1 (line 3) computes {len(LONG)} tokens once for 3 streams, on backends that do not share in flight.",
    )


def test_without_a_codec_the_figures_are_said_to_be_estimates() -> None:
    b = program()
    b.say("a word or two " * 10)
    asking(b, 2)
    _, report = committed(b, codec=None)
    assert "computes about 35 tokens once" in report.notes[0]


def test_text_of_unknown_length_is_reason_enough() -> None:
    b = program()
    b.say(SHORT, Argument("a"))
    asking(b, 2)
    marks, report = committed(b)
    assert marks == [True]
    assert "at least 3 tokens" in report.notes[0]


@pytest.mark.parametrize("text", ["", SHORT])
def test_a_fork_behind_little_text_stays(text: str) -> None:
    b = program()
    b.say(LONG, Gen("before"), text)
    asking(b, 2)
    marks, report = committed(b)
    assert marks == [False]
    assert (report.changes, report.gained_tokens) == (0, 0)
    assert f"{len(text)} new tokens are too few" in report.notes[0]


def test_a_fork_of_which_one_stream_asks_stays() -> None:
    b = program()
    b.say(LONG)
    one, _ = b.fork(2)
    b.say(Gen("x"), stream=one)
    marks, report = committed(b)
    assert marks == [False]
    assert "fewer than two of its streams request anything" in report.notes[0]


def test_a_copy_is_not_worth_a_note() -> None:
    b = program()
    b.say(LONG)
    asking(b, 1)
    marks, report = committed(b)
    assert (marks, report.notes) == ([False], ())


def test_streams_ask_through_their_own_forks_too() -> None:
    b = program()
    b.say(LONG)
    for stream in b.fork(2):
        asking(b, 1, stream)
    assert committed(b)[0] == [True, False, False]


def test_what_an_outer_fork_has_computed_is_not_new_to_an_inner_one() -> None:
    b = program()
    b.say(LONG)
    bare, wordy = b.fork(2)
    asking(b, 2, bare)
    b.say(LONG, stream=wordy)
    asking(b, 2, wordy)
    asking(b, 2)
    assert committed(b)[0] == [True, False, True, False]


def test_an_inner_fork_inherits_text_of_a_fork_that_was_not_worth_it() -> None:
    b = program()
    b.say(LONG)
    (copy,) = b.fork(1)
    asking(b, 2, copy)
    assert committed(b)[0] == [False, True]


def test_a_prefetch_before_the_fork_may_be_dropped_and_counts_for_nothing() -> None:
    b = program()
    b.say(LONG, Prefetch())
    asking(b, 2)
    assert committed(b)[0] == [True]


def test_without_a_codec_tokens_are_estimated() -> None:
    for text, mark in (("12345678" * 4, True), ("12345678", False)):
        b = program()
        b.say(text)
        asking(b, 2)
        assert committed(b, None)[0] == [mark]


def test_turns_alone_are_not_enough_and_values_are() -> None:
    b = program()
    _, gen = b.say(LONG, Gen("before"))
    b.say(RoleBegin("user"), RoleEnd("user"))
    asking(b, 2)
    b.say(Variable(NodeValue(gen, "before")))
    asking(b, 2)
    assert committed(b)[0] == [False, True]


def test_a_mark_that_is_wrong_is_taken_back() -> None:
    b = program()
    b.say(SHORT)
    b.fork(2, commit=True)
    graph: Graph
    graph, report = run(b.build(), PassContext(ByteCodec()))
    assert not any(node.commit for node in graph.nodes)
    assert report.changes == 1
