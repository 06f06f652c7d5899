"""Prefetches for idle times: in the scheduler, against the oracle, all invariants checked after every step; and in an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sgl_core.errors import EngineStepError, InvalidArgumentError, NumericsError, QueueFull, RequestAborted
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.runtime.plan import StepPlan
from sgl_core.runtime.prefetching import IdlePrefetches, idle_budget
from sgl_core.runtime.request import Kind, Request, State
from sgl_core.runtime.scheduler import SchedulerOptions
from sgl_core.testing.faults import FaultPoint, PlantedFault
from sgl_core.testing.perturbation import assertions_of, place_of
from sgl_core.testing.simulation import Simulation, tokens
from sgl_core.types import FinishReason, Hints, PrefetchRequest, SamplingParams

WAIT_S = 60.0
PREFIX = tokens(100, seed=5)


def prefetch(sim: Simulation, ids: list[int] = PREFIX, **options: Any) -> Request:
    fields = {"kind": Kind.PREFETCH, "sink": None, "when_idle": True, **options}
    return sim.submit(ids, 0, **fields)


def counted(sim: Simulation) -> tuple[int, int, int]:
    """Useful, late, dropped."""
    stats = sim.scheduler.stats()
    return stats.prefetch_useful, stats.prefetch_late, stats.prefetch_dropped


def parts(plan: StepPlan | None) -> dict[str, int]:
    """Tokens of each request in a step."""
    return {} if plan is None else {work.request.id: work.end - work.start for work in plan.works}


def cached(sim: Simulation, ids: list[int] = PREFIX) -> int:
    return sim.scheduler.tree.peek_prefix_len(ids)


def beside_a_decode(*, steps: int, **options: Any) -> tuple[Simulation, Request]:
    """A prefetch of 100 tokens that took part in so many steps of a generation."""
    sim = Simulation(num_slots=1_000, max_running=4, chunk_tokens=64)
    sim.submit(tokens(5, seed=9), 60, name="decoding")
    sim.step()
    request = prefetch(sim, **options)
    for _ in range(steps):
        sim.step()
    return sim, request


# ---- whose turn it is ------------------------------------------------------------------------------------------------
def test_alone_it_gets_the_whole_of_a_small_chunk_and_leaves_the_prefix_cached() -> None:
    sim = Simulation(num_slots=1_000, chunk_tokens=64)
    request = prefetch(sim)
    assert [parts(sim.step()), parts(sim.step())] == [{request.id: 64}, {request.id: 36}]
    assert sim.ends[request.id].reason is FinishReason.STOP
    assert cached(sim) == 100
    assert sim.scheduler.stats().prefetched_tokens == 100
    sim.assert_all_ended_well()


def test_beside_a_decode_it_gets_little_of_the_step_and_no_token_is_kept_waiting() -> None:
    sim, request = beside_a_decode(steps=0)
    for size in (16, 16, 16, 16, 16, 16, 4):
        assert parts(sim.step()) == {"decoding": 1, request.id: size}
    assert parts(sim.step()) == {"decoding": 1}
    sim.drain()
    sim.assert_all_ended_well()


def test_it_never_takes_more_than_others_leave_of_the_chunk() -> None:
    sim = Simulation(num_slots=1_000, chunk_tokens=64)
    request = prefetch(sim)
    sim.submit(tokens(60, seed=1), 2, name="first")
    assert parts(sim.step()) == {"first": 60, request.id: 4}
    sim.submit(tokens(64, seed=2), 1, name="second")
    assert request.id not in parts(sim.step())
    sim.drain()
    sim.assert_all_ended_well()


@pytest.mark.parametrize(
    ("chunk", "left", "alone", "budget"),
    [(2048, 2048, True, 256), (8192, 8192, True, 1024), (64, 64, True, 64), (2048, 2048, False, 16), (8192, 8192, False, 64)]
    + [(2048, 3, False, 3), (2048, 0, False, 0)],
)
def test_its_share_of_a_step_is_small_enough_to_step_aside_soon(chunk: int, left: int, alone: bool, budget: int) -> None:
    assert idle_budget(chunk, left, is_alone=alone) == budget


def test_nobody_waits_for_a_row_because_of_it_and_it_waits_for_everybody() -> None:
    sim = Simulation(num_slots=1_000, max_running=1, chunk_tokens=64)
    request = prefetch(sim)
    sim.step()
    sim.submit(tokens(5, seed=1), 3, name="one")
    sim.submit(tokens(5, seed=2), 3, name="two")
    while "two" not in sim.ends:
        assert request.id not in parts(sim.step())
    sim.drain()
    assert cached(sim) == 100
    sim.assert_all_ended_well()


def test_it_neither_waits_nor_runs_in_the_statistics() -> None:
    sim, request = beside_a_decode(steps=2)
    stats = sim.scheduler.stats()
    assert (stats.num_running, stats.num_waiting, sim.scheduler.num_waiting) == (1, 0, 0)
    assert request.state is State.WAITING
    assert not sim.scheduler.is_idle


def test_chunks_of_a_prefetch_become_one_edge_of_the_tree() -> None:
    sim, request = beside_a_decode(steps=20)
    assert request.id in sim.ends
    ends = [node for node in sim.scheduler.tree.walk() if node.path_len == 100]
    assert [len(node.key) for node in ends] == [100]


# ---- taken over, used, late ------------------------------------------------------------------------------------------
def test_a_request_that_begins_with_the_prefix_computes_its_tail_alone() -> None:
    sim, _ = beside_a_decode(steps=8)
    user = sim.submit([*PREFIX, 1, 2, 3], 4)
    sim.drain()
    assert user.cached_len == 100
    assert counted(sim) == (1, 0, 0)
    sim.assert_all_ended_well()


def test_a_request_that_comes_early_takes_over_what_is_there_and_goes_on_at_full_speed() -> None:
    sim, request = beside_a_decode(steps=2)
    user = sim.submit([*PREFIX, 1, 2, 3], 4)
    assert parts(sim.step()) == {"decoding": 1, user.id: 64}
    assert request.id in sim.ends
    assert parts(sim.step()) == {"decoding": 1, user.id: 7}
    assert (user.cached_len, counted(sim)) == (32, (1, 1, 0))
    sim.drain()
    assert sim.scheduler.stats().prefetched_tokens == 32
    sim.assert_all_ended_well()


def test_a_request_that_comes_before_its_first_chunk_makes_it_late_and_not_useful() -> None:
    sim = Simulation(num_slots=1_000)
    request = prefetch(sim)
    user = sim.submit([*PREFIX, 1], 4)
    sim.drain()
    assert (user.cached_len, counted(sim)) == (0, (0, 1, 0))
    assert sim.ends[request.id].reason is FinishReason.STOP
    sim.assert_all_ended_well()


def test_it_goes_on_after_an_unrelated_request() -> None:
    sim, request = beside_a_decode(steps=2)
    sim.submit(tokens(30, seed=77), 1, name="other")
    assert parts(sim.step()) == {"decoding": 1, "other": 30, request.id: 16}
    sim.drain()
    assert (cached(sim), counted(sim)) == (100, (0, 0, 0))
    assert sim.scheduler.stats().prefetched_tokens == 100


def test_one_that_nobody_used_counts_as_nothing() -> None:
    sim = Simulation(num_slots=1_000)
    prefetch(sim)
    sim.drain()
    sim.submit(tokens(50, seed=3), 2)
    sim.drain()
    assert counted(sim) == (0, 0, 0)


def test_a_part_of_what_it_computed_makes_it_useful_once() -> None:
    sim = Simulation(num_slots=1_000)
    prefetch(sim)
    sim.drain()
    for end in (3, 4):
        sim.submit([*PREFIX[:60], end], 2)
        sim.drain()
    assert counted(sim) == (1, 0, 0)


def test_a_prefix_that_was_cached_already_is_useful_when_it_is_used_whole() -> None:
    sim = Simulation(num_slots=1_000)
    sim.submit([*PREFIX, 7], 2)
    sim.drain()
    request = prefetch(sim)
    sim.drain()
    assert sim.scheduler.stats().prefetched_tokens == 0
    assert request.covered_len == 100
    sim.submit([*PREFIX[:60], 8], 2)
    sim.drain()
    assert counted(sim) == (0, 0, 0)
    sim.submit([*PREFIX, 8], 2)
    sim.drain()
    assert counted(sim) == (1, 0, 0)


def test_one_whose_prefix_was_cached_whole_is_not_late_when_its_user_comes_at_once() -> None:
    sim = Simulation(num_slots=1_000)
    sim.submit([*PREFIX, 7], 2)
    sim.drain()
    request = prefetch(sim)
    user = sim.submit([*PREFIX, 8], 2)
    sim.drain()
    assert (user.cached_len, request.covered_len, counted(sim)) == (100, 100, (1, 0, 0))
    sim.assert_all_ended_well()


def test_another_namespace_and_a_request_without_the_tree_use_nothing() -> None:
    sim = Simulation(num_slots=1_000)
    prefetch(sim)
    sim.drain()
    sim.submit([*PREFIX, 1], 2, namespace="a")
    sim.submit([*PREFIX, 1], 2, use_tree=False)
    sim.drain()
    assert counted(sim) == (0, 0, 0)


def test_counters_start_anew_with_the_others() -> None:
    sim, _ = beside_a_decode(steps=2)
    sim.submit([*PREFIX, 1], 2)
    sim.drain()
    assert counted(sim) == (1, 1, 0)
    sim.scheduler.reset_counters()
    assert counted(sim) == (0, 0, 0)


# ---- what is kept ----------------------------------------------------------------------------------------------------
def fill(sim: Simulation, first_seed: int, count: int) -> None:
    for seed in range(first_seed, first_seed + count):
        sim.submit(tokens(40, seed=seed), 2)
        sim.drain()


def test_what_it_computed_outlives_what_was_used_later() -> None:
    sim = Simulation(num_slots=250)
    prefetch(sim)
    sim.drain()
    fill(sim, 20, 6)
    assert cached(sim) == 100
    assert sim.scheduler.stats().evicted_tokens > 0


def test_its_first_use_ends_the_privilege() -> None:
    sim = Simulation(num_slots=250)
    prefetch(sim)
    sim.drain()
    sim.submit([*PREFIX, 1], 1)
    sim.drain()
    fill(sim, 20, 6)
    assert cached(sim) < 100


def test_its_deadline_ends_the_privilege() -> None:
    sim = Simulation(num_slots=250)
    prefetch(sim, deadline=30.0)
    sim.drain()
    sim.now = 31.0
    fill(sim, 20, 6)
    assert cached(sim) < 100
    assert counted(sim) == (0, 0, 0)


def test_what_is_cached_is_kept_while_it_waits() -> None:
    sim = Simulation(num_slots=250, max_running=1)
    sim.submit(PREFIX[:50], 1)
    sim.drain()
    prefetch(sim)
    for seed in range(20, 26):
        sim.submit(tokens(40, seed=seed), 2, name=f"busy {seed}")
    while len(sim.ends) < 7:
        sim.step()
    assert cached(sim) >= 50
    sim.drain()
    assert cached(sim) == 100


def test_it_gives_way_before_a_request_waits_or_is_retracted() -> None:
    sim = Simulation(num_slots=220)
    prefetch(sim)
    sim.drain()
    user = sim.submit(tokens(150, seed=8), 40)
    sim.step()
    assert user.state is State.RUNNING
    sim.drain()
    assert sim.scheduler.stats().num_retractions == 0
    sim.assert_all_ended_well()


def test_of_two_the_older_gives_way_first() -> None:
    sim = Simulation(num_slots=300)
    for seed in (1, 2):
        prefetch(sim, tokens(100, seed=seed))
        sim.drain()
    sim.submit(tokens(150, seed=8), 2)
    sim.drain()
    assert cached(sim, tokens(100, seed=1)) < 100
    assert cached(sim, tokens(100, seed=2)) == 100


def test_a_last_use_by_another_one_leaves_what_is_kept() -> None:
    sim = Simulation(num_slots=1_000)
    prefetch(sim)
    sim.drain()
    sim.submit(PREFIX[:-1], 1, hints=Hints(last_use=True))
    sim.drain()
    assert cached(sim) == 100


def test_a_flush_takes_what_is_kept_too() -> None:
    sim, request = beside_a_decode(steps=3)
    sim.flush()
    assert cached(sim) == 0
    sim.drain()
    assert request.id in sim.ends
    assert counted(sim) == (0, 0, 1)


# ---- dropped ---------------------------------------------------------------------------------------------------------
def test_a_deadline_ends_it_quietly_with_what_was_done() -> None:
    sim, request = beside_a_decode(steps=2, deadline=4.0)
    sim.step()
    assert (sim.ends[request.id].reason, sim.ends[request.id].error) == (FinishReason.STOP, None)
    assert (request.covered_len, cached(sim)) == (32, 32)
    assert counted(sim) == (0, 0, 1)
    sim.drain()
    sim.assert_all_ended_well()


@pytest.mark.parametrize("options", [{"use_tree": False}, {"ids": tokens(600, seed=5)}])
def test_without_a_cache_or_larger_than_half_of_it_it_is_dropped_at_once(options: dict[str, Any]) -> None:
    sim = Simulation(num_slots=1_000)
    request = prefetch(sim, **options)
    assert sim.step() is None
    assert sim.ends[request.id].reason is FinishReason.STOP
    assert counted(sim) == (0, 0, 1)


def test_it_takes_no_slot_that_running_requests_are_expected_to_need() -> None:
    sim = Simulation(num_slots=200)
    sim.submit(tokens(60, seed=1), 80, name="decoding")
    sim.step()
    request = prefetch(sim)
    sim.step()
    assert request.id in sim.ends
    assert (counted(sim), cached(sim)) == ((0, 0, 1), 0)
    sim.drain()
    assert sim.scheduler.stats().num_retractions == 0


def test_it_evicts_nothing_that_is_kept_for_another_one() -> None:
    sim = Simulation(num_slots=200)
    prefetch(sim)
    sim.drain()
    second = prefetch(sim, tokens(95, seed=6))
    third = prefetch(sim, tokens(90, seed=7))
    sim.drain()
    assert (cached(sim), cached(sim, second.ids), cached(sim, third.ids)) == (100, 95, 0)
    assert counted(sim) == (0, 0, 1)


def test_a_retraction_drops_all_that_wait() -> None:
    sim = Simulation(num_slots=140, max_running=3, chunk_tokens=32)
    requests = [sim.submit(tokens(20, seed=seed), 60) for seed in (1, 2, 3)]
    waiting = prefetch(sim, tokens(40, seed=9))
    sim.scheduler._growth.share = 0.0  # so that too many are admitted
    sim.drain()
    assert sim.scheduler.stats().num_retractions > 0
    assert sim.ends[waiting.id].error is None
    assert all(request.num_generated == 60 for request in requests)
    sim.assert_all_ended_well()


def test_a_quota_that_its_prefix_exceeds_drops_it_instead_of_computing_for_ever() -> None:
    sim = Simulation(num_slots=400, chunk_tokens=16, options=SchedulerOptions(namespace_quota_tokens=40))
    prefetch(sim)
    sim.drain(limit=20)
    assert counted(sim) == (0, 0, 1)
    sim.assert_nothing_leaked()


# ---- trouble ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", range(9))
def test_an_abort_at_any_point_leaves_nothing_and_counts_as_nothing(steps: int) -> None:
    sim, request = beside_a_decode(steps=steps)
    sim.abort(request.id)
    sim.drain()
    is_done = steps > 6
    assert (sim.ends[request.id].reason is FinishReason.ABORT) is not is_done
    assert counted(sim) == (0, 0, 0)
    sim.assert_all_ended_well()


def test_a_step_that_raises_costs_the_prefetch_and_nobody_else() -> None:
    sim, request = beside_a_decode(steps=2)
    sim.step(raising=True)
    sim.drain()
    assert (sim.ends[request.id].error, counted(sim)) == (None, (0, 0, 1))
    assert cached(sim) == 32
    sim.assert_all_ended_well()


def test_one_that_breaks_every_step_ends_with_the_error_when_it_is_alone_and_is_dropped_beside_others() -> None:
    alone = Simulation()
    request = prefetch(alone)
    alone.poisoned.add(request.id)
    alone.drain()
    assert isinstance(alone.ends[request.id].error, EngineStepError)
    alone.assert_all_ended_well()
    sim, beside = beside_a_decode(steps=0)
    sim.poisoned.add(beside.id)
    sim.drain()
    assert (sim.ends[beside.id].error, counted(sim)) == (None, (0, 0, 1))
    sim.assert_all_ended_well()


def test_damage_to_another_row_of_its_step_is_not_kept() -> None:
    sim, request = beside_a_decode(steps=2)
    sim.step(bad_rows=[0])
    assert cached(sim) == 32
    sim.drain()
    assert isinstance(sim.ends["decoding"].error, NumericsError)
    assert (sim.ends[request.id].error, cached(sim)) == (None, 100)
    sim.assert_nothing_leaked()
    sim.assert_accounts()


def test_damage_to_its_own_row_ends_it() -> None:
    sim, request = beside_a_decode(steps=2)
    sim.step(bad_rows=[1])
    assert isinstance(sim.ends[request.id].error, NumericsError)
    sim.drain()
    sim.assert_all_ended_well()


@pytest.mark.parametrize("method", ["inc_lock_ref", "insert"])
def test_a_fault_in_the_tree_ends_it_at_worst(method: str) -> None:
    for nth in range(1, 6):
        sim = Simulation(num_slots=1_000, chunk_tokens=64)
        sim.tolerated = (PlantedFault, EngineStepError)
        request = prefetch(sim)
        with FaultPoint(sim.scheduler.tree, method, nth):
            sim.drain()
        assert request.id in sim.ends
        sim.submit([*PREFIX, 1], 2)
        sim.drain()
        sim.assert_all_ended_well()


def test_all_of_them_end_when_the_engine_does() -> None:
    sim, request = beside_a_decode(steps=2)
    error = EngineStepError("the end")
    sim.tolerated = (EngineStepError,)
    sim.note(sim.scheduler.fail_all(error))
    assert sim.ends[request.id].error is error
    sim.assert_nothing_leaked()


# ---- its own invariants ----------------------------------------------------------------------------------------------
def _end_it(sim: Simulation) -> None:
    next(iter(sim.scheduler._prefetches)).state = State.FINISHED


DAMAGE: dict[str, tuple[Callable[[Simulation], object], str]] = {
    "a hold without a prefetch": (
        lambda sim: sim.scheduler.tree.hold(next(sim.scheduler.tree.walk())),
        "a node is held for nobody, or not for all who want it",
    ),
    "one that has ended": (_end_it, "a prefetch has ended and waits"),
    "slots between two steps": (
        lambda sim: next(iter(sim.scheduler._prefetches)).slots.append(1),
        "a prefetch holds slots between two steps",
    ),
    "a lock between two steps": (
        lambda sim: setattr(next(iter(sim.scheduler._prefetches)), "node", next(sim.scheduler.tree.walk())),
        "a prefetch locks a prefix between two steps",
    ),
}


def failure(damage: Callable[[Simulation], object]) -> AssertionError:
    sim, _ = beside_a_decode(steps=2)
    sim.scheduler.check_invariants()
    damage(sim)
    with pytest.raises(AssertionError) as caught:
        sim.scheduler.check_invariants()
    return caught.value


@pytest.mark.parametrize(("damage", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_the_check_notices_damage(damage: Callable[[Simulation], object], complaint: str) -> None:
    assert str(failure(damage)).partition("\n")[0] == complaint


def test_no_invariant_is_without_damage_that_sets_it_off() -> None:
    everything = assertions_of(IdlePrefetches.check_invariants)
    assert everything == {place_of(failure(damage)) for damage, _ in DAMAGE.values()}


# ---- a real engine ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    with Engine(loaded=loaded, dtype="float32", cache_tokens=1_024, max_running=2, max_queued=1) as engine:
        yield engine


TEXT = "The tide comes in twice a day, and each time it leaves the harbour a little different. "


def test_an_engine_prefetches_when_idle_and_a_prompt_uses_it(engine: Engine) -> None:
    engine.flush_cache()
    engine.reset_stats()
    ids = engine.codec.begin() + engine.codec.encode(TEXT)
    usage = engine.prefetch(TEXT, when_idle=True, timeout_s=WAIT_S).result(WAIT_S).usage
    assert (usage.prompt_tokens, usage.cached_tokens) == (len(ids), 0)
    result = engine.submit([*ids, ids[1]], SamplingParams(max_new_tokens=2)).result(WAIT_S)
    assert result.usage.cached_tokens == len(ids)
    stats = engine.stats()
    assert (stats.prefetch_useful, stats.prefetch_late, stats.prefetch_dropped) == (1, 0, 0)
    engine.check_invariants()


def test_an_engine_ends_the_handle_of_a_dropped_one_without_an_error(loaded: LoadedModel) -> None:
    with Engine(loaded=loaded, dtype="float32", cache_tokens=256) as small:
        ids = tuple(small.codec.encode(TEXT * 20)[:200])
        assert len(ids) == 200, "more than half of the pool"
        usage = small.prefetch(PrefetchRequest(ids, when_idle=True)).result(WAIT_S).usage
        assert (usage.prompt_tokens, usage.cached_tokens) == (0, 0)
        assert small.stats().prefetch_dropped == 1


def test_an_engine_without_a_prefix_cache_drops_them_at_once(loaded: LoadedModel) -> None:
    with Engine(loaded=loaded, dtype="float32", cache_tokens=256, prefix_cache=False) as bare:
        assert bare.prefetch(TEXT, when_idle=True).result(WAIT_S).usage.prompt_tokens == 0
        assert bare.stats().prefetched_tokens == 0


def test_prefetches_for_idle_times_fill_nobodys_queue(engine: Engine) -> None:
    engine.flush_cache()
    taken: list[object] = []

    def crowd(_: object) -> None:
        for i in range(5):
            taken.append(engine.prefetch(f"{TEXT} {i}", when_idle=True))
        taken.append(engine.prefetch(TEXT))
        with pytest.raises(QueueFull):
            engine.prefetch(TEXT)
        taken.append("refused")

    engine._loop.call(crowd)  # on the engine's thread, so that nothing leaves the queue meanwhile
    assert taken[-1] == "refused"
    for handle in taken[:-1]:
        handle.result(WAIT_S)  # type: ignore[attr-defined]


def test_an_abort_of_a_waiting_prefetch_ends_its_handle(engine: Engine) -> None:
    handles: list[Any] = []

    def queue_and_abort(_: object) -> None:
        handles.append(engine.prefetch(f"{TEXT} abort", when_idle=True))
        handles[0].abort()

    engine._loop.call(queue_and_abort)
    with pytest.raises(RequestAborted):
        handles[0].result(WAIT_S)
    engine.check_invariants()


def test_when_idle_is_checked(engine: Engine) -> None:
    with pytest.raises(InvalidArgumentError, match="when_idle"):
        engine.prefetch(PrefetchRequest((1, 2), when_idle="yes"))  # type: ignore[arg-type]
