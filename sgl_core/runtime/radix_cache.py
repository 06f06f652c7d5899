"""The radix tree: which token sequences have their KV in the pool, who is using them, and what goes first when it fills.

Called by the scheduler, from the engine thread only. It owns the tree, the locks, the stamps and the slots that nodes
list; free slots are ``SlotAllocator``'s, and whatever ``evict`` and ``reset`` return is the caller's to free there. One
tree per namespace: prefixes are compared token by token (no hashes, so no collisions) and never across namespaces.

A handle is a ``TreeNode``. Only a locked one is sure to stay: match or insert, then ``inc_lock_ref``, before anything
evicts. No torch, and no work per token in Python: a match costs a few steps per node on the path.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime.eviction import EvictionQueue
from sgl_core.runtime.expectations import Expectations
from sgl_core.runtime.radix_node import TreeNode, common_prefix_len
from sgl_core.runtime.radix_tree import MAX_CONTINUATIONS, RadixTree

__all__ = [
    "MAX_CONTINUATIONS",
    "MAX_SPARE_QUESTIONS",
    "InsertResult",
    "MatchResult",
    "RadixCache",
    "TreeNode",
    "common_prefix_len",
]

MAX_SPARE_QUESTIONS = 64
"""Leaves that one ``evict`` asks its caller about; the others go in their turn."""


@dataclass(frozen=True, slots=True)
class MatchResult:
    """The longest cached prefix of some ids. Valid until the next ``evict`` or ``reset``, unless ``node`` is locked."""

    node: TreeNode
    """Ends the prefix; the namespace's root when nothing matched."""
    slots: list[int]
    """The tree's slots of the prefix; its length is the matched length."""
    continuations: tuple[int, ...] = ()
    """First tokens of what the tree holds behind the prefix, at most ``MAX_CONTINUATIONS``, in the order in which they
    came. None where the tree ends; one where the prefix ended inside an edge."""


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

    @property
    def slots(self) -> list[int]:
        """The tree's slots of all inserted ids, until the tree changes."""
        return self.node.path_slots()


class RadixCache:
    """Token sequences to KV slots, with locks and LRU eviction at token granularity.

    Args:
        clock: read once per match and insert to stamp the path; any unit. Default: a counter. Stamps rise by at least
            one even where the clock stands still or jumps back, so the eviction order is total and can be replayed.
        quota_tokens: unlocked tokens that ``evict_over_quota`` leaves a namespace, so that one tenant cannot push out
            all of another's. Default: no quota.

    Raises:
        InvalidArgumentError: ``quota_tokens`` is negative.
    """

    def __init__(self, clock: Callable[[], int] | None = None, *, quota_tokens: int | None = None) -> None:
        """Start empty."""
        _check_not_negative("quota_tokens", quota_tokens)
        self._quota_tokens = quota_tokens
        self._clock = itertools.count(1).__next__ if clock is None else clock
        self._now = 0
        self._tree = RadixTree()
        self._queue = EvictionQueue()  # every unlocked leaf
        self._expectations = Expectations()
        self._evictable_size = 0
        self._evictable_in: dict[str | None, int] = {}  # by namespace, those with any
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
        return self._tree.num_nodes

    def namespace_evictable(self, namespace: str | None) -> int:
        """Tokens of ``namespace`` that ``evict`` could free now."""
        return self._evictable_in.get(namespace, 0)

    def namespaces(self) -> list[str | None]:
        """Namespaces that hold tokens."""
        return self._tree.namespaces()

    def walk(self) -> Iterator[TreeNode]:
        """Yield every node, parents before children, roots left out. The tree must not change meanwhile."""
        return self._tree.walk()

    # ---- looking up and adding ---------------------------------------------------------------------------------------
    def match_prefix(
        self,
        ids: Sequence[int],
        *,
        namespace: str | None = None,
        limit: int | None = None,
        max_levels: int | None = None,
    ) -> MatchResult:
        """Find the longest cached prefix of ``ids`` and stamp it as just used.

        Mutates: where the prefix ends inside a node, the node is split there, so that ``MatchResult.node`` ends it. Counts
        as one use of every prefix on its path of which uses are expected.

        Args:
            ids: a whole prompt.
            namespace: prefixes of other namespaces are not seen.
            limit: match at most this many tokens; a scheduler passes ``len(ids) - 1``, since logits need one token.
            max_levels: match at most this many nodes below the root; 1 is a cache without the tree's depth.

        Raises:
            InvalidArgumentError: ``limit`` or ``max_levels`` is negative.
        """
        _check_not_negative("limit", limit)
        _check_not_negative("max_levels", max_levels)
        descent = self._tree.descend(tuple(ids if limit is None else ids[:limit]), namespace, max_levels)
        continuations = descent.continuations()
        node = self._tree.end_of(descent)
        self._stamp(node)
        for met in self._expectations.count_match(node):
            self._queue.lower(met)
        return MatchResult(node, node.path_slots(), continuations)

    def peek_prefix_len(self, ids: Sequence[int], *, namespace: str | None = None, max_levels: int | None = None) -> int:
        """Length of the prefix that ``match_prefix`` would find; changes nothing, not even the LRU order."""
        _check_not_negative("max_levels", max_levels)
        return self._tree.descend(tuple(ids), namespace, max_levels).matched_len

    def peek_match(
        self, ids: Sequence[int], *, namespace: str | None = None, limit: int | None = None, max_levels: int | None = None
    ) -> tuple[int, int]:
        """What ``match_prefix`` would find, and what locking it would take from ``evictable_size``; changes nothing.

        Returns:
            Matched tokens, and those of them that nobody has locked.
        """
        descent = self._tree.descend(tuple(ids if limit is None else ids[:limit]), namespace, max_levels)
        *whole, last = descent.path
        unlocked = sum(len(node.key) for node in whole if not node.lock_ref)
        return descent.matched_len, unlocked + (0 if last.lock_ref else descent.shared_in_last)

    def peek_slots(self, ids: Sequence[int], *, namespace: str | None = None) -> list[int]:
        """Slots of the prefix that ``match_prefix`` would find; changes nothing."""
        descent = self._tree.descend(tuple(ids), namespace)
        whole = [slot for node in descent.path for slot in node.slots]
        return whole[: descent.matched_len]

    def locate(self, ids: Sequence[int], *, namespace: str | None = None) -> TreeNode | None:
        """The node that ends exactly ``ids``, made by a split if need be; None if they are not cached whole.

        Neither stamps nor counts as a use.
        """
        descent = self._tree.descend(tuple(ids), namespace)
        return self._tree.end_of(descent) if descent.matched_len == len(ids) else None

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
        descent = self._tree.descend(key, namespace)
        node = self._tree.end_of(descent)
        present_len = descent.matched_len
        if present_len < len(key):
            node = self._tree.add_leaf(node, key[present_len:], list(slots[present_len:]))
            self._count_evictable(namespace, len(key) - present_len)
        self._stamp(node)
        self._queue.push(node)
        return InsertResult(node, present_len)

    # ---- locking -----------------------------------------------------------------------------------------------------
    def inc_lock_ref(self, node: TreeNode) -> None:
        """Protect ``node`` and everything above it from eviction, until ``dec_lock_ref``. Calls count.

        Raises:
            InvalidArgumentError: ``node`` was evicted.
        """
        _check_in_tree(node)
        part, newly_locked = node, 0
        while part.parent is not None:
            if part.lock_ref == 0:
                newly_locked += len(part.key)
            part.lock_ref += 1
            part = part.parent
        part.lock_ref += 1
        self._protected_size += newly_locked
        self._count_evictable(node.namespace, -newly_locked)

    def dec_lock_ref(self, node: TreeNode) -> None:
        """Take back one ``inc_lock_ref`` on the same node.

        Raises:
            InvalidArgumentError: ``node`` is not locked; nothing changes.
        """
        if node.lock_ref == 0:
            raise InvalidArgumentError("node", node, "a locked node", "Unlock each handle once.")
        part, unlocked = node, 0
        while part.parent is not None:
            part.lock_ref -= 1
            if part.lock_ref == 0:
                unlocked += len(part.key)
            part = part.parent
        part.lock_ref -= 1
        self._protected_size -= unlocked
        self._count_evictable(node.namespace, unlocked)
        self._queue.push(node)  # the parts above have a child, so only this one can be a leaf

    # ---- hints -------------------------------------------------------------------------------------------------------
    def expect(self, node: TreeNode, uses: int) -> None:
        """Announce that ``uses`` more matches will go through the end of ``node``.

        Until they did, or ``EXPECTATION_STAMPS`` matches and inserts passed, the node is evicted only when no leaf is
        left of which nothing is expected. If it goes all the same, the rest of its prefix is expected instead. Of several
        announcements the largest holds, so each request of a program may say how many are still to come; the deadline
        starts anew with each. Without effect on a root.

        Raises:
            InvalidArgumentError: ``uses`` is negative, or ``node`` was evicted.
        """
        _check_not_negative("uses", uses)
        _check_in_tree(node)
        self._drop_old_expectations()  # none comes back with the next
        if uses and node.parent is not None:
            self._expectations.add(node, uses)

    def hold(self, node: TreeNode) -> None:
        """Keep what ends at ``node`` while there is room, until ``unhold``. Calls count. Without effect on a root.

        A held leaf is evicted like an expected one: only when no leaf is left that nobody wants.

        Raises:
            InvalidArgumentError: ``node`` was evicted.
        """
        _check_in_tree(node)
        if node.parent is not None:
            node.holds += 1

    def unhold(self, node: TreeNode) -> None:
        """Take back one ``hold``; no effect on a node that was evicted since."""
        if node.holds and not node.is_evicted:
            node.holds -= 1
            self._queue.lower(node)

    def join(self, node: TreeNode) -> None:
        """Make ``node`` and those above it one edge, as far as nobody else holds, locks, expects or continues their ends.

        For a sequence that came in many pieces: later matches go through one node.
        """
        while (upper := node.parent) is not None and upper.parent is not None:
            if len(upper.children) > 1 or upper.lock_ref != node.lock_ref or upper.is_wanted:
                return
            self._queue.discard(upper)
            self._tree.join(node)

    def forget(self, node: TreeNode, keep_len: int, *, spoiled: bool = False) -> list[int]:
        """Drop what only the sequence that ends at ``node`` used, for it will not be used again.

        Goes up from ``node`` as long as what it meets is an unlocked leaf that nobody wants: what others lock, continue,
        hold or announced stays, and so do the first ``keep_len`` tokens. A node that was evicted since is no
        error.

        Args:
            node: end of the sequence.
            keep_len: its leading tokens that stay.
            spoiled: its KV is wrong, so it goes whatever is expected of it.

        Returns:
            The slots, which the caller frees.

        Raises:
            InvalidArgumentError: ``keep_len`` is negative.
        """
        _check_not_negative("keep_len", keep_len)
        self._drop_old_expectations()
        freed: list[int] = []
        surplus = node.path_len - keep_len
        while len(freed) < surplus and node.is_unlocked_leaf and (spoiled or not node.is_wanted):
            parent = node.parent
            assert parent is not None  # or it were no leaf that may be evicted
            freed += self._drop_tail(node, surplus - len(freed))
            node = parent
        return freed

    # ---- evicting ----------------------------------------------------------------------------------------------------
    def evict(
        self, num_tokens: int, *, spare: Callable[[TreeNode], bool] | None = None, unwanted_only: bool = False
    ) -> list[int]:
        """Drop the least recently used unlocked tokens and return their slots, which the caller frees.

        Takes whole leaves in LRU order, a parent becoming a leaf when its last child goes, and of the last leaf only
        the tail that is needed. Leaves that are expected, held or spared go when no other is left.

        Args:
            num_tokens: slots that are wanted.
            spare: whether somebody is about to use this leaf; asked of the first ``MAX_SPARE_QUESTIONS`` leaves whose
                turn it is. It must neither raise nor change the tree.
            unwanted_only: rather return fewer slots than take a leaf that is expected, held or spared.

        Returns:
            Exactly ``min(num_tokens, evictable_size)`` slots, or fewer with ``unwanted_only``.

        Raises:
            InvalidArgumentError: ``num_tokens`` is negative.
        """
        _check_not_negative("num_tokens", num_tokens)
        self._drop_old_expectations()
        questions = MAX_SPARE_QUESTIONS
        spared: dict[int, TreeNode] = {}
        freed: list[int] = []
        wanted = min(num_tokens, self._evictable_size)
        while len(freed) < wanted:
            leaf = self._queue.pop()
            assert leaf is not None  # unlocked tokens end in an unlocked leaf
            if unwanted_only and (leaf.is_wanted or leaf.id in spared):
                self._queue.push(leaf)
                break
            if spare is not None and questions and not leaf.is_wanted and leaf.id not in spared:
                questions -= 1
                if spare(leaf):
                    spared[leaf.id] = leaf
                    self._queue.push_last(leaf)
                    continue
            freed += self._drop_tail(leaf, wanted - len(freed))
        for leaf in spared.values():
            self._queue.lower(leaf)
        return freed

    def evict_over_quota(self, namespace: str | None) -> list[int]:
        """Drop the least recently used unlocked tokens that ``namespace`` has beyond ``quota_tokens``, expected ones last.

        Returns:
            Their slots, which the caller frees; none without a quota.
        """
        if self._quota_tokens is None:
            return []
        surplus = self.namespace_evictable(namespace) - self._quota_tokens
        if surplus <= 0:
            return []
        self._drop_old_expectations()
        freed: list[int] = []
        while len(freed) < surplus:
            leaf = self._queue.pop_within(namespace)
            assert leaf is not None  # as in evict
            freed += self._drop_tail(leaf, surplus - len(freed))
        return freed

    def reset(self) -> list[int]:
        """Drop everything that is not locked, in every namespace, and return its slots, which the caller frees."""
        return self.evict(self._evictable_size)

    # ---- checking ----------------------------------------------------------------------------------------------------
    def check_invariants(self) -> None:
        """Walk the whole tree and compare it with the counters, the stamps, the locks, the queue and the expectations.

        Raises:
            AssertionError: names the node or counter, what it holds and what was expected. A debugging aid: costs a
                step per token.
        """
        nodes = self._tree.check(self._now)
        seen_slots: set[int] = set()
        leaf_stamps: set[int] = set()
        protected = 0
        evictable: Counter[str | None] = Counter()
        for node in nodes:
            for slot in node.slots:
                if slot in seen_slots:
                    raise AssertionError(f"{node}: slot {slot} is in the tree twice")
                seen_slots.add(slot)
            if not node.children:
                if node.last_access in leaf_stamps:
                    raise AssertionError(f"{node}: another leaf has its stamp {node.last_access}, so LRU has no order")
                leaf_stamps.add(node.last_access)
            if node.lock_ref:
                protected += len(node.key)
            else:
                evictable[node.namespace] += len(node.key)
        for name, counter, recount in (
            ("evictable_size", self._evictable_size, evictable.total()),
            ("protected_size", self._protected_size, protected),
            ("evictable tokens by namespace", self._evictable_in, dict(evictable)),
        ):
            if counter != recount:
                raise AssertionError(f"{name} is {counter}, the tree holds {recount}")
        self._queue.check(nodes)
        self._expectations.check(nodes)

    # ---- what every change goes through ------------------------------------------------------------------------------
    def _drop_tail(self, leaf: TreeNode, num_tokens: int) -> list[int]:
        """Drop the last ``num_tokens`` tokens of an unlocked leaf, or all of it, and return their slots."""
        keep = max(0, len(leaf.key) - num_tokens)
        freed = leaf.slots[keep:]
        if keep:
            leaf.key = leaf.key[:keep]
            del leaf.slots[keep:]
            self._queue.push(leaf)
        else:
            self._queue.discard(leaf)
            parent = self._tree.remove_leaf(leaf)
            self._expectations.move_up(leaf, parent)
            self._queue.push(parent)
        self._count_evictable(leaf.namespace, -len(freed))
        return freed

    def _count_evictable(self, namespace: str | None, change: int) -> None:
        self._evictable_size += change
        tokens = self._evictable_in.get(namespace, 0) + change
        if tokens:
            self._evictable_in[namespace] = tokens
        else:
            self._evictable_in.pop(namespace, None)

    def _drop_old_expectations(self) -> None:
        for node in self._expectations.run_out():
            self._queue.lower(node)

    def _stamp(self, node: TreeNode) -> None:
        """Mark the path down to ``node`` as used now."""
        self._expectations.count_stamp()
        self._now = max(self._now + 1, self._clock())
        part: TreeNode | None = node
        while part is not None:
            part.last_access = self._now
            part = part.parent


def _check_not_negative(argument: str, given: int | None) -> None:
    if given is not None and given < 0:
        raise InvalidArgumentError(argument, given, "a non-negative int")


def _check_in_tree(node: TreeNode) -> None:
    if node.is_evicted:
        cure = "Lock what a match returns before the next evict() or reset(), or match again."
        raise InvalidArgumentError("node", node, "a node that is still in the tree", cure)
