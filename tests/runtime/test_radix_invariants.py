"""Every invariant of the radix tree, broken once on purpose: the check finds it, and none goes without such a test."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from types import ModuleType

import pytest

from sgl_core.runtime import eviction, expectations, radix_cache, radix_node, radix_tree
from sgl_core.runtime.expectations import EXPECTATION_STAMPS, Expectation
from sgl_core.runtime.radix_cache import RadixCache, TreeNode


def ids(letters: str) -> tuple[int, ...]:
    return tuple(ord(letter) - ord("a") for letter in letters)


def letters(node: TreeNode) -> str:
    return "".join(chr(token + ord("a")) for part in node.path() for token in part.key)


def find(cache: RadixCache, path: str) -> TreeNode:
    return next(node for node in cache.walk() if letters(node) == path)


def healthy() -> RadixCache:
    """``ab`` with ``c`` (locked) and ``d``, ``x`` and ``y`` beside it, ``zz`` of a tenant; uses of ``x`` and ``y`` expected."""
    cache = RadixCache(quota_tokens=100)
    for start, sequence in enumerate(("abc", "abd", "x", "y")):
        cache.insert(ids(sequence), range(10 * start, 10 * start + len(sequence)))
    cache.insert(ids("zz"), [50, 51], namespace="tenant")
    cache.inc_lock_ref(find(cache, "abc"))
    cache.expect(find(cache, "x"), 2)
    cache.match_prefix(ids("y"))
    cache.expect(find(cache, "y"), 3)
    cache.check_invariants()
    return cache


# ---- damage ----------------------------------------------------------------------------------------------------------
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


def give_a_root_a_parent(cache: RadixCache) -> None:
    cache._tree._roots[None].parent = cache._tree._roots["tenant"]


def swap_the_roots(cache: RadixCache) -> None:
    roots = cache._tree._roots
    roots[None], roots["tenant"] = roots["tenant"], roots[None]


def lose_the_tenant_but_not_its_entry(cache: RadixCache) -> None:
    del cache._tree._roots["tenant"]
    cache._tree._num_nodes -= 1
    cache._evictable_size -= 2
    del cache._evictable_in["tenant"]


def lane(cache: RadixCache, namespace: str | None = None) -> eviction._Lane:
    return cache._queue._lanes[namespace]


def lose_an_entry_but_not_its_mark(cache: RadixCache) -> None:
    lost = find(cache, "x").entry
    lane(cache).entries[:] = sorted(entry for entry in lane(cache).entries if entry is not lost)
    lane(cache).live -= 1


def lose_an_entry_and_its_mark(cache: RadixCache) -> None:
    lose_an_entry_but_not_its_mark(cache)
    find(cache, "x").entry = None


def keep_an_empty_lane(cache: RadixCache) -> None:
    cache._queue._lanes["nobody"] = eviction._Lane("nobody", 99)


def swap_the_lanes(cache: RadixCache) -> None:
    lanes = cache._queue._lanes
    lanes[None], lanes["tenant"] = lanes["tenant"], lanes[None]


def fill_with_void_entries(cache: RadixCache) -> None:
    stamp, node_id, node = lane(cache).entries[-1]
    lane(cache).entries.extend((stamp, node_id, node) for _ in range(2 * lane(cache).live + eviction.SLACK))


def fill_with_void_lanes(cache: RadixCache) -> None:
    key, lane_id, some_lane = cache._queue._order[-1]
    cache._queue._order.extend((key, lane_id, some_lane) for _ in range(2 * 2 + eviction.SLACK))


def list_a_lane_too_late(cache: RadixCache) -> None:
    late = ((1, 99), lane(cache).id, lane(cache))
    cache._queue._order = [listed for listed in cache._queue._order if listed[2] is not lane(cache)] + [late]
    lane(cache).listed = late


def list_a_lane_that_is_not_in_the_order(cache: RadixCache) -> None:
    cache._queue._order = [listed for listed in cache._queue._order if listed[2] is not lane(cache)]


def queue_too_late(cache: RadixCache) -> None:
    node = find(cache, "zz")
    node.entry = ((0, 99), node.id, node)
    lane(cache, "tenant").entries[:] = [node.entry]


def mark_without_an_announcement(cache: RadixCache) -> None:
    find(cache, "ab").expectation = Expectation(find(cache, "ab"), 1, EXPECTATION_STAMPS)


def mark_with_a_copy(cache: RadixCache) -> None:
    node, standing = find(cache, "ab"), cache._expectations._standing
    node.expectation = next(iter(standing))  # which announces "x"


def announce_for_a_node_without_a_mark(cache: RadixCache) -> None:
    cache._expectations._standing[Expectation(find(cache, "ab"), 1, EXPECTATION_STAMPS)] = None


def announce_twice(cache: RadixCache) -> None:
    node = find(cache, "x")
    node.expectation = Expectation(node, 1, EXPECTATION_STAMPS)
    cache._expectations._standing[node.expectation] = None


def announce_for_a_root(cache: RadixCache) -> None:
    root = cache._tree._roots[None]
    root.expectation = Expectation(root, 1, EXPECTATION_STAMPS)
    cache._expectations._standing[root.expectation] = None


def expected(cache: RadixCache, path: str) -> Expectation:
    expectation = find(cache, path).expectation
    assert expectation is not None
    return expectation


def swap_two_deadlines(cache: RadixCache) -> None:
    first, second = expected(cache, "x"), expected(cache, "y")
    first.last_stamp, second.last_stamp = second.last_stamp, first.last_stamp


Damage = Callable[[RadixCache], object]
DAMAGE: dict[str, tuple[Damage, str]] = {
    # a node and its children
    "lock below zero": (lambda c: setattr(find(c, "x"), "lock_ref", -1), "lock_ref is below zero"),
    "child locked more than its parent": (lambda c: setattr(find(c, "abc"), "lock_ref", 2), "more often than itself"),
    "children together locked more": (lambda c: setattr(find(c, "abd"), "lock_ref", 1), "more often than itself"),
    "root locked less than its children": (lambda c: setattr(c._tree._roots[None], "lock_ref", 0), "more often than itself"),
    "wrong parent": (lambda c: setattr(find(c, "abc"), "parent", find(c, "x")), "its parent is TreeNode"),
    "no parent": (lambda c: setattr(find(c, "abc"), "parent", None), "its parent is None"),
    "cycle": (point_to_itself, "its parent is TreeNode"),
    "namespace changed below": (lambda c: setattr(find(c, "x"), "namespace", "tenant"), "its namespace is not its parent's"),
    "key longer than slots": (lambda c: find(c, "x").slots.clear(), "1 tokens with 0 slots"),
    "slots longer than key": (lambda c: find(c, "x").slots.append(99), "1 tokens with 2 slots"),
    "empty edge": (empty_an_edge, "0 tokens with 0 slots"),
    "siblings share a first token": (share_a_first_token, "siblings may share one"),
    "child newer than its parent": (lambda c: setattr(find(c, "abc"), "last_access", 99), "after its parent's"),
    # the shape
    "root with a parent": (give_a_root_a_parent, "root of namespace None: .* is no root"),
    "root with an edge": (lambda c: setattr(c._tree._roots[None], "key", ids("a")), "root of namespace None: .* is no root"),
    "root without children": (lambda c: c._tree._roots["tenant"].children.clear(), "namespace 'tenant': .* is empty"),
    "roots of each other's namespaces": (swap_the_roots, "root of namespace None: .* or is another's"),
    "stamp in the future": (lambda c: setattr(c._tree._roots[None], "last_access", 99), "stamped 99, in the future of 6"),
    "two nodes with one id": (lambda c: setattr(find(c, "x"), "id", find(c, "abc").id), "another node has its id"),
    "node counter": (lambda c: setattr(c._tree, "_num_nodes", 3), "num_nodes is 3, the tree holds 6"),
    # sizes, slots and stamps
    "slot twice": (lambda c: find(c, "zz").slots.__setitem__(0, 0), "slot 0 is in the tree twice"),
    "two leaves with one stamp": (
        lambda c: setattr(find(c, "abc"), "last_access", find(c, "abd").last_access),
        "another leaf has its stamp 2, so LRU has no order",
    ),
    "evictable counter": (lambda c: setattr(c, "_evictable_size", 1), "evictable_size is 1, the tree holds 5"),
    "protected counter": (lambda c: setattr(c, "_protected_size", 4), "protected_size is 4, the tree holds 3"),
    "a namespace's counter": (
        lambda c: c._evictable_in.update({None: 2, "tenant": 3}),
        "evictable tokens by namespace is .*'tenant': 3.*, the tree holds .*'tenant': 2",
    ),
    "a counter of an empty namespace": (lambda c: c._evictable_in.update(nobody=0), "by namespace is .*'nobody': 0"),
    # the eviction queue
    "leaf unknown to the queue": (lose_an_entry_and_its_mark, "an unlocked leaf that the eviction queue does not know"),
    "mark without an entry": (lose_an_entry_but_not_its_mark, "has an entry that the eviction queue does not know"),
    "two entries for one leaf": (lambda c: lane(c).entries.append(lane(c).entries[-1]), "4 nodes counted, 5 are in it"),
    "lane counter": (lambda c: setattr(lane(c), "live", 5), "5 nodes counted, 4 are in it"),
    "empty lane": (keep_an_empty_lane, "namespace 'nobody': 0 nodes counted, 0 are in it"),
    "leaf in another namespace's lane": (swap_the_lanes, "namespace None: TreeNode.* is in it, of namespace 'tenant'"),
    "entry for a lost leaf": (lose_the_tenant_but_not_its_entry, "nodes .* are not in the tree"),
    "entry after its time": (queue_too_late, r"queued as of \(0, 99\), after its own \(0, 5\)"),
    "void entries outnumber": (fill_with_void_entries, "namespace None: 28 entries for 4 live ones"),
    "lane out of order": (lambda c: lane(c).entries.sort(reverse=True), "namespace None: entry 1 goes before the one above"),
    "lane not listed": (lambda c: setattr(lane(c), "listed", None), "namespace None: listed under None"),
    "lane listed after its time": (list_a_lane_too_late, r"namespace None: listed under \(1, 99\), its first key is"),
    "lane missing in the order": (list_a_lane_that_is_not_in_the_order, "namespace None: listed under"),
    "void lanes outnumber": (fill_with_void_lanes, "order of namespaces: 22 entries for 2 live ones"),
    "order of lanes": (lambda c: c._queue._order.sort(reverse=True), "order of namespaces: entry 1 goes before the one above"),
    # expectations
    "mark without an announcement": (
        mark_without_an_announcement,
        "its mark and the announcement that stands for it are not the same",
    ),
    "mark of another's announcement": (mark_with_a_copy, "its mark and the announcement that stands for it"),
    "announcement without a mark": (announce_for_a_node_without_a_mark, "its mark and the announcement that stands"),
    "two announcements for one node": (announce_twice, "3 stand for 2 nodes"),
    "announcement for a root": (announce_for_a_root, "announcements stand for nodes .*, not in the tree"),
    "no use expected": (lambda c: setattr(expected(c, "x"), "uses", 0), "0 uses expected, at least 1"),
    "deadlines out of order": (swap_two_deadlines, "out of the order of deadlines"),
    "deadline too far": (lambda c: setattr(expected(c, "y"), "last_stamp", 10**6), "out of the order of deadlines"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_the_check_finds(what):
    damage, complaint = DAMAGE[what]
    cache = healthy()
    damage(cache)
    with pytest.raises(AssertionError, match=complaint):
        cache.check_invariants()


ROOMS: tuple[ModuleType, ...] = (eviction, expectations, radix_cache, radix_node, radix_tree)


def complaints(module: ModuleType) -> set[tuple[str, int]]:
    """File and line of every ``raise AssertionError`` of a module."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == "AssertionError":
            found.add((str(module.__file__), node.lineno))
    return found


def raised_at(damage: Damage) -> tuple[str, int]:
    cache = healthy()
    damage(cache)
    with pytest.raises(AssertionError) as caught:
        cache.check_invariants()
    last = caught.traceback[-1]
    return (str(last.path), last.lineno + 1)  # pytest counts lines from 0


def test_every_complaint_of_the_check_has_its_damage():
    written = set().union(*(complaints(module) for module in ROOMS))
    assert len(written) > 20
    assert written - {raised_at(damage) for damage, _ in DAMAGE.values()} == set()
