"""A stream goes only if no run could tell."""

import pytest

from sgl_core.language.graph import Call, Graph, Parameter, Read, SetVar, StreamState
from sgl_core.language.ir import (
    Argument,
    ConstantText,
    Expr,
    Fork,
    Gen,
    Image,
    NodeValue,
    Prefetch,
    RawText,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Variable,
)
from sgl_core.language.passes import PassContext, PassReport
from sgl_core.language.passes.dead_streams import run
from sgl_core.language.verifier import verify
from sgl_core.testing.graphs import GraphBuilder, essay_judge_graph, roles_graph, tip_suggestion_graph

HARMLESS = (
    (),
    (ConstantText("a"), RawText("b")),
    (ScopeBegin("v"), ConstantText("a"), ScopeEnd("v")),
    (SetVar("v", 1), Prefetch()),
)
MAY_FAIL = (
    (Argument("a"),),
    (RoleBegin("user"), RoleEnd("user")),
    (Image("cat.png"),),
    (Gen("x"),),
    (Select("x", ("a", "b"), "token_length_normalized"),),
)


def program() -> GraphBuilder:
    return GraphBuilder("p", Parameter("a"))


def pruned(graph: Graph, *, drop_unread: bool = False) -> tuple[Graph, PassReport]:
    after, report = run(graph, PassContext(drop_unread=drop_unread))
    verify(after)
    assert report.changes == len(graph.nodes) - len(after.nodes)
    again, _ = run(after, PassContext(drop_unread=drop_unread))
    assert again is after
    return after, report


def copied(*ops: Expr) -> GraphBuilder:
    """A program that says something, copies its state, and does ``ops`` with the copy."""
    b = program()
    b.say("before")
    b.at(7)
    (copy,) = b.fork(1)
    for op in ops:
        b.add(op, copy)
    b.at(9)
    b.say("behind", Gen("last"))
    return b


@pytest.mark.parametrize("ops", HARMLESS)
def test_a_copy_that_nobody_uses_and_that_cannot_fail_goes_with_its_fork(ops: tuple[Expr, ...]) -> None:
    graph, report = pruned(copied(*ops).build())
    assert [type(node.op) for node in graph.nodes] == [ConstantText, ConstantText, Gen]
    assert len(graph.streams) == 1
    assert report.gained_tokens == 0


@pytest.mark.parametrize("ops", MAY_FAIL)
def test_one_that_can_fail_stays_and_the_report_says_why(ops: tuple[Expr, ...]) -> None:
    built = copied(*ops).build()
    graph, report = pruned(built)
    assert graph is built
    (note,) = report.notes
    assert note.startswith("Stream 1 (line 7) is read by nobody, but stays: ")
    assert note.endswith("drop_unread=True drops it.")


@pytest.mark.parametrize("ops", MAY_FAIL)
def test_drop_unread_drops_it(ops: tuple[Expr, ...]) -> None:
    graph, report = pruned(copied(*ops).build(), drop_unread=True)
    assert len(graph.streams) == 1
    assert any("1 requests" in note for note in report.notes) == isinstance(ops[0], Gen | Select)


@pytest.mark.parametrize("drop_unread", [False, True])
def test_host_code_is_never_dropped(drop_unread: bool) -> None:
    built = copied(Call(len, ("abc",))).build()
    graph, report = pruned(built, drop_unread=drop_unread)
    assert graph is built
    assert "host code" in report.notes[0]
    assert "drop_unread" not in report.notes[0]


@pytest.mark.parametrize("use", ["read", "appended", "called", "set", "returned value", "returned state", "joined", "same"])
def test_a_stream_that_somebody_wants_stays(use: str) -> None:
    b = program()
    b.say("before")
    (copy,) = b.fork(1)
    _, gen = b.say("draft", Gen("x"), stream=copy)
    value, returns = NodeValue(gen, "x"), None
    match use:
        case "read":
            b.add(Read(value), copy)
        case "appended":
            b.say(Variable(value))
        case "called":
            b.add(Call(str.strip, (value,)))
        case "set":
            b.add(SetVar("y", [{"draft": value}]))
        case "returned value":
            returns = {"draft": [value]}
        case "returned state":
            returns = (StreamState(copy), 1)
        case "joined":
            b.join(copy)
        case "same":
            b.add(Gen("x"), same_as=gen)
    built = b.build(returns)
    graph, report = pruned(built, drop_unread=True)
    assert graph is built
    assert report.notes == ()


def test_a_stream_that_a_living_one_continues_stays() -> None:
    b = program()
    (copy,) = b.fork(1)
    b.say("text", stream=copy)
    (grandchild,) = b.fork(1, copy)
    built = b.build(StreamState(grandchild))
    assert pruned(built)[0] is built


def test_streams_that_only_dead_ones_continue_or_read_go_with_them() -> None:
    b = program()
    b.say("before")
    reader, made = b.fork(1)[0], b.call("draft")
    _, gen = b.say("draft", Gen("x"), stream=made)
    (inner,) = b.fork(1, reader)
    b.say(Variable(NodeValue(gen, "x")), stream=inner)
    graph, _ = pruned(b.build(), drop_unread=True)
    assert [type(node.op) for node in graph.nodes] == [ConstantText]


def test_the_living_streams_of_a_fork_keep_paths_indices_and_ids_of_nodes() -> None:
    b = program()
    b.say("before")
    b.say("dead", stream=b.fork(1)[0])
    dead, living, dead_too = b.fork(3)
    for stream in (dead, living, dead_too):
        b.say("text", stream=stream)
    _, gen = b.say("q", Gen("x", {"temperature": 0}), stream=living)
    last = b.call("expand")
    b.say("q", Gen("y"), stream=last)
    built = b.build((NodeValue(gen, "x"), StreamState(last), StreamState(living)))
    graph, _ = pruned(built)
    paths = {stream.id: stream.path for stream in graph.streams}
    assert paths == {0: (), 1: (1,), 2: (2,), 3: (3,), 4: (4,)}
    assert [len(graph.of_stream(stream)) for stream in (1, 2, 3)] == [1, 4, 1]
    assert graph.returns == (NodeValue(gen, "x"), StreamState(4), StreamState(2))
    kept = {node.id: node for node in built.nodes}
    assert all(node.op == kept[node.id].op and node.index == kept[node.id].index for node in graph.nodes)
    assert [node.op.number for node in graph.nodes if isinstance(node.op, Fork)] == [3]


@pytest.mark.parametrize("graph", [essay_judge_graph(), tip_suggestion_graph()], ids=lambda graph: graph.name)
def test_programs_that_read_all_of_their_streams_keep_them(graph: Graph) -> None:
    assert pruned(graph, drop_unread=True)[0] is graph


def test_a_copy_that_generates_unread_goes_when_its_author_says_so() -> None:
    graph, report = pruned(roles_graph(), drop_unread=True)
    assert len(graph.streams) == 1
    assert report.gained_tokens is None
    assert report.notes == ("Gone, with their errors: 1 requests whose results nobody reads.",)
