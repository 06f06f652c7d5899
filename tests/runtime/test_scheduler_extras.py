"""Completions, forced runs and prompt scores in the scheduler, against the oracle, all invariants checked after every step."""

from __future__ import annotations

from typing import Any

import pytest

from sgl_core.errors import DeadlineExceeded, EngineStepError, NumericsError
from sgl_core.runtime.request import LONGEST_JUMP, Request, State
from sgl_core.runtime.scheduler import SchedulerOptions
from sgl_core.testing.simulation import VOCAB, Forcing, Simulation, TextSink, tokens
from sgl_core.types import FinishReason, Hints, SamplingParams

TOLD = SamplingParams(prompt_logprobs=True, logprobs=0)


def fail_crowds(sim: Simulation) -> int:
    """Drain, while every fourth step that runs several requests raises; how many did."""
    seen = failed = 0
    while not sim.scheduler.is_idle:
        is_crowd = len(sim.scheduler._running) > 1 and not sim.scheduler._suspects
        seen += is_crowd
        is_due = is_crowd and seen % 4 == 2
        failed += is_due
        sim.step(raising=is_due)
    return failed


def forced(sim: Simulation, prompt: list[int], new: int, run: int, **options: Any) -> Request:
    """A request each of whose sampled tokens brings ``run`` more with it."""
    request = sim.submit(prompt, new, **options)
    request.constraint = Forcing(request.ids, run, VOCAB)
    return request


# ---- completions -----------------------------------------------------------------------------------------------------
def test_followers_start_from_their_leaders_logits_in_the_step_of_its_first_token() -> None:
    sim = Simulation()
    requests = sim.submit_many(tokens(30), 4, n=5)
    plan = sim.step()
    assert plan is not None
    assert [work.request for work in plan.works] == requests[:1]
    assert [request.num_generated for request in requests] == [1] * 5
    plan = sim.step()
    assert plan is not None
    assert (len(plan.works), plan.num_tokens) == (5, 5)
    sim.drain()
    assert [request.cached_len for request in requests] == [0, 30, 30, 30, 30]
    assert sim.scheduler.counters.prefilled_tokens == 30
    sim.assert_all_ended_well()


def test_followers_whose_prompt_is_lost_before_they_run_compute_it_again() -> None:
    sim = Simulation()
    requests = sim.submit_many(tokens(30), 4, n=3)
    sim.step()
    sim.retract(requests[0].id)
    sim.flush()
    sim.drain()
    assert [request.cached_len for request in requests] == [0, 30, 30]
    counters = sim.scheduler.counters
    assert (counters.prompt_tokens, counters.prefilled_tokens, counters.recomputed_tokens) == (90, 30, 30)
    sim.assert_all_ended_well()


def test_followers_never_queue_behind_those_who_came_later() -> None:
    sim = Simulation(max_running=1)
    first = sim.submit_many(tokens(20), 4, n=4)
    other = sim.submit(tokens(20, seed=3), 4)
    sim.drain()
    assert {*sim.ends} == {*(request.id for request in first), other.id}
    assert list(sim.ends)[-1] == other.id
    sim.assert_all_ended_well()


@pytest.mark.parametrize("steps", [1, 3])
def test_a_leader_that_is_sent_back_in_its_prefill_keeps_its_followers(steps: int) -> None:
    sim = Simulation(chunk_tokens=10)
    requests = sim.submit_many(tokens(40), 3, n=4)
    for _ in range(steps):
        sim.step()
    assert sim.retract(requests[0].id)
    sim.flush()
    sim.drain()
    assert [request.cached_len for request in requests] == [0, 40, 40, 40]
    assert sim.scheduler.counters.recomputed_tokens == 10 * steps
    sim.assert_all_ended_well()


def test_a_tiny_pool_finishes_more_completions_than_it_holds() -> None:
    sim = Simulation(num_slots=140, max_running=8)
    for i in range(40):  # from which admission learns to expect little
        sim.submit(tokens(3, seed=i + 1), 90, stop_ids=frozenset(range(VOCAB)))
        sim.drain()
    requests = sim.submit_many(tokens(20), 90, n=8)
    before = sim.scheduler.counters.prefilled_tokens
    sim.drain()
    assert sim.scheduler.stats().num_retractions > 0
    assert [request.num_generated for request in requests] == [90] * 8
    assert sim.scheduler.counters.prefilled_tokens == before + 20
    sim.assert_all_ended_well()


def test_an_abort_of_a_waiting_leader_ends_its_followers_and_counts_them() -> None:
    sim = Simulation()
    requests = sim.submit_many(tokens(20), 3, n=4)
    sim.abort(requests[0].id)
    sim.drain()
    assert [sim.ends[request.id].reason for request in requests] == [FinishReason.ABORT] * 4
    stats = sim.scheduler.stats()
    assert (stats.num_finished, stats.num_aborted) == (4, 4)


def test_an_abort_of_the_leader_spares_followers_that_have_begun() -> None:
    sim = Simulation()
    requests = sim.submit_many(tokens(20), 3, n=3)
    sim.step()
    sim.abort(requests[0].id)
    sim.drain()
    reasons = [sim.ends[request.id].reason for request in requests]
    assert reasons == [FinishReason.ABORT, FinishReason.LENGTH, FinishReason.LENGTH]
    sim.assert_all_ended_well()


def test_a_leader_that_ends_at_once_leaves_its_prompt_to_its_followers() -> None:
    sim = Simulation()
    requests = sim.submit_many(tokens(20), 3, n=3, hints=Hints("p", last_use=True))
    requests[0].max_new_tokens = 1
    sim.drain()
    assert [request.num_generated for request in requests] == [1, 3, 3]
    sim.assert_all_ended_well()


def test_a_deadline_that_passes_in_the_prefill_is_everybodys() -> None:
    sim = Simulation(chunk_tokens=8)
    requests = sim.submit_many(tokens(40), 3, n=3, deadline=3.0)
    sim.drain()
    assert all(isinstance(sim.ends[request.id].error, DeadlineExceeded) for request in requests)
    assert sim.scheduler.stats().num_failed == 3
    sim.assert_nothing_leaked()


def test_damage_to_the_first_logits_is_everybodys_and_damage_later_is_not() -> None:
    sim = Simulation()
    early, late = sim.submit_many(tokens(20), 3, n=3), sim.submit_many(tokens(20, seed=1), 3, n=3)
    sim.step(bad_rows=[0])
    sim.step(bad_rows=[1])
    sim.drain()
    assert all(isinstance(sim.ends[request.id].error, NumericsError) for request in early)
    assert [sim.ends[request.id].error is None for request in late].count(False) == 1
    sim.assert_nothing_leaked()


@pytest.mark.parametrize("at", [1, 2])
def test_a_step_that_raises_loses_no_completion(at: int) -> None:
    sim = Simulation(chunk_tokens=16)
    requests = sim.submit_many(tokens(12), 5, n=3)
    sim.submit(tokens(12, seed=4), 5)
    for turn in range(1, 4):
        sim.step(raising=turn == at)
    sim.drain()
    assert [request.num_generated for request in requests] == [5] * 3
    sim.assert_all_ended_well()


def test_a_leader_that_fails_alone_takes_followers_without_a_token_with_it() -> None:
    sim = Simulation()
    requests = sim.submit_many(tokens(12), 5, n=3)
    fine = sim.submit(tokens(12, seed=4), 5)
    sim.poisoned.add(requests[0].id)
    sim.drain()
    assert all(isinstance(sim.ends[request.id].error, EngineStepError) for request in requests)
    assert sim.ends[fine.id].error is None
    sim.assert_all_ended_well()


# ---- forced runs -----------------------------------------------------------------------------------------------------
def test_a_forced_run_rides_on_top_of_a_full_chunk() -> None:
    sim = Simulation(num_slots=2_000, chunk_tokens=32)
    jumping = forced(sim, tokens(8), 60, run=5)
    sim.step()
    long = sim.submit(tokens(200, seed=9), 1)
    for _ in range(4):
        plan = sim.step()
        assert plan is not None
        assert {work.request.id: work.end - work.start for work in plan.works} == {jumping.id: 6, long.id: 32}
    assert jumping.num_generated == 5 * 6
    sim.drain()
    assert sim.scheduler.counters.jumped_tokens == 50
    sim.assert_all_ended_well()


def test_a_run_that_is_longer_than_a_decode_may_be_waits_for_room_in_the_chunk() -> None:
    sim = Simulation(num_slots=2_000, chunk_tokens=16)
    jumping = forced(sim, tokens(8), 100, run=LONGEST_JUMP + 8)
    while not sim.scheduler.is_idle:
        plan = sim.step()
        assert plan is not None
        assert plan.num_tokens <= LONGEST_JUMP
    assert jumping.num_generated == 100
    sim.assert_all_ended_well()


@pytest.mark.parametrize("flush", [False, True])
def test_forced_runs_survive_being_sent_back(flush: bool) -> None:
    sim = Simulation()
    requests = [forced(sim, tokens(20, seed=i), 40, run=i) for i in range(4)]
    for _ in range(3):
        sim.step()
        for request in requests:
            sim.retract(request.id)
        if flush:
            sim.flush()
    sim.drain()
    assert [request.num_generated for request in requests] == [40] * 4
    sim.assert_all_ended_well()


def test_forced_runs_find_their_slots_in_a_tiny_pool() -> None:
    sim = Simulation(num_slots=140, max_running=8)
    requests = [forced(sim, [i, *tokens(19)], 60, run=7) for i in range(5)]
    sim.drain()
    assert sim.scheduler.stats().num_retractions > 0
    assert [request.num_generated for request in requests] == [60] * 5
    sim.assert_all_ended_well()


def test_a_stop_inside_a_forced_run_ends_with_no_token_behind_it() -> None:
    sim = Simulation()
    whole = forced(sim, tokens(10), 30, run=6)
    sim.drain()
    stop = whole.output_ids()[9]
    by_text = forced(sim, tokens(10), 30, run=6, sink=TextSink(stop=stop))
    by_token = forced(sim, tokens(10), 30, run=6, stop_ids=frozenset({stop}))
    sim.drain()
    for request in (by_text, by_token):
        assert sim.ends[request.id].reason is FinishReason.STOP
        assert request.ids[-1] == stop
        assert stop not in request.output_ids()[:-1]
    sim.assert_all_ended_well()


def test_a_step_that_raises_commits_no_verdict() -> None:
    sim = Simulation()
    requests = [forced(sim, tokens(10, seed=i), 30, run=3) for i in range(3)]
    assert fail_crowds(sim) > 1
    assert [sim.ends[request.id].error for request in requests] == [None] * 3
    sim.assert_all_ended_well()


# ---- prompt scores ---------------------------------------------------------------------------------------------------
def test_prompt_scores_are_found_beside_the_cache() -> None:
    sim = Simulation()
    for expected in (0, 29):
        request = sim.submit(tokens(30), 2, params=TOLD)
        sim.drain()
        assert request.cached_len == expected
    sim.submit([*tokens(30), *tokens(10, seed=2)], 2)
    sim.drain()
    longer = sim.submit([*tokens(30), *tokens(10, seed=2)], 2, params=TOLD)
    sim.drain()
    assert longer.cached_len == 29
    sim.assert_all_ended_well()


def test_prompt_scores_computed_beside_anothers_prompt_are_kept_too() -> None:
    sim = Simulation()
    sim.submit(tokens(30), 2)
    sim.drain()
    for expected in (0, 33):
        request = sim.submit([*tokens(30), 1, 2, 3, 4], 2, params=TOLD)
        sim.drain()
        assert request.cached_len == expected
    sim.assert_all_ended_well()


@pytest.mark.parametrize("in_flight_sharing", [True, False])
@pytest.mark.parametrize("chunk", [5, 64])
def test_prompt_scores_are_right_in_a_tiny_pool(chunk: int, in_flight_sharing: bool) -> None:
    options = SchedulerOptions(in_flight_sharing=in_flight_sharing)
    sim = Simulation(num_slots=80, max_running=4, chunk_tokens=chunk, options=options)
    for i in range(40):
        prompt = [*tokens(12 + i % 3 * 4), *tokens(8, seed=1 + i % 5)]
        sim.submit(prompt, 6, params=TOLD if i % 3 else SamplingParams())
        if i % 4 == 3:
            for _ in range(5):
                sim.step()
            for request in list(sim.requests.values()):
                if request.state is State.RUNNING and i % 8 == 3:
                    sim.retract(request.id)
    sim.drain()
    assert sim.scheduler.stats().evicted_tokens > 0
    sim.assert_all_ended_well()


def test_completions_are_told_their_prompt_once() -> None:
    sim = Simulation(num_slots=60, chunk_tokens=7)
    requests = sim.submit_many(tokens(25), 12, n=5, params=TOLD)
    sim.drain()
    assert sim.scheduler.counters.prefilled_tokens == 25
    assert len({tuple(score.logprob for score in request.logprobs[:24]) for request in requests}) == 1
    sim.assert_all_ended_well()


def test_prompt_scores_survive_steps_that_raise() -> None:
    sim = Simulation(chunk_tokens=9)
    for i in range(4):
        sim.submit([*tokens(20), i, *tokens(6, seed=i)], 12, params=TOLD)
    assert fail_crowds(sim) > 1
    assert all(end.error is None for end in sim.ends.values())
    sim.assert_all_ended_well()


def test_everything_at_once_in_a_tiny_pool() -> None:
    sim = Simulation(num_slots=150, max_running=7, chunk_tokens=16)
    for i in range(6):
        sim.submit_many([i, *tokens(20 + i)], 60, n=3, params=TOLD if i % 2 else SamplingParams())
        sim.score(tokens(24), [tokens(5, seed=40 + i), tokens(3, seed=40 + i), tokens(4, seed=50 + i)], max_nodes=4)
        forced(sim, tokens(18, seed=i), 60, run=4)
        sim.step()
    sim.drain()
    assert sim.scheduler.stats().num_retractions > 0
    sim.assert_all_ended_well()
