"""Gates: how many requests may be in flight at once, for threads and event loops alike.

A ``Gate`` hands out places, a ``Slot`` is what one request holds at several gates. The scopes of compiled runnables own the
gates (``sgl_langchain.scope``); the models, and the programs that chains are run as, take slots.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sgl_core.backend import Handle
from sgl_core.errors import InvalidArgumentError

__all__ = ["FREE_SLOT", "Flights", "Gate", "Slot", "StreamLeft", "on_a_loop"]

HandleT = TypeVar("HandleT", bound=Handle[Any])
Wake = Callable[[], object]


class Gate:
    """At most ``limit`` holders at once; those who wait are let in by the order in which they came.

    ``ask`` never blocks; whoever wants to wait enters a ``Slot``.

    Args:
        limit: holders at once.

    Raises:
        InvalidArgumentError: ``limit`` is no positive int.
    """

    __slots__ = ("_free", "_lock", "_waiting", "limit")

    def __init__(self, limit: int) -> None:
        """All places are free."""
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidArgumentError("limit", limit, "a positive int")
        self.limit = limit
        self._free = limit
        self._lock = threading.Lock()
        self._waiting: deque[Wake] = deque()

    def ask(self, wake: Wake) -> bool:
        """Take a place now (True), or stand in the queue: ``wake`` is called, on any thread, once a place is the caller's."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            self._waiting.append(wake)
            return False

    def withdraw(self, wake: Wake) -> bool:
        """Leave the queue; False if a place came first, which the caller then has to ``release``."""
        with self._lock:
            try:
                self._waiting.remove(wake)
            except ValueError:
                return False
            return True

    def release(self) -> None:
        """Give a place back; the first who waits has it then."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                wake = self._waiting.popleft()
            try:
                wake()
            except RuntimeError:  # an event loop that was closed meanwhile: the place is the next one's
                continue
            return


class StreamLeft(GeneratorExit):
    """The stream that a request was for has been left.

    It passes through a chain as the closing of a generator does: nothing handles it, retries or prints it, and no later step
    takes half an answer for a whole one. On an event loop it is a ``CancelledError``, see ``on_a_loop``.
    """


@contextmanager
def on_a_loop() -> Iterator[None]:
    """For coroutines: a stream that was left cancels those who work for it.

    A coroutine that gets the error of a task it awaits is closed by a ``GeneratorExit``, and what it then awaits to tell its
    callbacks turns that into a ``RuntimeError``, which fallbacks and retries handle.
    """
    try:
        yield
    except StreamLeft as left:
        raise asyncio.CancelledError(*left.args) from None


class Flights:
    """Requests that are under way. Once aborted, it aborts whatever is added, too. Thread-safe.

    Attributes:
        is_aborted: for good.
    """

    __slots__ = ("_handles", "_lock", "is_aborted")

    def __init__(self) -> None:
        """None yet."""
        self._handles: dict[int, Handle[Any]] = {}  # by identity: handles promise no hash
        self.is_aborted = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._handles)

    def add(self, handle: Handle[Any]) -> None:
        """List a request."""
        with self._lock:
            if not self.is_aborted:
                self._handles[id(handle)] = handle
                return
        handle.abort()

    def discard(self, handle: Handle[Any]) -> None:
        """It has ended."""
        with self._lock:
            self._handles.pop(id(handle), None)

    def abort(self) -> None:
        """End those that are listed, and every later one."""
        with self._lock:
            self.is_aborted = True
            handles = list(self._handles.values())
        for handle in handles:
            handle.abort()


class Slot:
    """What one request holds: a place at each of some gates, and a line on lists of requests.

    A context manager, ``with`` or ``async with``: entering waits for the gates, leaving gives the places back unless a request
    has been tracked. Then they are the request's, and come back when it ends.

    Args:
        gates: in the order in which they are passed.
        flights: lists that the request is to stand on.
    """

    __slots__ = ("_asking", "_flights", "_gates", "_held", "_is_tracked")

    def __init__(self, gates: Sequence[Gate] = (), flights: Sequence[Flights] = ()) -> None:
        """Hold nothing yet."""
        self._gates = gates
        self._flights = flights
        self._held: list[Gate] = []
        self._asking: tuple[Gate, Wake] | None = None
        self._is_tracked = False

    def ask(self, wake: Wake) -> bool:
        """Take the places that are free; True if these are all. Otherwise ``wake`` is called when it is time to ask again.

        For callers that must not wait; they ``release`` a slot that they give up. Others enter it.
        """
        if self._asking is not None:
            self._held.append(self._asking[0])
            self._asking = None
        while len(self._held) < len(self._gates):
            gate = self._gates[len(self._held)]
            self._asking = gate, wake  # first: ``wake`` may ask again, on another thread, before the next line returns
            if not gate.ask(wake):
                return False
            self._asking = None
            self._held.append(gate)
        return True

    def track(self, handle: HandleT) -> HandleT:
        """Leave the places to a request that has been submitted, and list it. Returns the handle.

        Raises:
            StreamLeft: its scope has been aborted, and the request with it.
        """
        if not (self._gates or self._flights):
            return handle
        self._is_tracked = True
        for flights in self._flights:
            flights.add(handle)
        handle.add_done_callback(partial(self._ended, handle))
        self.check()
        return handle

    def check(self) -> None:
        """To be called when the request has ended: what an aborted one has said so far must not pass for its answer.

        Raises:
            StreamLeft: its scope has been aborted.
        """
        if any(flights.is_aborted for flights in self._flights):
            raise StreamLeft("the stream that this request was for has been closed")

    def release(self) -> None:
        """Give back what it holds, a place in a queue too. May be called twice, and on any thread."""
        asking, self._asking = self._asking, None
        if asking is not None and not asking[0].withdraw(asking[1]):
            asking[0].release()
        while self._held:
            try:
                gate = self._held.pop()  # atomic: the request's end and its caller may both come here
            except IndexError:
                return
            gate.release()

    def __enter__(self) -> Self:
        """Wait for the places; interrupted, it holds none."""
        woken = threading.Lock()
        woken.acquire()
        try:
            while not self.ask(woken.release):
                woken.acquire()
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Give the places back, unless a request has them."""
        if not self._is_tracked:
            self.release()

    async def __aenter__(self) -> Self:
        """Like ``__enter__``, without blocking the loop."""
        if not self._gates:
            return self
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        try:
            while not self.ask(partial(loop.call_soon_threadsafe, _resolve, woken)):
                await woken
                woken = loop.create_future()
        except BaseException:
            self.release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Like ``__exit__``."""
        self.__exit__(kind, error, traceback)

    def _ended(self, handle: Handle[Any]) -> None:
        for flights in self._flights:
            flights.discard(handle)
        self.release()


class _FreeSlot(Slot):
    """A slot without gates and lists. All share one, which has no state."""

    __slots__ = ()

    def __enter__(self) -> Self:
        """At once."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Nothing to give back."""


FREE_SLOT: Final = _FreeSlot()
"""The slot of requests that nothing limits and nobody lists."""


def _resolve(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
