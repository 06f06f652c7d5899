"""Which KV slots are free, and nothing else: the tensors are ``KVPool``'s, the contents the tree's or a request's.

Called by the scheduler, from the engine thread only. It owns the free list, kept as ascending half-open runs that never
touch, so a request's slots come out as few contiguous ranges as the pool's state allows, and returning neighbours heal
the gap between them. No torch.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from sgl_core.errors import InvalidArgumentError, SglError

__all__ = ["OutOfSlotsError", "SlotAllocator"]

_PROBED_RUNS = 64
"""Runs looked at for one that holds a whole allocation: bounds the search in a badly fragmented pool."""


class OutOfSlotsError(SglError, RuntimeError):
    """Fewer slots are free than were asked for; nothing was taken.

    Args:
        wanted: slots asked for.
        free: slots that were free.
    """

    def __init__(self, wanted: int, free: int) -> None:
        """Say both numbers and the cure."""
        self.wanted = wanted
        self.free = free
        super().__init__(f"wanted {wanted} slots, {free} are free. Evict {wanted - free} or more first, or retract a request.")


class SlotAllocator:
    """Hands out the slots ``0 .. num_slots - 1``, each to one owner at a time.

    Args:
        num_slots: size of the pool in tokens. The pool has one row more, ``padding_slot``, which is never handed out.

    Raises:
        InvalidArgumentError: ``num_slots`` is not a positive int.
    """

    def __init__(self, num_slots: int) -> None:
        """Start with every slot free, in one run."""
        if isinstance(num_slots, bool) or not isinstance(num_slots, int) or num_slots < 1:
            raise InvalidArgumentError("num_slots", num_slots, "an int of at least 1")
        self._num_slots = num_slots
        self._free_count = num_slots
        # Free run i is [_starts[i], _ends[i]); ascending, and _ends[i] < _starts[i + 1].
        self._starts = [0]
        self._ends = [num_slots]

    @property
    def num_slots(self) -> int:
        """Slots in total, free or not; the padding slot is not counted."""
        return self._num_slots

    @property
    def padding_slot(self) -> int:
        """The row that padded batch entries write to; belongs to nobody."""
        return self._num_slots

    @property
    def free_count(self) -> int:
        """Slots that can be allocated now."""
        return self._free_count

    def is_free(self, slot: int) -> bool:
        """Whether ``slot`` could be handed out; False for the padding slot and for numbers outside the pool."""
        index = bisect_right(self._starts, slot) - 1
        return index >= 0 and slot < self._ends[index]

    def allocate(self, n: int) -> list[int]:
        """Take ``n`` slots, in ascending order.

        One contiguous range where one of the lowest runs, or the last, is long enough; else the lowest runs in turn,
        which uses up the crumbs.

        Raises:
            OutOfSlotsError: ``n`` exceeds ``free_count``; nothing changes.
            InvalidArgumentError: ``n`` is not a non-negative int.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise InvalidArgumentError("n", n, "a non-negative int")
        if n > self._free_count:
            raise OutOfSlotsError(n, self._free_count)
        if n == 0:
            return []
        self._free_count -= n
        index = self._find_run(n)
        return self._take_lowest(n) if index is None else self._take_front(index, n)

    def free(self, slots: Iterable[int]) -> None:
        """Give slots back, in any order.

        Raises:
            InvalidArgumentError: a slot is free already, stands twice in ``slots`` or is not of this pool; nothing
                changes.
        """
        runs = self._allocated_runs(sorted(slots))
        for start, end in runs:
            self._insert_run(start, end)
            self._free_count += end - start

    def check_invariants(self) -> None:
        """Compare the free list with itself and with its counter.

        Raises:
            AssertionError: runs are empty, touch, overlap or leave the pool, or ``free_count`` is not their sum.
        """
        if len(self._starts) != len(self._ends):
            raise AssertionError(f"{len(self._starts)} run starts but {len(self._ends)} run ends")
        floor = -1
        for start, end in zip(self._starts, self._ends, strict=True):
            if not floor < start < end:
                raise AssertionError(f"free run [{start}, {end}) is empty, or touches the run that ends at {floor}")
            floor = end
        if floor > self._num_slots:
            raise AssertionError(f"free run ends at {floor}, beyond the pool's {self._num_slots} slots")
        recount = sum(self._ends) - sum(self._starts)
        if recount != self._free_count:
            raise AssertionError(f"free_count is {self._free_count}, the free runs hold {recount} slots")

    # ---- taking ------------------------------------------------------------------------------------------------------
    def _find_run(self, n: int) -> int | None:
        starts, ends = self._starts, self._ends
        for index in range(min(len(starts), _PROBED_RUNS)):
            if ends[index] - starts[index] >= n:
                return index
        last = len(starts) - 1  # usually the part of the pool that was never touched
        return last if ends[last] - starts[last] >= n else None

    def _take_front(self, index: int, n: int) -> list[int]:
        start = self._starts[index]
        if start + n == self._ends[index]:
            del self._starts[index], self._ends[index]
        else:
            self._starts[index] = start + n
        return list(range(start, start + n))

    def _take_lowest(self, n: int) -> list[int]:
        taken: list[int] = []
        num_whole = 0
        for start, end in zip(self._starts, self._ends, strict=True):
            if len(taken) + end - start > n:
                break
            taken.extend(range(start, end))
            num_whole += 1
        del self._starts[:num_whole], self._ends[:num_whole]
        if len(taken) < n:
            taken += self._take_front(0, n - len(taken))
        return taken

    # ---- giving back -------------------------------------------------------------------------------------------------
    def _allocated_runs(self, ordered: list[int]) -> list[tuple[int, int]]:
        """Group ascending slots into half-open runs, refusing what is not allocated. Changes nothing."""
        if not ordered:
            return []
        if ordered[0] < 0 or ordered[-1] >= self._num_slots:
            foreign = ordered[0] if ordered[0] < 0 else ordered[-1]
            raise InvalidArgumentError("slots", foreign, f"slots of this pool, 0 to {self._num_slots - 1}")
        runs: list[tuple[int, int]] = []
        start = end = ordered[0]
        for slot in ordered:
            if slot < end:
                raise InvalidArgumentError("slots", slot, "each slot once", "It has two owners, or one that frees twice.")
            if slot > end:
                runs.append((start, end))
                start = slot
            end = slot + 1
        runs.append((start, end))
        for start, end in runs:
            index = bisect_left(self._starts, end) - 1  # the last free run that starts before this one's end
            if index >= 0 and self._ends[index] > start:
                slot = max(start, self._starts[index])
                raise InvalidArgumentError("slots", slot, "allocated slots", "It is free already: freed twice.")
        return runs

    def _insert_run(self, start: int, end: int) -> None:
        starts, ends = self._starts, self._ends
        index = bisect_left(starts, start)
        joins_left = index > 0 and ends[index - 1] == start
        joins_right = index < len(starts) and starts[index] == end
        if joins_left and joins_right:
            ends[index - 1] = ends[index]
            del starts[index], ends[index]
        elif joins_left:
            ends[index - 1] = end
        elif joins_right:
            starts[index] = start
        else:
            starts.insert(index, start)
            ends.insert(index, end)
