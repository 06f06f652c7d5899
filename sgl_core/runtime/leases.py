"""The engines that one object of a front end uses: leased from the registry at first use, given back when the object goes.

An adapter's model object owns one ``EngineLeases``; its copies share it, and a pickle carries none. Engines that a caller brought
are the caller's, they never come here.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Self

from sgl_core.config import EngineConfig
from sgl_core.runtime.registry import EngineLease, acquire

if TYPE_CHECKING:
    from sgl_core.backend import Backend

__all__ = ["EngineLeases"]


class EngineLeases:
    """Leases by configuration. Thread-safe; all of them are equal, for they are no part of what a model object means."""

    def __init__(self) -> None:
        """Lease nothing yet."""
        self._lock = threading.Lock()
        self._held: dict[EngineConfig, EngineLease] = {}
        weakref.finalize(self, _give_back, self._held).atexit = False  # at exit the engines close themselves

    def engine(self, config: EngineConfig) -> Backend:
        """The engine for ``config``; loads the model if nobody in the process has it.

        Raises:
            MissingExtraError: the runtime is not installed.
            ModelError: the model cannot be found, read or served.
        """
        with self._lock:
            if config not in self._held:
                self._held[config] = acquire(config)
            return self._held[config].engine

    async def aengine(self, config: EngineConfig) -> Backend:
        """Like ``engine``; a model is loaded without blocking the loop."""
        lease = self._held.get(config)
        return lease.engine if lease is not None else await asyncio.to_thread(self.engine, config)

    def held(self, config: EngineConfig) -> Backend | None:
        """The engine for ``config`` if it is leased already; loads nothing."""
        lease = self._held.get(config)
        return None if lease is None else lease.engine

    def close(self) -> None:
        """Give every lease back; the next use leases anew."""
        with self._lock:
            leases = list(self._held.values())
            self._held.clear()
        _close(leases)

    def __copy__(self) -> Self:
        """Itself: copies of a model object share its engines."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself."""
        return self

    def __reduce__(self) -> tuple[type[EngineLeases], tuple[()]]:
        """A fresh one, in whatever process it wakes up."""
        return EngineLeases, ()

    def __eq__(self, other: object) -> bool:
        """Any two are equal."""
        return isinstance(other, EngineLeases)

    __hash__ = None  # type: ignore[assignment]


def _give_back(held: dict[EngineConfig, EngineLease]) -> None:
    """Close what a dead object held, on a thread of its own.

    The garbage collector calls this on whatever thread it runs, perhaps an engine's own or one that holds the registry's lock,
    and the last lease waits for its engine to end.
    """
    if held:
        threading.Thread(target=_close, args=(tuple(held.values()),), name="sgl-lease-return").start()


def _close(leases: Collection[EngineLease]) -> None:
    for lease in leases:
        lease.close()
