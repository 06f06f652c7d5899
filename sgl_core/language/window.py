"""Many things that run without threads, a bounded number of them at once. Used by the batches of compiled programs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["Window"]

T = TypeVar("T")


class Window(Generic[T]):
    """Starts jobs as others end. A job returns at once, with a future; who ends one starts the next.

    Args:
        size: jobs that have begun and not ended, at most.
    """

    def __init__(self, size: int) -> None:
        """Start nothing yet."""
        self._size = size
        self._lock = threading.Lock()
        self._num_running = 0
        self._is_starting = False
        self._waiting: deque[tuple[Callable[[], Future[T]], Future[T]]] = deque()

    def submit(self, job: Callable[[], Future[T]]) -> Future[T]:
        """Start the job now or later; the future ends as the job's does, or with what starting it raised."""
        outcome: Future[T] = Future()
        with self._lock:
            self._waiting.append((job, outcome))
        self._start_waiting()
        return outcome

    def shutdown(self) -> None:
        """Start nothing more; jobs that have not begun are cancelled."""
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        for _, outcome in waiting:
            outcome.cancel()

    def _start_waiting(self) -> None:
        """One thread at a time starts jobs, in a loop: a job that ends at once must not start the next one inside itself."""
        while (entry := self._next()) is not None:
            job, outcome = entry
            self._start(job, outcome)
            with self._lock:
                self._is_starting = False

    def _start(self, job: Callable[[], Future[T]], outcome: Future[T]) -> None:
        if not outcome.set_running_or_notify_cancel():
            self._end_one()
            return
        try:
            inner = job()
        except BaseException as error:
            outcome.set_exception(error)
            self._end_one()
        else:
            inner.add_done_callback(lambda ended: self._ended(ended, outcome))

    def _next(self) -> tuple[Callable[[], Future[T]], Future[T]] | None:
        with self._lock:
            if self._is_starting or not self._waiting or self._num_running >= self._size:
                return None
            self._is_starting = True
            self._num_running += 1
            return self._waiting.popleft()

    def _ended(self, inner: Future[T], outcome: Future[T]) -> None:
        error = inner.exception()
        if error is None:
            outcome.set_result(inner.result())
        else:
            outcome.set_exception(error)
        self._end_one()
        self._start_waiting()

    def _end_one(self) -> None:
        with self._lock:
            self._num_running -= 1
