"""Prefixes that callers of one backend asked to be kept: ``CacheConfig(retention="long")`` and ``SglLM.prefetch``.

Owns the pins. The least recently used ones give way to new ones, and closing the reference to the backend ends all of them.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from sgl_core.backend import Backend
from sgl_core.errors import EngineError, InvalidArgumentError, PoolExhaustedError
from sgl_core.types import PrefetchRequest, Usage

__all__ = ["KeptPrefix", "PrefixPins"]

_MOST_PREFIXES: Final = 32


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """A prefix that is kept.

    Args:
        resource: its name, for ``CacheConfig(resource=...)``.
        ids: its tokens. ``namespace``: where it is shared.
        found: what was cached of it when it was computed.
        pin: of the engine; None where the backend cannot pin, and keeps it as any other.
    """

    resource: str
    ids: tuple[int, ...]
    namespace: str | None
    found: Usage
    pin: Any = None


class PrefixPins:
    """See the module. Thread-safe.

    Args:
        most: prefixes at a time.
    """

    def __init__(self, most: int = _MOST_PREFIXES) -> None:
        """Keep nothing yet."""
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, KeptPrefix] = OrderedDict()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def keep(self, backend: Backend, ids: tuple[int, ...], namespace: str | None) -> tuple[KeptPrefix, bool]:
        """Keep a prefix; waits until it is computed.

        Returns:
            It, and whether it is new.

        Raises:
            PoolExhaustedError: it does not fit even when all others have given way.
            InvalidArgumentError: the backend keeps no prefixes, or this one does not fit.
        """
        resource = _name(ids, namespace)
        known = self._touched(resource)
        if known is not None:
            return known, False
        made = self._made(backend, resource, ids, namespace)
        with self._lock:
            before = self._kept.pop(resource, None)  # another thread asked for the same
            self._kept[resource] = made
            surplus = [self._kept.popitem(last=False)[1] for _ in range(len(self._kept) - self._most)]
        for one in (before, *surplus):
            _end(one)
        return made, True

    def find(self, resource: str) -> KeptPrefix:
        """A prefix by its name.

        Raises:
            InvalidArgumentError: none is kept under it.
        """
        known = self._touched(resource)
        if known is None:
            cure = "It was given back, or gave way to others: call lm.prefetch(...) again."
            raise InvalidArgumentError("prompt_cache.resource", resource, "what lm.prefetch(...) returned", cure)
        return known

    def close(self) -> None:
        """Keep nothing any more."""
        with self._lock:
            kept, self._kept = list(self._kept.values()), OrderedDict()
        for one in kept:
            _end(one)

    def _touched(self, resource: str) -> KeptPrefix | None:
        with self._lock:
            known = self._kept.get(resource)
            if known is not None:
                self._kept.move_to_end(resource)
            return known

    def _made(self, backend: Backend, resource: str, ids: tuple[int, ...], namespace: str | None) -> KeptPrefix:
        pin = getattr(backend, "pin", None)
        if pin is None:
            found = backend.prefetch(PrefetchRequest(ids, namespace=namespace)).result().usage
            return KeptPrefix(resource, ids, namespace, found)
        while True:
            try:
                pinned = pin(ids, namespace=namespace)
            except PoolExhaustedError:
                if not self._drop_oldest():
                    raise
            else:
                return KeptPrefix(resource, ids, namespace, Usage(len(ids), pinned.cached_tokens, 0), pinned)

    def _drop_oldest(self) -> bool:
        with self._lock:
            oldest = self._kept.popitem(last=False)[1] if self._kept else None
        _end(oldest)
        return oldest is not None


def _end(prefix: KeptPrefix | None) -> None:
    if prefix is not None and prefix.pin is not None:
        try:
            prefix.pin.unpin()
        except EngineError:
            return  # it was closed, and its pins are gone with it


def _name(ids: tuple[int, ...], namespace: str | None) -> str:
    return "sgl-" + hashlib.blake2b(repr((namespace, ids)).encode(), digest_size=12).hexdigest()
