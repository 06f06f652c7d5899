"""Who has which KV slots: requests take, share, publish and give back through here.

The scheduler alone uses it. It owns the radix tree, the allocator and the pins, so at any time a slot is free, in the
tree, or private to one running request. No torch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sgl_core.runtime.allocator import SlotAllocator
from sgl_core.runtime.prompt_scores import PromptScores
from sgl_core.runtime.radix_cache import RadixCache, TreeNode
from sgl_core.runtime.request import PinOrder, Request
from sgl_core.types import TokenLogprob

__all__ = ["KVMemory", "Pin", "PrefixWatcher"]

_PINNED_SHARE = 0.5
"""Of the pool, at most, that pins may hold."""
_WORTH_SPARING = 16
"""Tokens of a leaf below which it is evicted without asking who waits for it."""


class PrefixWatcher(Protocol):
    """Those who wait, as eviction and publishing see them."""

    @property
    def version(self) -> int:
        """Changes with the set of those who wait."""

    def wants(self, ids: Sequence[int], at_least: int, namespace: str | None) -> bool:
        """Whether somebody who waits has ``at_least`` so many leading tokens in common with ``ids``."""

    def prefix_cached(self, ids: Sequence[int], namespace: str | None) -> None:
        """The tree has got these ids."""


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """A prefix that stays until unpinned, expired, or in the way of the only request left.

    Args:
        node: locked end of the prefix. ``num_tokens``: its length.
        expires_at: on the scheduler's clock, seconds; None is never.
    """

    node: TreeNode
    num_tokens: int
    expires_at: float | None


class KVMemory:
    """Slots of all requests.

    Args:
        tree: empty.
        allocator: all free.
        watcher: told what the tree gets, asked before eviction.
        max_levels: nodes of a path that may be matched; None is all.
    """

    def __init__(
        self, tree: RadixCache, allocator: SlotAllocator, watcher: PrefixWatcher, *, max_levels: int | None = None
    ) -> None:
        self.tree = tree
        self.allocator = allocator
        self.pins: dict[int, Pin] = {}
        self.evicted_tokens = 0
        """Tokens whose KV was dropped to make room, in all."""
        self._scores = PromptScores(allocator.num_slots)
        self._watcher = watcher
        self._max_levels = max_levels
        self._pin_ids = itertools.count(1)
        self._spoiled: list[tuple[TreeNode, int]] = []
        self._answers: dict[int, bool] = {}  # by node id, what the watcher said when its version was _answered_at
        self._answered_at = -1

    @property
    def available(self) -> int:
        """Slots that are free or can be made free now."""
        return self.allocator.free_count + self.tree.evictable_size

    @property
    def pinned_tokens(self) -> int:
        """Tokens under pins; where pins overlap, their common tokens count for each."""
        return sum(pin.num_tokens for pin in self.pins.values())

    # ---- a request's slots -------------------------------------------------------------------------------------------
    def attach(self, request: Request) -> tuple[int, ...]:
        """Give a request the cached part of its ids, locked.

        Returns:
            First tokens of what the tree holds behind the matched part instead of the request's next token.
        """
        if not request.use_tree:
            return ()
        request.logprobs += self._known_scores(request)
        match = self.tree.match_prefix(
            request.ids, namespace=request.namespace, limit=self._match_limit(request), max_levels=self._max_levels
        )
        self.tree.inc_lock_ref(match.node)
        request.slots, request.node, request.tree_len = match.slots, match.node, len(match.slots)
        return match.continuations

    def _match_limit(self, request: Request) -> int:
        """Prefix tokens that a request may take from the cache.

        Where it wants the prompt's log-probabilities, it must run the token before the first one that nobody has computed.
        """
        if not request.is_scoring_prompt:
            return request.match_limit
        known = request.logprobs_from + len(request.logprobs) + len(self._known_scores(request))
        return request.match_limit if known >= request.submitted_len else min(request.match_limit, known - 1)

    def _known_scores(self, request: Request) -> list[TokenLogprob]:
        """Log-probabilities of the prompt's next tokens that were computed for others."""
        if not request.is_scoring_prompt:
            return []
        known = request.logprobs_from + len(request.logprobs)
        slots = self.tree.peek_slots(request.ids[: request.submitted_len], namespace=request.namespace)
        return self._scores.known(request.ids[known : len(slots)], slots[known:])

    def keep_prompt_scores(self, request: Request) -> None:
        """Keep a prompt's log-probabilities beside its slots: the tree's, and the request's own, which the tree may get yet."""
        if request.use_tree and request.params.prompt_logprobs:
            cached = self.tree.peek_slots(request.ids[: request.submitted_len], namespace=request.namespace)
            for slots in (cached[1:], request.slots[1 : request.submitted_len]):
                self._scores.note(slots, request.logprobs[: len(slots)])

    def make_room(self, num_slots: int) -> None:
        """Evict until so many slots are free, if that many can be; prefixes that a waiting request shares go last."""
        short = num_slots - self.allocator.free_count
        if short > 0:
            self._free_evicted(self.tree.evict(short, spare=self._is_wanted))

    def grow(self, request: Request, end: int, *, publish: bool) -> None:
        """Give a request slots for its tokens up to ``end``, and its prompt's to the tree at once if ``publish``.

        Raises:
            OutOfSlotsError: there is no room; the request has what it had.
        """
        wanted = end - len(request.slots)
        self.make_room(wanted)
        self._allocate(request, wanted)
        if publish:
            self.publish(request, min(end, request.prompt_len))

    def _allocate(self, request: Request, num_slots: int) -> None:
        fresh = self.allocator.allocate(num_slots)
        self._scores.forget(fresh)
        request.slots.extend(fresh)

    def publish(self, request: Request, end: int) -> None:
        """Hand the leading ``end`` slots to the tree, unless it has some of them from another (then they stay private)."""
        if not request.use_tree or end <= request.tree_len:
            return
        ids = request.ids[:end]
        if self.tree.peek_prefix_len(ids, namespace=request.namespace) > request.tree_len:
            return
        inserted = self.tree.insert(ids, request.slots[:end], namespace=request.namespace)
        self.tree.inc_lock_ref(inserted.node)
        if request.node is not None:
            self.tree.dec_lock_ref(request.node)
        request.node, request.tree_len = inserted.node, end
        self._watcher.prefix_cached(ids, request.namespace)

    def fits(self, request: Request, wanted: int, promised: int) -> bool:
        """Whether a request that wants so many slots in all, cached ones included, finds them beside what is promised.

        Exact: what it shares is neither asked for nor can it be evicted for it. Changes nothing.
        """
        matched = unlocked = 0
        if request.use_tree:
            matched, unlocked = self.tree.peek_match(
                request.ids, namespace=request.namespace, limit=self._match_limit(request), max_levels=self._max_levels
            )
        return wanted - matched <= self.available - unlocked - promised

    def announce(self, request: Request) -> None:
        """Keep what the request's siblings will ask for, once the tree has it."""
        hints = request.hints
        if not hints.siblings or not hints.shared_len or request.is_announced or not request.use_tree:
            return
        node = self.tree.locate(request.ids[: hints.shared_len], namespace=request.namespace)
        if node is not None:
            self.tree.expect(node, hints.siblings)
            request.is_announced = True

    def release(self, request: Request, *, keep: bool) -> None:
        """Take everything back: with ``keep`` the computed tokens go to the tree, the rest to the allocator."""
        kept = request.tree_len
        try:
            if request.use_tree and keep and min(request.computed_len, request.cacheable_len) > kept:
                kept = self._keep_computed(request) if self._is_clean(request) else kept
        finally:
            self.allocator.free(request.slots[kept:])
            if request.pin is not None and keep:
                self.pin(request.ids, request.namespace, request.pin)
            if request.node is not None:
                self.tree.dec_lock_ref(request.node)
            request.slots, request.node, request.tree_len = [], None, 0
            self._free_evicted(self.tree.evict_over_quota(request.namespace))

    def _is_clean(self, request: Request) -> bool:
        """Whether what a request computed can go to the tree without ending up below what another one spoiled."""
        return not self._spoiled or self.tree.peek_prefix_len(request.ids, namespace=request.namespace) <= request.tree_len

    def _keep_computed(self, request: Request) -> int:
        done, kept = min(request.computed_len, request.cacheable_len), request.tree_len
        ids = request.ids[:done]
        inserted = self.tree.insert(ids, request.slots[:done], namespace=request.namespace)
        self.allocator.free(request.slots[kept : max(kept, inserted.present_len)])
        self._watcher.prefix_cached(ids, request.namespace)
        return done

    def forget(self, node: TreeNode | None, keep_len: int) -> None:
        """A last use: drop what lies between ``keep_len`` tokens and a node, unless somebody holds it or waits for it."""
        if node is None or node.is_evicted:
            return
        if not self._watcher.wants(_ids_of(node), keep_len + 1, node.namespace):
            self.allocator.free(self.tree.forget(node, keep_len))

    def hold_spoiled(self, request: Request, keep_len: int) -> None:
        """What a request has in the tree behind ``keep_len`` tokens is wrong or was never computed.

        It stays locked until ``drop_spoiled``, so that nothing can evict its end and leave the rest to be found.
        """
        if request.node is not None:
            self.tree.inc_lock_ref(request.node)
            self._spoiled.append((request.node, keep_len))

    def drop_spoiled(self) -> None:
        """Drop all that is held as spoiled; those who hold it otherwise have let go, or are spoiled themselves."""
        for node, _ in self._spoiled:
            self.tree.dec_lock_ref(node)
        for node, keep_len in reversed(self._spoiled):  # those who rode on a prefix before those who brought it
            self.allocator.free(self.tree.forget(node, keep_len, spoiled=True))
        self._spoiled.clear()

    def flush(self) -> None:
        """Drop every cached prefix that no request and no pin holds."""
        self.allocator.free(self.tree.reset())

    # ---- prefetches --------------------------------------------------------------------------------------------------
    def hold_cached(self, request: Request) -> TreeNode | None:
        """Hold what the tree has of a request's ids; returns its end, None if it has nothing."""
        cached = self.tree.peek_prefix_len(request.ids, namespace=request.namespace)
        node = self.tree.locate(request.ids[:cached], namespace=request.namespace) if cached else None
        if node is not None:
            self.tree.hold(node)
        return node

    def resume(self, request: Request) -> None:
        """Give a prefetch the cached part of its ids, locked; a use of nothing, as it takes up what it left."""
        cached = min(self.tree.peek_prefix_len(request.ids, namespace=request.namespace), request.match_limit)
        node = self.tree.locate(request.ids[:cached], namespace=request.namespace)
        assert node is not None, "what is cached has an end"
        self.tree.inc_lock_ref(node)
        request.slots, request.node, request.tree_len = node.path_slots(), node, cached

    def grow_gently(self, request: Request, end: int) -> bool:
        """Give a request slots for its tokens up to ``end`` if nobody wants what that takes; False if somebody does."""
        wanted = end - len(request.slots)
        short = wanted - self.allocator.free_count
        if short > 0:
            self._free_evicted(self.tree.evict(short, spare=self._is_wanted, unwanted_only=True))
        if wanted > self.allocator.free_count:
            return False
        self._allocate(request, wanted)
        return True

    # ---- pins --------------------------------------------------------------------------------------------------------
    def pin(self, ids: Sequence[int], namespace: str | None, order: PinOrder) -> None:
        """Keep ``ids`` if they are cached whole and pins may hold them; ``order.number`` tells."""
        node = self.tree.locate(ids, namespace=namespace)
        if node is not None and self.may_pin(len(ids)):
            self.tree.inc_lock_ref(node)
            order.number = next(self._pin_ids)
            self.pins[order.number] = Pin(node, len(ids), order.expires_at)

    def may_pin(self, num_tokens: int) -> bool:
        """Whether pins hold at most half of the pool with so many tokens more."""
        return self.pinned_tokens + num_tokens <= self.most_pinned_tokens

    @property
    def most_pinned_tokens(self) -> int:
        """Tokens that pins may hold."""
        return int(_PINNED_SHARE * self.allocator.num_slots)

    def unpin(self, number: int) -> bool:
        """Let a pinned prefix be evicted in its turn; False if there is no such pin any more."""
        pin = self.pins.pop(number, None)
        if pin is None:
            return False
        self.tree.dec_lock_ref(pin.node)
        self._free_evicted(self.tree.evict_over_quota(pin.node.namespace))
        return True

    def expire_pins(self, now: float) -> None:
        """Unpin what has expired."""
        for number in [n for n, pin in self.pins.items() if pin.expires_at is not None and pin.expires_at <= now]:
            self.unpin(number)

    def yield_pin(self) -> bool:
        """Give up the oldest pin; False if there is none."""
        return bool(self.pins) and self.unpin(next(iter(self.pins)))

    # ---- checking ----------------------------------------------------------------------------------------------------
    def check_invariants(self, running: Collection[Request]) -> None:
        """Assert that every slot has exactly one owner and that the locks are the running requests' and the pins'.

        Raises:
            AssertionError: with the first invariant that does not hold.
        """
        self.tree.check_invariants()
        self.allocator.check_invariants()
        private = [slot for r in running for slot in r.slots[r.tree_len :]]
        owned = private + [slot for node in self.tree.walk() for slot in node.slots]
        assert len(owned) == len(set(owned)), "a slot has two owners"
        assert not any(self.allocator.is_free(slot) for slot in owned), "a slot in use is free"
        assert len(owned) + self.allocator.free_count == self.allocator.num_slots, "a slot has no owner"
        for request in running:
            if request.node is not None:
                assert request.node.path_len == request.tree_len, "a request's locked prefix is not its slot table's"
                assert request.node.path_slots() == request.slots[: request.tree_len], "a slot table differs from the tree"
        self._check_locks([r.node for r in running if r.node is not None])

    def _check_locks(self, handles: Iterable[TreeNode]) -> None:
        locks: Counter[int] = Counter()
        for handle in itertools.chain(handles, (pin.node for pin in self.pins.values())):
            locks.update(node.id for node in handle.path())
        for node in self.tree.walk():
            assert node.lock_ref == locks[node.id], "a node is locked by nobody, or not by all who hold it"

    # ---- private -----------------------------------------------------------------------------------------------------
    def _is_wanted(self, node: TreeNode) -> bool:
        """Whether a waiting request shares most of a leaf: what is spared is to be used, and worth the question."""
        if len(node.key) < _WORTH_SPARING:
            return False
        if self._answered_at != self._watcher.version:
            self._answers.clear()
            self._answered_at = self._watcher.version
        if node.id not in self._answers:
            ids = _ids_of(node)
            self._answers[node.id] = self._watcher.wants(ids, len(ids) - len(node.key) // 2, node.namespace)
        return self._answers[node.id]

    def _free_evicted(self, slots: list[int]) -> None:
        self.evicted_tokens += len(slots)
        self.allocator.free(slots)


def _ids_of(node: TreeNode) -> tuple[int, ...]:
    return tuple(itertools.chain.from_iterable(part.key for part in node.path()))
