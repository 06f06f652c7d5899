"""Native programs, LangChain and DSPy on one engine of the embedded model: shared weights, shared prefixes, no cross-talk."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import dspy
import pytest
from langchain_core.messages import HumanMessage

import sgl_native as sgl
from sgl_core.config import EngineConfig
from sgl_core.runtime import startup
from sgl_dspy import SglLM
from sgl_langchain import ChatSgl

WAIT_S = 600.0


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", Path(__file__).parents[1] / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def engine(cold_engine: Any) -> Any:
    """The engine that all three doors lease by default."""
    return cold_engine


def assert_clean(engine: Any) -> None:
    """No request, lock or private slot is left. Aborts take effect between steps, so wait for the engine to be idle."""
    deadline = time.monotonic() + WAIT_S
    while engine.stats().num_running or engine.stats().num_waiting:
        assert time.monotonic() < deadline, "aborted requests go on"
        engine.submit("tick", sgl.SamplingParams(max_new_tokens=1)).result(WAIT_S)
    engine.check_invariants()
    stats = engine.stats()
    assert stats.protected_tokens == 0
    assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens


def test_three_doors_share_weights_and_prefixes(
    engine: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[EngineConfig] = []
    load = startup.load

    def counted(config: EngineConfig) -> Any:
        loads.append(config)
        return load(config)

    monkeypatch.setattr("sgl_core.runtime.engine.load", counted)
    doors = example("three_doors")
    assert doors.main() == 0
    assert not loads, "the weights were loaded more than once"
    assert engine.stats().num_finished == 3
    assert capsys.readouterr().out.count("prompt tokens from the cache") == 3


def test_sixty_four_threads_over_three_doors_get_their_own_answers(engine: Any) -> None:
    chat, lm = ChatSgl(max_tokens=6), SglLM(max_tokens=6, cache=False)

    @sgl.function
    def echo(s: Any, text: str) -> None:
        s += sgl.user(text) + sgl.assistant(sgl.gen("out", max_tokens=6, temperature=0))

    doors = (
        lambda text: echo.run(text=text)["out"],
        lambda text: chat.invoke(text).text,
        lambda text: lm(text)[0],
    )
    texts = [f"Repeat the number {7_919 * i % 100_000}." for i in range(16)]
    expected = {text: echo.run(text=text)["out"] for text in texts}
    assert len(set(expected.values())) > 8, "answers that do not differ prove nothing"
    engine.flush_cache()
    jobs = list(zip(itertools.cycle(doors), texts * 4, strict=False))
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda job: job[0](job[1]), jobs, timeout=WAIT_S))
    wrong = [text for (_, text), answer in zip(jobs, answers, strict=True) if answer != expected[text]]
    assert len(wrong) <= 1, f"answers of others, or more near ties than can be: {wrong}"
    assert_clean(engine)


def test_two_hundred_aborted_and_cancelled_streams_leave_nothing(engine: Any) -> None:
    chat, lm = ChatSgl(max_tokens=200), SglLM(max_tokens=200, cache=False)
    ChatSgl(max_tokens=1).invoke("warm up")
    threads_before = threading.active_count()

    def abandon(index: int) -> None:
        stream = chat.stream(f"Count to {index}.")
        next(stream)
        stream.close()

    async def cancel_all() -> None:
        async def one(index: int) -> None:
            if index % 2:
                await chat.ainvoke([HumanMessage(f"Count down from {index}.")])
            else:
                await lm.acall(f"Count down from {index}.")

        tasks = [asyncio.ensure_future(one(i)) for i in range(100)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S)
        assert any(isinstance(result, asyncio.CancelledError) for result in results)

    with ThreadPoolExecutor(25) as pool:
        list(pool.map(abandon, range(100), timeout=WAIT_S))
    asyncio.run(cancel_all())
    assert_clean(engine)
    assert engine.stats().num_aborted > 100
    deadline = time.monotonic() + WAIT_S
    while threading.active_count() > threads_before + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads_before + 1, "threads were left behind"


def test_a_batch_of_forty_eight_fills_the_engine(engine: Any) -> None:
    most = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.005):
            stats = engine.stats()
            most = max(most, stats.num_running + stats.num_waiting)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answers = ChatSgl(max_tokens=8).batch([f"Say {i}." for i in range(48)])
    finally:
        stop.set()
        watcher.join(WAIT_S)
    assert len(answers) == 48
    assert most >= 40


def test_a_dspy_program_runs_on_the_shared_engine(engine: Any) -> None:
    lm = SglLM(max_tokens=8, cache=False)
    drafts = lm("Name a colour.", n=4, temperature=0.9, seed=3)
    assert len(drafts) == 4
    usage = lm.history[-1]["usage"]
    assert usage["prompt_tokens"] > 0
    stats = engine.stats()
    assert stats.prefilled_tokens < 2 * usage["prompt_tokens"] / 4 + 8, "candidates did not share their prompt"
    assert dspy.settings.lm is None
