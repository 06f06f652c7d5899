"""One producer, waiters of every kind, callbacks exactly once and in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sgl_core.handle import RequestHandle
from sgl_core.types import GenDelta

WAIT_S = 30.0


def delta(number: int) -> GenDelta:
    return GenDelta(f"{number} ", (number,))


def later(fn: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=fn)
    thread.start()
    return thread


def test_every_kind_of_waiter_gets_the_same_result() -> None:
    handle: RequestHandle[str] = RequestHandle()

    async def awaited() -> str:
        return await asyncio.wait_for(asyncio.ensure_future(_await(handle)), WAIT_S)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(handle.result, WAIT_S), pool.submit(lambda: asyncio.run(awaited()))]
        heard = pool.submit(lambda: list(handle))
        for number in range(3):
            handle.push(delta(number))
        handle.finish("value")
        assert [f.result(WAIT_S) for f in futures] == ["value", "value"]
        assert heard.result(WAIT_S) == [delta(0), delta(1), delta(2)]
    assert handle.done()
    assert handle.error() is None


async def _await(handle: RequestHandle[str]) -> str:
    return await handle


def test_an_error_reaches_every_kind_of_waiter() -> None:
    handle: RequestHandle[str] = RequestHandle()
    error = RuntimeError("mine")
    handle.push(delta(0))
    handle.fail(error)

    async def both() -> None:
        with pytest.raises(RuntimeError, match="mine"):
            await handle
        with pytest.raises(RuntimeError, match="mine"):
            async for _ in handle:
                pass

    asyncio.run(both())
    for wait in (lambda: handle.result(0), lambda: list(handle)):
        with pytest.raises(RuntimeError, match="mine"):
            wait()
    assert handle.error() is error


def test_the_first_end_wins_and_nothing_comes_after_it() -> None:
    handle: RequestHandle[str] = RequestHandle()
    handle.finish("first")
    handle.fail(RuntimeError("late"))
    handle.push(delta(9))
    assert handle.result(0) == "first"
    assert list(handle) == []


def test_a_timeout_leaves_the_request_alone() -> None:
    handle: RequestHandle[str] = RequestHandle()
    with pytest.raises(TimeoutError, match="it goes on"):
        handle.result(0.001)
    handle.finish("value")
    assert handle.result(0) == "value"


def test_a_cancelled_waiter_leaves_the_request_alone() -> None:
    handle: RequestHandle[str] = RequestHandle()

    async def cancel() -> None:
        task = asyncio.ensure_future(_await(handle))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        handle.finish("value")

    asyncio.run(cancel())
    assert handle.result(0) == "value"


def test_a_loop_that_is_closed_meanwhile_does_no_harm() -> None:
    handle: RequestHandle[str] = RequestHandle()
    loop = asyncio.new_event_loop()

    async def start() -> None:
        waiting = asyncio.ensure_future(_await(handle))
        await asyncio.sleep(0)
        waiting.cancel()

    loop.run_until_complete(start())
    loop.close()
    handle.push(delta(0))
    handle.finish("value")
    assert handle.result(0) == "value"


def test_done_callbacks_run_once_and_a_failing_one_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    handle: RequestHandle[str] = RequestHandle()
    calls: list[str] = []

    def failing() -> None:
        raise ValueError("in a callback")

    handle.add_done_callback(failing)
    handle.add_done_callback(lambda: calls.append("before"))
    handle.finish("value")
    handle.add_done_callback(lambda: calls.append("after"))
    assert calls == ["before", "after"]
    assert "callback" in caplog.text


def test_late_and_early_listeners_hear_every_delta_in_order_under_a_race() -> None:
    for _ in range(50):
        handle: RequestHandle[str] = RequestHandle()
        heard: list[list[int]] = [[] for _ in range(4)]

        def produce(handle: RequestHandle[str] = handle) -> None:
            for number in range(50):
                handle.push(delta(number))
            handle.finish("value")

        threads = [later(produce)]
        for mine in heard:
            threads.append(
                later(lambda mine=mine, handle=handle: handle.add_delta_callback(lambda d: mine.append(d.token_ids[0])))
            )  # type: ignore[misc]
        for thread in threads:
            thread.join(WAIT_S)
        assert heard == [list(range(50))] * 4


def test_abort_calls_the_producer_until_done_and_ids_are_unguessable() -> None:
    aborted: list[str] = []
    handles: list[RequestHandle[str]] = [RequestHandle(aborted.append) for _ in range(3)]
    handles[0].abort()
    handles[1].finish("value")
    handles[1].abort()
    RequestHandle[str]().abort()
    assert aborted == [handles[0].id]
    assert len({h.id for h in handles}) == 3
    assert all(len(h.id) == 32 for h in handles)


def test_a_failing_delta_callback_harms_neither_the_producer_nor_other_listeners(caplog: pytest.LogCaptureFixture) -> None:
    handle: RequestHandle[str] = RequestHandle()
    heard: list[GenDelta] = []

    def failing(_: GenDelta) -> None:
        raise SystemExit(3)

    handle.add_delta_callback(failing)
    handle.add_delta_callback(heard.append)
    handle.push(delta(0))
    handle.push(delta(1))
    handle.finish("value")
    assert heard == [delta(0), delta(1)]
    assert "delta callback" in caplog.text
