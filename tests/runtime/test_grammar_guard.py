"""Hostile constraints beside ordinary requests: the batch runs on, the event loop stays free, no thread is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_core.language import function, gen
from sgl_core.runtime.engine import Engine
from sgl_core.testing.hostile import HOSTILE
from sgl_core.types import GenResult, SamplingParams

WAIT_S = 120.0
NEIGHBOURS = [f"Neighbour number {i} tells" for i in range(8)]
PLAIN = SamplingParams(max_new_tokens=40, ignore_eos=True)
GUARDED = HOSTILE[::2]
STALL_GUARD_S = 0.5
"""Ten times what an event loop may stall; the measured figure is printed."""


@function
def constrained(s: Any, **options: Any) -> None:
    s += "The answer is: " + gen("answer", max_tokens=24, temperature=1.0, seed=1, **options)


async def longest_stall(done: asyncio.Event) -> float:
    """Seconds by which the event loop was late at most, until ``done``."""
    worst = 0.0
    while not done.is_set():
        began = time.perf_counter()
        await asyncio.sleep(0.002)
        worst = max(worst, time.perf_counter() - began - 0.002)
    return worst


async def outcome_of(engine: Engine, argument: str, value: object) -> str:
    try:
        if argument == "choices":  # a program would select among them
            params = SamplingParams(max_new_tokens=90, choices=value)
            await (await asyncio.to_thread(engine.submit, "Choose", params))
            return "compiled"
        state = await constrained.arun(backend=engine, **{argument: value})
    except InvalidArgumentError as error:
        return "refused or ended with a typed error" if error.argument == argument else f"wrong field {error.argument}"
    assert state.get_meta_info("answer")["finish_reason"] in ("stop", "grammar", "length")
    return "compiled"


async def keep_generating(engine: Engine, done: asyncio.Event) -> list[list[GenResult]]:
    rounds = []
    while not done.is_set() or len(rounds) < 2:
        handles = [engine.submit(prompt, PLAIN) for prompt in NEIGHBOURS]
        rounds.append([await handle for handle in handles])
    return rounds


async def test_hostile_constraints_leave_a_batch_of_eight_and_the_event_loop_alone(
    tiny_llama: Path, figure: Callable[[str, Mapping[str, int]], None]
) -> None:
    before = set(threading.enumerate())
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=4_096, max_running=24) as engine:
        expected = [result.token_ids for result in engine.generate(NEIGHBOURS, PLAIN)]
        done = asyncio.Event()
        others = asyncio.create_task(keep_generating(engine, done))
        clock = asyncio.create_task(longest_stall(done))
        seen = Counter([await asyncio.wait_for(outcome_of(engine, argument, value), WAIT_S) for argument, _, value in GUARDED])
        done.set()
        rounds = await asyncio.wait_for(others, WAIT_S)
        stall = await clock
        engine.check_invariants()
    for results in rounds:
        assert [result.token_ids for result in results] == expected
    assert len(GUARDED) >= 60
    assert seen["compiled"] >= 15, "not everything is refused"
    assert set(seen) == {"compiled", "refused or ended with a typed error"}
    assert stall < STALL_GUARD_S
    left = [t for t in set(threading.enumerate()) - before if t.name.startswith(("sgl-engine", "sgl-grammar"))]
    assert not left, f"threads are left: {left}"
    counts = {"neighbours unchanged": sum(map(len, rounds)), "ms the event loop stalled at most": round(1000 * stall)}
    figure("R14 grammar guard, in an engine", {**seen, **counts})


def test_a_constraint_that_is_compiled_by_many_threads_at_once_is_compiled_once(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sgl_core.runtime.grammar import compiler

    built = []
    plain = compiler.CompiledGrammar

    def counted(*args: Any, **options: Any) -> Any:
        built.append(args[0])
        return plain(*args, **options)

    monkeypatch.setattr(compiler, "CompiledGrammar", counted)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=4_096) as engine:
        params = SamplingParams(max_new_tokens=30, json_schema=schema)
        results: list[GenResult] = []
        threads = [
            threading.Thread(target=lambda: results.append(engine.submit("Number", params).result(WAIT_S))) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert len(results) == 16
    assert built == ["json_schema"]
