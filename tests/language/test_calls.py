"""Functions called inside a program."""

from __future__ import annotations

import threading

import pytest

import sgl_core.language as sgl
from sgl_core.errors import InvalidArgumentError, NumericsError, ProgramError, UnknownOptionError
from sgl_core.testing import FakeBackend

OPTIONS = {"temperature": 0, "max_new_tokens": 100}


@sgl.function
def expand(s, tip):
    s += sgl.user("Expand into a paragraph: " + tip)
    s += sgl.assistant(sgl.gen("detailed_tip", max_tokens=64))


@sgl.function
def tip_suggestion(s):
    s += sgl.user("Give two tips for staying healthy.")
    s += sgl.assistant(
        "1." + sgl.gen("tip_1", stop=["\n"], max_tokens=32) + "\n2." + sgl.gen("tip_2", stop=["\n"], max_tokens=32)
    )
    e1 = expand(tip=s["tip_1"])
    e2 = expand(tip=s["tip_2"])
    s += sgl.user("Tip 1: " + e1["detailed_tip"] + "\nTip 2: " + e2["detailed_tip"] + "\nSummarise them.")
    s += sgl.assistant(sgl.gen("summary", max_tokens=64))


def test_tip_suggestion_has_both_calls_in_flight_together() -> None:
    both = threading.Barrier(2)

    def reply(ids: tuple[int, ...], params: object) -> str:
        if b"Expand" in bytes(token for token in ids if token < 256):
            both.wait(60)  # broken unless the second call arrives while the first one waits
            return "paragraph"
        return f" tip of {len(ids)}"

    with FakeBackend(reply) as backend:
        state = tip_suggestion.run(backend=backend)
    assert state.messages()[2]["content"] == "Tip 1: paragraph\nTip 2: paragraph\nSummarise them."
    assert [message["role"] for message in state.messages()] == ["user", "assistant"] * 2


def test_a_called_function_starts_a_stream_of_its_own_on_the_same_program(backend: FakeBackend) -> None:
    @sgl.function
    def outer(s):
        s += "outer text" + sgl.gen("x")
        return expand("be kind")

    state = outer.run(backend=backend, namespace="n", **OPTIONS)
    called = state.ret_value
    assert called.messages()[0] == {"role": "user", "content": "Expand into a paragraph: be kind"}
    assert "outer" not in called.text()
    assert "x" not in called
    assert {request.namespace for request in backend.requests} == {"n"}
    assert len({request.hints.program_id for request in backend.requests}) == 1


def test_a_function_given_the_state_appends_to_it_and_returns_what_its_body_returns(backend: FakeBackend) -> None:
    @sgl.function
    def ask(s, question):
        s += sgl.user(question) + sgl.assistant(sgl.gen("answer"))
        return s["answer"]

    @sgl.function
    def outer(s):
        returned = ask(s, "why?")
        assert returned == s["answer"]
        forks = s.fork(2)
        for fork in forks:
            assert expand(fork, tip="rest") is fork
        forks.join()

    state = outer.run(backend=backend, **OPTIONS)
    assert len(state.messages()) == 2
    assert len(state["detailed_tip"]) == 2


def test_functions_inside_a_call_belong_to_it(backend: FakeBackend) -> None:
    @sgl.function
    def leaf(s):
        s += "leaf" + sgl.gen("x")

    @sgl.function
    def middle(s):
        return leaf()

    @sgl.function
    def outer(s):
        first, second = middle(), middle()
        return [first.ret_value.stream.path, second.ret_value.stream.path]

    state = outer.run(backend=backend, **OPTIONS)
    assert state.ret_value == [(0, 0), (1, 0)]
    assert len({request.params.seed for request in backend.requests}) == 2


def test_a_call_outside_a_program_says_how_to_start_one() -> None:
    with pytest.raises(ProgramError, match=r"expand\.run"):
        expand(tip="x")


def test_a_program_is_over_for_calls_once_it_has_ended(backend: FakeBackend) -> None:
    expand.run(tip="x", backend=backend)
    with pytest.raises(ProgramError):
        expand(tip="x")


def test_arguments_of_a_call_are_checked(backend: FakeBackend) -> None:
    @sgl.function
    def outer(s):
        with pytest.raises(UnknownOptionError, match="expand"):
            expand(tap="x")
        with pytest.raises(UnknownOptionError):
            expand(tip="x", temperature=0)
        with pytest.raises(InvalidArgumentError, match="tip"):
            expand()
        with pytest.raises(InvalidArgumentError, match="at most 1"):
            expand(s, "a", "b")

    outer.run(backend=backend)


def test_the_error_of_a_call_surfaces_at_its_reader() -> None:
    @sgl.function
    def outer(s):
        called = expand(tip="x")
        with pytest.raises(NumericsError):
            called["detailed_tip"]

    with FakeBackend(fail=lambda request: NumericsError("bad row")) as backend:
        outer.run(backend=backend)


def test_the_unread_error_of_a_call_surfaces_when_the_program_ends() -> None:
    @sgl.function
    def outer(s):
        expand(tip="x")
        return "reached"

    with FakeBackend(fail=lambda request: NumericsError("bad row")) as backend, pytest.raises(NumericsError):
        outer.run(backend=backend)


def test_what_the_body_of_a_call_raises_is_raised_at_the_call(backend: FakeBackend) -> None:
    @sgl.function
    def broken(s):
        raise LookupError("in the call")

    @sgl.function
    def outer(s):
        with pytest.raises(LookupError, match="in the call"):
            broken()
        return "went on"

    assert outer.run(backend=backend).ret_value == "went on"


def test_threads_have_their_own_programs(backend: FakeBackend) -> None:
    inside = threading.Barrier(2)

    @sgl.function
    def outer(s, name):
        inside.wait(60)
        called = expand(tip=name)
        return called.run is s.run

    states = outer.run_batch([("a",), ("b",)], backend=backend, **OPTIONS)
    assert [state.ret_value for state in states] == [True, True]
