"""A small cache of things that are costly to make, by key: the graphs of a program, one for each set of static arguments."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, Generic, TypeVar

__all__ = ["Recent", "static_key"]

T = TypeVar("T")
_PLAIN: Final = frozenset({str, bytes, int, bool, type(None)})
"""Types whose equal values are the same in every respect."""


class Recent(Generic[T]):
    """The most recently used things. Any thread; each is made once, and not kept if that fails.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        """Hold nothing yet."""
        self._most = most
        self._lock = threading.RLock()
        self._things: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The thing of that key, made now if it is not there."""
        with self._lock:
            if key not in self._things:
                self._things[key] = make()
            self._things.move_to_end(key)
            while len(self._things) > self._most:
                self._things.popitem(last=False)
            return self._things[key]

    def values(self) -> list[T]:
        """All of them, the last used last."""
        with self._lock:
            return list(self._things.values())


def static_key(value: Any) -> Hashable:
    """A key that tells values apart as a program would; what cannot be hashed is only itself.

    Equal values can differ: 1 and True, 0.0 and -0.0, one moment in two time zones. So the type counts, and how a value is
    written.
    """
    if isinstance(value, Mapping):
        return ("dict", *((static_key(key), static_key(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return (type(value), *(static_key(item) for item in value))
    try:
        hash(value)
    except TypeError:
        return (type(value), id(value))
    return (type(value), value) if type(value) in _PLAIN else (type(value), value, repr(value))
