"""A priority queue whose members may change rank or leave; ``heapq``'s entry-finder recipe, kept to a size of its own.

The waiting queue uses one for each order that it keeps. No torch.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["Ranking"]

ItemT = TypeVar("ItemT", bound=Hashable)

_SLACK = 16


class Ranking(Generic[ItemT]):
    """Items by rank, the least first; equal ranks in the order in which they were put.

    Every method costs O(log n), amortised: an entry that was moved or discarded stays in the heap until it comes up, or
    until such entries outnumber the living.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._numbers = itertools.count()
        self._live: dict[ItemT, tuple[Any, int, ItemT]] = {}
        self._heap: list[tuple[Any, int, ItemT]] = []

    def __len__(self) -> int:
        """Items in it."""
        return len(self._live)

    def __contains__(self, item: ItemT) -> bool:
        """Whether it is in it."""
        return item in self._live

    def __iter__(self) -> Iterator[ItemT]:
        """All items, in no order."""
        return iter(self._live)

    def put(self, item: ItemT, rank: Any) -> None:
        """Add an item, or give it another rank. Ranks are compared with one another only."""
        entry = self._live[item] = (rank, next(self._numbers), item)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._live) + _SLACK:
            self._heap = list(self._live.values())
            heapq.heapify(self._heap)

    def discard(self, item: ItemT) -> None:
        """Take an item out, if it is in."""
        self._live.pop(item, None)

    def rank(self, item: ItemT) -> Any:
        """Its rank; None if it is not in it."""
        entry = self._live.get(item)
        return None if entry is None else entry[0]

    def first(self) -> ItemT | None:
        """The item of least rank, which stays; None if there is none."""
        while self._heap:
            entry = self._heap[0]
            if self._live.get(entry[2]) is entry:
                return entry[2]
            heapq.heappop(self._heap)
        return None
