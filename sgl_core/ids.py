"""Ids of requests and programs: unique, and unguessable, as whoever knows one may abort what it names.

The operating system is asked for many at a time: each question lets go of the interpreter, and a busy process waits long to get
it back. Called by handles and programs; owns the ids that are still to be given out.
"""

from __future__ import annotations

import os
import threading
from typing import Final

__all__ = ["new_id"]

_ID_BYTES: Final = 16
_BATCH: Final = 256


class _Ids:
    """Ids in stock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stock: list[str] = []

    def new(self) -> str:
        with self._lock:
            if not self._stock:
                noise = os.urandom(_ID_BYTES * _BATCH).hex()
                self._stock = [noise[start : start + 2 * _ID_BYTES] for start in range(0, len(noise), 2 * _ID_BYTES)]
            return self._stock.pop()


_ids = _Ids()


def new_id() -> str:
    """32 hexadecimal digits."""
    return _ids.new()


def _start_afresh() -> None:
    global _ids
    _ids = _Ids()  # a forked process must not give out its parent's ids, and the lock may be held


os.register_at_fork(after_in_child=_start_afresh)
