"""Programs on an event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

import sgl_core.language as sgl
from sgl_core.errors import NumericsError, ProgramError, UnknownOptionError
from sgl_core.testing import FakeBackend

OPTIONS = {"temperature": 0, "max_new_tokens": 100}


@sgl.function
def plain(s, question):
    s += question + sgl.gen("answer")
    return s["answer"]


@sgl.function
async def native(s, question):
    s += question + sgl.gen("answer")
    return await s.aget("answer")


@pytest.mark.parametrize("program", [plain, native])
def test_plain_and_async_bodies_give_the_same_as_run(program: sgl.SglFunction, backend: FakeBackend) -> None:
    expected = plain.run("why?", backend=backend, **OPTIONS)
    state = asyncio.run(program.arun("why?", backend=backend, **OPTIONS))
    assert (state.text(), state.ret_value) == (expected.text(), expected.ret_value)


@pytest.mark.parametrize("program", [plain, native])
def test_many_programs_wait_for_each_other_on_one_loop(program: sgl.SglFunction) -> None:
    everybody = threading.Event()

    def reply(ids: tuple[int, ...], params: object) -> str:
        for _ in range(6000):
            if len(backend.requests) == 40 or everybody.wait(0.01):
                everybody.set()
                return "True"
        return "they never came together"

    async def main() -> list[sgl.ProgramState]:
        return await asyncio.gather(*(program.arun(f"{i}", backend=backend, **OPTIONS) for i in range(40)))

    with FakeBackend(reply) as backend:
        assert all(state.ret_value == "True" for state in asyncio.run(main()))


@pytest.mark.parametrize("program", [plain, native])
def test_errors_are_raised_by_arun(program: sgl.SglFunction) -> None:
    with FakeBackend(fail=lambda request: NumericsError("bad row")) as backend, pytest.raises(NumericsError):
        asyncio.run(program.arun("why?", backend=backend))


def test_an_unread_error_is_raised_by_arun() -> None:
    @sgl.function
    async def program(s):
        s += "a" + sgl.gen("x")

    with FakeBackend(fail=lambda request: NumericsError("bad row")) as backend, pytest.raises(NumericsError):
        asyncio.run(program.arun(backend=backend))


@pytest.mark.parametrize("program", [plain, native])
def test_cancelling_aborts_the_programs_requests(program: sgl.SglFunction) -> None:
    async def main() -> None:
        task = asyncio.create_task(program.arun("why?", backend=backend, **OPTIONS))
        while not backend._pending:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while backend._pending:  # aborted long before its latency
            await asyncio.sleep(0.001)

    with FakeBackend(latency_s=60) as backend:
        asyncio.run(asyncio.wait_for(main(), 60))


def test_a_cancelled_program_starts_nothing_more() -> None:
    ended = threading.Event()

    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x") + sgl.gen("y")
        forks = s.fork(2)
        forks += sgl.select("z", ["a", "b"])
        try:
            forks.join()
        finally:
            ended.set()

    async def main() -> None:
        task = asyncio.create_task(program.arun(backend=backend, **OPTIONS))
        while not backend._pending:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with FakeBackend(latency_s=60) as backend:
        asyncio.run(asyncio.wait_for(main(), 60))
        assert ended.wait(60)
        assert (len(backend.requests), len(backend.scores)) == (1, 0)


def test_a_cancelled_select_ends_too() -> None:
    @sgl.function
    async def program(s):
        s += "a" + sgl.select("x", ["a", "b"], choices_method="unconditional_likelihood_normalized")
        await s.aget("x")

    async def main() -> None:
        task = asyncio.create_task(program.arun(backend=backend))
        while len(backend._pending) < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while backend._pending:
            await asyncio.sleep(0.001)

    with FakeBackend(latency_s=60) as backend:
        asyncio.run(asyncio.wait_for(main(), 60))


def test_an_async_body_forks_joins_and_calls(backend: FakeBackend) -> None:
    @sgl.function
    async def program(s):
        forks = s.fork(3)
        forks += lambda i: f"{i}" + sgl.gen("x")
        await forks.ajoin()
        called = await native("why?")
        inline = await native(s, "how?")
        return [len(s["x"]), called.ret_value, await called.aget("answer"), inline == s["answer"]]

    number, returned, answer, is_inline = asyncio.run(program.arun(backend=backend, **OPTIONS)).ret_value
    assert (number, is_inline) == (3, True)
    assert returned == answer


def test_aget_raises_the_original_error() -> None:
    @sgl.function
    async def program(s):
        s += "a" + sgl.gen("x")
        with pytest.raises(NumericsError):
            await s.aget("x")
        with pytest.raises(KeyError):
            await s.aget("y")
        return True

    with FakeBackend(fail=lambda request: NumericsError("bad row")) as backend:
        assert asyncio.run(program.arun(backend=backend)).ret_value


def test_a_streamed_run_can_be_awaited_before_its_body_has_come_so_far(backend: FakeBackend) -> None:
    gate = threading.Event()

    @sgl.function
    def program(s):
        gate.wait(60)
        s += "a" + sgl.gen("late")

    async def main() -> str:
        state = program.run(backend=backend, stream=True, **OPTIONS)
        waiting = asyncio.create_task(state.aget("late"))
        await asyncio.sleep(0)
        gate.set()
        return await waiting

    assert asyncio.run(asyncio.wait_for(main(), 60))


def test_an_async_body_runs_without_a_loop_and_not_inside_one(backend: FakeBackend) -> None:
    assert native.run("why?", backend=backend).ret_value

    async def main() -> None:
        with pytest.raises(ProgramError, match=r"await native\.arun"):
            native.run("why?", backend=backend)

    asyncio.run(main())


def test_arun_has_no_stream_option(backend: FakeBackend) -> None:
    with pytest.raises(UnknownOptionError, match="stream"):
        asyncio.run(plain.arun("why?", backend=backend, stream=True))


def test_a_loop_that_closes_early_leaves_the_programs_thread_unharmed() -> None:
    gate = threading.Event()
    ended = threading.Event()

    @sgl.function
    def program(s):
        gate.wait(60)
        ended.set()

    async def main() -> None:
        task = asyncio.ensure_future(program.arun(backend=backend))
        await asyncio.sleep(0.01)
        task.cancel()

    with FakeBackend() as backend:
        asyncio.run(main())
        gate.set()
        assert ended.wait(60)
