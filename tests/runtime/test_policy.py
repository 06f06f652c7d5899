"""Policies against a plain search of the queue, and their cost in calls against the queue's length."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from itertools import count

import pytest

from sgl_core.config import POLICIES
from sgl_core.runtime.policy import POLICY_MAKERS, DepthFirstByWeight, LongestPrefixMatch
from sgl_core.runtime.radix_cache import RadixCache
from sgl_core.runtime.request import Kind, Request
from sgl_core.runtime.scheduler import SchedulerOptions
from sgl_core.runtime.waiting_trie import TrieNode, WaitingTrie
from sgl_core.testing.simulation import Simulation, TextSink, tokens
from sgl_core.types import SamplingParams

_numbers = count()


def request(ids: list[int], *, namespace: str | None = None, use_tree: bool = True) -> Request:
    number = next(_numbers)
    made = Request(
        id=f"q{number}",
        ids=ids,
        kind=Kind.GENERATE,
        params=SamplingParams(),
        max_new_tokens=1,
        stop_ids=frozenset(),
        sink=TextSink(),
        submitted_at=0.0,
        namespace=namespace,
        use_tree=use_tree,
    )
    made.arrival = number
    return made


def random_ids(rng: random.Random) -> list[int]:
    return rng.choices(range(2), k=rng.randint(1, 9))


def check_trie(trie: WaitingTrie, waiting: list[Request]) -> None:
    """Counts, places and the longest shared prefix, by looking at every request."""

    def count_below(node: TrieNode) -> int:
        assert node.count == len(node.requests) + sum(map(count_below, node.children.values()))
        assert node.count > 0
        for child in node.children.values():
            assert child.parent is node
            assert child.start == node.end
        return node.count

    assert sum(map(count_below, trie._roots.values())) == len(waiting) == len(trie)


def shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_match_is_that_of_a_plain_search(seed: int) -> None:
    rng = random.Random(seed)
    tree, slots = RadixCache(), count()
    policy = LongestPrefixMatch(tree)
    waiting: list[Request] = []
    hits = 0

    def matched(r: Request) -> int:
        return tree.peek_prefix_len(r.ids, namespace=r.namespace) if r.use_tree else 0

    for _ in range(400):
        action, namespace = rng.random(), rng.choice([None, "a"])
        if action < 0.4:
            waiting.append(request(random_ids(rng), namespace=namespace, use_tree=rng.random() < 0.9))
            policy.add(waiting[-1])
        elif action < 0.5 and waiting:
            policy.remove(waiting.pop(rng.randrange(len(waiting))), admitted=False)
        elif action < 0.75:
            ids = random_ids(rng)
            tree.insert(ids, [next(slots) for _ in ids], namespace=namespace)
            policy.prefix_cached(ids, namespace)
        elif action < 0.85:
            tree.evict(rng.randint(1, 6))
        elif waiting:
            best = policy.best()
            policy.remove(best, admitted=True)
            waiting.remove(best)
        check_trie(policy._trie, waiting)
        if waiting:
            best = policy.best()
            assert matched(best) == max(map(matched, waiting))
            hits += matched(best) > 1
    assert hits > 50


@pytest.mark.parametrize("seed", range(20))
def test_the_trie_knows_the_longest_prefix_that_anybody_shares(seed: int) -> None:
    rng = random.Random(seed)
    trie = WaitingTrie()
    waiting: list[Request] = []
    for _ in range(200):
        if rng.random() < 0.6 or not waiting:
            waiting.append(request(random_ids(rng)))
            trie.add(waiting[-1])
        else:
            trie.remove(waiting.pop(rng.randrange(len(waiting))))
        ids = random_ids(rng)
        found = trie.descend(ids, None)
        assert (found[1] if found else 0) == max((shared(ids, r.ids) for r in waiting), default=0)
        for length in range(len(waiting[0].ids) + 1) if waiting else ():
            node = trie.covering(waiting[0], length)
            assert node.end >= length
            assert node.parent is None or node.parent.end < length


def test_by_weight_the_walk_is_depth_first_and_takes_the_fullest_branch() -> None:
    policy = DepthFirstByWeight()
    small = [request([1, 1, i]) for i in range(2)]
    large = [request([2, 1, i]) for i in range(3)] + [request([2, 2, i]) for i in range(4)]
    for r in (*small, *large):
        policy.add(r)
    order = []
    for _ in range(len(small) + len(large)):
        best = policy.best()
        policy.remove(best, admitted=True)
        order.append(best.ids[:2])
    assert order == [[2, 2]] * 4 + [[2, 1]] * 3 + [[1, 1]] * 2


def test_every_policy_of_the_configuration_exists() -> None:
    assert set(POLICIES) == set(POLICY_MAKERS)


def test_the_random_order_is_that_of_its_seed() -> None:
    def order(seed: int) -> list[int]:
        sim = Simulation(max_running=1, policy="random", options=SchedulerOptions(seed=seed))
        requests = [sim.submit(tokens(5, seed=i), new=1) for i in range(12)]
        sim.drain()
        return sorted(range(12), key=lambda i: requests[i].admitted_at)

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != list(range(12))


def calls(fn: Callable[[], object]) -> int:
    """Python and C functions that ``fn`` calls."""
    made = 0

    def profile(_frame: object, event: str, _arg: object) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        fn()
    finally:
        sys.setprofile(None)
    return made


def cost(policy: str, num_waiting: int, num_priorities: int) -> tuple[float, float]:
    """Mean calls per submit and per step while so many requests wait, half of them behind common prefixes."""
    sim = Simulation(num_slots=4_000, max_running=4, policy=policy)
    scheduler = sim.scheduler
    fresh = count()

    def one() -> Request:
        number = next(fresh)
        prefix = tokens(40, seed=number % 7) if number % 2 else []
        made = request([*prefix, *tokens(20, seed=1_000 + number)])
        made.deadline = 1e9 + number
        made.priority = number % num_priorities
        return made

    submits, steps = [], []
    for _ in range(num_waiting):
        scheduler.add(one())
    for _ in range(60):
        while scheduler.num_waiting < num_waiting:
            submits.append(calls(lambda: scheduler.add(one())))

        def step() -> None:
            scheduler.expire(sim.now)
            plan = scheduler.schedule(sim.now)
            assert plan is not None
            scheduler.update(plan, sim.oracle.run(plan), sim.now)
            scheduler.stats()

        steps.append(calls(step))
    return sum(submits) / len(submits), sum(steps) / len(steps)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_priorities", [1, 50])
def test_a_queue_of_ten_thousand_costs_less_than_twice_what_one_of_a_hundred_does(policy: str, num_priorities: int) -> None:
    short, long = cost(policy, 100, num_priorities), cost(policy, 10_000, num_priorities)
    print(f"{policy}: calls per submit {short[0]:.0f} and {long[0]:.0f}, per step {short[1]:.0f} and {long[1]:.0f}")
    assert long[0] < 2 * short[0], "per submit"
    assert long[1] < 2 * short[1], "per step"


def test_a_priority_for_every_request_costs_no_more_than_one_for_all() -> None:
    one, many = cost("lpm", 3_000, 1), cost("lpm", 3_000, 3_000)
    assert many[0] < 2 * one[0]
    assert many[1] < 2 * one[1]
