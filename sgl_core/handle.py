"""The handle that our own backends give out: one producer, any number of waiters of any kind.

The producer (an engine thread, a fake) calls ``push``, then ``finish`` or ``fail`` once; both are safe from any thread
and late calls are ignored, so an abort and a completion may race. Callbacks run outside the lock.

Ten thousand requests may wait at once, so a handle has only what somebody has asked of it: an event where a thread blocks,
lists where there is something to put into them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from sgl_core.ids import new_id
from sgl_core.types import GenDelta

__all__ = ["RequestHandle"]

ResultT = TypeVar("ResultT")
_log = logging.getLogger(__name__)


class RequestHandle(Generic[ResultT]):
    """Implements ``sgl_core.backend.Handle``.

    Args:
        on_abort: called with this handle's id when somebody aborts it before it is done; must be short.
        before_waiting: called when somebody is about to wait for it; raises where that would be for ever, as in a callback
            on the producer's own thread.
    """

    __slots__ = (
        "_before_waiting",
        "_deltas",
        "_done_callbacks",
        "_error",
        "_id",
        "_is_done",
        "_listeners",
        "_lock",
        "_on_abort",
        "_value",
        "_woken",
    )

    def __init__(
        self, on_abort: Callable[[str], None] | None = None, *, before_waiting: Callable[[], None] | None = None
    ) -> None:
        """Give it a fresh, unguessable id."""
        self._id = new_id()
        self._on_abort = on_abort
        self._before_waiting = before_waiting
        self._lock = threading.Lock()
        self._is_done = False
        self._woken: threading.Event | None = None
        self._value: ResultT | None = None
        self._error: BaseException | None = None
        self._deltas: list[GenDelta] | None = None
        self._done_callbacks: list[Callable[[], None]] | None = None
        self._listeners: list[_Listener] | None = None

    # ---- for waiters -------------------------------------------------------------------------------------------------
    @property
    def id(self) -> str:
        """Unique and unguessable."""
        return self._id

    def done(self) -> bool:
        """Whether a result or an error is there."""
        return self._is_done

    def error(self) -> BaseException | None:
        """The error it ended with, if it did."""
        return self._error

    def result(self, timeout: float | None = None) -> ResultT:
        """Wait for the result; see ``Handle.result``."""
        self._check_may_wait()
        if not self._wait(timeout):
            raise TimeoutError(f"request {self._id[:8]} is not done after {timeout} s; it goes on")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def abort(self) -> None:
        """Ask the producer to end it soon."""
        if not self.done() and self._on_abort is not None:
            self._on_abort(self._id)

    def add_done_callback(self, fn: Callable[[], None]) -> None:
        """Call ``fn`` once when done, at once if it is."""
        with self._lock:
            if not self._is_done:
                self._done_callbacks = self._done_callbacks or []
                self._done_callbacks.append(fn)
                return
        fn()

    def add_delta_callback(self, fn: Callable[[GenDelta], None]) -> None:
        """Call ``fn`` with every delta from the first on."""
        listener = _Listener(fn)
        with self._lock:
            listener.pending.extend(self._deltas or ())
            self._listeners = self._listeners or []
            self._listeners.append(listener)
        listener.drain()

    def __await__(self) -> Generator[Any, None, ResultT]:
        """Await the result; a cancelled waiter leaves the request alone (call ``abort`` to end it)."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self.add_done_callback(lambda: _wake(loop, waiter))
        yield from waiter.__await__()
        return self.result(0)

    def __iter__(self) -> Iterator[GenDelta]:
        """Iterate over deltas until done."""
        self._check_may_wait()
        deltas: queue.SimpleQueue[GenDelta | None] = queue.SimpleQueue()
        self.add_delta_callback(deltas.put)
        self.add_done_callback(lambda: deltas.put(None))
        while (delta := deltas.get()) is not None:
            yield delta
        self.result(0)

    async def __aiter__(self) -> AsyncIterator[GenDelta]:
        """Iterate over deltas until done, without blocking the loop."""
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[GenDelta | None] = asyncio.Queue()

        def put(delta: GenDelta | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
                loop.call_soon_threadsafe(deltas.put_nowait, delta)

        self.add_delta_callback(put)
        self.add_done_callback(lambda: put(None))
        while (delta := await deltas.get()) is not None:
            yield delta
        self.result(0)

    def _check_may_wait(self) -> None:
        if not self.done() and self._before_waiting is not None:
            self._before_waiting()

    def _wait(self, timeout: float | None) -> bool:
        """Whether it is done, at the latest after ``timeout`` seconds."""
        with self._lock:
            if self._is_done:
                return True
            self._woken = self._woken or threading.Event()
            woken = self._woken
        return woken.wait(timeout)

    # ---- for the producer --------------------------------------------------------------------------------------------
    def push(self, delta: GenDelta) -> None:
        """Publish a delta; ignored once the handle is done."""
        with self._lock:
            if self._is_done:
                return
            self._deltas = self._deltas or []
            self._deltas.append(delta)
            listeners = tuple(self._listeners or ())
            for listener in listeners:
                listener.pending.append(delta)
        for listener in listeners:
            listener.drain()

    def finish(self, value: ResultT) -> None:
        """End with a result."""
        self._end(value, None)

    def fail(self, error: BaseException) -> None:
        """End with an error, which every waiter gets."""
        self._end(None, error)

    def _end(self, value: ResultT | None, error: BaseException | None) -> None:
        with self._lock:
            if self._is_done:
                return
            self._value, self._error = value, error
            self._is_done = True
            callbacks, self._done_callbacks = self._done_callbacks, None
            woken, self._woken = self._woken, None
        if woken is not None:
            woken.set()
        for fn in callbacks or ():
            try:
                fn()
            except BaseException:  # it is the listener's own affair; the producer and the others go on
                _log.exception("a done callback of request %s failed", self._id[:8])


class _Listener:
    """Delivers deltas to one callback, in order, whoever calls ``drain``."""

    __slots__ = ("_busy", "_delivered", "fn", "pending")

    def __init__(self, fn: Callable[[GenDelta], None]) -> None:
        self.fn = fn
        self.pending: list[GenDelta] = []
        self._delivered = 0
        self._busy = threading.Lock()

    def drain(self) -> None:
        """Deliver what is pending, or leave it to the thread that is at it: a producer never waits for a listener."""
        while self._delivered < len(self.pending) and self._busy.acquire(blocking=False):
            try:
                self._deliver()
            finally:
                self._busy.release()

    def _deliver(self) -> None:
        while self._delivered < len(self.pending):
            delta = self.pending[self._delivered]
            self._delivered += 1
            try:
                self.fn(delta)
            except BaseException:  # it is the listener's own affair; the producer and the others go on
                _log.exception("a delta callback failed")


def _wake(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    def set_result() -> None:
        if not waiter.done():
            waiter.set_result(None)

    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
        loop.call_soon_threadsafe(set_result)
