"""Prefetches for idle capacity: whose turn it is, what is kept for whom, and what became of them. No torch.

The scheduler alone uses it. It owns the prefetches with ``when_idle`` from their arrival until their prefix was used, and
their three counters. Such a prefetch holds nothing between two steps: each chunk goes to the tree as soon as it is
computed, so whoever comes takes over what is there, and the prefetch finds it there too when it goes on. What is cached of
it is held softly: evicted after everything that nobody is known to want, and before any request has to wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from sgl_core.runtime.memory import KVMemory
from sgl_core.runtime.radix_cache import TreeNode, common_prefix_len
from sgl_core.runtime.request import Request, State

__all__ = ["IdlePrefetches", "idle_budget"]

_MOST_OF_POOL = 0.5
"""Of the pool, that one prefix may take."""
_MOST_WAITING = _MOST_KEPT = 256
"""Prefetches that wait, and computed ones that are kept track of."""
_ALONE_TOKENS, _ALONE_SHARE = 256, 1 / 8
_BESIDE_TOKENS, _BESIDE_SHARE = 16, 1 / 128
"""Of the chunk, or at least so many tokens: with nothing else to run, and beside others. A prefetch steps aside between two
steps only, so even alone it takes no more than what runs about as fast, token by token, as a whole chunk."""


def idle_budget(chunk_tokens: int, left: int, *, is_alone: bool) -> int:
    """Tokens that a prefetch may run in a step.

    Args:
        chunk_tokens: prompt tokens a step at most. ``left``: of these, not taken by others.
        is_alone: nothing else runs in this step.
    """
    least, share = (_ALONE_TOKENS, _ALONE_SHARE) if is_alone else (_BESIDE_TOKENS, _BESIDE_SHARE)
    return min(left, max(least, int(share * chunk_tokens)))


@dataclass(slots=True, eq=False)
class _Prefetch:
    """One of them.

    Args:
        request: its ids, and whether it runs in this step.
        found_len: leading tokens that were cached when it came.
        done_len: leading tokens that were cached after its last chunk, or when it came.
        node: held end of what is cached of it; None if nothing is.
        is_useful: it was counted as that.
    """

    request: Request
    found_len: int
    done_len: int
    node: TreeNode | None = None
    is_useful: bool = False

    @property
    def held_len(self) -> int:
        """Leading tokens that are held still; eviction may have taken some."""
        return 0 if self.node is None or self.node.is_evicted else self.node.path_len


class IdlePrefetches:
    """The prefetches that wait for idle capacity, and those that are computed and were not used yet.

    Iterating yields the requests that have not ended. Methods that let some end take them out and return them or say so;
    the scheduler does the rest.

    Args:
        memory: where prefixes are held.

    Attributes:
        num_useful: those of which a later request used a token that they had computed, or, where they found all but the
            last token cached, all of that.
        num_late: those that ended because a request that begins with their prefix was admitted before they were complete.
        num_dropped: those that ended incomplete because their time was over or memory was short.
    """

    def __init__(self, memory: KVMemory) -> None:
        self._memory = memory
        self._waiting: dict[str, _Prefetch] = {}
        self._kept: dict[str, _Prefetch] = {}
        self.reset_counters()

    def reset_counters(self) -> None:
        """Start counting anew."""
        self.num_useful = self.num_late = self.num_dropped = 0

    def __len__(self) -> int:
        """Prefetches that have not ended."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        """Their requests, in the order in which they came."""
        return (prefetch.request for prefetch in self._waiting.values())

    def get(self, request_id: str) -> Request | None:
        """The request of that id, if it has not ended."""
        prefetch = self._waiting.get(request_id)
        return None if prefetch is None else prefetch.request

    # ---- coming and going --------------------------------------------------------------------------------------------
    def add(self, request: Request) -> bool:
        """Queue a prefetch, and keep what is cached of it; False if it is dropped at once."""
        most = int(_MOST_OF_POOL * self._memory.allocator.num_slots)
        if not request.use_tree or request.prompt_len > most or len(self._waiting) >= _MOST_WAITING:
            self.num_dropped += 1
            return False
        cached = self._memory.tree.peek_prefix_len(request.ids, namespace=request.namespace)
        prefetch = self._waiting[request.id] = _Prefetch(request, found_len=cached, done_len=cached)
        self._hold(prefetch)
        return True

    def remove(self, request: Request) -> None:
        """One ends without being counted: aborted, or with an error. No effect on those that were taken out."""
        prefetch = self._waiting.get(request.id)
        if prefetch is not None:
            self._let_go(prefetch)

    def drop(self, request: Request) -> None:
        """One ends incomplete: memory is short, or its time is over."""
        self.num_dropped += 1
        self._let_go(self._waiting[request.id])

    def drop_all(self) -> list[Request]:
        """Memory is short: all that wait end."""
        over = list(self)
        for request in over:
            self.drop(request)
        return over

    def expire(self, now: float) -> list[Request]:
        """Drop those whose time is over, and keep nothing any longer for those of them that are computed."""
        for prefetch in list(self._kept.values()):
            if _is_over(prefetch, now) or not prefetch.held_len:
                self._let_go(prefetch)
        over = [prefetch.request for prefetch in self._waiting.values() if _is_over(prefetch, now)]
        for request in over:
            self.drop(request)
        return over

    def admitted(self, request: Request) -> list[Request]:
        """A request was admitted, its cached prefix attached: count whom that makes useful or late.

        Returns:
            Those that end, as the request computes what is missing of their prefix itself.
        """
        over = []
        for prefetch in [*self._waiting.values(), *self._kept.values()] if request.use_tree else []:
            ids, is_waiting = prefetch.request.ids, prefetch.request.id in self._waiting
            if prefetch.request.namespace != request.namespace:
                continue
            shared = min(common_prefix_len(ids, request.ids), request.cacheable_len)
            held = prefetch.held_len
            used = min(shared, request.attached_len, held)
            if not prefetch.is_useful and used > max(0, min(prefetch.found_len, len(ids) - 2)):
                prefetch.is_useful = True
                self.num_useful += 1
            if shared == len(ids):
                self._let_go(prefetch)
                if is_waiting:
                    self.num_late += held < len(ids)
                    prefetch.request.covered_len = max(prefetch.request.covered_len, held)
                    over.append(prefetch.request)
        return over

    # ---- a step ------------------------------------------------------------------------------------------------------
    def first(self) -> Request | None:
        """The one whose turn it is; None if nobody waits."""
        return next(iter(self), None)

    def begin(self, request: Request, budget: int, promised: int) -> int | None:
        """Attach what is cached of a waiting prefetch, and give it slots for the next tokens.

        Args:
            budget: tokens at most, at least one. ``promised``: slots that running requests are expected to ask for.

        Returns:
            The token before which it ends in this step; None if it is over: complete, or dropped as memory is short.
        """
        prefetch, memory = self._waiting[request.id], self._memory
        cached = memory.tree.peek_prefix_len(request.ids, namespace=request.namespace)
        if cached == request.prompt_len:
            request.covered_len = request.prompt_len
            self._complete(prefetch)
            return None
        if cached < prefetch.done_len or not memory.fits(
            request, request.prompt_len, promised + self._held_for_others(prefetch)
        ):
            self.drop(request)
            return None
        memory.resume(request)
        end = min(request.prompt_len, request.tree_len + budget)
        try:
            is_grown = memory.grow_gently(request, end)
        except Exception:
            memory.release(request, keep=False)
            raise
        if not is_grown:
            memory.release(request, keep=False)
            self.drop(request)
            return None
        request.computed_len = request.attached_len = request.tree_len
        return end

    def ran(self, request: Request, end: int) -> bool:
        """A prefetch ran up to ``end`` and gave its tokens to the tree; returns whether it is complete, and over."""
        prefetch = self._waiting[request.id]
        prefetch.done_len = end
        self._hold(prefetch)
        if end == request.prompt_len:
            self._complete(prefetch)
        return end == request.prompt_len

    # ---- private -----------------------------------------------------------------------------------------------------
    def _complete(self, prefetch: _Prefetch) -> None:
        """It waits no more, and is kept for whoever uses it; the oldest one gives way if too many are."""
        del self._waiting[prefetch.request.id]
        self._kept[prefetch.request.id] = prefetch
        self._hold(prefetch)
        if len(self._kept) > _MOST_KEPT:
            self._let_go(next(iter(self._kept.values())))

    def _hold(self, prefetch: _Prefetch) -> None:
        """Hold what is cached of it now instead of what was."""
        before, prefetch.node = prefetch.node, self._memory.hold_cached(prefetch.request)
        if before is not None:
            self._memory.tree.unhold(before)
        if prefetch.node is not None:
            self._memory.tree.join(prefetch.node)  # many chunks are one edge, as if they had been one

    def _let_go(self, prefetch: _Prefetch) -> None:
        """Take one out; what is cached of it goes in its turn again."""
        self._waiting.pop(prefetch.request.id, None)
        self._kept.pop(prefetch.request.id, None)
        if prefetch.node is not None:
            self._memory.tree.unhold(prefetch.node)
            prefetch.node = None

    def _held_for_others(self, prefetch: _Prefetch) -> int:
        """Tokens that are evictable, but held for other prefetches."""
        own = set() if prefetch.node is None else {node.id for node in prefetch.node.path()}
        ends = (other.node for other in chain(self._waiting.values(), self._kept.values()) if other is not prefetch)
        nodes = {node.id: node for end in ends if end is not None for node in end.path()}
        return sum(len(node.key) for node in nodes.values() if not node.lock_ref and node.id not in own)

    # ---- checking ----------------------------------------------------------------------------------------------------
    def check_invariants(self) -> None:
        """Assert that holds are for those who are here, and that those who do not run own nothing.

        Raises:
            AssertionError: with the first invariant that does not hold.
        """
        holds: dict[int, int] = {}
        for prefetch in chain(self._waiting.values(), self._kept.values()):
            if prefetch.node is not None and not prefetch.node.is_evicted:
                holds[prefetch.node.id] = holds.get(prefetch.node.id, 0) + 1
        for node in self._memory.tree.walk():
            assert node.holds == holds.get(node.id, 0), "a node is held for nobody, or not for all who want it"
        for request in self:
            assert request.state is not State.FINISHED, "a prefetch has ended and waits"
            if request.state is State.WAITING:
                assert not request.slots, "a prefetch holds slots between two steps"
                assert request.node is None, "a prefetch locks a prefix between two steps"


def _is_over(prefetch: _Prefetch, now: float) -> bool:
    deadline = prefetch.request.deadline
    return deadline is not None and deadline <= now
