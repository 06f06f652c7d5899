"""Callers that go away from compiled chains on a real engine: no request, no pin and no protected slot is left."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableParallel

from sgl_core.runtime.engine import Engine
from sgl_langchain import ChatSgl, compile_runnable
from sgl_langchain.scope import current_scope

HANG_S = 60
RULES = "You keep the log of a harbour. You write one short line for each ship, and never more than that. " * 3


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    with Engine(str(tiny_llama), dtype="float32", device="cpu", cache_tokens=8192) as engine:
        yield engine


@pytest.fixture(params=["scope", "auto"])
def chain(request: pytest.FixtureRequest, engine: Engine) -> Runnable[Any, Any]:
    """Two endless answers side by side, behind a prefix that is worth keeping."""
    chat = ChatSgl(engine=engine, max_tokens=200, ignore_eos=True)

    def says(text: str) -> Runnable[Any, str]:
        return ChatPromptTemplate([("system", RULES), ("human", text)]) | chat | StrOutputParser()

    return compile_runnable(RunnableParallel(a=says("{n}"), b=says("again {n}")), mode=request.param)


@pytest.fixture(autouse=True)
def nothing_is_left(engine: Engine) -> Iterator[None]:
    yield
    give_up = time.monotonic() + HANG_S
    while not is_quiet(engine):
        assert time.monotonic() < give_up, engine.stats()
        time.sleep(0.01)
    engine.check_invariants()
    assert current_scope() is None
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")] == []


def is_quiet(engine: Engine) -> bool:
    stats = engine.stats()
    return stats.num_running == stats.num_waiting == stats.protected_tokens == 0


def test_closed_streams(chain):
    for number in range(10):
        stream = chain.stream({"n": number})
        assert next(stream)
        stream.close()


def test_left_async_streams(chain):
    async def leave(number: int) -> None:
        stream = chain.astream({"n": number})
        async for _ in stream:
            break
        await stream.aclose()

    async def all_of_them() -> None:
        await asyncio.wait_for(asyncio.gather(*map(leave, range(10))), HANG_S)

    asyncio.run(all_of_them())


# LangChain's own: of a cancelled batch that it limits, it leaves the inputs that have not begun as coroutines.
@pytest.mark.filterwarnings("ignore:coroutine 'Runnable.abatch.<locals>.ainvoke' was never awaited:RuntimeWarning")
@pytest.mark.parametrize("config", [{}, {"max_concurrency": 2}], ids=["wide", "two at a time"])
def test_cancelled_calls_and_batches(chain, engine, config):
    async def cancel(number: int) -> None:
        call = chain.ainvoke({"n": number}, config) if number % 2 else chain.abatch([{"n": number}, {"n": -number}], config)
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0.002 * (number % 4))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def all_of_them() -> None:
        await asyncio.wait_for(asyncio.gather(*map(cancel, range(12))), HANG_S)

    asyncio.run(all_of_them())
    gc.collect()


def test_a_batch_that_fails_lets_go_of_what_was_kept_for_it(chain):
    with pytest.raises(KeyError):
        chain.batch([{"n": 1}, {"nothing": 2}])


def test_a_batch_left_in_the_middle(engine):
    chat = ChatSgl(engine=engine, ignore_eos=True)
    short = ChatPromptTemplate([("system", RULES), ("human", "{n}")]) | chat.bind(max_tokens=2)
    pairs = compile_runnable(short).batch_as_completed([{"n": n} for n in range(6)])
    next(pairs)
    pairs.close()
