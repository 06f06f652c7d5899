"""Attempts that nobody wants any more: their requests are aborted, and no new one begins.

``BestOfN`` gives every attempt an ``Exit`` of its own. It rides in DSPy's settings, which cross DSPy's own threads, and
``candidates.attempt`` shows it each request; so whoever holds it can end an attempt that blocks in another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import dspy

from sgl_core.backend import Handle

__all__ = ["AttemptLeft", "Exit", "leavable", "raise_if_left"]

_SETTING: Final = "sgl_exit"


class AttemptLeft(BaseException):
    """Ends an attempt that has been left.

    No ``Exception``: like a cancellation it passes through whatever retries or forgives errors on its way.
    """


class Exit:
    """The way out of one attempt. Thread-safe; owns nothing, its requests are those of the calls that wait for them.

    An exit that is made inside another attempt leads out of both: whoever leaves that one leaves this one, too.
    """

    def __init__(self) -> None:
        """Nobody has left."""
        self._outer = _current()
        self._lock = threading.Lock()
        self._waiting: set[Handle[Any]] = set()
        self._is_left = False

    @property
    def is_left(self) -> bool:
        """Whether ``leave`` was called, here or further out."""
        return self._is_left or (self._outer is not None and self._outer.is_left)

    def inside(self) -> AbstractContextManager[None]:
        """Calls of LMs in this context can be left through it."""
        context: AbstractContextManager[None] = dspy.context(**{_SETTING: self})
        return context

    def leave(self) -> None:
        """Abort what is being waited for, and let nothing new begin."""
        with self._lock:
            self._is_left = True
            waiting = tuple(self._waiting)
        for handle in waiting:
            handle.abort()

    @contextmanager
    def watching(self, handle: Handle[Any]) -> Iterator[None]:
        """Abort ``handle`` when somebody leaves meanwhile, and raise AttemptLeft for what comes of that."""
        with nullcontext() if self._outer is None else self._outer.watching(handle), self._watching(handle):
            yield

    @contextmanager
    def _watching(self, handle: Handle[Any]) -> Iterator[None]:
        with self._lock:
            self._waiting.add(handle)
            is_late = self._is_left
        if is_late:
            handle.abort()
        try:
            yield
        except Exception:
            if self._is_left:
                raise AttemptLeft from None
            raise
        finally:
            with self._lock:
                self._waiting.discard(handle)


def raise_if_left() -> None:
    """Before a request is submitted.

    Raises:
        AttemptLeft: the attempt that it belongs to has been left.
    """
    way_out = _current()
    if way_out is not None and way_out.is_left:
        raise AttemptLeft


@contextmanager
def leavable(handle: Handle[Any]) -> Iterator[None]:
    """Around waiting for a request: inside an attempt that can be left, leaving it aborts the request."""
    way_out = _current()
    if way_out is None:
        yield
        return
    with way_out.watching(handle):
        yield


def _current() -> Exit | None:
    found: Exit | None = dspy.settings.get(_SETTING)
    return found
