"""Text as it is generated."""

from __future__ import annotations

import asyncio
import threading

import pytest

import sgl_core.language as sgl
from sgl_core.errors import NumericsError
from sgl_core.handle import RequestHandle
from sgl_core.testing import FakeBackend
from sgl_core.types import FinishReason, GenDelta, GenResult, Usage

OPTIONS = {"temperature": 0, "max_new_tokens": 100}


@sgl.function
def story(s):
    s += sgl.user("Once") + sgl.assistant("upon " + sgl.gen("a") + " and " + sgl.gen("b") + sgl.select("c", ["x", "y"]))


class Stepwise(FakeBackend):
    """Hands the test the handles, so that it decides when text arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: list[RequestHandle[GenResult]] = []
        self.submitted = threading.Semaphore(0)

    def submit(self, request):
        handle = RequestHandle()
        self.handles.append(handle)
        self.submitted.release()
        return handle

    def end(self, index: int, text: str) -> None:
        ids = self.codec.encode(text)
        self.handles[index].finish(GenResult(text, ids, FinishReason.STOP, Usage(1, 0, len(ids))))


def test_the_pieces_of_a_state_make_its_text(backend: FakeBackend) -> None:
    state = story.run(backend=backend, stream=True, **OPTIONS)
    assert "".join(state.text_iter()) == state.text()
    assert "".join(state.text_iter()) == state.text()  # also afterwards


def test_the_pieces_of_a_variable_make_its_text(backend: FakeBackend) -> None:
    state = story.run(backend=backend, stream=True, **OPTIONS)
    for name in "abc":
        assert "".join(state.text_iter(name)) == state[name]


def test_pieces_arrive_while_the_generation_goes_on() -> None:
    @sgl.function
    def program(s):
        s += "p" + sgl.gen("x") + "!"

    backend = Stepwise()
    state = program.run(backend=backend, stream=True)
    whole, variable = state.text_iter(), state.text_iter("x")
    assert backend.submitted.acquire(timeout=60)
    backend.handles[0].push(GenDelta("one", ()))
    assert next(variable) == "one"
    pieces = [next(whole)]
    while "".join(pieces) != "pone":
        pieces.append(next(whole))
    backend.end(0, "one two")  # the last delta never came
    assert list(variable) == [" two"]
    assert "".join([*pieces, *whole]) == "pone two!"


def test_a_listener_that_comes_late_gets_everything_once() -> None:
    @sgl.function
    def program(s):
        s += "p" + sgl.gen("x")

    backend = Stepwise()
    state = program.run(backend=backend, stream=True)
    assert backend.submitted.acquire(timeout=60)
    backend.handles[0].push(GenDelta("one", ()))
    variable = state.text_iter("x")
    assert next(variable) == "one"
    backend.handles[0].push(GenDelta(" two", ()))
    assert next(variable) == " two"
    backend.end(0, "one two")
    assert list(variable) == []
    assert "".join(state.text_iter()) == "pone two"


def test_a_body_can_iterate_over_its_own_text(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        s += "p" + sgl.gen("x")
        forks = s.fork(2)
        forks += "q" + sgl.gen("y")
        return ["".join(s.text_iter()), "".join(forks[1].text_iter()), "".join(forks[0].text_iter("y"))]

    own, of_fork, of_variable = program.run(backend=backend, **OPTIONS).ret_value
    assert own.startswith("p")
    assert of_fork.startswith(own + "q")
    assert of_fork.endswith(of_variable)


def test_iterating_a_live_state_ends_with_the_body_and_not_before() -> None:
    gate = threading.Event()

    @sgl.function
    def program(s):
        s += "early "
        gate.wait(60)
        s += "late"

    with FakeBackend() as backend:
        state = program.run(backend=backend, stream=True)
        pieces = state.text_iter()
        assert next(pieces) == "early "
        gate.set()
        assert list(pieces) == ["late"]


def test_an_error_ends_the_iteration_and_is_raised() -> None:
    with FakeBackend(fail=lambda request: NumericsError("bad row")) as backend:
        state = story.run(backend=backend, stream=True, **OPTIONS)
        with pytest.raises(NumericsError):
            list(state.text_iter())
        with pytest.raises(NumericsError):
            list(state.text_iter("b"))


def test_what_the_body_raises_ends_the_iteration_and_is_raised(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        s += "text"
        raise LookupError("in the body")

    state = program.run(backend=backend, stream=True)
    with pytest.raises(LookupError, match="in the body"):
        list(state.text_iter())


def test_async_iteration_gives_the_same_pieces(backend: FakeBackend) -> None:
    async def main() -> None:
        state = story.run(backend=backend, stream=True, **OPTIONS)
        assert "".join([piece async for piece in state.text_async_iter("a")]) == await state.aget("a")
        assert "".join([piece async for piece in state.text_async_iter()]) == state.text()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_async_iteration_can_end_with_the_meta_info(backend: FakeBackend) -> None:
    async def main() -> None:
        state = story.run(backend=backend, stream=True, **OPTIONS)
        pairs = [pair async for pair in state.text_async_iter("a", return_meta_data=True)]
        assert "".join(text for text, _ in pairs) == state["a"]
        assert [meta for _, meta in pairs[:-1]] == [{}] * (len(pairs) - 1)
        assert pairs[-1] == ("", state.get_meta_info("a"))

    asyncio.run(asyncio.wait_for(main(), 60))
