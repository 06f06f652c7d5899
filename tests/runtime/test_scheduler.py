"""The scheduler against an oracle whose text depends on the KV content, all invariants checked after every step."""

from __future__ import annotations

import pytest

from sgl_core.errors import DeadlineExceeded, EngineStepError
from sgl_core.runtime.choice_trie import build_tries
from sgl_core.runtime.plan import StepPlan, StepResult
from sgl_core.runtime.request import Kind, ScoreGroup, State
from sgl_core.runtime.scheduler import SchedulerOptions
from sgl_core.runtime.waiting import MAX_OVERTAKEN
from sgl_core.testing.simulation import VOCAB, Simulation, TextSink, expected_scores, oracle_continuation, tokens
from sgl_core.types import FinishReason, Hints, SamplingParams


def test_one_request_runs_to_its_budget() -> None:
    sim = Simulation()
    request = sim.submit(tokens(10), new=5)
    assert sim.drain() == 5  # the prefill gives the first token
    sim.assert_right(request)
    assert sim.ends[request.id].reason is FinishReason.LENGTH
    assert request.num_generated == 5


def test_a_cold_fan_out_computes_its_shared_prefix_once_in_one_step() -> None:
    sim = Simulation(num_slots=4_000, max_running=24, chunk_tokens=2_000)
    prefix = tokens(200)
    requests = [sim.submit([*prefix, *tokens(5, seed=i + 1)], new=3) for i in range(24)]
    plan = sim.step()
    assert plan is not None
    assert len(plan.works) == 24
    assert plan.num_tokens <= 200 + 24 * 5  # tails may begin alike
    sim.drain()
    for request in requests:
        sim.assert_right(request)
    counters = sim.scheduler.counters
    assert counters.prefilled_tokens == sum(r.prompt_len - r.cached_len for r in requests) == plan.num_tokens


def test_followers_wait_for_a_leader_that_prefills_in_chunks() -> None:
    sim = Simulation(num_slots=4_000, chunk_tokens=50)
    prefix = tokens(200)
    requests = [sim.submit([*prefix, i], new=2) for i in range(4)]
    for _ in range(3):
        plan = sim.step()
        assert plan is not None
        assert [w.request for w in plan.works] == [requests[0]], "a follower computed what the leader is computing"
    sim.drain()
    for request in requests:
        sim.assert_right(request)
    assert sim.scheduler.counters.prefilled_tokens == 200 + 4


def test_decodes_go_on_while_a_long_prompt_is_prefilled() -> None:
    sim = Simulation(num_slots=4_000, chunk_tokens=32)
    short = sim.submit(tokens(8), new=20)
    sim.step()
    sim.submit(tokens(300, seed=9), new=1)
    before = short.num_generated
    for _ in range(6):
        sim.step()
    assert short.num_generated == before + 6


def test_a_finished_conversation_is_found_again_with_its_output() -> None:
    sim = Simulation()
    first = sim.submit(tokens(30), new=6)
    sim.drain()
    second = sim.submit([*first.ids, *tokens(4, seed=5)], new=2)
    sim.drain()
    sim.assert_right(second)
    assert second.cached_len == 30 + 6 - 1  # the last sampled token has no KV


def test_the_same_prompt_again_recomputes_one_token() -> None:
    sim = Simulation()
    prompts = [sim.submit(tokens(30), new=2) for _ in range(3)]
    sim.drain()
    again = sim.submit(tokens(30), new=2)
    sim.drain()
    assert again.cached_len == 29
    for request in [*prompts, again]:
        sim.assert_right(request)
    sim.assert_nothing_leaked()


def test_namespaces_share_nothing_across_and_something_within() -> None:
    sim = Simulation()
    for namespace in ("a", "b", "a"):
        sim.submit(tokens(40), new=2, namespace=namespace)
        sim.drain()
    cached = [sim.ends[f"r{i}"].request.cached_len for i in range(3)]
    assert cached == [0, 0, 39]


def test_without_the_tree_nothing_is_shared_and_everything_is_freed() -> None:
    sim = Simulation()
    for _ in range(2):
        sim.submit(tokens(40), new=2, use_tree=False)
    sim.drain()
    stats = sim.scheduler.stats()
    assert (stats.cached_tokens, stats.prefilled_tokens, stats.free_tokens) == (0, 80, stats.pool_tokens)


def test_a_full_pool_evicts_and_stays_right() -> None:
    sim = Simulation(num_slots=120, max_running=4)
    requests = [sim.submit(tokens(40, seed=i % 5), new=10) for i in range(40)]
    sim.drain()
    for request in requests:
        sim.assert_right(request)
    assert sim.scheduler.stats().evicted_tokens > 0
    sim.assert_nothing_leaked()


def test_admission_promises_what_requests_are_expected_to_use() -> None:
    sim = Simulation(num_slots=100, max_running=8)
    requests = [sim.submit(tokens(20, seed=i), new=40) for i in range(6)]  # 59 slots each at most, 48 expected
    plan = sim.step()
    assert plan is not None
    assert len(plan.works) == 2
    sim.drain()
    for request in requests:
        sim.assert_right(request)


def test_the_longest_cached_prefix_goes_first_and_fcfs_does_not_look() -> None:
    for policy, expected in (("lpm", [2, 1]), ("fcfs", [1, 2])):
        sim = Simulation(policy=policy, max_running=1)
        sim.submit(tokens(30), new=1)
        sim.drain()
        cold, warm = sim.submit(tokens(30, seed=7), new=1), sim.submit([*tokens(30), 1], new=1)
        sim.drain()
        order = sorted((cold, warm), key=lambda r: r.admitted_at)
        assert [r.arrival for r in order] == expected


@pytest.mark.parametrize("policy", ["lpm", "dfs_weight"])
def test_a_cold_request_among_a_stream_of_hot_ones_is_overtaken_a_bounded_number_of_times(policy: str) -> None:
    sim = Simulation(max_running=1, policy=policy)
    for i in range(3):
        sim.submit([*tokens(30), i], new=1)
    cold = sim.submit(tokens(30, seed=7), new=1)
    overtaken = 0
    while cold.id not in sim.ends:
        sim.submit([*tokens(30), overtaken % VOCAB], new=1)  # one hot request more in each step, and one a step is admitted
        sim.step()
        overtaken += 1
        assert overtaken <= MAX_OVERTAKEN + 4, "its fair turn was the fourth"
    assert overtaken > 100, "the policy did not prefer the hot ones, so this proves nothing"
    sim.assert_right(cold)


@pytest.mark.parametrize("policy", ["lpm", "dfs_weight", "priority"])
def test_priority_goes_before_everything(policy: str) -> None:
    sim = Simulation(max_running=1, policy=policy)
    low, high = sim.submit(tokens(5), new=1), sim.submit(tokens(5, seed=1), new=1, priority=1)
    sim.drain()
    assert high.admitted_at < low.admitted_at


def test_first_come_first_served_ignores_priorities() -> None:
    sim = Simulation(max_running=1, policy="fcfs")
    low, high = sim.submit(tokens(5), new=1), sim.submit(tokens(5, seed=1), new=1, priority=1)
    sim.drain()
    assert low.admitted_at < high.admitted_at


def test_a_higher_priority_takes_the_row_of_a_running_request_whose_text_stays_the_same() -> None:
    sim = Simulation(max_running=2)
    low = [sim.submit(tokens(20, seed=i), new=30) for i in range(2)]
    for _ in range(5):
        sim.step()
    high = sim.submit(tokens(20, seed=5), new=3, priority=2)
    sim.step()
    assert [r.state for r in (*low, high)] == [State.RUNNING, State.WAITING, State.RUNNING]
    sim.drain()
    assert sim.ends[high.id].request.num_generated == 3
    for request in (*low, high):
        sim.assert_right(request)
    assert sim.scheduler.stats().recomputed_tokens <= 2, "what it had computed was still in the tree"


def test_when_slots_run_out_the_last_to_come_goes_back_and_its_text_stays_the_same() -> None:
    sim = Simulation(num_slots=140, max_running=8)
    requests = [sim.submit([i, *tokens(19)], new=60) for i in range(5)]
    retracted: list[int] = []
    while not sim.scheduler.is_idle:
        sim.step()
        retracted += [i for i, r in enumerate(requests) if r.state is State.WAITING and r.admitted_at]
    assert sim.scheduler.stats().num_retractions > 0
    assert retracted, "nobody was seen waiting again"
    assert 0 not in retracted, "the first to come always goes on"
    for request in requests:
        sim.assert_right(request)
        assert request.num_generated == 60
        assert request.cached_len == 0, "what was recomputed is not a part of the prompt's first prefill"
    stats = sim.scheduler.stats()
    assert stats.prefilled_tokens == 5 * 20
    assert sim.oracle.computed_tokens == stats.total_computed_tokens - 5  # the last token of each was not run
    sim.assert_nothing_leaked()


def test_retraction_at_every_step_changes_nothing() -> None:
    prompt = tokens(45)
    for at in range(12):
        sim = Simulation(chunk_tokens=10)
        request = sim.submit(prompt, new=7)
        other = sim.submit([*prompt[:30], 1, 2], new=7)
        for _ in range(at):
            sim.step()
        sim.retract(request.id)
        sim.drain()
        sim.assert_right(request)
        sim.assert_right(other)
        sim.assert_nothing_leaked()


def test_programs_take_turns_when_one_floods_the_queue() -> None:
    sim = Simulation(max_running=1, policy="lpm")
    for i in range(2 * MAX_OVERTAKEN):
        sim.submit([*tokens(30), i % VOCAB, i // VOCAB], new=1, hints=Hints(program_id="flood"))
    small = sim.submit(tokens(30, seed=7), new=1, hints=Hints(program_id="small"))
    sim.drain(limit=4 * MAX_OVERTAKEN)
    before = sum(r.admitted_at < small.admitted_at for r in sim.requests.values())
    assert MAX_OVERTAKEN <= before <= MAX_OVERTAKEN + 2, "its fair turn was the second, not the last"


def test_scores_come_from_one_forward_over_the_shared_prompt() -> None:
    sim = Simulation(chunk_tokens=500)
    continuations = [[7], [7, 8], [7, 8, 9], [11, 12]]
    (request,) = sim.score(tokens(60), continuations)
    plan = sim.step()
    assert plan is not None
    assert plan.num_tokens == 60 + 3, "7, 7 8 and 11 are followed by something"
    assert sim.scheduler.is_idle
    assert request.logprobs == expected_scores(request)
    counters = sim.scheduler.counters
    assert (counters.prompt_tokens, counters.cached_tokens, counters.prefilled_tokens) == (60, 0, 60)
    assert plan.num_tokens == counters.prefilled_tokens + counters.scored_tokens
    sim.assert_nothing_leaked()


def test_scores_in_chunks_are_the_same() -> None:
    sim = Simulation(chunk_tokens=7)
    (request,) = sim.score(tokens(20), [tokens(10, seed=1), tokens(10, seed=2), tokens(4, seed=1)])
    assert sim.drain() == 6, "20 tokens and 18 nodes, seven at a time"
    assert request.logprobs == expected_scores(request)


def test_a_prefetch_makes_the_next_prompt_warm() -> None:
    sim = Simulation()
    sim.submit(tokens(50), new=0, kind=Kind.PREFETCH, sink=None)
    sim.drain()
    request = sim.submit([*tokens(50), 3], new=1)
    sim.drain()
    assert request.cached_len == 50
    assert sim.scheduler.counters.prefetched_tokens == 50


def test_stop_tokens_and_stop_strings_end_a_request() -> None:
    sim = Simulation()
    continuation = oracle_continuation(tokens(12), 6, VOCAB)
    first_new = next(i for i, t in enumerate(continuation) if t not in continuation[:i] and i > 1)
    stop = continuation[first_new]
    by_id = sim.submit(tokens(12), new=50, stop_ids=frozenset({stop}))
    by_text = sim.submit(tokens(12), new=50, sink=TextSink(stop))
    sim.drain()
    assert sim.ends[by_id.id].matched_stop == stop
    assert sim.ends[by_text.id].matched_stop == str(stop)
    assert by_id.num_generated == by_text.num_generated == first_new + 1


def test_abort_in_every_state_frees_everything() -> None:
    for steps_before in range(8):
        sim = Simulation(chunk_tokens=16, max_running=2)
        requests = [sim.submit(tokens(40, seed=i % 2), new=6) for i in range(4)]
        for _ in range(steps_before):
            sim.step()
        for request in requests:
            event = sim.scheduler.abort(request.id)
            sim.scheduler.check_invariants()
            if event is not None:
                sim.note([event])
                assert event.reason is FinishReason.ABORT
        assert sim.scheduler.is_idle
        assert len(sim.ends) == 4
        counters = sim.scheduler.counters
        assert counters.prefilled_tokens == sum(r.prompt_len - r.cached_len for r in requests)
        assert sim.oracle.computed_tokens == counters.prefilled_tokens + counters.generated_tokens - sum(
            r.num_generated > 0 for r in requests
        )
        sim.assert_nothing_leaked()
        assert sim.scheduler.abort(requests[0].id) is None


def test_a_chunk_that_ends_before_what_a_scoring_asks_for_needs_no_logits() -> None:
    sim = Simulation(chunk_tokens=10)
    decoding = sim.submit(tokens(3, seed=4), new=12)
    sim.step()
    scored = sim.score(tokens(25), [[1, 2], [3]])
    for _ in range(2):
        plan = sim.step()
        assert plan is not None
        assert [(w.request, w.end - w.logit_start) for w in plan.works] == [(decoding, 1), (scored[0], 0)]
    sim.drain()
    sim.assert_all_ended_well()


def test_an_aborted_score_takes_back_what_it_did_not_run() -> None:
    for steps_before in range(6):
        sim = Simulation(chunk_tokens=16)
        requests = sim.score(tokens(40), [tokens(9, seed=1), tokens(9, seed=2)], max_nodes=8)
        for _ in range(steps_before):
            sim.step()
        for request in requests:
            sim.scheduler.abort(request.id)
        counters = sim.scheduler.counters
        assert counters.scored_tokens >= 0
        assert sim.oracle.computed_tokens == counters.prefilled_tokens + counters.scored_tokens
        assert counters.prompt_tokens == counters.cached_tokens + counters.prefilled_tokens
        sim.assert_nothing_leaked()


def test_a_deadline_ends_only_its_own_request() -> None:
    sim = Simulation(max_running=1)
    late, fine = sim.submit(tokens(10), new=20, deadline=5.0), sim.submit(tokens(10, seed=1), new=3)
    sim.drain()
    assert isinstance(sim.ends[late.id].error, DeadlineExceeded)
    assert sim.ends[fine.id].reason is FinishReason.LENGTH
    sim.assert_nothing_leaked()


def test_a_failing_sink_ends_only_its_own_request() -> None:
    sim = Simulation()
    broken, fine = sim.submit(tokens(10), sink=TextSink(fails_at=1)), sim.submit(tokens(10))
    sim.drain()
    assert isinstance(sim.ends[broken.id].error, RuntimeError)
    sim.assert_right(fine)


def test_a_step_that_raises_ends_the_request_that_fails_alone_and_no_other() -> None:
    sim = Simulation(max_running=4, chunk_tokens=2_000)
    fine = [sim.submit([*tokens(60), i], new=4) for i in range(3)]
    bad = sim.submit([*tokens(60), 9], new=4)
    sim.poisoned.add(bad.id)
    sim.drain()
    assert isinstance(sim.ends[bad.id].error, EngineStepError)
    for request in fine:
        sim.assert_right(request)
        assert sim.ends[request.id].reason is FinishReason.LENGTH
    sim.assert_nothing_leaked()


def test_what_a_failed_step_should_have_computed_is_never_reused() -> None:
    sim = Simulation(max_running=2, chunk_tokens=2_000)
    first = [sim.submit([*tokens(60), i], new=4) for i in range(2)]
    sim.step(raising=True)
    assert sim.scheduler.tree.total_size == 0
    sim.drain()
    for request in first:
        sim.assert_right(request)


def test_a_row_with_bad_logits_leaves_none_of_its_kv_behind() -> None:
    sim = Simulation(max_running=2, chunk_tokens=2_000)
    sim.submit(tokens(30), new=1)
    sim.drain()
    kept = sim.scheduler.tree.total_size
    sim.submit([*tokens(30), *tokens(20, seed=3)], new=4)
    sim.step(bad_rows=[0])
    assert sim.scheduler.is_idle
    assert sim.scheduler.tree.total_size == kept


def test_sharing_across_levels_covers_each_members_prefix() -> None:
    sim = Simulation(num_slots=8_000, max_running=16, chunk_tokens=4_000)
    root, left, right = tokens(300), tokens(200, seed=1), tokens(200, seed=2)
    for branch in (left, right):
        for i in range(4):
            sim.submit([*root, *branch, i], new=3)
    sim.step()
    plan = sim.step()
    assert plan is not None
    assert sorted((s.start, s.end, len(s.members)) for s in plan.shared) == [(0, 300, 8), (300, 500, 4), (300, 500, 4)]
    assert [w.shared_len for w in plan.works] == [500] * 8
    for shared in plan.shared:
        tables = {tuple(plan.works[m].request.slots[shared.start : shared.end]) for m in shared.members}
        assert len(tables) == 1, "members of a shared prefix have different slots"


def test_what_runs_again_for_its_log_probabilities_is_no_miss() -> None:
    sim = Simulation()
    sim.submit(tokens(30), new=1)
    sim.drain()
    before = sim.scheduler.stats().misses
    told = sim.submit(tokens(30), new=1, params=SamplingParams(prompt_logprobs=True))
    sim.drain()
    assert told.cached_len == 0
    assert sim.scheduler.stats().misses == before
    unseen = sim.submit(tokens(30, seed=1), new=1, params=SamplingParams(prompt_logprobs=True))
    sim.drain()
    assert [miss.request_id for miss in sim.scheduler.stats().misses[len(before) :]] == [unseen.id]


def test_a_miss_says_where_the_prompt_left_the_cache() -> None:
    sim = Simulation()
    sim.submit([*tokens(20), 7, 8], new=1)
    sim.drain()
    sim.submit([*tokens(20), 9, 8], new=1)
    sim.submit([*tokens(20), 7, 8], new=1)
    sim.drain()
    first, second = sim.scheduler.stats().misses
    assert (first.cached_tokens, first.cache_tokens) == (0, ())
    assert (second.prompt_tokens, second.cached_tokens) == (22, 20)
    assert (second.prompt_token, second.cache_tokens) == (9, (7,))


def test_without_in_flight_sharing_a_cold_fan_out_computes_its_prefix_each_time() -> None:
    counts = {}
    for sharing in (True, False):
        sim = Simulation(num_slots=4_000, chunk_tokens=2_000, options=SchedulerOptions(in_flight_sharing=sharing))
        requests = [sim.submit([*tokens(100), i], new=3) for i in range(8)]
        late = sim.submit([*tokens(100), 9], new=3)
        sim.drain()
        for request in (*requests, late):
            sim.assert_right(request)
        counts[sharing] = sim.scheduler.counters.prefilled_tokens
        assert late.cached_len == 100, "what has been computed is shared in both cases"
        sim.assert_nothing_leaked()
    assert counts == {True: 100 + 9, False: 8 * 101 + 1}


def test_a_cache_of_one_level_shares_the_first_branch_only() -> None:
    cached = {}
    for levels in (None, 1):
        sim = Simulation(num_slots=4_000, max_running=1, options=SchedulerOptions(cache_levels=levels))
        root, branch = tokens(50), tokens(50, seed=1)
        prompts = [[*root, 40, *branch, 1], [*root, 40, *branch, 2], [*root, 41, *branch, 3], [*root, 40, *branch, 4]]
        requests = [sim.submit(prompt, new=2) for prompt in prompts]
        sim.drain()
        for request in requests:
            sim.assert_right(request)
        cached[levels] = sum(r.cached_len for r in requests)
        sim.assert_nothing_leaked()
    assert cached[None] == 101 + 50 + 101
    assert 50 * 2 <= cached[1] < cached[None]


def test_without_cascade_no_prefix_is_attended_together() -> None:
    sim = Simulation(num_slots=8_000, max_running=8, chunk_tokens=4_000, options=SchedulerOptions(cascade=False))
    for i in range(8):
        sim.submit([*tokens(300), i], new=3)
    sim.step()
    plan = sim.step()
    assert plan is not None
    assert plan.shared == ()
    assert {work.shared_len for work in plan.works} == {0}


def test_a_scoring_that_fills_the_pool_exactly_is_admitted() -> None:
    sim = Simulation(num_slots=50, chunk_tokens=20)
    (request,) = sim.score(tokens(40), [tokens(11, seed=1)])  # the last one is scored, not run
    sim.drain()
    assert request.logprobs == expected_scores(request)


_CHAIN = build_tries([tuple(tokens(81, seed=9))], 100)[0]


@pytest.mark.parametrize("options", [{}, {"use_tree": False}, {"kind": Kind.SCORE, "branches": _CHAIN, "sink": None}])
def test_a_request_that_fails_late_is_found_though_its_neighbours_go_on(options: dict[str, object]) -> None:
    class Late(Simulation):
        """The request named bad makes steps raise that run its token 90."""

        def _run(self, plan: StepPlan, *, raising: bool) -> StepResult:
            late = any(w.request.id == "bad" and w.start <= 90 < w.end for w in plan.works)
            return super()._run(plan, raising=raising or late)

    sim = Late(num_slots=2_000, chunk_tokens=32, max_running=4)
    sim.tolerated = (EngineStepError,)
    new, prompt = (0, tokens(20, seed=3)) if "branches" in options else (4, tokens(100, seed=3))
    sim.submit(prompt, new=new, name="bad", **options, **({"group": ScoreGroup()} if not new else {}))
    fine = [sim.submit(tokens(10, seed=100 + i), new=200) for i in range(3)]
    for _ in range(60):
        sim.step()
        if "bad" in sim.ends:
            break
    assert isinstance(sim.ends["bad"].error, EngineStepError)
    assert not any(r.id in sim.ends for r in fine)
    sim.drain()
    for request in fine:
        sim.assert_right(request)


def test_a_higher_priority_with_a_cached_prefix_gets_its_room_too() -> None:
    sim = Simulation(num_slots=120, chunk_tokens=200)
    sim.submit(tokens(60, seed=1), new=1)
    sim.drain()
    low = sim.submit(tokens(20, seed=2), new=40)
    sim.step()
    high = sim.submit([*tokens(60, seed=1), *tokens(30, seed=3)], new=10, priority=1)
    sim.step()
    assert high.state is State.RUNNING
    sim.drain()
    for request in (low, high):
        sim.assert_right(request)


def test_nobody_is_retracted_in_vain() -> None:
    sim = Simulation(num_slots=120, chunk_tokens=200)
    high = sim.submit(tokens(40, seed=1), new=40, priority=1)
    low = sim.submit(tokens(10, seed=2), new=10)
    sim.step()
    assert [r.state for r in (high, low)] == [State.RUNNING] * 2
    sim.submit(tokens(80, seed=3), new=20, priority=1)  # has no room beside the other one of its rank
    for _ in range(3):
        sim.step()
        assert low.state is State.RUNNING
    sim.drain()
