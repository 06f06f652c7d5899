"""The radix tree, behaviour by behaviour: lookups, inserts, locks and plain eviction.

Quotas and spared leaves are in ``test_eviction``, hints in ``test_expectations``, damage in ``test_radix_invariants``.

Sequences are written as letters: ``ids("abc")`` are three tokens.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable

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


@pytest.mark.parametrize(("max_levels", "length"), [(0, 0), (1, 2), (2, 4), (3, 5), (9, 5), (None, 5)])
def test_a_match_goes_through_so_many_nodes_at_most(max_levels, length):
    cache = filled("ab", "abcd", "abcde")
    assert cache.peek_prefix_len(ids("abcdef"), max_levels=max_levels) == length
    match = cache.match_prefix(ids("abcdef"), max_levels=max_levels)
    assert (len(match.slots), match.node.path_len) == (length, length)


def test_a_match_within_one_node_splits_it_whatever_the_levels():
    cache = filled("abcd")
    assert letters(cache.match_prefix(ids("abx"), max_levels=1).node) == "ab"
    assert leaves(cache) == {"abcd"}


@pytest.mark.parametrize("look_up", ["match_prefix", "peek_prefix_len"])
def test_a_negative_number_of_levels_is_refused(look_up):
    with pytest.raises(InvalidArgumentError, match="max_levels: got -1, expected a non-negative int"):
        getattr(RadixCache(), look_up)(ids("a"), max_levels=-1)


def test_a_match_tells_how_the_cache_goes_on_at_the_end_of_a_node():
    cache = filled("abc", "abx", "abd")
    assert cache.match_prefix(ids("abz")).continuations == ids("cxd")  # in the order in which they came


def test_a_match_tells_how_the_cache_goes_on_inside_an_edge():
    cache = filled("abcd")
    assert cache.match_prefix(ids("abz")).continuations == ids("c")
    assert cache.match_prefix(ids("abcd"), limit=3).continuations == ids("d")


def test_a_match_tells_no_more_continuations_than_four():
    cache = filled("abc", "abd", "abe", "abf", "abg")
    assert cache.match_prefix(ids("ab")).continuations == ids("cdef")


def test_nothing_goes_on_behind_a_leaf_or_in_an_empty_namespace():
    cache = filled("abc")
    assert cache.match_prefix(ids("abcd")).continuations == ()
    assert cache.match_prefix(ids("abc"), namespace="nobody").continuations == ()


def test_a_miss_tells_what_the_namespace_starts_with():
    assert filled("abc", "xyz").match_prefix(ids("q")).continuations == ids("ax")


def lines_run(action: Callable[[], object]) -> int:
    """Lines of Python that ``action`` runs."""
    count, before = 0, sys.gettrace()

    def trace(_frame: object, event: str, _arg: object) -> object:
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


OPERATIONS: dict[str, Callable[[RadixCache, TreeNode, int], object]] = {
    "match": lambda cache, _, length: cache.match_prefix(tuple(range(length))),
    "peek": lambda cache, _, length: cache.peek_prefix_len(tuple(range(length))),
    "insert": lambda cache, _, length: cache.insert(tuple(range(length + 9)), range(length + 9)),
    "lock": lambda cache, node, _: (cache.inc_lock_ref(node), cache.dec_lock_ref(node)),
    "expect": lambda cache, node, _: cache.expect(node, 2),
    "evict": lambda cache, _, length: cache.evict(length * 2 // 3),
    "forget": lambda cache, node, length: cache.forget(node, length // 3),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_work_in_python_is_per_node_and_not_per_token(operation):
    lines = []
    for length in (1_000, 100_000):
        cache = RadixCache()
        for end in (length // 4, length // 2, length):
            cache.insert(range(end), range(end))
        node = cache.match_prefix(range(length)).node
        lines.append(lines_run(functools.partial(OPERATIONS[operation], cache, node, length)))
    short, long = lines
    assert 0 < long < 3 * short  # comparing takes a logarithm of steps


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
