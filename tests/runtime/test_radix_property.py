"""Tree and allocator together against a naive model, all invariants after every operation (reliability figure R1).

``Harness`` plays the scheduler: requests are admitted, grow, fork, are published to the tree, finish and are aborted
while the pool is far too small, and programs give hints. ``RadixModel`` knows the same in the plainest form: one entry
per cached prefix. A seeded driver runs the bulk; a hypothesis machine looks for short counterexamples.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sgl_core.runtime import eviction, expectations
from sgl_core.runtime.allocator import OutOfSlotsError, SlotAllocator
from sgl_core.runtime.radix_cache import RadixCache, TreeNode
from sgl_core.testing.radix_model import Ids, Namespace, Place, RadixModel

NUM_SLOTS = 32
VOCAB = 3
MAX_PROMPT = 7
MAX_REQUESTS = 6
NAMESPACES: tuple[Namespace, ...] = (None, "tenant")
QUOTA = 9
MAX_USES = 4
SPARE_EVERY = 3
LIFE = 40  # stamps that an announcement outlives here, so that some run out


@pytest.fixture(scope="module", autouse=True)
def small_bounds() -> Iterator[None]:
    """Bounds that are reached within a few operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expectations, "EXPECTATION_STAMPS", LIFE)
        patch.setattr(eviction, "SLACK", 1)
        yield


@pytest.fixture(scope="module")
def tally(figure: Callable[[str, Mapping[str, int]], None]) -> Iterator[Counter[str]]:
    """Sums over the seeds, for the closing report."""
    sums: Counter[str] = Counter(violations=0)
    yield sums
    figure("R1 tree and allocator against a naive model", sums)


@dataclass
class LiveRequest:
    """``table[:locked_len]`` is the tree's and locked by ``node``; the rest is the request's own."""

    ids: Ids
    namespace: Namespace
    table: list[int]
    node: TreeNode
    locked_len: int

    @property
    def place(self) -> Place:
        return (self.namespace, self.ids[: self.locked_len])

    @property
    def private(self) -> list[int]:
        return self.table[self.locked_len :]


@dataclass
class Harness:
    """The operations of a scheduler, each mirrored in the model and compared on the spot."""

    tree: RadixCache = field(default_factory=lambda: RadixCache(quota_tokens=QUOTA))
    pool: SlotAllocator = field(default_factory=lambda: SlotAllocator(NUM_SLOTS))
    model: RadixModel = field(default_factory=lambda: RadixModel(LIFE))
    requests: list[LiveRequest] = field(default_factory=list)
    coverage: Counter[str] = field(default_factory=Counter)

    # ---- what requests do --------------------------------------------------------------------------------------------
    def admit(self, ids: Ids, namespace: Namespace) -> None:
        node, cached = self.match(ids, namespace, limit=len(ids) - 1)
        request = LiveRequest(ids, namespace, cached, node, len(cached))
        self.lock(request)  # before anything is evicted
        private = self.take(len(ids) - len(cached))
        if private is None:
            self.unlock(request)
            self.coverage["refused"] += 1
        else:
            request.table += private
            self.requests.append(request)

    def fork(self, parent: LiveRequest, token: int) -> None:
        """A second request on what ``parent`` has in the tree, diverging at once."""
        private = self.take(1)
        if private is None:
            return
        ids = parent.ids[: parent.locked_len]
        child = LiveRequest((*ids, token), parent.namespace, parent.table[: len(ids)] + private, parent.node, len(ids))
        self.lock(child)
        self.requests.append(child)
        self.coverage["forked"] += len(ids) > 0

    def decode(self, request: LiveRequest, token: int) -> None:
        private = self.take(1)
        if private is not None:
            request.ids += (token,)
            request.table += private

    def publish(self, request: LiveRequest) -> None:
        """Hand everything to the tree and go on from the tree's slots."""
        result = self.tree.insert(request.ids, request.table, namespace=request.namespace)
        expected_len = self.model.match_len(request.ids, request.namespace)
        assert result.present_len == expected_len
        assert result.slots == self.model.insert(request.ids, request.table, request.namespace)
        assert result.node.path_slots() == result.slots
        own = zip(request.table, result.slots, strict=True)
        duplicates = [mine for mine, theirs in own if mine != theirs]
        self.pool.free(duplicates)
        self.coverage["duplicates freed"] += len(duplicates)
        self.unlock(request)
        request.table, request.node, request.locked_len = result.slots, result.node, len(request.ids)
        self.lock(request)

    def finish(self, request: LiveRequest) -> None:
        self.publish(request)
        self.unlock(request)
        self.requests.remove(request)

    def finish_for_good(self, request: LiveRequest, keep_len: int) -> None:
        """A last use: beyond ``keep_len`` nothing is kept that nobody else has."""
        self.finish(request)
        freed = self.tree.forget(request.node, keep_len)
        assert len(freed) == len(set(freed))
        assert set(freed) == self.model.forget(request.ids, request.namespace, keep_len)
        self.pool.free(freed)
        self.coverage["forgotten"] += len(freed)
        self.coverage["not forgotten"] += len(request.ids) - keep_len > len(freed)

    def expect(self, request: LiveRequest, uses: int) -> None:
        """More requests are to come with what this one has in the tree."""
        self.tree.expect(request.node, uses)
        self.model.expect(request.place, uses)
        self.coverage["expected"] += uses > 0 and request.locked_len > 0

    def abort(self, request: LiveRequest) -> None:
        self.pool.free(request.private)
        self.unlock(request)
        self.requests.remove(request)
        self.coverage["aborted"] += 1

    # ---- what is done to the tree ------------------------------------------------------------------------------------
    def match(self, ids: Ids, namespace: Namespace, limit: int | None = None) -> tuple[TreeNode, list[int]]:
        wanted = ids if limit is None else ids[:limit]
        announced = len(self.model.expected)
        expected_len = self.model.match_len(wanted, namespace)
        assert self.tree.peek_prefix_len(wanted, namespace=namespace) == expected_len
        num_nodes = self.tree.num_nodes
        result = self.tree.match_prefix(list(ids) if len(ids) % 2 else ids, namespace=namespace, limit=limit)
        assert result.slots == self.model.match(wanted[:expected_len], namespace)
        assert result.node.path_len == expected_len
        assert set(result.continuations) == self.model.continuations(wanted[:expected_len], namespace)
        assert len(result.continuations) <= VOCAB
        self.coverage["all uses came"] += announced - len(self.model.expected)
        self.coverage["split"] += self.tree.num_nodes - num_nodes
        self.coverage["hit"] += expected_len > 0
        self.coverage["miss"] += expected_len == 0
        return result.node, result.slots

    def evict(self, num_tokens: int, salt: int | None = None) -> None:
        """With ``salt`` every third stamp is spared."""

        def is_spared(stamp: int) -> bool:
            return salt is not None and (stamp + salt) % SPARE_EVERY == 0

        asked: list[int] = []

        def spare(leaf: TreeNode) -> bool:
            asked.append(leaf.last_access)
            return is_spared(leaf.last_access)

        lengths = {node.id: len(node.key) for node in self.tree.walk()}
        self.count_old_announcements()
        freed = self.tree.evict(num_tokens, spare=None if salt is None else spare)
        assert len(freed) == len(set(freed))
        assert set(freed) == self.model.evict(num_tokens, is_spared)
        self.pool.free(freed)
        self.coverage["evicted"] += len(freed)
        self.coverage["evicted in part"] += any(len(node.key) < lengths[node.id] for node in self.tree.walk())
        self.coverage["spared"] += len(freed) > 0 and any(map(is_spared, asked))

    def evict_over_quota(self, namespace: Namespace) -> None:
        surplus = max(0, self.model.unlocked_size(namespace) - QUOTA)
        assert self.tree.namespace_evictable(namespace) == self.model.unlocked_size(namespace)
        self.count_old_announcements()
        freed = self.tree.evict_over_quota(namespace)
        assert len(freed) == len(set(freed)) == surplus
        assert set(freed) == self.model.evict_within(namespace, surplus)
        self.pool.free(freed)
        self.coverage["over quota"] += surplus

    def count_old_announcements(self) -> None:
        self.coverage["announcements ran out"] += len(self.model.expected) - len(self.model.standing())

    def reset(self) -> None:
        freed = self.tree.reset()
        assert set(freed) == self.model.evict(NUM_SLOTS)
        self.pool.free(freed)
        assert self.tree.evictable_size == 0
        self.coverage["reset"] += 1

    def lock(self, request: LiveRequest) -> None:
        self.tree.inc_lock_ref(request.node)
        self.model.lock(request.place)

    def unlock(self, request: LiveRequest) -> None:
        self.tree.dec_lock_ref(request.node)
        self.model.unlock(request.place)

    def take(self, n: int) -> list[int] | None:
        """Allocate, evicting what is missing; None when even that is not enough."""
        if n > self.pool.free_count:
            self.evict(n - self.pool.free_count)
        if n <= self.pool.free_count:
            return self.pool.allocate(n)
        assert self.tree.evictable_size == 0
        with pytest.raises(OutOfSlotsError):
            self.pool.allocate(n)
        self.coverage["out of slots"] += 1
        return None

    # ---- what must always hold ---------------------------------------------------------------------------------------
    def check(self) -> None:
        self.tree.check_invariants()
        self.pool.check_invariants()
        self.check_partition()
        self.check_against_model()

    def check_partition(self) -> None:
        free = [slot for slot in range(NUM_SLOTS + 1) if self.pool.is_free(slot)]
        tree = [slot for node in self.tree.walk() for slot in node.slots]
        private = [slot for request in self.requests for slot in request.private]
        assert sorted(free + tree + private) == list(range(NUM_SLOTS))
        counted = self.pool.free_count + self.tree.evictable_size + self.tree.protected_size + len(private)
        assert counted == self.pool.num_slots

    def check_against_model(self) -> None:
        slots: dict[Place, int] = {}
        stamps: dict[Place, int] = {}
        locks: dict[Place, int] = {}
        expected: dict[Place, tuple[int, int]] = {}
        prefix: dict[int, Ids] = {}  # by node id
        for node in self.tree.walk():
            start = prefix.get(node.parent.id, ()) if node.parent else ()
            path = prefix[node.id] = start + node.key
            for end, slot in enumerate(node.slots, start=len(start) + 1):
                slots[node.namespace, path[:end]] = slot
                stamps[node.namespace, path[:end]] = node.last_access
            handles = node.lock_ref - sum(child.lock_ref for child in node.children.values())
            if handles:
                locks[node.namespace, path] = handles
            if node.expectation is not None and node.expectation.last_stamp >= self.model.now:
                expected[node.namespace, path] = (node.expectation.uses, node.expectation.last_stamp)
        assert slots == self.model.slots
        assert stamps == self.model.stamps
        assert locks == {place: count for place, count in self.model.locks.items() if place[1]}
        assert self.tree.protected_size == len(self.model.locked())
        assert expected == self.model.standing()
        for request in self.requests:
            assert request.node.path_slots() == request.table[: request.locked_len]


# ---- the bulk --------------------------------------------------------------------------------------------------------
def random_ids(rng: random.Random) -> Ids:
    return tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, MAX_PROMPT)))


def draw_operation(harness: Harness, rng: random.Random) -> tuple[str, Callable[[], object]]:
    """Pick an operation that is possible now: its description and the call."""
    request = rng.choice(harness.requests) if harness.requests else None
    ids, namespace, token = random_ids(rng), rng.choice(NAMESPACES), rng.randrange(VOCAB)
    choice = rng.random()
    if choice < 0.10:
        return f"match {ids} in {namespace}", lambda: harness.match(ids, namespace)
    if choice < 0.16:
        num_tokens, salt = rng.randrange(6), rng.choice((None, 0, 1, 2))
        return f"evict {num_tokens}, spare {salt}", lambda: harness.evict(num_tokens, salt)
    if choice < 0.165:
        return "reset", harness.reset
    if choice < 0.20:
        return f"evict over the quota of {namespace}", lambda: harness.evict_over_quota(namespace)
    if request is None or (choice < 0.45 and len(harness.requests) < MAX_REQUESTS):
        return f"admit {ids} in {namespace}", lambda: harness.admit(ids, namespace)
    which = f"request {harness.requests.index(request)}"
    if choice < 0.53 and len(harness.requests) < MAX_REQUESTS:
        return f"fork {which} with {token}", lambda: harness.fork(request, token)
    if choice < 0.66:
        return f"decode {which} with {token}", lambda: harness.decode(request, token)
    if choice < 0.76:
        return f"publish {which}", lambda: harness.publish(request)
    if choice < 0.83:
        uses = rng.randint(0, MAX_USES)
        return f"expect {uses} like {which}", lambda: harness.expect(request, uses)
    if choice < 0.90:
        return f"abort {which}", lambda: harness.abort(request)
    if choice < 0.94:
        keep_len = rng.randrange(MAX_PROMPT)
        return f"finish {which} for good, keep {keep_len}", lambda: harness.finish_for_good(request, keep_len)
    return f"finish {which}", lambda: harness.finish(request)


def run_seed(seed: int, num_operations: int) -> Counter[str]:
    """Run one seed to the end; a failure says the seed, the step and the operations that led there."""
    harness, rng = Harness(), random.Random(seed)
    history: list[str] = []
    for step in range(num_operations):
        description, operation = draw_operation(harness, rng)
        history.append(description)
        try:
            operation()
            harness.check()
        except Exception as error:
            last = "\n  ".join(history[-12:])
            raise AssertionError(f"seed {seed}, step {step}: {error}\nthe last operations:\n  {last}") from error
    for request in harness.requests.copy():
        harness.abort(request)
    harness.reset()
    harness.check()
    assert (harness.pool.free_count, harness.tree.num_nodes) == (NUM_SLOTS, 0)
    return harness.coverage


EVENTS = (
    "split",
    "hit",
    "miss",
    "evicted",
    "evicted in part",
    "duplicates freed",
    "forked",
    "aborted",
    "refused",
    "out of slots",
    "reset",
    "spared",
    "over quota",
    "expected",
    "all uses came",
    "announcements ran out",
    "forgotten",
    "not forgotten",
)


def run_and_count(
    seed: int, num_operations: int, tally: Counter[str], record_property: Callable[[str, object], None]
) -> Counter[str]:
    tally["seeds"] += 1
    try:
        coverage = run_seed(seed, num_operations)
    except AssertionError:
        tally["violations"] += 1
        raise
    tally["operations"] += num_operations
    record_property("operations", num_operations)
    record_property("violations", 0)
    print(dict(coverage))
    return coverage


@pytest.mark.parametrize("seed", range(10))
def test_random_operations_agree_with_the_naive_model(seed, tally, record_property):
    coverage = run_and_count(seed, 5_200, tally, record_property)  # x 10 seeds: R1 asks for 50,000 operations
    assert all(coverage[event] > 0 for event in EVENTS), coverage


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_two_million_random_operations_agree_with_the_naive_model(seed, tally, record_property):
    coverage = run_and_count(seed, 10_000, tally, record_property)
    assert all(coverage[event] > 0 for event in EVENTS), coverage


def test_the_harness_notices_a_slot_that_leaks():
    harness = Harness()
    harness.admit((0, 1, 2), None)
    harness.check()
    harness.pool.allocate(1)
    with pytest.raises(AssertionError):
        harness.check_partition()


def test_the_harness_notices_a_request_that_keeps_a_slot_it_freed():
    harness = Harness()
    for _ in range(2):
        harness.admit((0, 1, 2), None)
    first, second = harness.requests
    harness.publish(first)
    stale = second.table.copy()
    harness.publish(second)
    harness.check()
    assert harness.coverage["duplicates freed"] == 3
    second.table = stale
    with pytest.raises(AssertionError):
        harness.check_against_model()


# ---- short counterexamples -------------------------------------------------------------------------------------------
some_ids = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=MAX_PROMPT).map(tuple)
some_namespace = st.sampled_from(NAMESPACES)
some_token = st.integers(0, VOCAB - 1)
some_request = st.integers(0, MAX_REQUESTS - 1)
has_requests = precondition(lambda self: bool(self.harness.requests))
has_room = precondition(lambda self: len(self.harness.requests) < MAX_REQUESTS)


class TreeAndPool(RuleBasedStateMachine):
    """The same operations in hypothesis' hands, which shrinks what it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness()

    def request(self, index: int) -> LiveRequest:
        return self.harness.requests[index % len(self.harness.requests)]

    @rule(ids=some_ids, namespace=some_namespace)
    def match(self, ids: Ids, namespace: Namespace) -> None:
        self.harness.match(ids, namespace)

    @rule(num_tokens=st.integers(0, 8), salt=st.sampled_from((None, 0, 1, 2)))
    def evict(self, num_tokens: int, salt: int | None) -> None:
        self.harness.evict(num_tokens, salt)

    @rule(namespace=some_namespace)
    def evict_over_quota(self, namespace: Namespace) -> None:
        self.harness.evict_over_quota(namespace)

    @rule()
    def reset(self) -> None:
        self.harness.reset()

    @has_room
    @rule(ids=some_ids, namespace=some_namespace)
    def admit(self, ids: Ids, namespace: Namespace) -> None:
        self.harness.admit(ids, namespace)

    @has_requests
    @has_room
    @rule(index=some_request, token=some_token)
    def fork(self, index: int, token: int) -> None:
        self.harness.fork(self.request(index), token)

    @has_requests
    @rule(index=some_request, token=some_token)
    def decode(self, index: int, token: int) -> None:
        self.harness.decode(self.request(index), token)

    @has_requests
    @rule(index=some_request)
    def publish(self, index: int) -> None:
        self.harness.publish(self.request(index))

    @has_requests
    @rule(index=some_request)
    def abort(self, index: int) -> None:
        self.harness.abort(self.request(index))

    @has_requests
    @rule(index=some_request)
    def finish(self, index: int) -> None:
        self.harness.finish(self.request(index))

    @has_requests
    @rule(index=some_request, keep_len=st.integers(0, MAX_PROMPT))
    def finish_for_good(self, index: int, keep_len: int) -> None:
        self.harness.finish_for_good(self.request(index), keep_len)

    @has_requests
    @rule(index=some_request, uses=st.integers(0, MAX_USES))
    def expect(self, index: int, uses: int) -> None:
        self.harness.expect(self.request(index), uses)

    @invariant()
    def everything_holds(self) -> None:
        self.harness.check()


TestTreeAndPool = TreeAndPool.TestCase
TestTreeAndPool.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # the machine that runs this may be busy
)
