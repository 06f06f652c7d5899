"""What goes first when the cache is full: over all namespaces, within one that is over its quota, and what is spared."""

from __future__ import annotations

import itertools
import random

import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime import eviction
from sgl_core.runtime.radix_cache import MAX_SPARE_QUESTIONS, RadixCache, TreeNode


def ids(letters: str) -> tuple[int, ...]:
    return tuple(ord(letter) - ord("a") for letter in letters)


def letters(node: TreeNode) -> str:
    return "".join(chr(token + ord("a")) for part in node.path() for token in part.key)


def leaves(cache: RadixCache) -> set[str]:
    return {letters(node) for node in cache.walk() if not node.children}


def filled(*sequences: str, quota: int | None = None, namespace: str | None = None) -> RadixCache:
    """A tree with these sequences inserted in order; token ``i`` of sequence ``k`` brings slot ``10 * k + i``."""
    cache = RadixCache(quota_tokens=quota)
    for index, sequence in enumerate(sequences):
        cache.insert(ids(sequence), range(10 * index, 10 * index + len(sequence)), namespace=namespace)
    return cache


# ---- quotas ----------------------------------------------------------------------------------------------------------
def test_a_namespace_over_its_quota_loses_its_least_recently_used_tokens():
    cache = filled("abc", "xyz", quota=4, namespace="tenant")
    assert cache.namespace_evictable("tenant") == 6
    assert cache.evict_over_quota("tenant") == [1, 2]
    assert (cache.namespace_evictable("tenant"), leaves(cache)) == (4, {"a", "xyz"})
    cache.check_invariants()


def test_a_quota_takes_nothing_from_other_namespaces():
    cache = filled("abc", quota=2, namespace="old")
    cache.insert(ids("abc"), [30, 31, 32], namespace="new")
    assert cache.evict_over_quota("new") == [32]
    assert (cache.namespace_evictable("old"), cache.namespace_evictable("new")) == (3, 2)


@pytest.mark.parametrize("quota", [None, 3, 4])
def test_nothing_goes_without_a_quota_or_within_it(quota):
    cache = filled("abc", quota=quota)
    assert cache.evict_over_quota(None) == []
    assert cache.evict_over_quota("nobody") == []
    assert cache.total_size == 3


def test_what_is_locked_does_not_count_towards_the_quota():
    cache = filled("abc", "xy", quota=2)
    node = cache.match_prefix(ids("abc")).node
    cache.inc_lock_ref(node)
    assert cache.evict_over_quota(None) == []
    cache.dec_lock_ref(node)
    assert cache.evict_over_quota(None) == [10, 11, 2]


def test_a_quota_of_zero_keeps_nothing_that_nobody_uses():
    cache = filled("abc", "abd", quota=0)
    assert sorted(cache.evict_over_quota(None)) == [0, 1, 2, 12]
    assert cache.namespaces() == []


def test_a_negative_quota_is_refused():
    with pytest.raises(InvalidArgumentError, match="quota_tokens: got -1"):
        RadixCache(quota_tokens=-1)


def test_evictable_tokens_are_counted_by_namespace():
    cache = filled("abc", "abd")
    cache.insert(ids("zz"), [50, 51], namespace="tenant")
    cache.inc_lock_ref(cache.match_prefix(ids("abd")).node)
    assert [cache.namespace_evictable(n) for n in (None, "tenant", "nobody")] == [1, 2, 0]
    assert cache.evictable_size == 3


# ---- the order over namespaces ---------------------------------------------------------------------------------------
def test_eviction_over_namespaces_is_in_the_order_of_use():
    cache = RadixCache()
    order = [random.Random(3).choice("abcde") for _ in range(40)]
    for token, namespace in enumerate(order):
        cache.insert([token], [token], namespace=namespace)
    assert cache.evict(40) == list(range(40))


def test_a_use_in_one_namespace_lets_another_go_first():
    cache = RadixCache()
    for slot, namespace in enumerate(("left", "right")):
        cache.insert(ids("a"), [slot], namespace=namespace)
    cache.match_prefix(ids("a"), namespace="left")
    assert [cache.evict(1), cache.evict(1)] == [[1], [0]]


def test_an_old_leaf_that_is_unlocked_late_goes_before_newer_ones_of_other_namespaces():
    cache = RadixCache()
    node = cache.insert(ids("a"), [0], namespace="left").node
    cache.inc_lock_ref(node)
    cache.insert(ids("b"), [1], namespace="left")
    cache.insert(ids("a"), [2], namespace="right")
    assert cache.evict(1) == [1]
    cache.dec_lock_ref(node)
    cache.check_invariants()
    assert cache.evict(2) == [0, 2]


def test_evictions_within_a_namespace_and_over_all_may_alternate():
    cache = RadixCache(quota_tokens=2)
    for slot in range(12):
        cache.insert([slot], [slot], namespace="abc"[slot % 3])
    assert cache.evict_over_quota("b") == [1, 4]
    assert cache.evict(3) == [0, 2, 3]
    assert cache.evict_over_quota("b") == []
    assert cache.evict(9) == [5, 6, 7, 8, 9, 10, 11]
    cache.check_invariants()


# ---- what it costs ---------------------------------------------------------------------------------------------------
@pytest.fixture
def looked_at(monkeypatch) -> list[TreeNode]:
    """The nodes that the queue weighs from now on."""
    seen: list[TreeNode] = []
    plain = TreeNode.is_unlocked_leaf.fget

    def is_unlocked_leaf(node: TreeNode) -> bool:
        seen.append(node)
        return plain(node)

    monkeypatch.setattr(TreeNode, "is_unlocked_leaf", property(is_unlocked_leaf))
    return seen


def crowd(num_namespaces: int, quota: int | None = None) -> RadixCache:
    """Two leaves in each of many namespaces, the first ones of all older than the second ones."""
    cache = RadixCache(quota_tokens=quota)
    for token in range(2):
        for namespace in range(num_namespaces):
            cache.insert([token], [2 * namespace + token], namespace=str(namespace))
    return cache


def test_eviction_within_a_namespace_looks_at_no_other(looked_at):
    cache = crowd(200, quota=1)
    looked_at.clear()
    assert cache.evict_over_quota("77") == [154]
    assert {node.namespace for node in looked_at} == {"77"}


def test_a_namespace_within_its_quota_costs_no_look_at_all(looked_at):
    cache = crowd(200, quota=2)
    looked_at.clear()
    assert cache.evict_over_quota("77") == []
    assert looked_at == []


def test_eviction_over_all_namespaces_does_not_look_at_all_of_them(looked_at):
    cache = crowd(200)
    looked_at.clear()
    assert cache.evict(1) == [0]
    assert len(looked_at) <= 4


def test_uses_are_put_right_once_and_not_once_a_use(looked_at):
    cache = crowd(100)
    for _ in range(50):
        for namespace in range(100):
            cache.match_prefix([0], namespace=str(namespace))
    looked_at.clear()
    assert len(cache.evict(200)) == 200
    assert len(looked_at) <= 5 * 200


def num_entries(cache: RadixCache) -> int:
    return len(cache._queue._order) + sum(len(lane.entries) for lane in cache._queue._lanes.values())


def test_the_queue_stays_as_small_as_the_tree_however_often_nodes_are_used():
    cache = filled("abc", "abd", "xyz")
    for _ in range(100):
        node = cache.match_prefix(ids("abc")).node
        cache.inc_lock_ref(node)
        cache.dec_lock_ref(node)
        cache.evict(0)
    assert num_entries(cache) <= cache.num_nodes + 1


def test_what_was_taken_back_does_not_pile_up_in_the_queue():
    cache = RadixCache()
    nodes = [cache.insert([token], [token]).node for token in range(200)]
    for node in nodes[1:]:
        cache.forget(node, 0)
    assert num_entries(cache) <= 2 + eviction.SLACK + 1
    assert cache.evict(9) == [0]


def test_the_queue_stays_as_small_as_the_tree_however_often_leaves_are_forgotten_or_over_quota():
    cache, slots = RadixCache(quota_tokens=3), itertools.count()
    for step in range(300):
        namespace = str(step % 7)
        node = cache.insert(range(step, step + 4), list(itertools.islice(slots, 4)), namespace=namespace).node
        if step % 2:
            cache.forget(node, 0)
        else:
            cache.evict_over_quota(namespace)
        cache.expect(cache.insert([-1], [-1], namespace="hot").node, 1)
        cache.match_prefix([-1], namespace="hot")
        cache.check_invariants()
    assert num_entries(cache) <= 2 * cache.num_nodes + 2 * eviction.SLACK


# ---- spared leaves ---------------------------------------------------------------------------------------------------
def test_a_spared_leaf_goes_after_all_others_however_old_it_is():
    cache = filled("a", "b", "c")
    assert cache.evict(2, spare=lambda leaf: letters(leaf) == "a") == [10, 20]
    assert leaves(cache) == {"a"}
    cache.check_invariants()


def test_spared_leaves_go_in_their_order_when_nothing_else_is_left():
    cache = filled("a", "b", "c", "d")
    assert cache.evict(3, spare=lambda leaf: letters(leaf) in "abc") == [30, 0, 10]
    cache.check_invariants()


def test_eviction_frees_as_much_with_everything_spared():
    cache = filled("abc", "abd", "xy")
    assert sorted(cache.evict(99, spare=lambda _: True)) == [0, 1, 2, 12, 20, 21]
    assert cache.total_size == 0


def test_of_a_spared_leaf_too_only_the_tail_is_taken_that_is_needed():
    cache = filled("abcd", "x")
    assert cache.evict(3, spare=lambda leaf: letters(leaf) == "abcd") == [10, 2, 3]
    assert leaves(cache) == {"ab"}
    cache.check_invariants()


def test_a_spared_leaf_is_back_in_its_place_afterwards():
    cache = filled("a", "b", "c")
    cache.evict(1, spare=lambda leaf: letters(leaf) == "a")
    assert cache.evict(1) == [0]


def test_a_leaf_is_asked_about_once_a_call():
    cache, asked = filled("a", "b", "c"), []
    cache.evict(3, spare=lambda leaf: asked.append(letters(leaf)) or True)
    assert asked == ["a", "b", "c"]


def test_nobody_is_asked_about_more_leaves_than_needed():
    cache, asked = filled("a", "b", "c"), []
    assert cache.evict(1, spare=lambda leaf: bool(asked.append(letters(leaf)))) == [0]
    assert asked == ["a"]


def test_a_parent_that_becomes_a_leaf_is_asked_about_too():
    cache = filled("abc", "abd", "x")
    assert cache.evict(3, spare=lambda leaf: letters(leaf) == "ab") == [2, 12, 20]
    assert leaves(cache) == {"ab"}


def test_after_so_many_questions_eviction_goes_on_in_plain_order():
    cache, asked = RadixCache(), []
    for token in range(MAX_SPARE_QUESTIONS + 10):
        cache.insert([token], [token])
    evicted = cache.evict(3, spare=lambda leaf: asked.append(leaf) or True)
    assert len(asked) == MAX_SPARE_QUESTIONS
    assert evicted == [MAX_SPARE_QUESTIONS + extra for extra in range(3)]
    cache.check_invariants()
    assert cache.evict(2) == [0, 1]  # all are back in their places
