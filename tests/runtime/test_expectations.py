"""Hints from programs: uses to come keep a prefix a little longer, a last use drops it at once."""

from __future__ import annotations

import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime.expectations import EXPECTATION_STAMPS
from sgl_core.runtime.radix_cache import RadixCache, TreeNode


def ids(letters: str) -> tuple[int, ...]:
    return tuple(ord(letter) - ord("a") for letter in letters)


def letters(node: TreeNode) -> str:
    return "".join(chr(token + ord("a")) for part in node.path() for token in part.key)


def leaves(cache: RadixCache) -> set[str]:
    return {letters(node) for node in cache.walk() if not node.children}


def filled(*sequences: str) -> RadixCache:
    """A tree with these sequences inserted in order; token ``i`` of sequence ``k`` brings slot ``10 * k + i``."""
    cache = RadixCache()
    for index, sequence in enumerate(sequences):
        cache.insert(ids(sequence), range(10 * index, 10 * index + len(sequence)))
    return cache


def find(cache: RadixCache, path: str) -> TreeNode:
    return next(node for node in cache.walk() if letters(node) == path)


def stamp(cache: RadixCache, times: int) -> None:
    for _ in range(times):
        cache.match_prefix(ids("z"))


# ---- uses to come ----------------------------------------------------------------------------------------------------
def test_an_expected_leaf_goes_after_all_others_however_old_it_is():
    cache = filled("a", "b", "c")
    cache.expect(find(cache, "a"), 1)
    cache.check_invariants()
    assert cache.evict(2) == [10, 20]
    assert leaves(cache) == {"a"}


def test_expected_leaves_never_block_eviction_and_go_in_their_order():
    cache = filled("ab", "c", "d")
    for path in ("c", "ab"):
        cache.expect(find(cache, path), 9)
    assert cache.evict(2) == [20, 1]
    assert cache.evict(9) == [0, 10]


def test_a_leaf_is_ordinary_again_after_as_many_matches_as_were_announced():
    cache = filled("a", "b")
    cache.expect(find(cache, "a"), 2)
    cache.match_prefix(ids("a"))
    cache.match_prefix(ids("b"))
    assert find(cache, "a").expectation is not None
    cache.match_prefix(ids("a"))
    cache.match_prefix(ids("b"))
    cache.check_invariants()
    assert cache.evict(1) == [0]


def test_a_leaf_that_was_passed_over_is_ordinary_again_when_its_last_use_came():
    cache = filled("a", "b", "c")
    cache.expect(find(cache, "a"), 1)
    assert cache.evict(1) == [10]
    for path in ("a", "c"):
        cache.match_prefix(ids(path))
    cache.check_invariants()
    assert cache.evict(1) == [0]


def test_a_leaf_that_was_passed_over_is_ordinary_again_when_its_announcement_ran_out():
    cache = filled("a", "b", "c")
    cache.expect(find(cache, "a"), 1)
    assert cache.evict(1) == [10]
    stamp(cache, EXPECTATION_STAMPS + 1)
    assert cache.evict(1) == [0]


def test_a_match_that_goes_further_counts_and_one_that_ends_before_does_not():
    cache = filled("abc", "abcxy")
    node = find(cache, "abc")
    cache.expect(node, 3)
    cache.match_prefix(ids("abcxz"))
    cache.match_prefix(ids("ab"))
    cache.insert(ids("abcxz"), range(90, 95))
    cache.peek_prefix_len(ids("abc"))
    assert node.expectation is not None
    assert node.expectation.uses == 2


def test_one_match_counts_for_every_announcement_on_its_path():
    cache = filled("ab", "abcd")
    cache.expect(find(cache, "ab"), 2)
    cache.expect(find(cache, "abcd"), 1)
    cache.match_prefix(ids("abcd"))
    assert [find(cache, path).expectation is None for path in ("ab", "abcd")] == [False, True]
    cache.check_invariants()


@pytest.mark.parametrize(("announced", "expected"), [((2, 3), 3), ((3, 2), 3)])
def test_of_two_announcements_for_one_prefix_the_larger_holds(announced, expected):
    cache = filled("a")
    for uses in announced:
        cache.expect(find(cache, "a"), uses)
    expectation = find(cache, "a").expectation
    assert expectation is not None
    assert expectation.uses == expected


def test_siblings_that_each_say_how_many_are_to_come_leave_nothing_expected():
    cache = filled("a")
    for still_to_come in (3, 2, 1, 0):
        cache.expect(cache.match_prefix(ids("a")).node, still_to_come)
    assert find(cache, "a").expectation is None


def test_an_announcement_whose_program_died_runs_out():
    cache = filled("a", "b")
    cache.expect(find(cache, "a"), 1)
    stamp(cache, EXPECTATION_STAMPS + 1)
    cache.match_prefix(ids("b"))
    assert cache.evict(1) == [0]
    cache.check_invariants()


def test_an_announcement_stands_until_its_last_stamp():
    cache = filled("a", "b")
    cache.expect(find(cache, "a"), 1)
    stamp(cache, EXPECTATION_STAMPS)
    assert cache.evict(1) == [10]


def test_an_announcement_that_ran_out_does_not_come_back_with_the_next():
    cache = filled("a")
    cache.expect(find(cache, "a"), 5)
    stamp(cache, EXPECTATION_STAMPS + 1)
    cache.expect(find(cache, "a"), 1)
    cache.match_prefix(ids("a"))
    assert find(cache, "a").expectation is None


def test_another_announcement_starts_the_deadline_anew():
    cache = filled("a", "b")
    cache.expect(find(cache, "a"), 1)
    stamp(cache, EXPECTATION_STAMPS)
    cache.expect(find(cache, "a"), 1)
    stamp(cache, EXPECTATION_STAMPS)
    assert cache.evict(1) == [10]


def test_an_announcement_survives_splits_at_the_end_of_its_prefix():
    cache = filled("abcd", "x")
    node = find(cache, "abcd")
    cache.expect(node, 1)
    upper = cache.match_prefix(ids("ab")).node
    cache.check_invariants()
    assert (upper.expectation, node.expectation is None) == (None, False)
    assert cache.evict(1) == [10]
    cache.match_prefix(ids("abcd"))
    assert node.expectation is None


def test_an_expected_node_inside_the_tree_waits_until_it_is_a_leaf():
    cache = filled("ab", "abc", "x")
    cache.expect(find(cache, "ab"), 1)
    assert cache.evict(2) == [12, 20]
    assert leaves(cache) == {"ab"}


def test_what_is_cut_off_leaves_the_rest_of_the_prefix_expected():
    cache = filled("abc")
    cache.expect(find(cache, "abc"), 1)
    assert cache.evict(1) == [2]
    cache.insert(ids("x"), [50])
    assert cache.evict(1) == [50]
    cache.match_prefix(ids("abc"))
    assert find(cache, "ab").expectation is None


def test_a_prefix_whose_end_is_evicted_stays_expected_at_its_parent():
    cache = filled("ab", "abc")
    cache.expect(find(cache, "abc"), 2)
    assert cache.evict(1) == [12]
    cache.check_invariants()
    cache.insert(ids("x"), [50])
    assert cache.evict(1) == [50]


@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 2)])
def test_of_announcements_that_meet_at_a_parent_the_larger_and_the_later_deadline_hold(first, second):
    cache = filled("ab", "abc", "abd")
    cache.expect(find(cache, "abc"), first)
    stamp(cache, 5)
    cache.expect(find(cache, "abd"), second)
    later = find(cache, "abd").expectation
    assert later is not None
    assert sorted(cache.evict(2)) == [12, 22]
    cache.check_invariants()
    assert find(cache, "ab").expectation is later
    assert later.uses == 3


def test_an_announcement_ends_with_the_last_token_of_its_prefix():
    cache = filled("ab")
    cache.expect(find(cache, "ab"), 2)
    assert sorted(cache.evict(2)) == [0, 1]
    cache.check_invariants()
    assert len(cache._expectations._standing) == 0


def test_a_namespace_over_its_quota_loses_what_is_expected_last():
    cache = RadixCache(quota_tokens=2)
    for slot, letter in enumerate("abc"):
        cache.insert(ids(letter), [slot])
    cache.expect(find(cache, "a"), 1)
    assert cache.evict_over_quota(None) == [1]


def test_an_announcement_that_ran_out_does_not_help_against_a_quota():
    cache = RadixCache(quota_tokens=1)
    for slot, letter in enumerate("ab"):
        cache.insert(ids(letter), [slot])
    cache.expect(find(cache, "a"), 1)
    stamp(cache, EXPECTATION_STAMPS + 1)
    assert cache.evict_over_quota(None) == [0]


def test_nobody_is_asked_to_spare_what_is_expected():
    cache, asked = filled("a", "b"), []
    cache.expect(find(cache, "a"), 1)
    cache.evict(2, spare=lambda leaf: bool(asked.append(letters(leaf))))
    assert asked == ["b"]


def test_an_announcement_of_nothing_has_no_effect():
    cache = filled("a", "b")
    cache.expect(find(cache, "a"), 0)
    cache.expect(cache.match_prefix(ids("z")).node, 5)  # nothing matched: a root
    cache.check_invariants()
    assert cache.evict(1) == [0]


def test_a_negative_number_of_uses_and_an_evicted_node_are_refused():
    cache = filled("a")
    node = find(cache, "a")
    with pytest.raises(InvalidArgumentError, match="uses: got -1"):
        cache.expect(node, -1)
    cache.evict(1)
    with pytest.raises(InvalidArgumentError, match="a node that is still in the tree"):
        cache.expect(node, 1)


def test_locking_and_unlocking_an_expected_node_changes_nothing_about_it():
    cache = filled("a", "b")
    node = find(cache, "a")
    cache.expect(node, 1)
    cache.inc_lock_ref(node)
    assert cache.evict(9) == [10]
    cache.dec_lock_ref(node)
    cache.insert(ids("c"), [20])
    assert cache.evict(1) == [20]
    cache.check_invariants()


def test_an_announcement_that_is_met_while_its_node_is_locked_leaves_an_ordinary_leaf():
    cache = filled("a", "b")
    node = find(cache, "a")
    cache.expect(node, 1)
    cache.evict(0)
    cache.inc_lock_ref(node)
    cache.match_prefix(ids("a"))
    cache.match_prefix(ids("b"))
    cache.dec_lock_ref(node)
    cache.check_invariants()
    assert cache.evict(1) == [0]


# ---- last uses -------------------------------------------------------------------------------------------------------
def test_a_last_use_drops_the_path_beyond_what_is_kept():
    cache = filled("ab", "abcd", "abcdef")
    assert cache.forget(find(cache, "abcdef"), 2) == [24, 25, 12, 13]
    assert leaves(cache) == {"ab"}
    cache.check_invariants()


def test_a_last_use_may_end_inside_an_edge():
    cache = filled("abcd")
    assert cache.forget(find(cache, "abcd"), 3) == [3]
    assert leaves(cache) == {"abc"}
    cache.check_invariants()
    assert cache.evict(1) == [2]


@pytest.mark.parametrize("keep_len", [4, 5, 99])
def test_a_last_use_that_keeps_everything_drops_nothing(keep_len):
    cache = filled("abcd")
    assert cache.forget(find(cache, "abcd"), keep_len) == []
    assert cache.total_size == 4


def test_a_last_use_leaves_what_others_continue():
    cache = filled("abcx", "abcy")
    assert cache.forget(find(cache, "abcx"), 0) == [3]
    assert leaves(cache) == {"abcy"}
    assert cache.forget(find(cache, "abc"), 0) == []


def test_a_last_use_leaves_what_others_lock():
    cache = filled("ab", "abcd")
    cache.inc_lock_ref(find(cache, "ab"))
    assert cache.forget(find(cache, "abcd"), 0) == [12, 13]
    assert cache.forget(find(cache, "ab"), 0) == []
    cache.check_invariants()


def test_a_last_use_leaves_what_is_expected_until_that_runs_out():
    cache = filled("ab", "abcd")
    cache.expect(find(cache, "ab"), 1)
    assert cache.forget(find(cache, "abcd"), 0) == [12, 13]
    assert cache.forget(find(cache, "ab"), 0) == []
    stamp(cache, EXPECTATION_STAMPS + 1)
    assert cache.forget(find(cache, "ab"), 0) == [0, 1]
    assert cache.num_nodes == 0


def test_a_last_use_of_nothing_drops_nothing():
    cache = filled("ab")
    node = find(cache, "ab")
    assert cache.forget(cache.match_prefix(ids("z")).node, 0) == []  # a root
    cache.evict(2)
    assert cache.forget(node, 0) == []  # evicted since


def test_a_last_use_that_keeps_less_than_nothing_is_refused():
    cache = filled("a")
    with pytest.raises(InvalidArgumentError, match="keep_len: got -1"):
        cache.forget(find(cache, "a"), -1)
