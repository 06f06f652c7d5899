"""Requests that are the same are computed once while one of them is under way.

DSPy submits a slow item of a batch a second time while the first attempt still runs, and programs ask the same greedy question
from several threads. Whoever asks for what is being computed already gets a seat on that flight. Nothing is kept after it has
landed: remembering answers is the business of DSPy's own cache. Called by ``candidates``; one object for each backend reference.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import overload

from sgl_core.backend import Handle
from sgl_core.errors import RequestAborted
from sgl_core.handle import RequestHandle
from sgl_core.types import GenResult

__all__ = ["Flights"]


class Flights:
    """Requests under way by what they ask for. Thread-safe."""

    def __init__(self) -> None:
        """None is under way."""
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, _Flight] = {}

    def join(self, key: Hashable, start: Callable[[], Handle[GenResult]]) -> Handle[GenResult]:
        """A handle of one's own on the request of ``key``; the last one to abort it ends the request.

        Args:
            key: equal only for requests with equal results.
            start: submits the request, if nobody has; must not wait.
        """
        flight = self._board(key)
        if flight is None:
            handle = start()  # not under the lock: it may compile a grammar, and landing flights must not wait for that
            flight = self._board(key, _Flight(handle))
            if flight.handle is not handle:
                handle.abort()  # somebody was faster
        seat: RequestHandle[GenResult] = RequestHandle(lambda _: self._leave(key, flight, seat))
        flight.handle.add_delta_callback(seat.push)
        flight.handle.add_done_callback(lambda: self._land(key, flight, seat))
        return seat

    @overload
    def _board(self, key: Hashable) -> _Flight | None: ...
    @overload
    def _board(self, key: Hashable, started: _Flight) -> _Flight: ...
    def _board(self, key: Hashable, started: _Flight | None = None) -> _Flight | None:
        """Take a seat on the flight that is under way, or else on the one that was started, if one was."""
        with self._lock:
            flight = self._under_way.get(key, started)
            if flight is not None:
                self._under_way[key] = flight
                flight.seats += 1
            return flight

    def _leave(self, key: Hashable, flight: _Flight, seat: RequestHandle[GenResult]) -> None:
        with self._lock:
            if seat in flight.left:
                return  # two threads abort it at once
            flight.left.add(seat)
            is_last = len(flight.left) == flight.seats
            if is_last:
                self._forget(key, flight)
        if is_last:
            flight.handle.abort()  # its result, with what there is of it, comes to this seat
        else:
            seat.fail(RequestAborted("the request was aborted by this caller; others still wait for it"))

    def _land(self, key: Hashable, flight: _Flight, seat: RequestHandle[GenResult]) -> None:
        with self._lock:
            self._forget(key, flight)
        error = flight.handle.error()
        if error is not None:
            seat.fail(error)
        else:
            seat.finish(flight.handle.result(0))

    def _forget(self, key: Hashable, flight: _Flight) -> None:
        if self._under_way.get(key) is flight:
            del self._under_way[key]


class _Flight:
    """A request, how many came to wait for it, and who of them has left."""

    __slots__ = ("handle", "left", "seats")

    def __init__(self, handle: Handle[GenResult]) -> None:
        self.handle = handle
        self.seats = 0
        self.left: set[RequestHandle[GenResult]] = set()
