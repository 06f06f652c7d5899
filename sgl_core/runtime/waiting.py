"""The waiting queue: who is next, who has waited long enough, whose deadline is near.

The scheduler alone uses it. It owns the waiting requests and their orders: priority classes, within each the policy, and
above the policy a fair turn: a request is passed over a bounded number of times only. No torch.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice

from sgl_core.runtime.policy import POLICY_MAKERS, Policy
from sgl_core.runtime.radix_cache import RadixCache
from sgl_core.runtime.ranking import Ranking
from sgl_core.runtime.request import Request

__all__ = ["MAX_OVERTAKEN", "WaitingQueue"]

MAX_OVERTAKEN = 256
"""Admissions that a prefix-aware policy may put before a request's fair turn."""

_REMEMBERED_PREFIXES = 256
"""What the tree got lately; a priority class that missed more than these and has its turn is filed anew."""
_ASKED_CLASSES = 8
"""Priority classes, highest first, that are asked what they want."""
_PRIORITY_BLIND = ("fcfs", "random")
_AGEING = ("lpm", "dfs_weight")


class WaitingQueue:
    """Requests that wait for admission.

    Args:
        policy: see ``sgl_core.config.POLICIES``.
        tree: policies look at it.
        seed: of the random policy.
    """

    def __init__(self, policy: str, tree: RadixCache, seed: int) -> None:
        """Start empty."""
        self._policy = policy
        self._tree = tree
        self._seed = seed
        self._requests: dict[str, Request] = {}
        self._classes: dict[int, _PriorityClass] = {}
        self._priorities: list[int] = []  # ascending, of the classes; a class goes with its last request
        self._deadlines: Ranking[Request] = Ranking()
        self._cached: deque[tuple[Sequence[int], str | None]] = deque(maxlen=_REMEMBERED_PREFIXES)
        self._num_cached = 0
        self.version = 0
        """Changes with the set of those who wait."""

    @property
    def top_priority(self) -> int | None:
        """The highest priority that waits; None if nobody does, or if priorities do not count."""
        return self._priorities[-1] if self._priorities and self._policy not in _PRIORITY_BLIND else None

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        """All of them, in no order."""
        return iter(self._requests.values())

    def get(self, request_id: str) -> Request | None:
        """The request of that id, if it waits."""
        return self._requests.get(request_id)

    def add(self, request: Request, *, at_once: bool = False) -> None:
        """A request waits.

        Args:
            at_once: its fair turn is now (it was running before).
        """
        self.version += 1
        self._requests[request.id] = request
        self._class_of(request).add(request, at_once=at_once)
        if request.deadline is not None:
            self._deadlines.put(request, request.deadline)

    def remove(self, request: Request, *, admitted: bool = False) -> None:
        """It does not wait any more."""
        self.version += 1
        del self._requests[request.id]
        self._deadlines.discard(request)
        waiting = self._class_of(request)
        waiting.remove(request, admitted=admitted)
        if not waiting.requests:
            priority = self._priority_of(request)
            del self._classes[priority]
            self._priorities.remove(priority)

    def best(self) -> Request | None:
        """The one to admit next; None if nobody waits."""
        if not self._priorities:
            return None
        waiting = self._classes[self._priorities[-1]]
        self._catch_up(waiting)
        return waiting.best()

    def late(self, now: float) -> list[Request]:
        """Those whose deadline has passed."""
        found = []
        while (first := self._deadlines.first()) is not None and self._deadlines.rank(first) <= now:
            found.append(first)
            self._deadlines.discard(first)
        return found

    def prefix_cached(self, ids: Sequence[int], namespace: str | None) -> None:
        """The tree has got these ids: whoever shares them may move up, in each class when it has its turn."""
        self._cached.append((ids, namespace))
        self._num_cached += 1

    def wants(self, ids: Sequence[int], at_least: int, namespace: str | None) -> bool:
        """Whether a waiting request of one of the highest classes has ``at_least`` so many leading tokens in common with ``ids``."""
        highest = self._priorities[-_ASKED_CLASSES:]
        return any(self._classes[priority].order.wants(ids, at_least, namespace) for priority in highest)

    def _catch_up(self, waiting: _PriorityClass) -> None:
        """Tell a class what it missed, or file its requests anew where that is less work."""
        if not waiting.order.follows_cache:
            return
        missed = self._num_cached - waiting.seen_cached
        waiting.seen_cached = self._num_cached
        if missed > len(self._cached) or missed > len(waiting.requests):
            waiting.file_anew(self._new_order())
        else:
            for ids, namespace in islice(self._cached, len(self._cached) - missed, None):
                waiting.order.prefix_cached(ids, namespace)

    def _new_order(self) -> Policy:
        return POLICY_MAKERS[self._policy](self._tree, self._seed)

    def _priority_of(self, request: Request) -> int:
        return 0 if self._policy in _PRIORITY_BLIND else request.priority

    def _class_of(self, request: Request) -> _PriorityClass:
        priority = self._priority_of(request)
        if priority not in self._classes:
            ageing = self._policy in _AGEING
            self._classes[priority] = _PriorityClass(self._new_order(), ageing=ageing, seen_cached=self._num_cached)
            insort(self._priorities, priority)
        return self._classes[priority]


class _PriorityClass:
    """Requests of one priority.

    A request's fair turn comes after those that would go before it if programs took turns and each went by arrival; a
    request without a program is one of its own. ``best`` keeps to the policy until ``MAX_OVERTAKEN`` admissions more than
    those have gone first.
    """

    def __init__(self, order: Policy, *, ageing: bool, seen_cached: int) -> None:
        self.order = order
        self.requests: dict[str, Request] = {}
        self.seen_cached = seen_cached
        self._ageing = ageing
        self._turns: Ranking[Request] = Ranking()
        self._by_program: Counter[str] = Counter()
        self._num_admitted = 0

    def add(self, request: Request, *, at_once: bool) -> None:
        program = request.program_id or request.id
        turn = 0
        if self._ageing and not at_once:
            others = len(self._by_program) - (program in self._by_program)
            own = self._by_program[program]
            turn = self._num_admitted + min(len(self.requests), own + others * (own + 1)) + MAX_OVERTAKEN
        if self._ageing:
            self._turns.put(request, (turn, request.arrival))
            self._by_program[program] += 1
        self.requests[request.id] = request
        self.order.add(request)

    def remove(self, request: Request, *, admitted: bool) -> None:
        if self._ageing:
            program = request.program_id or request.id
            self._turns.discard(request)
            self._by_program[program] -= 1
            if not self._by_program[program]:
                del self._by_program[program]
        del self.requests[request.id]
        self._num_admitted += admitted
        self.order.remove(request, admitted=admitted)

    def best(self) -> Request:
        first = self._turns.first()
        if first is not None and self._turns.rank(first)[0] <= self._num_admitted:
            return first
        return self.order.best()

    def file_anew(self, order: Policy) -> None:
        self.order = order
        for request in self.requests.values():
            order.add(request)
