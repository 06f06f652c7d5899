"""The scheduler against an oracle whose text depends on the KV content, all invariants checked after every step."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from sgl_core.errors import DeadlineExceeded, EngineStepError
from sgl_core.runtime.plan import Finished, Progress, StepPlan
from sgl_core.runtime.policy import MAX_OVERTAKEN
from sgl_core.runtime.request import Kind, Request, ScoreGroup
from sgl_core.runtime.scheduler import Scheduler
from sgl_core.testing.simulation import OracleRunner, oracle_continuation
from sgl_core.types import FinishReason, SamplingParams

VOCAB = 50


class Sink:
    """Text of a token is its number; ``stop`` ends at that token."""

    def __init__(self, stop: int | None = None) -> None:
        self._stop = stop
        self.matched_stop: str | None = None

    def push(self, token_id: int) -> str:
        if token_id == self._stop:
            self.matched_stop = str(token_id)
        return f"{token_id} "


class BrokenSink(Sink):
    def push(self, token_id: int) -> str:
        raise RuntimeError("this sink is broken")


@dataclass
class Simulation:
    """A scheduler and an oracle, driven step by step."""

    num_slots: int = 400
    max_running: int = 8
    chunk_tokens: int = 64
    policy: str = "lpm"
    ends: dict[str, Finished] = field(default_factory=dict)
    made: int = 0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            self.num_slots, max_running=self.max_running, chunk_tokens=self.chunk_tokens, policy=self.policy
        )
        self.oracle = OracleRunner(self.num_slots, VOCAB)

    def submit(self, prompt: Iterable[int], new: int = 4, **options: object) -> Request:
        fields = {"sink": Sink(), "kind": Kind.GENERATE, "stop_ids": frozenset(), "params": SamplingParams(), **options}
        request = Request(id=f"r{self.made}", ids=list(prompt), max_new_tokens=new, submitted_at=self.now, **fields)  # type: ignore[arg-type]
        self.made += 1
        self.scheduler.add(request)
        return request

    def step(self) -> StepPlan | None:
        self.now += 1.0
        self.note(self.scheduler.expire(self.now))
        plan = self.scheduler.schedule(self.now)
        self.scheduler.check_invariants()
        if plan is not None:
            self.note(self.scheduler.update(plan, self.oracle.run(plan), self.now))
            self.scheduler.check_invariants()
        return plan

    def note(self, events: Iterable[Progress | Finished]) -> None:
        for event in events:
            if isinstance(event, Finished):
                assert event.request.id not in self.ends, "a request ended twice"
                self.ends[event.request.id] = event

    def drain(self, limit: int = 2_000) -> int:
        steps = 0
        while not self.scheduler.is_idle:
            self.step()
            steps += 1
            assert steps <= limit, "the queue does not drain"
        return steps

    def assert_right(self, request: Request) -> None:
        prompt = request.ids[: request.prompt_len]
        assert request.output_ids() == oracle_continuation(prompt, request.num_generated, VOCAB)

    def assert_nothing_leaked(self) -> None:
        stats = self.scheduler.stats()
        assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens
        assert stats.protected_tokens == 0


def tokens(n: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=n)


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
    assert sim.scheduler.counters.evicted_tokens > 0
    sim.assert_nothing_leaked()


def test_admission_never_promises_more_than_the_pool_holds() -> None:
    sim = Simulation(num_slots=100, max_running=8)
    requests = [sim.submit(tokens(20, seed=i), new=30) for i in range(6)]  # 49 slots each over their lives
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


def test_a_cold_request_is_not_starved_by_a_stream_of_hits() -> None:
    sim = Simulation(max_running=1)
    sim.submit(tokens(30), new=1)
    sim.drain()
    cold = sim.submit(tokens(30, seed=7), new=1)
    for i in range(2 * MAX_OVERTAKEN):
        sim.submit([*tokens(30), i % VOCAB], new=1)
        if cold.id in sim.ends:
            break
        sim.step()
    assert cold.id in sim.ends
    assert cold.overtaken == MAX_OVERTAKEN


def test_priority_goes_before_everything() -> None:
    sim = Simulation(max_running=1, policy="fcfs")
    low, high = sim.submit(tokens(5), new=1), sim.submit(tokens(5, seed=1), new=1, priority=1)
    sim.drain()
    assert high.admitted_at < low.admitted_at


def test_scores_come_from_one_forward_over_the_shared_prompt() -> None:
    sim = Simulation(chunk_tokens=500)
    prompt, group = tokens(60), ScoreGroup()
    continuations = [[7], [7, 8], [7, 8, 9], [11, 12]]
    requests = [sim.submit([*prompt, *c], new=0, kind=Kind.SCORE, sink=None, score_from=60, group=group) for c in continuations]
    plan = sim.step()
    assert plan is not None
    assert len(plan.works) == 4
    assert sim.scheduler.is_idle
    assert [r.logprobs for r in requests] == [[-float(t) for t in c] for c in continuations]
    counters = sim.scheduler.counters
    assert (counters.prompt_tokens, counters.cached_tokens, counters.prefilled_tokens) == (60, 0, 60)
    assert plan.num_tokens == counters.prefilled_tokens + counters.scored_tokens
    sim.assert_nothing_leaked()


def test_scores_in_chunks_are_the_same() -> None:
    sim = Simulation(chunk_tokens=7)
    group = ScoreGroup()
    requests = [
        sim.submit([*tokens(20), *tokens(10, seed=i)], new=0, kind=Kind.SCORE, sink=None, score_from=20, group=group)
        for i in (1, 2)
    ]
    sim.drain()
    for i, request in zip((1, 2), requests, strict=True):
        assert request.logprobs == [-float(t) for t in tokens(10, seed=i)]


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
    by_text = sim.submit(tokens(12), new=50, sink=Sink(stop))
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


def test_an_aborted_score_takes_back_what_it_did_not_run() -> None:
    for steps_before in range(6):
        sim = Simulation(chunk_tokens=16)
        group = ScoreGroup()
        requests = [
            sim.submit([*tokens(40), *tokens(9, seed=i)], new=0, kind=Kind.SCORE, sink=None, score_from=40, group=group)
            for i in (1, 2)
        ]
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
    broken, fine = sim.submit(tokens(10), sink=BrokenSink()), sim.submit(tokens(10))
    sim.drain()
    assert isinstance(sim.ends[broken.id].error, RuntimeError)
    sim.assert_right(fine)


def test_a_failed_step_ends_its_batch_forgets_its_kv_and_the_rest_goes_on() -> None:
    sim = Simulation(max_running=2, chunk_tokens=2_000)
    first = [sim.submit([*tokens(60), i], new=4) for i in range(2)]
    later = sim.submit([*tokens(60), 9], new=4)
    plan = sim.scheduler.schedule(1.0)
    assert plan is not None
    error = EngineStepError("planted")
    sim.note(sim.scheduler.fail_step(plan, error))
    sim.scheduler.check_invariants()
    assert [sim.ends[r.id].error for r in first] == [error, error]
    sim.drain()
    sim.assert_right(later)
    assert later.cached_len == 0, "KV of a failed step was reused"


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


@pytest.mark.parametrize("seed", range(12))
def test_random_traffic_is_right_and_leaks_nothing(seed: int) -> None:
    check_random_traffic(seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1_000, 1_400))
def test_long_random_traffic_is_right_and_leaks_nothing(seed: int) -> None:
    check_random_traffic(seed, steps=300)


def check_random_traffic(seed: int, steps: int = 150) -> None:
    rng = random.Random(seed)
    sim = Simulation(
        num_slots=rng.choice([160, 300, 1_000]),
        max_running=rng.choice([1, 3, 8]),
        chunk_tokens=rng.choice([5, 33, 500]),
        policy=rng.choice(["lpm", "fcfs"]),
    )
    families = [tokens(rng.randint(10, 60), seed=100 + i) for i in range(4)]
    live: list[Request] = []
    seen: Counter[str] = Counter()
    for _ in range(steps):
        action = rng.random()
        if action < 0.5:
            family = rng.choice(families)
            prompt = [*family[: rng.randint(1, len(family))], *tokens(rng.randint(0, 8), seed=rng.randint(0, 6))]
            live.append(sim.submit(prompt, new=rng.randint(1, 20), namespace=rng.choice([None, None, "x"])))
        elif action < 0.6 and live:
            event = sim.scheduler.abort(rng.choice(live).id)
            if event is not None:
                sim.note([event])
                seen["aborted"] += 1
        sim.step()
    sim.drain()
    assert len(sim.ends) == len(live)
    for request in live:
        sim.assert_right(request)
        seen["hits"] += request.cached_len > 0
    assert seen["hits"] > 10
    assert seen["aborted"] > 0
    counters = sim.scheduler.counters
    assert counters.prompt_tokens == counters.cached_tokens + counters.prefilled_tokens
    assert sim.oracle.computed_tokens <= counters.prefilled_tokens + counters.generated_tokens
    sim.assert_nothing_leaked()
