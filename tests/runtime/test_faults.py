"""Make the n-th call of whatever can fail raise, n = 1, 2, .. until a run is clean: the damage stays with whom it must."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sgl_core.errors import EngineStepError, SglError
from sgl_core.runtime import model_runner, reading
from sgl_core.runtime.detokenizer import StreamDecoder
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.plan import Finished, StepPlan, StepResult
from sgl_core.runtime.request import Request
from sgl_core.runtime.scheduler import SchedulerOptions
from sgl_core.testing.faults import FaultPoint, PlantedFault, fail_each_call
from sgl_core.testing.simulation import Simulation, TextSink, tokens
from sgl_core.types import FinishReason, Hints, SamplingParams

WAIT_S = 60.0
Figure = Callable[[str, Mapping[str, int]], None]

POINTS: dict[str, Callable[[Simulation], tuple[object, str]]] = {
    "slots are allocated": lambda sim: (sim.scheduler.memory.allocator, "allocate"),
    "a prefix is looked up": lambda sim: (sim.scheduler.tree, "match_prefix"),
    "a prefix is put into the tree": lambda sim: (sim.scheduler.tree, "insert"),
    "slots are evicted": lambda sim: (sim.scheduler.tree, "evict"),
    "the model runs": lambda sim: (sim.oracle, "run"),
    "a token becomes text": lambda sim: (TextSink, "push"),
}


@dataclass(frozen=True)
class Program:
    """Requests, the later ones depending on the earlier, on a scheduler of its own."""

    play: Callable[[Simulation], None]
    num_slots: int = 400
    chunk_tokens: int = 64
    in_flight_sharing: bool = True

    def simulation(self) -> Simulation:
        options = SchedulerOptions(in_flight_sharing=self.in_flight_sharing)
        sim = Simulation(self.num_slots, chunk_tokens=self.chunk_tokens, options=options)
        sim.tolerated = (PlantedFault, EngineStepError)
        return sim


def fan_out(sim: Simulation) -> None:
    prefix = tokens(30)
    for i in range(4):
        sim.submit([*prefix, *tokens(3, seed=i + 1)], new=4, hints=Hints("p", siblings=3 - i, shared_len=30))
    sim.score(prefix, [tokens(4, seed=7 + i) for i in range(2)], max_nodes=3)
    sim.drain()


def chat(sim: Simulation) -> None:
    users = [sim.submit(tokens(20, seed=user), new=3) for user in range(2)]
    for turn in range(2):
        sim.drain()
        users = [sim.submit([*user.ids, *tokens(6, seed=turn)], new=3) for user in users if sim.ends[user.id].error is None]
    sim.drain()


def crowd(sim: Simulation) -> None:
    for i in range(5):
        sim.submit(tokens(8, seed=i % 4), new=24, priority=i % 2)
    sim.drain()


SMALL_POOL = "a small pool with retraction"
PROGRAMS = {
    "a fan-out": Program(fan_out),
    "a fan-out in chunks, not shared in flight": Program(fan_out, chunk_tokens=12, in_flight_sharing=False),
    "chat turns": Program(chat),
    SMALL_POOL: Program(crowd, num_slots=55),
}


def check_victims(sim: Simulation, fault: FaultPoint, point: str) -> list[Finished]:
    """Assert that only who must has failed, with an error of ours that says why; returns those that did."""
    failed = [end for end in sim.ends.values() if end.error is not None]
    for end in failed:
        assert fault.error in (end.error, end.error and end.error.__cause__)
        assert isinstance(end.error, SglError) or point == "a token becomes text"
    assert len(failed) <= 1, "a single fault ended several requests"
    return failed


@pytest.mark.parametrize(
    ("name", "point"),
    [(name, point) for name in PROGRAMS for point in POINTS if point != "slots are evicted" or name == SMALL_POOL],
)
def test_a_single_fault_ends_one_request_at_most_and_the_next_one_works(name: str, point: str, figure: Figure) -> None:
    program = PROGRAMS[name]
    seen: Counter[str] = Counter()

    def attempt(nth: int) -> FaultPoint:
        sim = program.simulation()
        with FaultPoint(*POINTS[point](sim), nth) as fault:
            program.play(sim)
        failed = check_victims(sim, fault, point)
        seen["ended by it"] += len(failed)
        seen["retractions"] += sim.scheduler.stats().num_retractions
        after = sim.submit(tokens(30, seed=50), new=3)
        again = sim.submit(tokens(30), new=3)
        sim.drain()
        assert all(sim.ends[r.id].error is None for r in (after, again))
        sim.assert_all_ended_well()
        return fault

    seen["faults"] = len(list(fail_each_call(attempt)))
    figure("R5 the N-th call fails", {**seen, "programs and points": 1})
    if name == SMALL_POOL:
        assert seen["retractions"] > 0
    if point == "a token becomes text":
        assert seen["ended by it"] == seen["faults"]
    assert seen["faults"] > 0


def test_a_fault_that_comes_back_ends_the_culprit_and_nobody_else() -> None:
    for culprit in range(4):
        sim = Simulation()
        requests: list[Request] = [sim.submit([*tokens(30), *tokens(3, seed=i + 1)], new=4) for i in range(4)]
        sim.poisoned.add(requests[culprit].id)
        sim.drain()
        assert [sim.ends[r.id].error is not None for r in requests] == [i == culprit for i in range(4)]
        sim.assert_all_ended_well()


def test_a_model_that_can_only_run_one_request_at_a_time_still_answers_all() -> None:
    sim = Simulation(chunk_tokens=8)
    requests = [sim.submit([*tokens(30), *tokens(3, seed=i + 1)], new=4) for i in range(4)]
    plain = sim.oracle.run

    def one_at_a_time(plan: StepPlan) -> StepResult:
        if len(plan.works) > 1:
            raise PlantedFault("no room for more than one")
        return plain(plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim.oracle, "run", one_at_a_time)
        sim.drain(limit=200)
    assert [sim.ends[r.id].reason for r in requests] == [FinishReason.LENGTH] * 4
    sim.assert_all_ended_well()


# ---- a real engine ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=256, max_running=3) as engine:
        yield engine


PROMPTS = [f"a prefix that all of them have in common, and then number {i}" for i in range(4)]
SIX_TOKENS = SamplingParams(max_new_tokens=6, ignore_eos=True)

Ending = tuple[int, ...] | BaseException


def answers(engine: Engine) -> list[Ending]:
    """What comes of each prompt, all submitted at once to an empty cache: its ids, or its error."""
    engine.flush_cache()
    handles = [engine.submit(prompt, SIX_TOKENS) for prompt in PROMPTS]
    endings: list[Ending] = []
    for handle in handles:
        try:
            endings.append(handle.result(WAIT_S).token_ids)
        except (SglError, PlantedFault) as error:
            endings.append(error)
    return endings


def changed(expected: Sequence[Ending], got: Sequence[Ending]) -> list[Ending]:
    return [ending for before, ending in zip(expected, got, strict=True) if ending != before]


ENGINE_POINTS: dict[str, tuple[object, str, Exception | None]] = {
    "a step runs": (model_runner.ModelRunner, "run", None),
    "a batch is built": (model_runner, "build_batch", MemoryError("planted")),
    "the model computes": (model_runner.ModelRunner, "forward", torch.OutOfMemoryError("planted")),
    "tokens are sampled": (reading, "sample", None),
    "a token becomes text": (StreamDecoder, "push", None),
}


@pytest.mark.parametrize("point", ENGINE_POINTS)
def test_an_engine_outlives_a_fault_anywhere_and_the_others_say_the_same(engine: Engine, point: str, figure: Figure) -> None:
    expected = answers(engine)
    owner, method, error = ENGINE_POINTS[point]
    seen: Counter[str] = Counter()

    def attempt(nth: int) -> FaultPoint:
        with FaultPoint(owner, method, nth, error) as fault:
            endings = changed(expected, answers(engine))
        assert len(endings) <= 1
        for ending in endings:
            assert isinstance(ending, BaseException), "a text changed"
            assert fault.error in (ending, ending.__cause__)
        seen["ended by it"] += len(endings)
        engine.check_invariants()
        stats = engine.stats()
        assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens
        assert changed(expected, answers(engine)) == [], "a fault has effects later"
        return fault

    seen["faults"] = len(list(fail_each_call(attempt)))
    figure("R5 the N-th call fails, in an engine", {**seen, "points": 1})
    assert seen["faults"] >= 6
    if point == "a token becomes text":
        assert seen["ended by it"] == seen["faults"] == 6 * len(PROMPTS)


def test_an_engine_finds_the_one_request_that_breaks_every_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(engine)
    plain, marker = model_runner.build_batch, engine.codec.encode(PROMPTS[2])

    def broken(plan, *arguments, **options):  # type: ignore[no-untyped-def]
        if any(tuple(work.request.ids[-len(marker) :]) == tuple(marker) for work in plan.works):
            raise PlantedFault("this request breaks the batch")
        return plain(plan, *arguments, **options)

    monkeypatch.setattr(model_runner, "build_batch", broken)
    endings = answers(engine)
    assert isinstance(endings[2], EngineStepError)
    assert endings[:2] + endings[3:] == expected[:2] + expected[3:]


# ---- the harness itself ----------------------------------------------------------------------------------------------
def test_a_fault_point_fails_one_call_and_puts_the_method_back() -> None:
    counts: Counter[str] = Counter()
    with FaultPoint(counts, "total", 2) as fault:
        assert counts.total() == 0
        with pytest.raises(PlantedFault, match="call 2 of total"):
            counts.total()
        assert counts.total() == 0
    assert (fault.calls, fault.has_fired) == (3, True)
    assert "total" not in vars(counts)


def test_a_fault_point_on_a_class_reaches_all_its_objects_and_keeps_an_error_of_choice() -> None:
    plain = TextSink.push
    with FaultPoint(TextSink, "push", 2, MemoryError("planted")):
        assert TextSink().push(1) == "1 "
        with pytest.raises(MemoryError, match="planted"):
            TextSink().push(1)
    assert TextSink.push is plain


def test_every_call_is_failed_once_and_an_endless_program_is_noticed() -> None:
    calls = 0

    def attempt(nth: int) -> FaultPoint:
        nonlocal calls
        sink = TextSink()
        with FaultPoint(sink, "push", nth) as fault:
            for token in range(3):
                with nullcontext() if token + 1 != nth else pytest.raises(PlantedFault):
                    sink.push(token)
                calls += 1
        return fault

    assert [fault.calls for fault in fail_each_call(attempt)] == [3, 3, 3]
    assert calls == 4 * 3

    def endless(nth: int) -> FaultPoint:
        fault = FaultPoint(TextSink, "push", nth)
        fault.calls = nth
        return fault

    with pytest.raises(AssertionError, match="still met its fault"):
        list(fail_each_call(endless))
