"""The waiting queue: who is next, who has waited long enough, whose deadline is near.

The scheduler alone uses it. It owns the waiting requests and their orders: priority classes, within each the policy, and
above the policy a fair turn: a request is passed over a bounded number of times only. No torch.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator, Sequence

from sgl_core.runtime.policy import POLICY_MAKERS, Policy
from sgl_core.runtime.radix_cache import RadixCache
from sgl_core.runtime.ranking import Ranking
from sgl_core.runtime.request import Request

__all__ = ["MAX_OVERTAKEN", "WaitingQueue"]

MAX_OVERTAKEN = 256
"""Admissions that a prefix-aware policy may put before a request's fair turn."""

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

    @property
    def ranks_by_priority(self) -> bool:
        """Whether priorities count."""
        return self._policy not in _PRIORITY_BLIND

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
        self._requests[request.id] = request
        self._class_of(request).add(request, at_once=at_once)
        if request.deadline is not None:
            self._deadlines.put(request, request.deadline)

    def remove(self, request: Request, *, admitted: bool = False) -> None:
        """It does not wait any more."""
        del self._requests[request.id]
        self._deadlines.discard(request)
        waiting = self._class_of(request)
        waiting.remove(request, admitted=admitted)
        if not waiting.num_waiting:
            priority = self._priority_of(request)
            del self._classes[priority]
            self._priorities.remove(priority)

    def best(self) -> Request | None:
        """The one to admit next; None if nobody waits."""
        return self._classes[self._priorities[-1]].best() if self._priorities else None

    def late(self, now: float) -> list[Request]:
        """Those whose deadline has passed."""
        found = []
        while (first := self._deadlines.first()) is not None and self._deadlines.rank(first) <= now:
            found.append(first)
            self._deadlines.discard(first)
        return found

    def prefix_cached(self, ids: Sequence[int], namespace: str | None) -> None:
        """The tree has got these ids: whoever shares them may move up."""
        for waiting in self._classes.values():
            waiting.order.prefix_cached(ids, namespace)

    def wants(self, ids: Sequence[int], at_least: int, namespace: str | None) -> bool:
        """Whether a waiting request has ``at_least`` so many leading tokens in common with ``ids``."""
        return any(waiting.order.wants(ids, at_least, namespace) for waiting in self._classes.values())

    def _priority_of(self, request: Request) -> int:
        return request.priority if self.ranks_by_priority else 0

    def _class_of(self, request: Request) -> _PriorityClass:
        priority = self._priority_of(request)
        if priority not in self._classes:
            order = POLICY_MAKERS[self._policy](self._tree, self._seed)
            self._classes[priority] = _PriorityClass(order, ageing=self._policy in _AGEING)
            insort(self._priorities, priority)
        return self._classes[priority]


class _PriorityClass:
    """Requests of one priority.

    A request's fair turn comes after those that would go before it if programs took turns and each went by arrival; a
    request without a program is one of its own. ``best`` keeps to the policy until ``MAX_OVERTAKEN`` admissions more than
    those have gone first.
    """

    def __init__(self, order: Policy, *, ageing: bool) -> None:
        self.order = order
        self.num_waiting = 0
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
            turn = self._num_admitted + min(self.num_waiting, own + others * (own + 1)) + MAX_OVERTAKEN
        if self._ageing:
            self._turns.put(request, (turn, request.arrival))
            self._by_program[program] += 1
        self.num_waiting += 1
        self.order.add(request)

    def remove(self, request: Request, *, admitted: bool) -> None:
        if self._ageing:
            program = request.program_id or request.id
            self._turns.discard(request)
            self._by_program[program] -= 1
            if not self._by_program[program]:
                del self._by_program[program]
        self.num_waiting -= 1
        self._num_admitted += admitted
        self.order.remove(request, admitted=admitted)

    def best(self) -> Request:
        first = self._turns.first()
        if first is not None and self._turns.rank(first)[0] <= self._num_admitted:
            return first
        return self.order.best()
