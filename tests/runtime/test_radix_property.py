"""Tree and allocator together against a naive model, all invariants after every operation (reliability figure R1).

``Harness`` plays the scheduler: requests are admitted, grow, fork, are published to the tree, finish and are aborted
while the pool is far too small. ``Model`` knows the same in the plainest form: one entry per cached prefix. A seeded
driver runs the bulk; a hypothesis machine looks for short counterexamples.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sgl_core.runtime.allocator import OutOfSlotsError, SlotAllocator
from sgl_core.runtime.radix_cache import RadixCache, TreeNode

Ids = tuple[int, ...]
Namespace = str | None
Place = tuple[Namespace, Ids]  # one token of the tree: its namespace and all tokens up to it

NUM_SLOTS = 32
VOCAB = 3
MAX_PROMPT = 7
MAX_REQUESTS = 6
NAMESPACES: tuple[Namespace, ...] = (None, "tenant")


class Model:
    """What the tree should hold: place -> slot and place -> time of last use; the locked places with their counts."""

    def __init__(self) -> None:
        self.slots: dict[Place, int] = {}
        self.stamps: dict[Place, int] = {}
        self.locks: Counter[Place] = Counter()
        self.now = 0

    def match_len(self, ids: Ids, namespace: Namespace) -> int:
        length = 0
        while length < len(ids) and (namespace, ids[: length + 1]) in self.slots:
            length += 1
        return length

    def touch(self, ids: Ids, namespace: Namespace) -> list[int]:
        """Stamp a cached prefix and return its slots."""
        self.now += 1
        places = [(namespace, ids[: end + 1]) for end in range(len(ids))]
        self.stamps.update(dict.fromkeys(places, self.now))
        return [self.slots[place] for place in places]

    def insert(self, ids: Ids, slots: list[int], namespace: Namespace) -> list[int]:
        for end, slot in enumerate(slots):
            self.slots.setdefault((namespace, ids[: end + 1]), slot)
        return self.touch(ids, namespace)

    def locked(self) -> set[Place]:
        return {(namespace, ids[: end + 1]) for namespace, ids in +self.locks for end in range(len(ids))}

    def evict(self, num_tokens: int) -> set[int]:
        """Token by token: the oldest of those that nothing follows and nobody locks."""
        locked = self.locked()
        freed: set[int] = set()
        while len(freed) < num_tokens:
            followed = {(namespace, ids[:-1]) for namespace, ids in self.slots}
            ends = [place for place in self.slots if place not in followed and place not in locked]
            if not ends:
                break
            oldest = min(ends, key=lambda place: self.stamps[place])
            freed.add(self.slots.pop(oldest))
            del self.stamps[oldest]
        return freed


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

    tree: RadixCache = field(default_factory=RadixCache)
    pool: SlotAllocator = field(default_factory=lambda: SlotAllocator(NUM_SLOTS))
    model: Model = field(default_factory=Model)
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

    def abort(self, request: LiveRequest) -> None:
        self.pool.free(request.private)
        self.unlock(request)
        self.requests.remove(request)
        self.coverage["aborted"] += 1

    # ---- what is done to the tree ------------------------------------------------------------------------------------
    def match(self, ids: Ids, namespace: Namespace, limit: int | None = None) -> tuple[TreeNode, list[int]]:
        wanted = ids if limit is None else ids[:limit]
        expected_len = self.model.match_len(wanted, namespace)
        assert self.tree.peek_prefix_len(wanted, namespace=namespace) == expected_len
        num_nodes = self.tree.num_nodes
        result = self.tree.match_prefix(list(ids) if len(ids) % 2 else ids, namespace=namespace, limit=limit)
        assert result.slots == self.model.touch(wanted[:expected_len], namespace)
        assert result.node.path_len == expected_len
        self.coverage["split"] += self.tree.num_nodes - num_nodes
        self.coverage["hit"] += expected_len > 0
        self.coverage["miss"] += expected_len == 0
        return result.node, result.slots

    def evict(self, num_tokens: int) -> None:
        lengths = {node.id: len(node.key) for node in self.tree.walk()}
        freed = self.tree.evict(num_tokens)
        assert len(freed) == len(set(freed))
        assert set(freed) == self.model.evict(num_tokens)
        self.pool.free(freed)
        self.coverage["evicted"] += len(freed)
        self.coverage["evicted in part"] += any(len(node.key) < lengths[node.id] for node in self.tree.walk())

    def reset(self) -> None:
        freed = self.tree.reset()
        assert set(freed) == self.model.evict(NUM_SLOTS)
        self.pool.free(freed)
        assert self.tree.evictable_size == 0
        self.coverage["reset"] += 1

    def lock(self, request: LiveRequest) -> None:
        self.tree.inc_lock_ref(request.node)
        self.model.locks[request.place] += 1

    def unlock(self, request: LiveRequest) -> None:
        self.tree.dec_lock_ref(request.node)
        self.model.locks[request.place] -= 1

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
        assert slots == self.model.slots
        assert stamps == self.model.stamps
        assert locks == {place: count for place, count in self.model.locks.items() if count and place[1]}
        assert self.tree.protected_size == len(self.model.locked())
        assert len(self.tree._queue) <= self.tree.num_nodes
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
        num_tokens = rng.randrange(6)
        return f"evict {num_tokens}", lambda: harness.evict(num_tokens)
    if choice < 0.165:
        return "reset", harness.reset
    if request is None or (choice < 0.45 and len(harness.requests) < MAX_REQUESTS):
        return f"admit {ids} in {namespace}", lambda: harness.admit(ids, namespace)
    which = f"request {harness.requests.index(request)}"
    if choice < 0.55 and len(harness.requests) < MAX_REQUESTS:
        return f"fork {which} with {token}", lambda: harness.fork(request, token)
    if choice < 0.70:
        return f"decode {which} with {token}", lambda: harness.decode(request, token)
    if choice < 0.80:
        return f"publish {which}", lambda: harness.publish(request)
    if choice < 0.90:
        return f"abort {which}", lambda: harness.abort(request)
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
)


@pytest.mark.parametrize("seed", range(10))
def test_random_operations_agree_with_the_naive_model(seed):
    coverage = run_seed(seed, 5_200)  # x 10 seeds: figure R1 asks for 50,000 operations
    print(dict(coverage))
    assert all(coverage[event] > 0 for event in EVENTS), coverage


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_two_million_random_operations_agree_with_the_naive_model(seed):
    coverage = run_seed(seed, 10_000)
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

    @rule(num_tokens=st.integers(0, 8))
    def evict(self, num_tokens: int) -> None:
        self.harness.evict(num_tokens)

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
