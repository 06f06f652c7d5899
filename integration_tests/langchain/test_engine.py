"""LangChain's models on a real engine: a tiny model on its own thread, leased and borrowed."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from sgl_core.config import EngineConfig
from sgl_core.errors import EngineShutdown
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.registry import acquire
from sgl_core.types import SamplingParams
from sgl_langchain import ChatSgl, SglLLM

OPTIONS = {"dtype": "float32", "device": "cpu", "cache_tokens": 2048}
HANG_S = 60


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    with Engine(str(tiny_llama), **OPTIONS) as engine:
        yield engine


def leased(folder: Path, **options: Any) -> dict[str, Any]:
    own = {"model": str(folder), "dtype": "float32", "device": "cpu"}
    return {**own, "engine_kwargs": {"cache_tokens": 2048}, "max_tokens": 8, **options}


def wait_until(condition) -> None:
    give_up = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.01)


def is_quiet(engine: Engine) -> bool:
    stats = engine.stats()
    return stats.num_running == stats.num_waiting == stats.protected_tokens == 0


def test_models_with_equal_options_share_one_engine_which_ends_with_the_last_of_them(tiny_llama):
    chat, llm = ChatSgl(**leased(tiny_llama)), SglLLM(**leased(tiny_llama))
    chat.invoke("x")
    llm.invoke("x")
    with acquire(EngineConfig.from_options(model=str(tiny_llama), **OPTIONS)) as lease:
        engine = lease.engine
        assert engine.stats().num_finished == 2
    del chat
    gc.collect()
    llm.invoke("y")
    del llm
    gc.collect()

    def is_closed() -> bool:
        try:
            engine.submit("x", SamplingParams(max_new_tokens=1)).result(HANG_S)
        except EngineShutdown:
            return True
        return False

    wait_until(is_closed)


def test_the_second_turn_finds_the_first_in_the_cache(engine):
    chat = ChatSgl(engine=engine, max_tokens=8)
    history = [SystemMessage("Be brief."), HumanMessage("What is a tide?")]
    first = chat.invoke(history)
    second = chat.invoke([*history, first, HumanMessage("Why?")])
    assert second.usage_metadata["input_token_details"]["cache_read"] >= first.usage_metadata["input_tokens"] - 1


def test_a_chain_and_a_native_request_share_a_prefix(engine):
    chain = ChatPromptTemplate([("system", "You talk of harbours."), ("human", "Name {what}.")]) | ChatSgl(
        engine=engine, max_tokens=4
    )
    first = chain.invoke({"what": "one"})
    ids = engine.codec.join_turns([("system", "You talk of harbours."), ("user", "Name two.")], open_assistant=True)
    result = engine.submit(list(ids), SamplingParams(max_new_tokens=4)).result(HANG_S)
    assert result.usage.cached_tokens >= first.usage_metadata["input_tokens"] // 2


def test_token_counts_equal_the_usage_on_a_real_vocabulary(engine):
    chat, llm = ChatSgl(engine=engine, max_tokens=2), SglLLM(engine=engine, max_tokens=2)
    messages = [SystemMessage("S \n"), HumanMessage(" the ring, in 12 on"), AIMessage("at"), HumanMessage("<|im_end|> all")]
    assert chat.invoke(messages).usage_metadata["input_tokens"] == chat.get_num_tokens_from_messages(messages)
    used = llm.generate([" the ring"]).generations[0][0].generation_info["usage_metadata"]["input_tokens"]
    assert llm.get_num_tokens(" the ring") == used


def test_a_batch_answers_as_single_calls_do(engine):
    chain = ChatPromptTemplate([("human", "Say {n}")]) | ChatSgl(engine=engine, max_tokens=8) | StrOutputParser()
    inputs = [{"n": n} for n in range(12)]
    assert chain.batch(inputs) == [chain.invoke(one) for one in inputs]
    assert asyncio.run(chain.abatch(inputs)) == chain.batch(inputs)
    llm = SglLLM(engine=engine, max_tokens=8)
    assert llm.batch(["a", "b", "c"]) == [llm.invoke(prompt) for prompt in "abc"]


def test_a_stream_is_the_answer_and_ignores_nothing_of_the_call(engine):
    chat = ChatSgl(engine=engine, max_tokens=16, temperature=0.8, seed=3)
    assert "".join(chunk.text for chunk in chat.stream("x")) == chat.invoke("x").text
    assert len({chat.invoke("x", seed=seed).text for seed in range(4)}) > 1


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_streams_that_are_left_keep_no_memory_and_no_request(engine, model_class):
    model = model_class(engine=engine, max_tokens=200, ignore_eos=True)

    async def cancelled(number: int) -> None:
        task = asyncio.ensure_future(model.ainvoke(f"{number} to cancel"))
        await asyncio.sleep(0.002 * (number % 3))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def left(number: int) -> None:
        stream = model.astream(f"{number} to leave")
        async for _ in stream:
            break
        await stream.aclose()

    async def all_of_them() -> None:
        await asyncio.gather(*(cancelled(n) for n in range(10)), *(left(n) for n in range(10)))

    for number in range(10):
        stream = model.stream(f"{number} to close")
        next(stream)
        stream.close()
    asyncio.run(all_of_them())
    wait_until(lambda: is_quiet(engine))
    engine.check_invariants()
    assert model.invoke("still there", max_tokens=2) is not None
