"""The radix tree in its plainest form: dictionaries with one entry for every cached prefix, to compare the real one with.

Used by property tests and simulations, which do everything to both. Slow on purpose: nothing here is clever enough to be
wrong in the same way. It owns what the tree should hold; slots that go are returned to the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

__all__ = ["Ids", "Namespace", "Place", "RadixModel"]

Ids = tuple[int, ...]
Namespace = str | None
Place = tuple[Namespace, Ids]
"""One token of the tree: its namespace, and all tokens up to and with it."""


def _places(ids: Ids, namespace: Namespace) -> list[Place]:
    return [(namespace, ids[: end + 1]) for end in range(len(ids))]


class RadixModel:
    """What a ``RadixCache`` should hold, by place.

    Args:
        expectation_stamps: matches and inserts that an announcement outlives.
    """

    def __init__(self, expectation_stamps: int) -> None:
        """Start empty."""
        self.slots: dict[Place, int] = {}
        self.stamps: dict[Place, int] = {}  # of the last use
        self.locks: Counter[Place] = Counter()  # handles that end there, where there are any
        self.expected: dict[Place, tuple[int, int]] = {}  # uses to come, and the last stamp at which they count
        self.now = 0
        self._expectation_stamps = expectation_stamps

    # ---- looking up and adding ---------------------------------------------------------------------------------------
    def match_len(self, ids: Ids, namespace: Namespace) -> int:
        """Length of the longest cached prefix."""
        length = 0
        while length < len(ids) and (namespace, ids[: length + 1]) in self.slots:
            length += 1
        return length

    def match(self, ids: Ids, namespace: Namespace) -> list[int]:
        """Use a cached prefix, whole, and return its slots."""
        for place in _places(ids, namespace):
            uses, last = self.expected.pop(place, (0, 0))
            if uses > 1:
                self.expected[place] = (uses - 1, last)
        return self._touch(ids, namespace)

    def insert(self, ids: Ids, slots: Iterable[int], namespace: Namespace) -> list[int]:
        """Add what is missing and return the slots of all."""
        for place, slot in zip(_places(ids, namespace), slots, strict=True):
            self.slots.setdefault(place, slot)
        return self._touch(ids, namespace)

    def continuations(self, ids: Ids, namespace: Namespace) -> set[int]:
        """Tokens that are cached behind exactly these ids."""
        return {there[-1] for where, there in self.slots if where == namespace and there[:-1] == ids}

    def _touch(self, ids: Ids, namespace: Namespace) -> list[int]:
        self.now += 1
        places = _places(ids, namespace)
        self.stamps.update(dict.fromkeys(places, self.now))
        return [self.slots[place] for place in places]

    # ---- what is in use, and what will be ----------------------------------------------------------------------------
    def lock(self, place: Place) -> None:
        """Add a handle that protects ``place`` and everything before it."""
        self.locks[place] += 1

    def unlock(self, place: Place) -> None:
        """Take back one ``lock``."""
        self.locks[place] -= 1
        if not self.locks[place]:
            del self.locks[place]

    def locked(self) -> set[Place]:
        """Places that a handle ends at or goes through."""
        return {place for namespace, ids in self.locks for place in _places(ids, namespace)}

    def unlocked_size(self, namespace: Namespace) -> int:
        """Tokens of a namespace that nobody locks."""
        return sum(place[0] == namespace for place in self.slots.keys() - self.locked())

    def ends(self) -> list[Place]:
        """What may go now: places that nothing follows and nobody locks."""
        locked = self.locked()
        followed = {(namespace, ids[:-1]) for namespace, ids in self.slots}
        return [place for place in self.slots if place not in followed and place not in locked]

    def expect(self, place: Place, uses: int) -> None:
        """Announce uses of the prefix that ends at ``place``; the larger announcement holds."""
        if uses and place[1]:
            standing = self.standing().get(place, (0, 0))[0]
            self.expected[place] = (max(uses, standing), self.now + self._expectation_stamps)

    def standing(self) -> dict[Place, tuple[int, int]]:
        """Announcements that have not run out."""
        return {place: (uses, last) for place, (uses, last) in self.expected.items() if last >= self.now}

    # ---- what goes ---------------------------------------------------------------------------------------------------
    def evict(self, num_tokens: int, is_spared: Callable[[int], bool] | None = None) -> set[int]:
        """Drop so many tokens, one by one: the oldest end, those that are expected or spared after all others.

        Args:
            num_tokens: fewer go when there are fewer.
            is_spared: by the stamp of the last use, which all tokens of a node share.
        """
        return self._evict(self.ends, num_tokens, is_spared)

    def evict_within(self, namespace: Namespace, num_tokens: int) -> set[int]:
        """The same, among the tokens of one namespace."""
        return self._evict(lambda: [place for place in self.ends() if place[0] == namespace], num_tokens, None)

    def forget(self, ids: Ids, namespace: Namespace, keep_len: int) -> set[int]:
        """Drop the end of ``ids`` as long as it may go, nothing is expected of it and it lies beyond ``keep_len``."""
        self.expected = self.standing()
        freed: set[int] = set()
        while len(ids) > keep_len and (namespace, ids) in self.ends() and (namespace, ids) not in self.expected:
            freed.add(self._drop((namespace, ids)))
            ids = ids[:-1]
        return freed

    def _evict(self, ends: Callable[[], list[Place]], num_tokens: int, is_spared: Callable[[int], bool] | None) -> set[int]:
        def turn(place: Place) -> tuple[bool, int]:
            stamp = self.stamps[place]
            return (place in self.expected or (is_spared is not None and is_spared(stamp)), stamp)

        self.expected = self.standing()
        freed: set[int] = set()
        while len(freed) < num_tokens and (candidates := ends()):
            freed.add(self._drop(min(candidates, key=turn)))
        return freed

    def _drop(self, place: Place) -> int:
        """Take one end out; what was expected of it is expected of the place before."""
        del self.stamps[place]
        before = (place[0], place[1][:-1])
        moved = self.expected.pop(place, None)
        if moved is not None and before[1]:
            uses, last = self.expected.get(before, (0, 0))
            self.expected[before] = (max(uses, moved[0]), max(last, moved[1]))
        return self.slots.pop(place)
