"""Snapshots of the radix tree: what they hold, and that taking one disturbs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgl_core.runtime.engine import Engine
from sgl_core.runtime.radix_cache import RadixCache
from sgl_core.runtime.snapshot import take_snapshot
from sgl_core.types import SamplingParams


def tree_of(*sequences: str, namespace: str | None = None) -> RadixCache:
    tree = RadixCache()
    add(tree, *sequences, namespace=namespace)
    return tree


def add(tree: RadixCache, *sequences: str, namespace: str | None = None) -> None:
    for text in sequences:
        ids = tuple(map(ord, text))
        first = 1_000 * (tree.num_nodes + 1)
        tree.insert(ids, range(first, first + len(ids)), namespace=namespace)


def texts(tree: RadixCache) -> list[str]:
    return ["".join(map(chr, node.token_ids)) for node in take_snapshot(tree).walk()]


def test_an_empty_tree_has_an_empty_snapshot():
    snapshot = take_snapshot(RadixCache())
    assert (snapshot.top, snapshot.num_nodes, snapshot.num_tokens, snapshot.num_leaves) == ((), 0, 0, 0)


def test_nodes_come_parents_first_and_siblings_in_order_of_arrival():
    assert texts(tree_of("abcx", "abcy", "abd", "q")) == ["ab", "c", "x", "y", "d", "q"]


def test_a_node_knows_where_it_starts_and_ends():
    spans = [(node.start, node.end) for node in take_snapshot(tree_of("abcx", "abcy")).walk()]
    assert spans == [(0, 3), (3, 4), (3, 4)]


def test_sums_compare_what_is_held_with_what_the_sequences_would_take_apart():
    snapshot = take_snapshot(tree_of("abcx", "abcy", "abcyz"))
    assert snapshot.num_tokens == 6
    assert snapshot.num_leaves == 2
    assert snapshot.unshared_tokens == len("abcx") + len("abcyz")


def test_leaves_are_counted_below_every_node():
    assert [node.num_leaves for node in take_snapshot(tree_of("abx", "aby", "acz")).walk()] == [3, 2, 1, 1, 1]


def test_locks_are_counted_on_the_whole_path():
    tree = tree_of("abx", "aby")
    tree.inc_lock_ref(tree.match_prefix(tuple(map(ord, "abx"))).node)
    assert [node.lock_ref for node in take_snapshot(tree).walk()] == [1, 1, 0]


def test_the_rank_of_the_last_access_follows_use():
    tree = tree_of("a", "b", "c")
    tree.match_prefix((ord("a"),))
    assert [node.last_access for node in take_snapshot(tree).walk()] == [2, 0, 1]


def test_namespaces_stay_apart():
    tree = tree_of("ab")
    add(tree, "ab", namespace="other")
    assert [(node.namespace, node.num_tokens) for node in take_snapshot(tree).top] == [(None, 2), ("other", 2)]


def test_a_snapshot_does_not_change_with_the_tree():
    tree = tree_of("abcx")
    before = take_snapshot(tree)
    add(tree, "abcy")
    tree.reset()
    assert [node.token_ids for node in before.walk()] == [tuple(map(ord, "abcx"))]


def test_taking_one_leaves_the_order_of_eviction_alone():
    tree = tree_of("ab", "cd")
    take_snapshot(tree)
    tree.check_invariants()
    tree.evict(2)
    assert texts(tree) == ["cd"]


def test_a_deep_tree_needs_no_recursion():
    tree = tree_of(*("x" * depth + "y" for depth in range(1, 1_200)))
    assert take_snapshot(tree).num_leaves == 1_199


def test_the_repr_shows_no_tokens():
    (node,) = take_snapshot(tree_of("secret")).top
    assert repr(node) == "NodeSnapshot([0, 6), lock_ref=0, num_children=0)"


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_an_engine_shows_what_it_holds(tiny_llama: Path, prefix_cache: bool):
    with Engine(str(tiny_llama), device="cpu", cache_tokens=512, prefix_cache=prefix_cache) as engine:
        engine.generate(["Once upon a time", "Once upon a hill"], SamplingParams(max_new_tokens=4, ignore_eos=True))
        snapshot = engine.tree()
        assert snapshot.num_tokens == engine.stats().evictable_tokens
        assert (engine.codec.decode(snapshot.top[0].token_ids) == "Once upon a") if prefix_cache else not snapshot.top
