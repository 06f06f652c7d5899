"""The scope that a compiled runnable runs in: how many model requests may be in flight, and which there are.

A ``ContextVar`` carries it through LangChain's own code, its thread pools and its tasks, down to the models. They take a slot
for every request; without a scope that costs a look-up and holds nothing back. A scope owns its gate and the list of its
requests. Scopes nest, and a request then has to pass every gate around it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Final, Self, TypeVar

from sgl_langchain.gates import FREE_SLOT, Flights, Gate, Slot

__all__ = ["Scope", "current_scope", "in_flight", "scope"]

ItemT = TypeVar("ItemT")


class Scope:
    """A scope; ``scope`` opens one inside that of its caller.

    It is in force where ``active`` says so, and in whatever takes its context over from there: threads of LangChain's pools,
    tasks. They may outlive it, and are then still held back by its gate.

    Args:
        limit: requests in flight at once; None is no limit of its own.
        parent: the scope around it.
        is_abortable: it lists its requests, so that ``abort`` can end them.

    Attributes:
        gates: those that its requests pass, the innermost first.
        flights: the lists that its requests stand on.
    """

    __slots__ = ("_own_flights", "flights", "gates", "parent")

    def __init__(self, limit: int | None = None, parent: Scope | None = None, *, is_abortable: bool = False) -> None:
        """No request yet."""
        self.parent = parent
        self._own_flights = Flights() if is_abortable else None
        self.gates: tuple[Gate, ...] = () if limit is None else (Gate(limit),)
        self.flights: tuple[Flights, ...] = () if self._own_flights is None else (self._own_flights,)
        if parent is not None:
            self.gates += parent.gates
            self.flights += parent.flights

    def active(self) -> AbstractContextManager[Self]:
        """In force in this context until the end of the block."""
        return _in_force(self)

    def slot(self) -> Slot:
        """A slot for one request; see ``in_flight``."""
        return Slot(self.gates, self.flights) if self.gates or self.flights else FREE_SLOT

    def abort(self) -> None:
        """End the requests that are under way, and each that is still to come; for scopes that are ``is_abortable``."""
        if self._own_flights is not None:
            self._own_flights.abort()

    # ---- generators: a scope is in force while they run, not while their consumer does -----------------------------------
    def iterate(self, opened: Callable[[], Iterator[ItemT]]) -> Generator[ItemT, None, None]:
        """The items of a stream that runs in this scope; leaving it early aborts its requests.

        LangChain reads the streams inside a chain to their ends when the chain's own is closed. That is soon done once the
        requests have ended, each with ``StreamLeft``.
        """
        with self.active():
            items = opened()
        try:
            yield from _steps(self, items)
        except BaseException as error:
            self._aborted_by(error)
            raise
        finally:
            with self.active():
                _close(items)

    async def aiterate(self, opened: Callable[[], AsyncIterator[ItemT]]) -> AsyncGenerator[ItemT, None]:
        """Like ``iterate``; cancelling it aborts the requests, too."""
        with self.active():
            items = opened()
        try:
            while True:
                with self.active():
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield item
        except BaseException as error:
            self._aborted_by(error)
            raise
        finally:
            with self.active():
                await _aclose(items)

    def _aborted_by(self, error: BaseException) -> None:
        """A stream that is left, cancelled or interrupted takes its requests along; one that fails has ended by itself."""
        if not isinstance(error, Exception):
            self.abort()

    def outside(self, items: Iterator[ItemT]) -> Iterator[ItemT]:
        """A stream that is read in this scope and runs in the one around it: what its own models do is no part of this."""
        return _steps(self.parent, items)

    def aoutside(self, items: AsyncIterator[ItemT]) -> AsyncIterator[ItemT]:
        """Like ``outside``."""
        return _asteps(self.parent, items)


_current: Final[ContextVar[Scope | None]] = ContextVar("sgl_langchain_scope", default=None)


def current_scope() -> Scope | None:
    """The scope in force here."""
    return _current.get()


def scope(limit: int | None = None, *, is_abortable: bool = False) -> AbstractContextManager[Scope]:
    """A scope inside the one in force here, in force itself until the end of the block.

    Args:
        limit: model requests in flight at once; None is no limit but those around it.
        is_abortable: ``abort`` of the scope ends its requests.

    Raises:
        InvalidArgumentError: ``limit`` is no positive int.
    """
    return Scope(limit, _current.get(), is_abortable=is_abortable).active()


def in_flight() -> Slot:
    """A slot for one request, to be entered before it is submitted, by ``with`` or ``async with``.

    The block waits until every gate lets the request pass, and the request takes the slot along until it ends::

        with in_flight() as slot:
            handle = slot.track(engine.submit(request))
        result = handle.result()
        slot.check()

    Without a scope this does nothing.
    """
    found = _current.get()
    return FREE_SLOT if found is None else found.slot()


@contextmanager
def _in_force(found: Any) -> Iterator[Any]:
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)


def _steps(found: Scope | None, items: Iterator[ItemT]) -> Iterator[ItemT]:
    """The items, each of them computed in a scope."""
    while True:
        with _in_force(found):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


async def _asteps(found: Scope | None, items: AsyncIterator[ItemT]) -> AsyncIterator[ItemT]:
    """Like ``_steps``."""
    while True:
        with _in_force(found):
            try:
                item = await anext(items)
            except StopAsyncIteration:
                return
        yield item


def _close(items: Iterator[Any]) -> None:
    if isinstance(items, Generator):
        items.close()


async def _aclose(items: AsyncIterator[Any]) -> None:
    if isinstance(items, AsyncGenerator):
        await items.aclose()
