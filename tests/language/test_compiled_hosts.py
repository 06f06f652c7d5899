"""Compiled programs among threads, context variables and backends that misbehave: what found bugs here once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from decimal import Decimal
from typing import Any

import pytest

import sgl_core.language as sgl
from sgl_core.errors import InvalidArgumentError, ProgramError, RequestAborted, TraceError
from sgl_core.testing import ByteCodec, FakeBackend

HANG_S = 10.0
WHO: ContextVar[str] = ContextVar("who", default="nobody")


@sgl.function
def signed(s: Any) -> None:
    s += "a" + sgl.gen("x", max_tokens=2)
    s["who"] = sgl.call(lambda _: WHO.get(), s["x"])
    s["before"] = sgl.call(_sign_as, "somebody else")
    s["after"] = sgl.call(lambda _: WHO.get(), s["before"])


def _sign_as(name: str) -> str:
    before = WHO.get()
    WHO.set(name)
    return before


@sgl.function
def numbered(s: Any, number: Any, flag: object = "") -> None:
    s += f"n {number} " + sgl.gen("x", max_tokens=3, temperature=0)
    s["flag"] = flag


@pytest.mark.parametrize("program", [signed, signed.compile()], ids=["interpreted", "compiled"])
def test_host_code_sees_the_context_variables_of_whoever_runs_the_program(program: Any, backend: FakeBackend) -> None:
    async def awaited() -> Any:
        return await program.arun(backend=backend)

    token = WHO.set("me")
    try:
        states = [
            asyncio.run(awaited()),
            program.run(backend=backend, stream=True),
            *program.run_batch([{}] * 20, backend=backend, num_threads=2),
        ]
        assert {(s["who"], s["before"], s["after"]) for s in states} == {("me", "me", "somebody else")}
        assert WHO.get() == "me"
    finally:
        WHO.reset(token)


def test_host_code_belongs_to_no_program_also_where_one_runs_around_it(backend: FakeBackend) -> None:
    @sgl.function
    def inner(s: Any) -> None:
        s += "b" + sgl.gen("y", max_tokens=2)

    @sgl.function
    def caller(s: Any) -> None:
        s += "a" + sgl.gen("x", max_tokens=2)
        sgl.call(lambda _: inner(), s["x"])

    compiled = caller.compile()

    @sgl.function
    def around(s: Any) -> None:
        compiled.run(backend=backend)
        s += "c"

    with pytest.raises(ProgramError, match="outside a program"):
        around.run(backend=backend)


def test_a_call_that_gets_no_thread_fails_its_program_instead_of_hanging_it(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "sgl-call":
            raise RuntimeError("no more threads")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)

    async def main() -> None:
        await asyncio.wait_for(signed.compile().arun(backend=backend), HANG_S)

    with pytest.raises(RuntimeError, match="no more threads"):
        asyncio.run(main())


def test_no_graph_is_traced_on_the_dispatchers_thread() -> None:
    traced_by: list[str] = []

    @sgl.function
    def noted(s: Any, flag: object) -> None:
        traced_by.append(threading.current_thread().name)
        s += "a" + sgl.gen("x", max_tokens=2)
        s["flag"] = flag

    compiled = noted.compile()
    with FakeBackend(latency_s=0.4) as slow:  # so that the last item has to wait for room
        states = compiled.run_batch([*[("text",)] * 256, (None,)], backend=slow)
    assert (len(states), states[-1]["flag"]) == (257, None)
    assert set(traced_by) == {threading.current_thread().name}


def test_a_batch_keeps_the_error_of_an_item_that_cannot_be_prepared(backend: FakeBackend) -> None:
    outcomes = numbered.compile(static={"number": 1}).run_batch([{}, {"number": 2}, {}], backend=backend, return_errors=True)
    assert isinstance(outcomes[1], InvalidArgumentError)
    assert outcomes[0].text() == outcomes[2].text()


class NoPrefetch(FakeBackend):
    """Its prefetch is broken in a way that no error of ours describes."""

    def prefetch(self, request: Any) -> Any:
        raise ConnectionError("prefetch is down")


def test_a_prefetch_that_a_backend_cannot_do_fails_no_program() -> None:
    @sgl.function
    def helper(s: Any) -> None:
        s += "a" * 50 + sgl.gen("x", max_tokens=2, temperature=0)

    @sgl.function
    def asks(s: Any) -> None:
        other = helper()
        s += "rule " * 50 + other["x"] + sgl.gen("y", max_tokens=2, temperature=0)

    compiled = asks.compile()
    assert "Prefetch" in str(compiled.graph)
    with NoPrefetch() as broken:
        assert compiled.run(backend=broken).text() == asks.run(backend=broken).text()


def test_nothing_is_generated_behind_an_argument_that_is_no_text(backend: FakeBackend) -> None:
    @sgl.function
    def ask(s: Any, question: Any) -> None:
        s += "Q: " + question
        s += sgl.gen("x", max_tokens=2)

    state = ask.compile().run(question=7, backend=backend, stream=True)
    assert isinstance(state.error(), InvalidArgumentError)
    assert backend.requests == []


@pytest.mark.parametrize(("one", "other"), [(0.0, -0.0), (Decimal("1.0"), Decimal("1.00")), (1, True)])
def test_static_values_that_are_equal_and_written_differently_have_graphs_of_their_own(
    one: object, other: object, backend: FakeBackend
) -> None:
    for value in (one, other):
        text = numbered.compile(static={"number": value}).run(backend=backend).text()
        assert text == numbered.run(number=value, backend=backend).text()


def test_a_compiled_program_does_not_follow_changes_of_the_list_that_it_was_compiled_with(backend: FakeBackend) -> None:
    numbers = [1, 2]
    for compile_with in (lambda: numbered.compile(static={"number": numbers}), numbered.bind(number=numbers).compile):
        compiled = compile_with()
        before = compiled.run(backend=backend).text()
        numbers.append(3)
        assert compiled.run(backend=backend, flag=None).text() == before  # traced anew, as None has a graph of its own
        assert compiled.run(backend=backend, number=numbers[:-1]).text() == before
        assert compile_with() is not compiled


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_batch_started_while_a_body_is_traced_runs_nothing(is_compiled: bool, backend: FakeBackend) -> None:
    runnable: Any = numbered.compile(static={"number": 1}) if is_compiled else numbered.bind(number=1)

    @sgl.function
    def body(s: Any) -> None:
        (state,) = runnable.run_batch([{}], backend=backend)
        s += state["x"] + sgl.gen("y", max_tokens=2)

    with pytest.raises(TraceError, match="started inside a program that is being compiled"):
        body.compile()
    assert backend.requests == []


class Interrupted(Mapping[str, Any]):
    """The arguments at which somebody presses Ctrl-C, as soon as the item before has begun."""

    def __init__(self, begun: Callable[[], object]) -> None:
        self._begun = begun

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[str]:
        while not self._begun():
            time.sleep(0.001)
        raise KeyboardInterrupt


def test_an_interrupt_while_a_batch_is_being_started_aborts_what_has_begun() -> None:
    with FakeBackend(latency_s=3600) as backend:
        items = [{}, Interrupted(lambda: backend.requests)]
        with pytest.raises(KeyboardInterrupt):
            signed.compile().run_batch(items, backend=backend)
        assert len(backend.requests) == 1


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_a_body_that_is_interrupted_on_the_loop_aborts_its_requests(raised: type[BaseException]) -> None:
    states: list[Any] = []

    @sgl.function
    async def body(s: Any) -> None:
        states.append(s)
        s += "a" + sgl.gen("x", max_tokens=2)
        raise raised

    with FakeBackend(latency_s=3600) as backend:
        coroutine = body.arun(backend=backend)
        with pytest.raises(raised):
            coroutine.send(None)
        assert isinstance(states[0].error(), RequestAborted)


def test_every_spelling_in_a_text_is_warned_of_compiled_and_interpreted() -> None:
    """The interpreter appends a value and the text behind it as one str, a graph as two."""

    class OwnCodec(ByteCodec):
        fingerprint = "bytes of a test about spellings"

    @sgl.function
    def quoting(s: Any) -> None:
        s += "a" + sgl.gen("x", max_tokens=2)
        s += sgl.call(lambda _: "<|assistant|>", s["x"]) + " and <|end_user|>"

    for program in (quoting, quoting.compile()):
        OwnCodec.fingerprint += "."
        with FakeBackend(codec=OwnCodec()) as backend, pytest.warns(UserWarning, match="spelling") as caught:
            program.run(backend=backend)
        assert sorted(str(warning.message).split("'")[1] for warning in caught) == ["<|assistant|>", "<|end_user|>"]
