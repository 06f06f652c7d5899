"""Callers that go away: their requests end, and nothing of them is left behind."""

import asyncio
import gc
import threading
import time

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableGenerator, RunnableParallel

from sgl_core.types import FinishReason
from sgl_langchain import ChatSgl, compile_runnable
from sgl_langchain.scope import current_scope

HANG_S = 60
NUM_STREAMS = 1000
AT_ONCE = 50


def says(engine, text="{n}"):
    return ChatPromptTemplate([("human", text)]) | ChatSgl(engine=engine) | StrOutputParser()


def arms(engine):
    return RunnableParallel(a=says(engine), b=says(engine, "again {n}"))


def eventually(condition):
    give_up = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.01)


def ended(engine):
    return all(handle.done() for handle in engine.handles)


@pytest.fixture(autouse=True)
def nothing_is_left(endless, engine):
    """Every handle ends as aborted, threads go, and no scope stays in force."""
    compile_runnable(says(engine), mode="program").invoke({"n": 0})  # the language's own thread stays, once it is there
    threads = set(threading.enumerate())
    yield
    gc.collect()
    eventually(lambda: ended(endless))
    assert {handle.result(HANG_S).finish_reason for handle in endless.handles} <= {FinishReason.ABORT}
    eventually(lambda: set(threading.enumerate()) <= threads)
    assert current_scope() is None


@pytest.mark.parametrize(("build", "num_streams"), [(says, NUM_STREAMS), (arms, 100)])
def test_a_thousand_closed_streams(endless, within_limit, build, num_streams):
    chain = compile_runnable(build(endless))

    def close_all():
        for number in range(num_streams):
            stream = chain.stream({"n": number})
            assert next(stream)
            stream.close()
            assert current_scope() is None

    within_limit(close_all)
    assert len(endless.handles) >= num_streams


def test_a_stream_that_is_dropped_is_closed(endless, compiled, within_limit):
    chain = compiled(says(endless))

    def drop_all():
        for number in range(20):
            for _ in chain.stream({"n": number}):
                assert current_scope() is None
                break

    within_limit(drop_all)
    assert len(endless.handles) == 20


def test_a_stream_closed_before_its_first_item_asks_nothing(endless, compiled, within_limit):
    chain = compiled(says(endless))
    within_limit(chain.stream({"n": 1}).close)
    assert endless.handles == []


@pytest.mark.parametrize(("build", "num_streams"), [(says, NUM_STREAMS), (arms, 100)])
def test_a_thousand_left_async_streams(endless, build, num_streams):
    chain = compile_runnable(build(endless))

    async def leave(number):
        stream = chain.astream({"n": number})
        async for _ in stream:
            break
        await stream.aclose()

    async def all_of_them():
        for start in range(0, num_streams, AT_ONCE):
            await asyncio.gather(*(leave(start + n) for n in range(AT_ONCE)))

    asyncio.run(asyncio.wait_for(all_of_them(), HANG_S))
    assert len(endless.handles) >= num_streams


@pytest.mark.parametrize(
    ("call", "num_calls"),
    [
        (lambda chain, n: chain.ainvoke({"n": n}), NUM_STREAMS),
        (lambda chain, n: chain.ainvoke({"n": n}, {"max_concurrency": 1}), 200),
        (lambda chain, n: chain.abatch([{"n": n}, {"n": -n}]), 200),
    ],
    ids=["ainvoke", "ainvoke with a limit", "abatch"],
)
def test_a_thousand_cancelled_calls(endless, compiled, call, num_calls):
    chain = compiled(says(endless))

    async def cancel(number):
        before = len(endless.handles)
        tasks = [asyncio.ensure_future(call(chain, number + n)) for n in range(AT_ONCE)]
        while len(endless.handles) < before + AT_ONCE:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        assert {type(end) for end in await asyncio.gather(*tasks, return_exceptions=True)} == {asyncio.CancelledError}

    async def all_of_them():
        for start in range(0, num_calls, AT_ONCE):
            await cancel(start)

    asyncio.run(asyncio.wait_for(all_of_them(), HANG_S))
    assert len(endless.handles) >= num_calls


def test_a_cancelled_parallel_takes_its_arms_along(endless, compiled):
    chain = compiled(arms(endless))

    async def cancel():
        task = asyncio.ensure_future(chain.ainvoke({"n": 1}))
        while len(endless.handles) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(cancel(), HANG_S))
    assert len(endless.handles) == 2


def test_a_consumer_that_fails_in_the_middle_of_a_stream(endless, compiled, within_limit):
    def refuse(pieces):
        for _ in pieces:
            raise LookupError("no more")
        yield ""

    chain = compiled(says(endless) | RunnableGenerator(refuse))
    with pytest.raises(LookupError):
        within_limit(lambda: list(chain.stream({"n": 1})))
    assert len(endless.handles) == 1
