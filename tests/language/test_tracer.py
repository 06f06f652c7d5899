"""What a trace records: nodes, streams, values and returns."""

from __future__ import annotations

import asyncio
import contextvars
import operator
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from sgl_core import language as sgl
from sgl_core.errors import (
    ProgramError,
    TraceError,
    UnknownOptionError,
    VariableNotFoundError,
)
from sgl_core.language.graph import (
    Call,
    GraphStream,
    Parameter,
    Read,
    SetVar,
    StreamBegin,
    StreamKind,
    StreamState,
)
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    ConstantText,
    Expr,
    Gen,
    NodeValue,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Variable,
)
from sgl_core.language.primitives import separate_reasoning
from sgl_core.language.run import CURRENT_STATE
from sgl_core.language.state import ProgramState
from sgl_core.language.traced_state import TracedForkGroup, TracedState
from sgl_core.language.tracer import Tracer, trace
from sgl_core.testing.graphs import ops, traced

TIMEOUT_S = 30


def generation(name: str) -> Expr:
    return sgl.gen(name, temperature=0)


@sgl.function
def expand(s: ProgramState, tip: Any) -> None:
    s += "Tip: " + tip
    s += generation("detail")


# ---- text and values -------------------------------------------------------------------------------------------------
def test_constants_arguments_and_generations_are_recorded_in_order() -> None:
    def body(s: ProgramState, essay: Any) -> None:
        s += "Essay: " + essay
        s += generation("x")

    graph = traced(body)
    assert ops(graph) == [ConstantText("Essay: "), Argument("essay"), generation("x")]
    assert graph.name == "body"
    assert graph.parameters == (Parameter("essay"),)
    assert graph.streams == (GraphStream(0, StreamKind.ROOT, (), None),)


def test_nodes_have_the_line_that_made_them() -> None:
    def body(s: ProgramState) -> None:
        s += "a"
        with s.user():
            s += "b"

    places = [node.place for node in traced(body).nodes]
    assert [place.text if place else "" for place in places] == ['s += "a"', "with s.user():", 's += "b"', "with s.user():"]
    assert all(place and place.file == __file__ for place in places)


def test_a_variable_is_read_once_and_appended_as_often_as_it_is_written() -> None:
    def body(s: ProgramState) -> None:
        s += generation("x")
        s += "a" + s["x"] + "b" + s.get_var("x")

    x = NodeValue(0, "x")
    wanted = [generation("x"), Read(x), ConstantText("a"), Variable(x), ConstantText("b"), Variable(x)]
    assert ops(traced(body)) == wanted


def test_a_variable_that_is_defined_again_is_read_again() -> None:
    def body(s: ProgramState) -> Any:
        s += generation("x")
        first = s["x"]
        s += generation("x")
        return first, s["x"]

    graph = traced(body)
    assert graph.returns == (NodeValue(0, "x"), NodeValue(2, "x"))
    assert [node.op for node in graph.nodes if isinstance(node.op, Read)] == [Read(NodeValue(0, "x")), Read(NodeValue(2, "x"))]


def test_generations_have_indices_and_those_without_a_name_automatic_ones() -> None:
    def body(s: ProgramState) -> Any:
        s += sgl.gen() + sgl.select("pick", ["a", "b"]) + sgl.gen()
        return s["_unnamed_2"]

    graph = traced(body)
    gens = [node for node in graph.nodes if isinstance(node.op, Gen | Select)]
    assert [(node.op.name, node.index, node.is_automatic) for node in gens if isinstance(node.op, Gen | Select)] == [
        ("_unnamed_0", 0, True),
        ("pick", 1, False),
        ("_unnamed_2", 2, True),
    ]
    assert graph.returns == NodeValue(2, "_unnamed_2")


def test_separate_reasoning_defines_two_variables() -> None:
    def body(s: ProgramState) -> Any:
        s += separate_reasoning(sgl.gen("x"), "qwen3")
        return s["x"], s["x_reasoning_content"]

    assert traced(body).returns == (NodeValue(0, "x"), NodeValue(0, "x_reasoning_content"))


def test_a_scope_defines_its_variable_at_its_end() -> None:
    def body(s: ProgramState) -> Any:
        with s.var_scope("v"):
            s += "a"
        return s["v"]

    graph = traced(body)
    assert ops(graph) == [ScopeBegin("v"), ConstantText("a"), ScopeEnd("v"), Read(NodeValue(2, "v"))]


def test_a_variable_that_was_set_reads_as_the_value_itself() -> None:
    def body(s: ProgramState, essay: Any) -> Any:
        s["n"] = 2
        s.set_var("text", essay)
        if s["n"] == 2:
            s += s["text"]
        return s["n"]

    graph = traced(body)
    assert ops(graph) == [SetVar("n", 2), SetVar("text", ArgumentValue("essay")), Argument("essay")]
    assert graph.returns == 2


def test_text_that_was_added_up_is_a_call_where_a_value_is_needed() -> None:
    def body(s: ProgramState, essay: Any) -> Any:
        s["v"] = "a" + essay + "b"
        s += s["v"]
        return s["v"]

    graph = traced(body)
    first, second, set_var, variable = graph.nodes
    assert isinstance(first.op, Call)
    assert isinstance(second.op, Call)
    assert (first.op.fn, first.op.args) == (operator.add, ("a", ArgumentValue("essay")))
    assert (second.op.fn, second.op.args) == (operator.add, (NodeValue(0), "b"))
    assert set_var.op == SetVar("v", NodeValue(1))
    assert variable.op == Variable(NodeValue(1))
    assert graph.returns == NodeValue(1)


# ---- arguments -------------------------------------------------------------------------------------------------------
def test_static_and_bound_arguments_are_plain_values() -> None:
    def body(s: ProgramState, names: list[str], tone: str, question: Any = "why?") -> None:
        for name in names:
            s += f"{name}, {tone}: " + question

    graph = trace(sgl.function(body).bind(tone="kind"), static={"names": ["Ann", "Bo"]})
    texts = [op.text for op in ops(graph) if isinstance(op, ConstantText)]
    assert texts == ["Ann, kind: ", "Bo, kind: "]
    assert graph.parameters == (Parameter("question", "why?", True),)
    assert dict(graph.static) == {"names": ["Ann", "Bo"], "tone": "kind"}


def test_static_arguments_must_be_parameters() -> None:
    def body(s: ProgramState, essay: Any) -> None:
        s += essay

    with pytest.raises(UnknownOptionError, match="essay"):
        trace(sgl.function(body), static={"esay": 1})


def test_keywords_that_a_function_takes_beside_its_parameters_get_nothing() -> None:
    def body(s: ProgramState, **others: Any) -> None:
        s += f"{sorted(others)}"

    assert ops(traced(body)) == [ConstantText("[]")]
    assert ops(traced(body, tone="kind")) == [ConstantText("['tone']")]


# ---- turns -----------------------------------------------------------------------------------------------------------
def test_role_bodies_are_in_the_graph_however_they_are_written() -> None:
    def body(s: ProgramState) -> None:
        s += sgl.user("a")
        s.user("b")
        with s.user():
            s += "c"
        s.user_begin()
        s += "d"
        s.user_end()

    found = ops(traced(body))
    assert found == [op for text in "abcd" for op in (RoleBegin("user"), ConstantText(text), RoleEnd("user"))]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_every_role_can_be_held_open(role: str) -> None:
    def body(s: ProgramState) -> None:
        with getattr(s, role)():
            s += "a"
        getattr(s, f"{role}_begin")()
        getattr(s, f"{role}_end")()

    turn = [RoleBegin(role), RoleEnd(role)]
    assert ops(traced(body)) == [turn[0], ConstantText("a"), turn[1], *turn]


def test_turns_nest_as_little_as_in_the_interpreter() -> None:
    def nested(s: ProgramState) -> None:
        with s.user():
            s += sgl.assistant("a")

    def unopened(s: ProgramState) -> None:
        s.user_end()

    with pytest.raises(ProgramError, match=r"an 'assistant' turn is opened inside a 'user' turn.*s \+= sgl\.assistant"):
        traced(nested)
    with pytest.raises(ProgramError, match="no turn is open"):
        traced(unopened)


# ---- what the body returns -------------------------------------------------------------------------------------------
def test_states_and_values_are_returned_in_their_trees() -> None:
    def body(s: ProgramState, essay: Any) -> Any:
        forks = s.fork(2)
        return {"state": s, "forks": list(forks), "essay": essay, "n": 3}

    wanted = {"state": StreamState(0), "forks": [StreamState(1), StreamState(2)], "essay": ArgumentValue("essay"), "n": 3}
    assert traced(body).returns == wanted


@dataclass
class Answer:
    text: Any


def test_an_object_that_holds_a_value_is_refused() -> None:
    def body(s: ProgramState, essay: Any) -> Any:
        return [Answer(essay)]

    with pytest.raises(TraceError, match=r"type Answer that holds argument 'essay'.*sgl\.call\(Answer, \.\.\.\)"):
        traced(body)


# ---- unset variables -------------------------------------------------------------------------------------------------
def test_an_unset_variable_is_named_with_those_that_are_set() -> None:
    def body(s: ProgramState) -> None:
        s += generation("b") + sgl.gen()
        s["a"] = 1
        s += s["c"]

    with pytest.raises(VariableNotFoundError, match=r"'c' is not defined in this stream; defined: a, b .*s \+= s\[\"c\"\]"):
        traced(body)


def test_what_is_known_answers_in() -> None:
    def body(s: ProgramState) -> None:
        s += generation("x")
        assert "x" in s
        assert "y" not in s
        assert 3 not in s
        s.sync()

    assert len(traced(body).nodes) == 1


# ---- async -----------------------------------------------------------------------------------------------------------
def test_an_async_body_is_traced_on_a_loop_of_its_own() -> None:
    async def body(s: ProgramState) -> Any:
        forks = s.fork(3)
        forks += generation("x")
        values = await asyncio.gather(*(fork.aget("x") for fork in forks))
        await forks.ajoin()
        return list(values), s["x"]

    graph = traced(body)
    x = [NodeValue(index, "x") for index in (4, 5, 6)]
    assert graph.returns == (x, x)


async def test_an_async_body_is_traced_while_a_loop_runs() -> None:
    async def body(s: ProgramState) -> None:
        await asyncio.sleep(0)
        s += "a"

    assert ops(traced(body)) == [ConstantText("a")]


def test_an_async_sub_function_is_traced() -> None:
    @sgl.function
    async def helper(s: ProgramState) -> None:
        s += "h"

    async def body(s: ProgramState) -> None:
        await helper(s)
        await helper()

    graph = traced(body)
    assert [ops(graph, stream) for stream in (0, 1)] == [[ConstantText("h")], [StreamBegin("helper"), ConstantText("h")]]


def test_what_an_async_body_raises_comes_out() -> None:
    async def body(s: ProgramState) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        traced(body)


# ---- one trace among others ------------------------------------------------------------------------------------------
def test_a_trace_leaves_no_state_behind() -> None:
    traced(lambda s: s.fork(1).join())
    assert CURRENT_STATE.get() is None


def test_two_traces_in_two_threads_do_not_meet() -> None:
    barrier = threading.Barrier(2, timeout=TIMEOUT_S)

    def body(s: ProgramState, name: str) -> Any:
        for index in range(50):
            barrier.wait()
            s += f"{name}{index}" + sgl.gen(f"{name}{index}")
        return sgl.call(len, name)

    with ThreadPoolExecutor(2) as pool:
        graphs = [future.result(TIMEOUT_S) for future in [pool.submit(traced, body, name=name) for name in "ab"]]
    for name, graph in zip("ab", graphs, strict=True):
        assert [op.text for op in ops(graph) if isinstance(op, ConstantText)] == [f"{name}{index}" for index in range(50)]
        assert len(graph.nodes) == 101


def test_a_thread_of_the_body_belongs_to_its_trace() -> None:
    def body(s: ProgramState, essay: Any) -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(expand, essay))
        thread.start()
        thread.join(TIMEOUT_S)

    assert len(traced(body).streams) == 2


def test_a_function_is_not_run_to_be_traced_before_somebody_asks() -> None:
    ran: list[str] = []

    @sgl.function
    def body(s: ProgramState) -> None:
        ran.append("ran")

    tracer = Tracer(body)
    assert ran == []
    tracer.run()
    assert ran == ["ran"]


def test_a_state_cannot_be_used_behind_its_trace() -> None:
    kept: list[ProgramState] = []
    traced(kept.append)
    with pytest.raises(ProgramError, match="a trace that has ended"):
        kept[0] += "late"


def test_what_was_recorded_before_a_refusal_can_be_had() -> None:
    @sgl.function
    def body(s: ProgramState, essay: Any) -> None:
        s += sgl.system("Rules.")
        with s.user():
            s += "Text: "
            s += f"{essay}"

    tracer = Tracer(body)
    with pytest.raises(TraceError):
        tracer.run()
    wanted = [RoleBegin("system"), ConstantText("Rules."), RoleEnd("system"), RoleBegin("user"), ConstantText("Text: ")]
    assert ops(tracer.recorded()) == wanted


def test_what_was_recorded_before_c_code_refused_can_be_had() -> None:
    @sgl.function
    def body(s: ProgramState, essay: Any) -> None:
        with s.user():
            s += ", ".join(["a", essay])  # noqa: FLY002

    tracer = Tracer(body)
    with pytest.raises(TraceError, match=r'str\.join needs texts.*s \+= ", "\.join'):
        tracer.run()
    assert ops(tracer.recorded()) == [RoleBegin("user")]


# ---- the surface -----------------------------------------------------------------------------------------------------
def public_methods(kind: type) -> set[str]:
    operators = {"__iadd__", "__setitem__", "__getitem__", "__contains__", "__enter__", "__exit__"}
    return {name for name, thing in vars(kind).items() if callable(thing) and (name[0] != "_" or name in operators)}


def test_no_method_of_a_traced_state_reaches_the_interpreter() -> None:
    assert public_methods(ProgramState) - set(vars(TracedState)) == set()
    assert {"join", "ajoin"} <= set(vars(TracedForkGroup))


@pytest.mark.parametrize(
    "read",
    [
        lambda s: s.text(),
        lambda s: s.messages(),
        lambda s: s.variables(),
        lambda s: s.get_meta_info("x"),
        lambda s: s.error(),
        lambda s: s.abort(),
        lambda s: s.text_iter("x"),
        lambda s: s.text_async_iter("x"),
    ],
)
def test_what_only_a_run_has_is_refused(read: Callable[[ProgramState], object]) -> None:
    def body(s: ProgramState) -> None:
        s += generation("x")
        read(s)

    with pytest.raises(TraceError, match=r"the state that run\(\.\.\.\) returns"):
        traced(body)


# ---- cost ------------------------------------------------------------------------------------------------------------
def num_calls_to_trace(body: Callable[..., Any], n: int) -> int:
    num_calls = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    program = sgl.function(body)
    sys.setprofile(count)
    try:
        graph = trace(program, static={"n": n})
    finally:
        sys.setprofile(None)
    assert len(graph.nodes) >= n
    return num_calls


def many_turns(s: ProgramState, n: int, essay: Any) -> None:
    for index in range(n // 5):
        s += sgl.user("a" + essay) + generation(f"x{index}")
        s += s[f"x{index}"]


def many_forks(s: ProgramState, n: int) -> None:
    for _ in range(n // 40):
        forks = s.fork(20)
        forks += generation("x")
        forks.join()
        for value in s["x"]:
            s += value


@pytest.mark.parametrize("body", [many_turns, many_forks])
def test_a_graph_of_ten_thousand_nodes_costs_ten_times_one_of_a_thousand(body: Callable[..., Any]) -> None:
    num_calls_to_trace(body, 200)  # caches of lines and modules
    assert num_calls_to_trace(body, 10_000) < 11 * num_calls_to_trace(body, 1_000)
