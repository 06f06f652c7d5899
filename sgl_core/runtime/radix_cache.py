"""The radix tree: which token sequences have their KV in the pool, who is using them, and what goes first when it fills.

Called by the scheduler, from the engine thread only. It owns the tree, the locks, the LRU order and the slots that nodes
list; free slots are ``SlotAllocator``'s, and whatever ``evict`` and ``reset`` return is the caller's to free there. One
tree per namespace: prefixes are compared token by token (no hashes, so no collisions) and never across namespaces.

A handle is a ``TreeNode``. Only a locked one is sure to stay: match or insert, then ``inc_lock_ref``, before anything
evicts. No torch, and no work per token in Python: a match costs a few steps per node on the path.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime.radix_node import TreeNode, check_node, common_prefix_len

__all__ = ["InsertResult", "MatchResult", "RadixCache", "TreeNode", "common_prefix_len"]


@dataclass(frozen=True, slots=True)
class MatchResult:
    """The longest cached prefix of some ids. Valid until the next ``evict`` or ``reset``, unless ``node`` is locked."""

    node: TreeNode
    """Ends the prefix; the namespace's root when nothing matched."""
    slots: list[int]
    """The tree's slots of the prefix; its length is the matched length."""


@dataclass(frozen=True, slots=True)
class InsertResult:
    """What the tree holds after an insert.

    Where ``slots[i]`` differs from the slot that was given for token ``i``, the tree had that token before (so ``i`` is
    below ``present_len``). The caller frees its own slot and reads the tree's from now on: it replaces its whole table
    by ``slots``.
    """

    node: TreeNode
    """Ends the inserted ids."""
    present_len: int
    """Leading tokens that were in the tree before."""
    slots: list[int]
    """The tree's slots of all inserted ids."""


@dataclass(slots=True)
class _Descent:
    """How far some ids lead into the tree."""

    path: list[TreeNode]
    """Nodes that share at least a token with the ids, root first; all but the last shared whole."""
    matched_len: int
    """Tokens shared on the path."""
    shared_in_last: int
    """Tokens of ``path[-1].key`` that are shared."""


class RadixCache:
    """Token sequences to KV slots, with locks and LRU eviction at token granularity.

    Args:
        clock: read once per match and insert to stamp the path; any unit. Default: a counter. Stamps rise by at least
            one even where the clock stands still or jumps back, so the eviction order is total and can be replayed.
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        """Start empty."""
        self._clock = itertools.count(1).__next__ if clock is None else clock
        self._now = 0
        self._node_ids = itertools.count()
        self._roots: dict[str | None, TreeNode] = {}  # a namespace has a root while it holds tokens
        # (stamp, id, node), at most one entry a node, for every unlocked leaf; the entry of a node that was touched,
        # locked or extended since is put right or dropped when it comes up. So never more entries than nodes.
        self._queue: list[tuple[int, int, TreeNode]] = []
        self._num_nodes = 0
        self._evictable_size = 0
        self._protected_size = 0

    @property
    def evictable_size(self) -> int:
        """Tokens that ``evict`` could free now."""
        return self._evictable_size

    @property
    def protected_size(self) -> int:
        """Tokens on locked paths."""
        return self._protected_size

    @property
    def total_size(self) -> int:
        """Tokens in the tree; each owns one slot."""
        return self._evictable_size + self._protected_size

    @property
    def num_nodes(self) -> int:
        """Nodes in the tree, roots not counted."""
        return self._num_nodes

    def namespaces(self) -> list[str | None]:
        """Namespaces that hold tokens."""
        return list(self._roots)

    def walk(self) -> Iterator[TreeNode]:
        """Yield every node, parents before children, roots left out. The tree must not change meanwhile."""
        for root in self._roots.values():
            stack = list(root.children.values())
            while stack:
                node = stack.pop()
                yield node
                stack.extend(node.children.values())

    # ---- looking up and adding ---------------------------------------------------------------------------------------
    def match_prefix(self, ids: Sequence[int], *, namespace: str | None = None, limit: int | None = None) -> MatchResult:
        """Find the longest cached prefix of ``ids`` and stamp it as just used.

        Mutates: where the prefix ends inside a node, the node is split there, so that ``MatchResult.node`` ends it.

        Args:
            ids: a whole prompt.
            namespace: prefixes of other namespaces are not seen.
            limit: match at most this many tokens; a scheduler passes ``len(ids) - 1``, since logits need one token.

        Raises:
            InvalidArgumentError: ``limit`` is negative.
        """
        if limit is not None and limit < 0:
            raise InvalidArgumentError("limit", limit, "None or a non-negative int")
        descent = self._descend(tuple(ids if limit is None else ids[:limit]), namespace)
        node = self._end_of(descent)
        self._stamp(node)
        return MatchResult(node, node.path_slots())

    def peek_prefix_len(self, ids: Sequence[int], *, namespace: str | None = None) -> int:
        """Length of the longest cached prefix of ``ids``; changes nothing, not even the LRU order."""
        return self._descend(tuple(ids), namespace).matched_len

    def insert(self, ids: Sequence[int], slots: Sequence[int], *, namespace: str | None = None) -> InsertResult:
        """Put ``ids`` into the tree and hand it the slots of those that it does not have.

        Mutates: may split a node; the new tokens go in a node of their own below what was there, unlocked. Empty ids
        return the root.

        Args:
            ids: from the start of the sequence.
            slots: one per id. Those past ``present_len`` become the tree's; see ``InsertResult`` for the others.
            namespace: as in ``match_prefix``.

        Raises:
            InvalidArgumentError: ``slots`` and ``ids`` differ in length; nothing changes.
        """
        if len(slots) != len(ids):
            raise InvalidArgumentError("slots", f"{len(slots)} slots", f"one per id, {len(ids)}")
        key = tuple(ids)
        descent = self._descend(key, namespace)
        node = self._end_of(descent)
        present_len = descent.matched_len
        if present_len < len(key):
            node = self._add_leaf(node, key[present_len:], list(slots[present_len:]))
        self._stamp(node)
        self._enqueue(node)
        return InsertResult(node, present_len, node.path_slots())

    # ---- locking -----------------------------------------------------------------------------------------------------
    def inc_lock_ref(self, node: TreeNode) -> None:
        """Protect ``node`` and everything above it from eviction, until ``dec_lock_ref``. Calls count.

        Raises:
            InvalidArgumentError: ``node`` was evicted.
        """
        if node.parent is None and node.key:
            cure = "Lock what a match returns before the next evict() or reset(), or match again."
            raise InvalidArgumentError("node", node, "a node that is still in the tree", cure)
        part = node
        while part.parent is not None:
            if part.lock_ref == 0:
                self._evictable_size -= len(part.key)
                self._protected_size += len(part.key)
            part.lock_ref += 1
            part = part.parent
        part.lock_ref += 1

    def dec_lock_ref(self, node: TreeNode) -> None:
        """Take back one ``inc_lock_ref`` on the same node.

        Raises:
            InvalidArgumentError: ``node`` is not locked; nothing changes.
        """
        if node.lock_ref == 0:
            raise InvalidArgumentError("node", node, "a locked node", "Unlock each handle once.")
        part = node
        while part.parent is not None:
            part.lock_ref -= 1
            if part.lock_ref == 0:
                self._protected_size -= len(part.key)
                self._evictable_size += len(part.key)
            part = part.parent
        part.lock_ref -= 1
        self._enqueue(node)  # the parts above have a child, so only this one can be a leaf

    # ---- evicting ----------------------------------------------------------------------------------------------------
    def evict(self, num_tokens: int) -> list[int]:
        """Drop the least recently used unlocked tokens and return their slots, which the caller frees.

        Takes whole leaves in LRU order, a parent becoming a leaf when its last child goes, and of the last leaf only
        the tail that is needed.

        Returns:
            Exactly ``min(num_tokens, evictable_size)`` slots.

        Raises:
            InvalidArgumentError: ``num_tokens`` is negative.
        """
        if num_tokens < 0:
            raise InvalidArgumentError("num_tokens", num_tokens, "a non-negative int")
        freed: list[int] = []
        wanted = min(num_tokens, self._evictable_size)
        while len(freed) < wanted:
            leaf = self._pop_oldest_leaf()
            keep = len(leaf.key) - (wanted - len(freed))
            if keep > 0:
                freed += leaf.slots[keep:]
                leaf.key = leaf.key[:keep]
                del leaf.slots[keep:]
                self._enqueue(leaf)
            else:
                freed += leaf.slots
                self._remove_leaf(leaf)
        self._evictable_size -= len(freed)
        return freed

    def reset(self) -> list[int]:
        """Drop everything that is not locked, in every namespace, and return its slots, which the caller frees."""
        return self.evict(self._evictable_size)

    # ---- checking ----------------------------------------------------------------------------------------------------
    def check_invariants(self) -> None:
        """Walk the whole tree and compare it with the counters, the stamps, the locks and the eviction queue.

        Raises:
            AssertionError: names the node or counter, what it holds and what was expected. A debugging aid: costs a
                step per token.
        """
        self._check_roots()
        seen_nodes: set[int] = set()
        seen_slots: set[int] = set()
        leaf_stamps: set[int] = set()
        sizes = {True: 0, False: 0}  # by "is locked"
        for node in self.walk():
            if node.id in seen_nodes:
                raise AssertionError(f"{node}: another node has its id")
            seen_nodes.add(node.id)
            check_node(node)
            for slot in node.slots:
                if slot in seen_slots:
                    raise AssertionError(f"{node}: slot {slot} is in the tree twice")
                seen_slots.add(slot)
            if not node.children:
                if node.last_access in leaf_stamps:
                    raise AssertionError(f"{node}: another leaf has its stamp {node.last_access}, so LRU has no order")
                leaf_stamps.add(node.last_access)
            sizes[node.lock_ref > 0] += len(node.key)
        for name, counter, recount in (
            ("num_nodes", self._num_nodes, len(seen_nodes)),
            ("evictable_size", self._evictable_size, sizes[False]),
            ("protected_size", self._protected_size, sizes[True]),
        ):
            if counter != recount:
                raise AssertionError(f"{name} is {counter}, the tree holds {recount}")
        self._check_queue(seen_nodes)

    def _check_roots(self) -> None:
        for namespace, root in self._roots.items():
            if root.parent is not None or root.key or not root.children or root.namespace != namespace:
                raise AssertionError(f"root of namespace {namespace!r}: {root} is no root, is empty or is another's")
            if root.last_access > self._now:
                raise AssertionError(f"{root}: stamped {root.last_access}, in the future of {self._now}")
            check_node(root)

    def _check_queue(self, alive: set[int]) -> None:
        entries = {node.id: stamp for stamp, _, node in self._queue}
        if len(entries) != len(self._queue):
            raise AssertionError(f"eviction queue: {len(self._queue)} entries for {len(entries)} nodes, expected one each")
        if not entries.keys() <= alive:
            raise AssertionError(f"eviction queue: nodes {sorted(entries.keys() - alive)} are not in the tree")
        for node in self.walk():
            if node.queued != (node.id in entries):
                raise AssertionError(f"{node}: queued is {node.queued}, against the eviction queue")
            if node.is_unlocked_leaf and not node.queued:
                raise AssertionError(f"{node}: an unlocked leaf that the eviction queue does not know")
            if node.queued and entries[node.id] > node.last_access:
                raise AssertionError(f"{node}: queued as of {entries[node.id]}, after its stamp {node.last_access}")

    # ---- the tree ----------------------------------------------------------------------------------------------------
    def _new_root(self, namespace: str | None) -> TreeNode:
        """A root outside the tree: it joins ``_roots`` with its first child, so asking about a namespace costs nothing."""
        return TreeNode(next(self._node_ids), namespace)

    def _descend(self, ids: tuple[int, ...], namespace: str | None) -> _Descent:
        node = self._roots.get(namespace) or self._new_root(namespace)
        path = [node]
        position = shared = 0
        while shared == len(node.key) and position < len(ids):
            child = node.children.get(ids[position])
            if child is None:
                break
            node = child
            path.append(node)
            shared = common_prefix_len(node.key, ids[position : position + len(node.key)])
            position += shared
        return _Descent(path, position, shared)

    def _end_of(self, descent: _Descent) -> TreeNode:
        """The node that ends where the descent does; splits the last one where it goes on."""
        last = descent.path[-1]
        return last if descent.shared_in_last == len(last.key) else self._split(last, descent.shared_in_last)

    def _split(self, node: TreeNode, at: int) -> TreeNode:
        """Put a new node above ``node`` that takes its first ``at`` tokens, and return it.

        Both parts carry every lock: a handle on ``node`` or below protects the whole path.
        """
        parent = node.parent
        assert parent is not None  # only an edge with tokens is ever split
        upper = TreeNode(
            id=next(self._node_ids),
            namespace=node.namespace,
            key=node.key[:at],
            slots=node.slots[:at],
            parent=parent,
            children={node.key[at]: node},
            lock_ref=node.lock_ref,
            last_access=node.last_access,
        )
        parent.children[upper.key[0]] = upper
        node.parent = upper
        node.key = node.key[at:]
        del node.slots[:at]
        self._num_nodes += 1
        return upper

    def _add_leaf(self, parent: TreeNode, key: tuple[int, ...], slots: list[int]) -> TreeNode:
        leaf = TreeNode(next(self._node_ids), parent.namespace, key, slots, parent)
        parent.children[key[0]] = leaf
        if parent.parent is None:
            self._roots[parent.namespace] = parent
        self._num_nodes += 1
        self._evictable_size += len(key)
        return leaf

    def _remove_leaf(self, leaf: TreeNode) -> None:
        parent = leaf.parent
        assert parent is not None  # roots are never queued
        del parent.children[leaf.key[0]]
        leaf.parent = None
        self._num_nodes -= 1
        if parent.parent is not None:
            self._enqueue(parent)
        elif not parent.children:
            del self._roots[parent.namespace]

    def _stamp(self, node: TreeNode) -> None:
        """Mark the path down to ``node`` as used now."""
        self._now = max(self._now + 1, self._clock())
        part: TreeNode | None = node
        while part is not None:
            part.last_access = self._now
            part = part.parent

    # ---- the eviction queue ------------------------------------------------------------------------------------------
    def _enqueue(self, node: TreeNode) -> None:
        """Let ``node`` be evicted in its turn, if it is an unlocked leaf and not waiting already."""
        if node.is_unlocked_leaf and not node.queued:
            node.queued = True
            heapq.heappush(self._queue, (node.last_access, node.id, node))

    def _pop_oldest_leaf(self) -> TreeNode:
        """Take the least recently used unlocked leaf out of the queue; there is one while ``evictable_size`` > 0."""
        while True:
            stamp, _, node = heapq.heappop(self._queue)
            node.queued = False
            if stamp == node.last_access and node.is_unlocked_leaf:
                return node
            self._enqueue(node)  # touched since: back in at its new place; locked or extended: out
