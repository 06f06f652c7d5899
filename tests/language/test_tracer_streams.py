"""What a trace records of forks, joins, functions in functions and host code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sgl_core import language as sgl
from sgl_core.errors import (
    InvalidArgumentError,
    ProgramError,
    StreamClosedError,
    TraceError,
)
from sgl_core.language.graph import (
    Call,
    GetForkItem,
    Join,
    Read,
    StreamBegin,
    StreamKind,
)
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    ConstantText,
    Expr,
    Fork,
    JoinedValue,
    NodeValue,
    RoleEnd,
    Variable,
)
from sgl_core.language.state import ProgramState
from sgl_core.testing.graphs import ops, traced

TIMEOUT_S = 30


def generation(name: str) -> Expr:
    return sgl.gen(name, temperature=0)


# ---- forks -----------------------------------------------------------------------------------------------------------
def test_forks_start_where_their_parent_stands() -> None:
    def body(s: ProgramState) -> None:
        s += "a"
        forks = s.fork(2)
        forks[1] += "b"
        s += "c"

    graph = traced(body)
    assert [(node.stream, node.op) for node in graph.nodes] == [
        (0, ConstantText("a")),
        (0, Fork(2)),
        (1, GetForkItem(1, 0)),
        (2, GetForkItem(1, 1)),
        (2, ConstantText("b")),
        (0, ConstantText("c")),
    ]
    assert [(stream.kind, stream.path, stream.parent) for stream in graph.streams[1:]] == [
        (StreamKind.FORK, (0,), 0),
        (StreamKind.FORK, (1,), 0),
    ]


def test_forks_inherit_variables_and_the_open_turn() -> None:
    def body(s: ProgramState) -> None:
        s += generation("x")
        s.user_begin()
        forks = s.fork(2)
        s["x"] = "another"
        s["y"] = "late"
        for fork in forks:
            assert "x" in fork
            assert "y" not in fork
            fork += fork["x"]
            fork.user_end()
        s.user_end()

    graph = traced(body)
    wanted = [Variable(NodeValue(0, "x")), RoleEnd("user")]
    assert [ops(graph, stream)[-2:] for stream in (1, 2)] == [wanted, wanted]


def test_paths_count_forks_copies_and_calls_alike() -> None:
    @sgl.function
    def helper(s: ProgramState) -> None:
        s += "h"

    def body(s: ProgramState) -> None:
        s.fork(2)[1].fork(1)
        with s.copy() as c:
            c += "c"
        helper()

    assert [stream.path for stream in traced(body).streams] == [(), (0,), (1,), (1, 0), (2,), (3,)]


def test_forks_take_lists_functions_and_one_text_for_all() -> None:
    def body(s: ProgramState, essay: Any) -> None:
        forks = s.fork(2)
        forks += essay
        forks += ["a", "b"]
        forks += lambda i: f"{i}"
        forks += "end"

    graph = traced(body)
    texts = [Argument("essay"), ConstantText("a"), ConstantText("0"), ConstantText("end")]
    assert ops(graph, 1)[1:] == texts
    assert ops(graph, 2)[1:] == [Argument("essay"), ConstantText("b"), ConstantText("1"), ConstantText("end")]


def test_forks_take_the_entries_of_a_joined_list() -> None:
    def body(s: ProgramState) -> None:
        first = s.fork(2)
        first += generation("x")
        first.join()
        second = s.fork(2)
        second += s["x"]

    graph = traced(body)
    assert [ops(graph, stream)[-1] for stream in (3, 4)] == [Variable(NodeValue(3, "x")), Variable(NodeValue(4, "x"))]


@pytest.mark.parametrize("n", [0, -1, True, 2.0, "2"])
def test_the_number_of_forks_is_checked(n: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="n: "):
        traced(lambda s: s.fork(n))


def test_a_joined_fork_refuses_writing_and_can_be_read() -> None:
    def write(s: ProgramState) -> None:
        forks = s.fork(1)
        forks.join()
        forks[0] += "late"

    def read(s: ProgramState) -> Any:
        forks = s.fork(1)
        forks += generation("x")
        forks.join()
        return forks[0]["x"]

    with pytest.raises(StreamClosedError, match=r'forks\[0\] \+= "late"'):
        traced(write)
    assert traced(read).returns == NodeValue(2, "x")


@pytest.mark.parametrize("use", [lambda c: c.set_var("x", 1), lambda c: c.fork(1), lambda c: c.copy(), lambda c: c.user("a")])
def test_a_copy_refuses_writing_behind_its_block(use: Callable[[ProgramState], object]) -> None:
    def body(s: ProgramState) -> None:
        with s.copy() as c:
            c += "a"
        use(c)

    with pytest.raises(StreamClosedError):
        traced(body)


# ---- joins -----------------------------------------------------------------------------------------------------------
def test_a_join_gathers_what_forks_set() -> None:
    def body(s: ProgramState) -> Any:
        forks = s.fork(2)
        forks += generation("x")
        forks[1]["only"] = 7
        forks.join()
        return s["x"], s["only"], len(s["x"])

    graph = traced(body)
    (join,) = [node for node in graph.nodes if isinstance(node.op, Join)]
    assert (join.stream, join.op) == (0, Join(0, "gather_variable", "raise"))
    assert graph.returns == ([NodeValue(3, "x"), NodeValue(4, "x")], [None, 7], 2)
    assert not any(isinstance(node.op, Read) for node in graph.nodes)


def test_a_join_that_keeps_errors_gives_entries_of_the_join() -> None:
    def body(s: ProgramState) -> Any:
        forks = s.fork(2)
        forks[0] += generation("x")
        forks.join(errors="keep")
        s += s["x"][0]
        return s["x"]

    graph = traced(body)
    assert graph.returns == [JoinedValue(4, "x", 0), JoinedValue(4, "x", 1)]
    assert ops(graph)[-1] == Variable(JoinedValue(4, "x", 0))


def test_a_joined_list_can_be_walked() -> None:
    def body(s: ProgramState) -> None:
        forks = s.fork(3)
        forks += generation("x")
        forks.join()
        for value in reversed(s["x"][1:]):
            s += value

    assert ops(traced(body))[-2:] == [Variable(NodeValue(6, "x")), Variable(NodeValue(5, "x"))]


def test_a_join_that_appends_brings_its_forks_turns() -> None:
    def body(s: ProgramState) -> None:
        s.user_begin()
        forks = s.fork(1)
        forks[0].user_end()
        forks[0].assistant_begin()
        forks.join("concate_and_append")
        s.assistant_end()

    assert ops(traced(body))[-2:] == [Join(1, "concate_and_append"), RoleEnd("assistant")]


def test_a_join_that_appends_refuses_turns_that_do_not_nest() -> None:
    def body(s: ProgramState) -> None:
        forks = s.fork(2)
        for fork in forks:
            fork.user_begin()
        forks.join("concate_and_append")

    def kept(s: ProgramState) -> None:
        forks = s.fork(1)
        forks[0].user_begin()
        forks.join("concate_and_append", errors="keep")

    with pytest.raises(ProgramError, match="opened inside a 'user' turn"):
        traced(body)
    with pytest.raises(TraceError, match="open or close a turn"):
        traced(kept)


def test_a_join_checks_its_arguments_and_happens_once() -> None:
    def again(s: ProgramState) -> None:
        forks = s.fork(1)
        forks.join()
        forks.join()

    with pytest.raises(InvalidArgumentError, match="mode"):
        traced(lambda s: s.fork(1).join("gather"))
    with pytest.raises(InvalidArgumentError, match="errors"):
        traced(lambda s: s.fork(1).join(errors="ignore"))
    with pytest.raises(TraceError, match="a second time"):
        traced(again)


# ---- functions in functions ------------------------------------------------------------------------------------------
@sgl.function
def expand(s: ProgramState, tip: Any) -> None:
    s += "Tip: " + tip
    s += generation("detail")


def test_a_function_with_a_state_is_inline() -> None:
    def body(s: ProgramState, tip: Any) -> None:
        expand(s, tip)
        expand(s, tip="b")

    assert len(traced(body).streams) == 1


def test_a_function_without_a_state_is_a_stream_of_its_own() -> None:
    def body(s: ProgramState, tip: Any) -> None:
        first, second = expand(tip), expand(tip=tip)
        s += first["detail"] + second["detail"]

    graph = traced(body)
    assert [(stream.kind, stream.parent) for stream in graph.streams[1:]] == [(StreamKind.CALL, 0), (StreamKind.CALL, 0)]
    assert ops(graph, 1) == [
        StreamBegin("expand"),
        ConstantText("Tip: "),
        Argument("tip"),
        generation("detail"),
        Read(NodeValue(3, "detail")),
    ]
    assert ops(graph) == [Variable(NodeValue(3, "detail")), Variable(NodeValue(7, "detail"))]


def test_what_sub_functions_return_are_ordinary_values() -> None:
    @sgl.function
    def pair(s: ProgramState) -> Any:
        s += generation("x")
        return [s["x"], 2]

    def body(s: ProgramState) -> Any:
        inline = pair(s)
        return inline[0], pair().ret_value[1]

    assert traced(body).returns == (NodeValue(0, "x"), 2)


# ---- host code -------------------------------------------------------------------------------------------------------
def test_host_code_is_a_call_even_on_constants() -> None:
    ran: list[int] = []

    def body(s: ProgramState) -> Any:
        return sgl.call(ran.__contains__, 3)

    graph = traced(body)
    (node,) = graph.nodes
    assert isinstance(node.op, Call)
    assert node.op.args == (3,)
    assert graph.returns == NodeValue(0)
    assert ran == []


def test_values_stand_in_the_trees_of_a_call() -> None:
    def body(s: ProgramState, essay: Any) -> None:
        forks = s.fork(2)
        forks += generation("x")
        forks.join()
        s += sgl.call(max, {"a": [essay, 1], "b": (s["x"],)}, key=len)

    call = next(node.op for node in traced(body).nodes if isinstance(node.op, Call))
    x = [NodeValue(3, "x"), NodeValue(4, "x")]
    assert call.args == ({"a": [ArgumentValue("essay"), 1], "b": (x,)},)
    assert call.kwargs == {"key": len}


def test_a_call_belongs_to_the_stream_of_the_function_around_it() -> None:
    @sgl.function
    def helper(s: ProgramState, text: Any) -> None:
        s += sgl.call(str.strip, text)

    def body(s: ProgramState, essay: Any) -> None:
        helper(essay)
        s += sgl.call(str.upper, essay)

    assert [node.stream for node in traced(body).nodes if isinstance(node.op, Call)] == [1, 0]


def test_outside_a_trace_host_code_runs_at_once() -> None:
    assert sgl.call(", ".join, ["a", "b"]) == "a, b"
