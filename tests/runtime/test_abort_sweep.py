"""Abort at every step of every phase: nothing leaks, nobody else's text changes, and what was there is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest

from sgl_core.handle import RequestHandle
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.request import Kind, State
from sgl_core.runtime.scheduler import SchedulerOptions
from sgl_core.testing.simulation import Simulation, tokens
from sgl_core.types import FinishReason, GenResult, SamplingParams

WAIT_S = 60.0


@dataclass(frozen=True)
class Program:
    """Requests that come at once to a scheduler.

    Args:
        begin: submits them.
        setup: the simulation's arguments.
        failing_step: the forward pass of this step raises, counted from 0.
    """

    begin: Callable[[Simulation], None]
    setup: dict[str, Any] = field(default_factory=dict)
    failing_step: int | None = None

    def play(self, doomed: tuple[str, ...] = (), at_step: int = 0) -> tuple[Simulation, list[str]]:
        """Run to the end, aborting the doomed after so many steps; returns the phases in which that met them."""
        sim = Simulation(**self.setup)
        self.begin(sim)
        phases = []
        for step in count():
            if step == at_step:
                for name in doomed:
                    phases.append(phase_of(sim, name))
                    sim.abort(name)
            if sim.scheduler.is_idle:
                break
            sim.step(raising=step == self.failing_step)
        sim.assert_all_ended_well()
        return sim, phases


def phase_of(sim: Simulation, name: str) -> str:
    request = sim.requests[name]
    if request.state is State.FINISHED:
        return "ended"
    if request.state is State.WAITING:
        if not request.admitted_at:
            return "queued"
        return "to be tried alone" if sim.seen["failed steps"] else "retracted"
    if request.kind is not Kind.GENERATE:
        return f"{request.kind.value} under way"
    return "decoding" if request.num_generated else "prefilling"


def queue_of_chunks(sim: Simulation) -> None:
    for i in range(4):
        sim.submit(tokens(25, seed=i % 2), new=4)


def fan_out(sim: Simulation) -> None:
    for i in range(5):
        sim.submit([*tokens(30), *tokens(3, seed=i + 1)], new=5)


def crowd(sim: Simulation) -> None:
    for i in range(3):
        sim.submit(tokens(8, seed=i), new=24)


def scoring(sim: Simulation) -> None:
    sim.score(tokens(20), [tokens(6, seed=i + 1) for i in range(3)], max_nodes=10)
    sim.submit([*tokens(20), 1], new=3)


def prefetching(sim: Simulation) -> None:
    sim.submit(tokens(30), new=0, kind=Kind.PREFETCH, sink=None)
    sim.submit([*tokens(30), 4], new=3)


PROGRAMS = {
    "queued and in chunks": Program(queue_of_chunks, {"chunk_tokens": 7, "max_running": 2}),
    "riding on a leader": Program(fan_out, {"chunk_tokens": 200}),
    "waiting for a leader's chunks": Program(fan_out, {"chunk_tokens": 8}),
    "not sharing in flight": Program(fan_out, {"chunk_tokens": 8, "options": SchedulerOptions(in_flight_sharing=False)}),
    "retracted from a small pool": Program(crowd, {"num_slots": 55}),
    "scoring": Program(scoring, {"chunk_tokens": 7}),
    "prefetching": Program(prefetching, {"chunk_tokens": 7}),
    "tried alone": Program(fan_out, {"chunk_tokens": 64}, failing_step=2),
    "tried alone in chunks": Program(fan_out, {"chunk_tokens": 9}, failing_step=6),
}


def sweep(program: Program, victims: Callable[[list[str]], list[tuple[str, ...]]]) -> Counter[str]:
    """Abort each group of victims at each step; returns how often it met which phase."""
    undisturbed, _ = program.play()
    texts = {name: list(request.output_ids()) for name, request in undisturbed.requests.items()}
    met: Counter[str] = Counter()
    for doomed, step in product(victims(list(texts)), range(undisturbed.scheduler.stats().num_steps + 1)):
        sim, phases = program.play(doomed, step)
        met.update(phases)
        for name, request in sim.requests.items():
            output, reason = list(request.output_ids()), sim.ends[name].reason
            if reason is FinishReason.ABORT or sim.seen["failed steps"]:  # a lone request does not outlive a failed step
                assert output == texts[name][: len(output)], f"{name} changed at step {step}"
            else:
                assert output == texts[name], f"{name} changed at step {step}"
            assert (reason is FinishReason.ABORT) <= (name in doomed), f"{name} was aborted and not doomed"
    return met


def each_alone(names: list[str]) -> list[tuple[str, ...]]:
    return [(name,) for name in names]


def all_but_each(names: list[str]) -> list[tuple[str, ...]]:
    return [tuple(name for name in names if name != spared) for spared in names]


@pytest.mark.parametrize(("program", "phases"), [
    ("queued and in chunks", {"queued", "prefilling", "decoding", "ended"}),
    ("riding on a leader", {"queued", "decoding"}),
    ("waiting for a leader's chunks", {"queued", "prefilling", "decoding"}),
    ("not sharing in flight", {"queued", "prefilling", "decoding"}),
    ("retracted from a small pool", {"queued", "decoding", "retracted"}),
    ("scoring", {"queued", "score under way", "decoding"}),
    ("prefetching", {"queued", "prefetch under way", "decoding"}),
    ("tried alone", {"queued", "decoding", "to be tried alone"}),
    ("tried alone in chunks", {"queued", "prefilling", "decoding", "to be tried alone"}),
])  # fmt: skip
def test_an_abort_in_any_phase_frees_everything_and_changes_nobody_else(
    program: str, phases: set[str], figure: Callable[[str, Mapping[str, int]], None]
) -> None:
    met = sweep(PROGRAMS[program], each_alone) + sweep(PROGRAMS[program], all_but_each)
    figure("R3 aborts at every step", {"aborts": met.total(), "programs": 1, "slots leaked": 0})
    assert phases <= met.keys()


def test_an_abort_hits_the_exact_id_only() -> None:
    sim = Simulation(max_running=1)
    for name in ("r1", "r10", "r"):
        sim.submit(tokens(5), new=3, name=name)
    sim.step()
    assert sim.abort("r1") is not None
    assert sim.abort("r1") is None
    assert sim.abort("R10") is None
    sim.drain()
    assert [sim.ends[name].reason for name in ("r1", "r10", "r")] == [
        FinishReason.ABORT,
        FinishReason.LENGTH,
        FinishReason.LENGTH,
    ]


# ---- a real engine ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=256, prefill_chunk_tokens=16, max_running=3) as engine:
        yield engine


def submit(engine: Engine, prompt: str, new: int) -> RequestHandle[GenResult]:
    handle = engine.submit(prompt, SamplingParams(max_new_tokens=new, ignore_eos=True))
    assert isinstance(handle, RequestHandle)
    return handle


PROMPTS = [f"a prefix that all of them have in common, and then number {i}" for i in range(4)]
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def undisturbed(engine: Engine) -> list[tuple[int, ...]]:
    """What each prompt gives when no other one is there."""
    return [submit(engine, prompt, NEW_TOKENS).result(WAIT_S).token_ids for prompt in PROMPTS]


@pytest.mark.parametrize("index", range(NEW_TOKENS + 1))
@pytest.mark.parametrize("victim", range(len(PROMPTS)))
def test_an_engine_aborts_at_any_token_and_the_others_say_the_same(
    engine: Engine, undisturbed: list[tuple[int, ...]], victim: int, index: int
) -> None:
    expected = list(undisturbed)
    engine.flush_cache()
    handles = [submit(engine, prompt, NEW_TOKENS) for prompt in PROMPTS]
    doomed, seen = handles[victim], count(1)
    if index == 0:
        doomed.abort()
    else:  # callbacks run on the engine's thread between two steps, so the abort comes right after this token
        doomed.add_delta_callback(lambda _: doomed.abort() if next(seen) == index else None)
    results = [handle.result(WAIT_S).token_ids for handle in handles]
    got = results.pop(victim)
    assert got == expected.pop(victim)[: len(got)]
    assert results == expected
    engine.check_invariants()
    stats = engine.stats()
    assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens
    if index:
        assert len(got) == index
