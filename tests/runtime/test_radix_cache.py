"""The radix tree, behaviour by behaviour, and every invariant broken once on purpose.

Sequences are written as letters: ``ids("abc")`` are three tokens.
"""

from __future__ import annotations

import itertools

import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime.radix_cache import RadixCache, TreeNode, common_prefix_len


def ids(letters: str) -> tuple[int, ...]:
    return tuple(ord(letter) - ord("a") for letter in letters)


def letters(node: TreeNode) -> str:
    return "".join(chr(token + ord("a")) for part in node.path() for token in part.key)


def filled(*sequences: str) -> RadixCache:
    """A tree with these sequences inserted in order; token ``i`` of sequence ``k`` brings slot ``10 * k + i``."""
    cache = RadixCache()
    for index, sequence in enumerate(sequences):
        cache.insert(ids(sequence), range(10 * index, 10 * index + len(sequence)))
    cache.check_invariants()
    return cache


def leaves(cache: RadixCache) -> set[str]:
    return {letters(node) for node in cache.walk() if not node.children}


# ---- common_prefix_len -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [0, 1, 2, 15, 16, 17, 47, 48, 49, 300])
def test_common_prefix_len_finds_a_difference_at_every_position(length):
    tokens = list(range(length))
    assert common_prefix_len(tokens, tokens) == length
    for position in range(length):
        other = tokens.copy()
        other[position] = -1
        assert common_prefix_len(tokens, other) == position


@pytest.mark.parametrize("length", [0, 5, 16, 40])
def test_common_prefix_len_ends_with_the_shorter_sequence(length):
    assert common_prefix_len(range(length), range(100)) == length
    assert common_prefix_len(range(100), range(length)) == length


def test_common_prefix_len_compares_a_list_with_a_tuple():
    assert common_prefix_len([1, 2, 3], (1, 2, 4)) == 2


# ---- matching --------------------------------------------------------------------------------------------------------
def test_an_empty_tree_matches_nothing_and_stays_empty():
    cache = RadixCache()
    match = cache.match_prefix(ids("abc"))
    assert match.slots == []
    assert (match.node.path(), match.node.path_len) == ([], 0)
    assert (cache.total_size, cache.num_nodes, cache.namespaces()) == (0, 0, [])


def test_what_was_inserted_is_found_with_its_slots():
    cache = filled("abcd")
    match = cache.match_prefix(ids("abcd"))
    assert match.slots == [0, 1, 2, 3]
    assert letters(match.node) == "abcd"


@pytest.mark.parametrize("as_type", [list, tuple])
def test_ids_may_be_a_list_or_a_tuple_and_keys_are_tuples(as_type):
    cache = RadixCache()
    cache.insert(as_type([1, 2, 3]), [7, 8, 9])
    assert cache.match_prefix(as_type([1, 2, 3, 4])).slots == [7, 8, 9]
    assert [node.key for node in cache.walk()] == [(1, 2, 3)]


def test_matching_abde_against_abc_and_abcde_gives_two_tokens():
    cache = filled("abc", "abcde")
    assert cache.peek_prefix_len(ids("abde")) == 2
    match = cache.match_prefix(ids("abde"))
    assert match.slots == [0, 1]
    assert letters(match.node) == "ab"
    assert cache.match_prefix(ids("abcde")).slots == [0, 1, 2, 13, 14]


def test_a_match_that_ends_inside_a_node_splits_it():
    cache = filled("abcd")
    match = cache.match_prefix(ids("abx"))
    cache.check_invariants()
    assert (match.node.key, match.node.slots) == (ids("ab"), [0, 1])
    assert [(node.key, node.slots) for node in cache.walk()] == [(ids("ab"), [0, 1]), (ids("cd"), [2, 3])]
    assert cache.total_size == 4


def test_the_limit_ends_a_match_early_and_splits_there():
    cache = filled("abcd")
    match = cache.match_prefix(ids("abcd"), limit=3)
    assert match.slots == [0, 1, 2]
    assert letters(match.node) == "abc"


def test_a_limit_past_the_end_changes_nothing_and_a_limit_of_zero_matches_nothing():
    cache = filled("abcd")
    assert cache.match_prefix(ids("abcd"), limit=99).slots == [0, 1, 2, 3]
    assert cache.match_prefix(ids("abcd"), limit=0).slots == []
    assert cache.num_nodes == 1


def test_a_negative_limit_is_refused():
    with pytest.raises(InvalidArgumentError, match="limit: got -1"):
        RadixCache().match_prefix(ids("a"), limit=-1)


def test_peeking_neither_splits_nor_stamps():
    cache = filled("abcd", "x")
    before = [(node.id, node.last_access) for node in cache.walk()]
    assert cache.peek_prefix_len(ids("abz")) == 2
    assert cache.peek_prefix_len(ids("zz")) == 0
    assert [(node.id, node.last_access) for node in cache.walk()] == before
    assert cache.evict(1) == [3]  # "abcd" is still the older one


# ---- inserting -------------------------------------------------------------------------------------------------------
def test_insert_reports_what_was_there_and_returns_the_trees_slots():
    cache = filled("abc")
    result = cache.insert(ids("abxy"), [90, 91, 92, 93])
    assert result.present_len == 2
    assert result.slots == [0, 1, 92, 93]
    assert letters(result.node) == "abxy"
    assert cache.total_size == 5


def test_inserting_the_same_again_keeps_the_first_slots():
    cache = filled("abc")
    result = cache.insert(ids("abc"), [7, 8, 9])
    assert (result.present_len, result.slots) == (3, [0, 1, 2])
    assert (cache.num_nodes, cache.total_size) == (1, 3)


def test_inserting_a_prefix_of_a_node_splits_it():
    cache = filled("abcd")
    result = cache.insert(ids("ab"), [8, 9])
    cache.check_invariants()
    assert (result.present_len, result.slots, letters(result.node)) == (2, [0, 1], "ab")
    assert cache.num_nodes == 2


def test_a_longer_sequence_goes_in_a_node_of_its_own_so_that_output_goes_before_its_prompt():
    cache = filled("abc", "abcxy")
    assert [node.key for node in cache.walk()] == [ids("abc"), ids("xy")]
    assert cache.evict(2) == [13, 14]
    assert leaves(cache) == {"abc"}


def test_inserting_nothing_returns_the_root():
    cache = filled("a")
    result = cache.insert((), [])
    assert (result.node.path(), result.present_len, result.slots) == ([], 0, [])
    assert cache.insert((), [], namespace="new").node.parent is None
    assert cache.namespaces() == [None]


def test_insert_refuses_another_number_of_slots_than_ids():
    cache = RadixCache()
    with pytest.raises(InvalidArgumentError, match="got '2 slots', expected one per id, 3"):
        cache.insert(ids("abc"), [1, 2])
    assert cache.num_nodes == 0


def test_the_tree_keeps_no_reference_to_the_callers_lists():
    cache = RadixCache()
    tokens, slots = [1, 2], [5, 6]
    result = cache.insert(tokens, slots)
    tokens.append(3)
    slots.append(7)
    result.slots.append(8)
    cache.match_prefix((1, 2)).slots.clear()
    assert cache.match_prefix((1, 2, 3)).slots == [5, 6]
    cache.check_invariants()


# ---- namespaces ------------------------------------------------------------------------------------------------------
def test_namespaces_share_nothing_with_each_other_and_everything_within():
    cache = RadixCache()
    cache.insert(ids("abc"), [0, 1, 2], namespace="left")
    assert cache.insert(ids("abc"), [3, 4, 5], namespace="right").present_len == 0
    assert cache.match_prefix(ids("abc")).slots == []
    assert cache.peek_prefix_len(ids("abc"), namespace="nobody") == 0
    assert cache.match_prefix(ids("abc"), namespace="left").slots == [0, 1, 2]
    assert cache.match_prefix(ids("abc"), namespace="right").slots == [3, 4, 5]
    assert cache.namespaces() == ["left", "right"]
    cache.check_invariants()


def test_a_namespace_goes_with_its_last_token():
    cache = RadixCache()
    cache.insert(ids("ab"), [0, 1], namespace="left")
    cache.insert(ids("ab"), [2, 3], namespace="right")
    assert cache.evict(2) == [0, 1]
    assert cache.namespaces() == ["right"]


def test_a_handle_on_an_empty_namespace_survives_its_first_insert():
    cache = RadixCache()
    root = cache.match_prefix(ids("ab"), namespace="new").node
    cache.inc_lock_ref(root)
    cache.insert(ids("ab"), [0, 1], namespace="new")
    cache.dec_lock_ref(root)
    cache.check_invariants()
    assert cache.evictable_size == 2


# ---- locks -----------------------------------------------------------------------------------------------------------
def test_a_lock_protects_the_whole_path_and_nothing_beside_it():
    cache = filled("abc", "abd")
    node = cache.match_prefix(ids("abc")).node
    cache.inc_lock_ref(node)
    cache.check_invariants()
    assert (cache.evictable_size, cache.protected_size, cache.total_size) == (1, 3, 4)
    assert cache.evict(99) == [12]
    assert cache.match_prefix(ids("abc")).slots == [0, 1, 2]
    cache.dec_lock_ref(node)
    assert (cache.evictable_size, cache.protected_size) == (3, 0)


def test_sizes_move_with_the_first_lock_and_the_last_unlock_only():
    cache = filled("abc")
    node = cache.match_prefix(ids("abc")).node
    sizes = []
    for change in (cache.inc_lock_ref, cache.inc_lock_ref, cache.dec_lock_ref, cache.dec_lock_ref):
        change(node)
        sizes.append((cache.evictable_size, cache.protected_size))
        cache.check_invariants()
    assert sizes == [(0, 3), (0, 3), (0, 3), (3, 0)]


def test_splitting_a_locked_node_keeps_its_locks_its_sizes_and_its_handle():
    cache = filled("abcd")
    node = cache.match_prefix(ids("abcd")).node
    cache.inc_lock_ref(node)
    cache.inc_lock_ref(node)
    upper = cache.match_prefix(ids("ab")).node
    cache.check_invariants()
    assert (upper.lock_ref, node.lock_ref) == (2, 2)
    assert letters(node) == "abcd"  # the handle still ends the same ids
    assert (cache.evictable_size, cache.protected_size) == (0, 4)
    cache.dec_lock_ref(node)
    cache.dec_lock_ref(node)
    assert (upper.lock_ref, cache.evictable_size) == (0, 4)


def test_two_forks_on_one_prefix_keep_it_until_both_are_done():
    cache = filled("abc")
    handles = [cache.insert(ids(text), [0, 1, 2, slot]).node for slot, text in ((50, "abcx"), (51, "abcy"))]
    for handle in handles:
        cache.inc_lock_ref(handle)
    cache.dec_lock_ref(handles[0])
    assert cache.evict(99) == [50]
    cache.dec_lock_ref(handles[1])
    assert sorted(cache.evict(99)) == [0, 1, 2, 51]


def test_new_tokens_below_a_locked_node_are_not_locked():
    cache = filled("ab")
    cache.inc_lock_ref(cache.match_prefix(ids("ab")).node)
    cache.insert(ids("abc"), [0, 1, 9])
    assert (cache.evictable_size, cache.protected_size) == (1, 2)


def test_unlocking_what_is_not_locked_is_an_error_and_changes_nothing():
    cache = filled("abc")
    node = cache.match_prefix(ids("abc")).node
    with pytest.raises(InvalidArgumentError, match="expected a locked node"):
        cache.dec_lock_ref(node)
    assert node.lock_ref == 0
    cache.check_invariants()


def test_a_root_counts_the_handles_of_its_namespace_and_its_own():
    cache = filled("abc")
    node = cache.match_prefix(ids("abc")).node
    root = cache.match_prefix(ids("x")).node
    assert root is node.parent
    counts = []
    for change, handle in (
        (cache.inc_lock_ref, node),
        (cache.inc_lock_ref, root),
        (cache.dec_lock_ref, node),
        (cache.dec_lock_ref, root),
    ):
        change(handle)
        counts.append(root.lock_ref)
    assert counts == [1, 2, 1, 0]
    with pytest.raises(InvalidArgumentError, match="expected a locked node"):
        cache.dec_lock_ref(root)


def test_locking_an_evicted_node_is_an_error():
    cache = filled("abc")
    node = cache.match_prefix(ids("abc")).node
    cache.evict(3)
    with pytest.raises(InvalidArgumentError, match="still in the tree"):
        cache.inc_lock_ref(node)


# ---- eviction --------------------------------------------------------------------------------------------------------
def test_eviction_is_least_recently_used_first():
    cache = filled("ax", "by", "cz")
    cache.match_prefix(ids("ax"))
    cache.insert(ids("by"), [0, 0])
    assert [cache.evict(2) for _ in range(3)] == [[20, 21], [0, 1], [10, 11]]


def test_eviction_takes_the_tail_of_a_leaf_when_that_is_enough():
    cache = filled("abcde")
    assert cache.evict(2) == [3, 4]
    cache.check_invariants()
    assert cache.match_prefix(ids("abcde")).slots == [0, 1, 2]
    assert cache.evict(1) == [2]
    assert cache.total_size == 2


def test_a_parent_becomes_a_leaf_when_its_last_child_goes():
    cache = filled("abc", "abd")
    assert cache.evict(2) == [2, 12]
    assert leaves(cache) == {"ab"}
    assert cache.evict(2) == [0, 1]
    assert cache.num_nodes == 0


def test_a_parent_is_not_older_than_its_children():
    cache = filled("abc", "abd", "x")  # "ab" was last used with "abd", before "x"
    assert cache.evict(4) == [2, 12, 0, 1]
    assert leaves(cache) == {"x"}


@pytest.mark.parametrize("num_tokens", [0, 1, 4, 5, 6, 100])
def test_eviction_frees_exactly_what_was_asked_or_all_there_is(num_tokens):
    cache = filled("abc", "abde")
    assert len(cache.evict(num_tokens)) == min(num_tokens, 5)
    cache.check_invariants()


def test_a_negative_eviction_is_refused():
    with pytest.raises(InvalidArgumentError, match="num_tokens: got -1"):
        RadixCache().evict(-1)


def test_a_match_of_part_of_a_path_leaves_the_rest_as_old_as_it_was():
    cache = filled("abcd", "x")
    cache.match_prefix(ids("ab"))
    assert cache.evict(3) == [2, 3, 10]
    assert leaves(cache) == {"ab"}


def test_the_eviction_queue_stays_as_small_as_the_tree_however_often_nodes_are_used():
    cache = filled("abc", "abd", "xyz")
    for _ in range(100):
        node = cache.match_prefix(ids("abc")).node
        cache.inc_lock_ref(node)
        cache.dec_lock_ref(node)
        cache.evict(0)
    assert len(cache._queue) <= cache.num_nodes


def test_reset_drops_everything_that_is_not_locked_in_all_namespaces():
    cache = filled("abc", "abd")
    cache.insert(ids("zz"), [70, 71], namespace="other")
    node = cache.match_prefix(ids("abd")).node
    cache.inc_lock_ref(node)
    assert sorted(cache.reset()) == [2, 70, 71]
    cache.check_invariants()
    assert cache.namespaces() == [None]
    assert (leaves(cache), cache.protected_size, cache.evictable_size) == ({"abd"}, 3, 0)
    cache.dec_lock_ref(node)
    assert sorted(cache.reset()) == [0, 1, 12]
    assert cache.total_size == 0


# ---- the clock -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "clock",
    [itertools.repeat(5).__next__, itertools.count(100, -7).__next__, itertools.count(0, 3).__next__],
    ids=["stands still", "runs back", "runs"],
)
def test_stamps_rise_and_the_order_is_the_order_of_use_whatever_the_clock_does(clock):
    cache = RadixCache(clock)
    for index, sequence in enumerate(("a", "b", "c")):
        cache.insert(ids(sequence), [index])
    cache.match_prefix(ids("a"))
    cache.check_invariants()
    assert [cache.evict(1) for _ in range(3)] == [[1], [2], [0]]


def test_the_injected_clock_makes_the_stamps():
    cache = RadixCache(iter([10, 20]).__next__)
    node = cache.insert(ids("ab"), [0, 1]).node
    assert node.last_access == 10
    assert cache.match_prefix(ids("a")).node.last_access == 20
    assert node.last_access == 10


# ---- nodes -----------------------------------------------------------------------------------------------------------
def test_a_node_tells_its_path_and_its_length():
    cache = filled("abc", "abd")
    node = cache.match_prefix(ids("abd")).node
    assert [part.key for part in node.path()] == [ids("ab"), ids("d")]
    assert (node.path_len, node.path_slots()) == (3, [0, 1, 12])


def test_node_ids_rise_with_creation():
    cache = filled("abc", "x")
    first, second = sorted(cache.walk(), key=lambda node: node.id)
    assert (letters(first), letters(second)) == ("abc", "x")
    assert cache.match_prefix(ids("ab")).node.id > second.id


def test_a_nodes_repr_holds_no_tokens():
    cache = RadixCache()
    node = cache.insert([31337, 4242], [0, 1]).node
    assert "31337" not in repr(node)
    assert "key_len=2" in repr(node)


# ---- every invariant, broken on purpose ------------------------------------------------------------------------------
def find(cache: RadixCache, path: str) -> TreeNode:
    return next(node for node in cache.walk() if letters(node) == path)


def point_to_itself(cache: RadixCache) -> None:
    leaf = find(cache, "abc")
    leaf.children[leaf.key[0]] = leaf
    leaf.parent = leaf


def empty_an_edge(cache: RadixCache) -> None:
    leaf = find(cache, "x")
    leaf.key = ()
    leaf.slots.clear()


def share_a_first_token(cache: RadixCache) -> None:
    find(cache, "abc").key = find(cache, "abd").key


def forget_in_the_queue(cache: RadixCache) -> None:
    node = find(cache, "x")
    node.queued = False
    cache._queue[:] = [entry for entry in cache._queue if entry[2] is not node]


def lose_a_leaf_but_not_its_entry(cache: RadixCache) -> None:
    leaf = find(cache, "x")
    assert leaf.parent is not None
    del leaf.parent.children[leaf.key[0]]
    cache._num_nodes -= 1
    cache._evictable_size -= 1


DAMAGE = {
    "evictable counter": (lambda c: setattr(c, "_evictable_size", 1), "evictable_size is 1, the tree holds 2"),
    "protected counter": (lambda c: setattr(c, "_protected_size", 4), "protected_size is 4, the tree holds 3"),
    "node counter": (lambda c: setattr(c, "_num_nodes", 3), "num_nodes is 3, the tree holds 4"),
    "wrong parent": (lambda c: setattr(find(c, "abc"), "parent", find(c, "x")), "its parent is"),
    "no parent": (lambda c: setattr(find(c, "abc"), "parent", None), "its parent is None"),
    "cycle": (point_to_itself, "its parent is"),
    "two nodes with one id": (lambda c: setattr(find(c, "x"), "id", find(c, "abc").id), "another node has its id"),
    "siblings share a first token": (share_a_first_token, "siblings may share one"),
    "key longer than slots": (lambda c: find(c, "x").slots.clear(), "1 tokens with 0 slots"),
    "slots longer than key": (lambda c: find(c, "x").slots.append(99), "1 tokens with 2 slots"),
    "empty edge": (empty_an_edge, "0 tokens with 0 slots"),
    "slot twice": (lambda c: find(c, "x").slots.__setitem__(0, 0), "slot 0 is in the tree twice"),
    "lock below zero": (lambda c: setattr(find(c, "x"), "lock_ref", -1), "lock_ref is below zero"),
    "child locked more than its parent": (lambda c: setattr(find(c, "abc"), "lock_ref", 2), "more often than itself"),
    "children together locked more": (lambda c: setattr(find(c, "abd"), "lock_ref", 1), "more often than itself"),
    "lock without a size": (lambda c: setattr(find(c, "x").parent, "lock_ref", 0), "more often than itself"),
    "namespace changed below": (lambda c: setattr(find(c, "x"), "namespace", "other"), "not its parent's"),
    "namespace changed at the root": (lambda c: c._roots.update({"other": c._roots.pop(None)}), "root of namespace 'other'"),
    "root with an edge": (lambda c: setattr(find(c, "x").parent, "key", ids("a")), "root of namespace None"),
    "root without children": (lambda c: c._roots.update({"other": c._new_root("other")}), "root of namespace 'other'"),
    "child newer than its parent": (lambda c: setattr(find(c, "abc"), "last_access", 99), "after its parent's"),
    "stamp in the future": (lambda c: setattr(find(c, "x").parent, "last_access", 99), "in the future"),
    "two leaves with one stamp": (
        lambda c: setattr(find(c, "abc"), "last_access", find(c, "abd").last_access),
        "another leaf has its stamp",
    ),
    "leaf unknown to the queue": (forget_in_the_queue, "the eviction queue does not know"),
    "queued mark without an entry": (lambda c: c._queue.clear(), "against the eviction queue"),
    "entry without a queued mark": (lambda c: setattr(find(c, "x"), "queued", False), "against the eviction queue"),
    "two entries for one leaf": (lambda c: c._queue.append(c._queue[0]), "expected one each"),
    "entry for a lost leaf": (lose_a_leaf_but_not_its_entry, "are not in the tree"),
    "entry from the future": (
        lambda c: c._queue.__setitem__(slice(None), [(99, node_id, node) for _, node_id, node in c._queue]),
        "after its stamp",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_the_check_notices(what):
    damage, complaint = DAMAGE[what]
    cache = filled("abc", "abd", "x")
    cache.inc_lock_ref(find(cache, "abc"))
    cache.check_invariants()
    damage(cache)
    with pytest.raises(AssertionError, match=complaint):
        cache.check_invariants()
