"""The order in which unlocked leaves of the radix tree go: least recently used first, over all namespaces or within one.

Called by ``RadixCache`` alone. It owns the queue and the entries that nodes carry, and reads nodes otherwise.

A heap of leaves for each namespace, and one heap of those heaps, both corrected late: a key is a lower bound of what it
stands for, and is put right when it comes up. So a use of a node costs nothing here, an eviction a few steps of heaps, and
one within a namespace looks at no other's entries. Entries that were taken back stay, void, until they come up or outnumber
the live ones; then their heap is built anew, so none is ever longer than ``2 * live + SLACK``.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

from sgl_core.runtime.radix_node import TreeNode

__all__ = ["SLACK", "EvictionQueue", "Key", "QueueEntry"]

SLACK = 16
"""Void entries that a heap may hold before they are weighed against the live ones."""

Key = tuple[int, int]
"""(rank, stamp), the lowest goes first. Rank 0: in its turn. Rank 1: when no leaf of rank 0 is left."""
QueueEntry = tuple[Key, int, TreeNode]
"""(key, node id, node); live while it is the node's ``entry``, this very tuple."""


def _key(node: TreeNode) -> Key:
    return (1 if node.is_wanted else 0, node.last_access)


class _Lane:
    """The leaves of one namespace."""

    __slots__ = ("entries", "id", "listed", "live", "namespace")

    def __init__(self, namespace: str | None, lane_id: int) -> None:
        self.namespace = namespace
        self.id = lane_id
        self.entries: list[QueueEntry] = []
        self.live = 0
        self.listed: _LaneEntry | None = None  # where it stands in the heap of lanes; None before and after

    def push(self, node: TreeNode, key: Key) -> None:
        node.entry = (key, node.id, node)
        heapq.heappush(self.entries, node.entry)
        self.live += 1

    def head(self) -> QueueEntry | None:
        """The entry of the leaf that goes first, put right; entries that are void or may not go are dropped."""
        while self.entries:
            entry = self.entries[0]
            node = entry[2]
            if node.entry is not entry:
                heapq.heappop(self.entries)
            elif not node.is_unlocked_leaf:
                self.pop()
            elif entry[0] < (key := _key(node)):
                node.entry = (key, node.id, node)
                heapq.heapreplace(self.entries, node.entry)
            else:
                return entry
        return None

    def pop(self) -> TreeNode:
        """Take out the node of the first entry, which is live."""
        node = heapq.heappop(self.entries)[2]
        self.void(node)
        return node

    def void(self, node: TreeNode) -> None:
        """Let the node's entry mean nothing."""
        node.entry = None
        self.live -= 1
        if len(self.entries) > 2 * self.live + SLACK:
            self.entries = [entry for entry in self.entries if entry[2].entry is entry]
            heapq.heapify(self.entries)


_LaneEntry = tuple[Key, int, _Lane]
"""(lower bound of the lane's keys, lane id, lane); live while it is the lane's ``listed``, this very tuple."""


class EvictionQueue:
    """All unlocked leaves: the wanted ones after all others, and the least recently used first.

    A node that is locked or extended may keep its entry until that comes up; whoever unlocks it or takes its last child
    pushes it again, maybe in vain. A fall in rank must be told to ``lower``; no other change of a key needs telling.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._lanes: dict[str | None, _Lane] = {}  # those with a live entry
        self._order: list[_LaneEntry] = []
        self._lane_ids = itertools.count()

    def push(self, node: TreeNode) -> None:
        """Let ``node`` go in its turn, if it is an unlocked leaf and has no entry."""
        if node.entry is None and node.is_unlocked_leaf:
            self._push(node, _key(node))

    def push_last(self, node: TreeNode) -> None:
        """Let an unlocked leaf without an entry go only when no other is left, until ``lower`` is called for it."""
        self._push(node, (1, node.last_access))

    def lower(self, node: TreeNode) -> None:
        """Put ``node`` where it belongs, if its entry has it go later than that."""
        if node.entry is not None and node.entry[0] > _key(node):
            self.discard(node)
            self.push(node)

    def discard(self, node: TreeNode) -> None:
        """Take ``node`` out, if it is in."""
        if node.entry is not None:
            lane = self._lanes[node.namespace]
            lane.void(node)
            self._close_if_empty(lane)

    def pop(self) -> TreeNode | None:
        """Take out the leaf that goes first of all; None if there is none."""
        while self._order:
            listed = self._order[0]
            lane = listed[2]
            if lane.listed is not listed:
                heapq.heappop(self._order)
                continue
            head = lane.head()
            if head is not None and listed[0] < head[0]:
                lane.listed = (head[0], lane.id, lane)
                heapq.heapreplace(self._order, lane.listed)
            elif (node := self._take(lane, head)) is not None:
                return node
        return None

    def pop_within(self, namespace: str | None) -> TreeNode | None:
        """Take out the leaf of ``namespace`` that goes first; None if there is none."""
        lane = self._lanes.get(namespace)
        return None if lane is None else self._take(lane, lane.head())

    def _take(self, lane: _Lane, head: QueueEntry | None) -> TreeNode | None:
        node = None if head is None else lane.pop()
        self._close_if_empty(lane)
        return node

    def _push(self, node: TreeNode, key: Key) -> None:
        lane = self._lanes.get(node.namespace)
        if lane is None:
            lane = self._lanes[node.namespace] = _Lane(node.namespace, next(self._lane_ids))
        lane.push(node, key)
        if lane.listed is None or key < lane.listed[0]:
            lane.listed = (key, lane.id, lane)
            heapq.heappush(self._order, lane.listed)
            self._drop_void()

    def _close_if_empty(self, lane: _Lane) -> None:
        if not lane.live:
            lane.listed = None
            del self._lanes[lane.namespace]
            self._drop_void()

    def _drop_void(self) -> None:
        if len(self._order) > 2 * len(self._lanes) + SLACK:
            self._order = [listed for listed in self._order if listed[2].listed is listed]
            heapq.heapify(self._order)

    # ---- checking ----------------------------------------------------------------------------------------------------
    def check(self, nodes: Sequence[TreeNode]) -> None:
        """Compare the queue with all nodes of the tree.

        Raises:
            AssertionError: names the node or the namespace, what the queue has and what was expected.
        """
        queued: dict[int, Key] = {}
        for namespace, lane in self._lanes.items():
            live = [entry for entry in lane.entries if entry[2].entry is entry]
            where = f"eviction queue of namespace {namespace!r}"
            _check_heap(where, lane.entries, len(live))
            if lane.live != len(live) or not live:
                raise AssertionError(f"{where}: {lane.live} nodes counted, {len(live)} are in it, expected as many, at least 1")
            first = min(entry[0] for entry in live)
            if lane.listed is None or first < lane.listed[0] or not any(e is lane.listed for e in self._order):
                raise AssertionError(f"{where}: listed under {lane.listed and lane.listed[0]}, its first key is {first}")
            for key, _, node in live:
                if node.namespace != namespace:
                    raise AssertionError(f"{where}: {node} is in it, of namespace {node.namespace!r}")
                queued[node.id] = key
        _check_heap("eviction order of namespaces", self._order, len(self._lanes))
        for node in nodes:
            if node.id in queued:
                if (as_of := queued.pop(node.id)) > _key(node):
                    raise AssertionError(f"{node}: queued as of {as_of}, after its own {_key(node)}")
            elif node.entry is not None:
                raise AssertionError(f"{node}: has an entry that the eviction queue does not know")
            elif node.is_unlocked_leaf:
                raise AssertionError(f"{node}: an unlocked leaf that the eviction queue does not know")
        if queued:
            raise AssertionError(f"eviction queue: nodes {sorted(queued)} are not in the tree")


def _check_heap(where: str, heap: Sequence[QueueEntry] | Sequence[_LaneEntry], live: int) -> None:
    if len(heap) > 2 * live + SLACK:
        raise AssertionError(f"{where}: {len(heap)} entries for {live} live ones, expected at most twice as many and {SLACK}")
    for index in range(1, len(heap)):
        if heap[index][:2] < heap[(index - 1) // 2][:2]:
            raise AssertionError(f"{where}: entry {index} goes before the one above it in the heap")
