"""Running requests: all of them submitted before any is awaited, and aborted when their caller goes away.

Called by the models. Errors come out as LangChain's, see ``sgl_langchain.errors``. A request takes its place in the scopes of
compiled runnables around it (``sgl_langchain.scope``) before it is submitted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from sgl_core.backend import Backend, Handle
from sgl_core.errors import RequestAborted
from sgl_core.plugins import RequestRecord, get_host
from sgl_core.types import GenRequest, GenResult, ScoreRequest, ScoreResult
from sgl_langchain.errors import langchain_errors
from sgl_langchain.gates import Slot, on_a_loop
from sgl_langchain.scope import in_flight

__all__ = ["apieces", "aresults", "ascored", "observed", "pieces", "results", "scored"]

HandleT = TypeVar("HandleT", bound=Handle[Any])


def results(engine: Backend, requests: Iterable[GenRequest]) -> list[list[GenResult]]:
    """What each request gives (one result, or ``n``), in order; the first error by position, with everything else aborted."""
    handles: list[Handle[Any]] = []
    slots: list[Slot] = []
    with langchain_errors():
        try:
            for request in requests:
                with in_flight() as slot:
                    slots.append(slot)
                    handles.append(observed(slot.track(engine.submit(request))))
            outcomes = [_as_list(handle.result()) for handle in handles]
            _check(slots)
            return outcomes
        finally:
            _abort(handles)


async def aresults(engine: Backend, requests: Iterable[GenRequest]) -> list[list[GenResult]]:
    """Like ``results``; cancelling it aborts the requests."""
    handles: list[Handle[Any]] = []
    slots: list[Slot] = []
    with langchain_errors(), on_a_loop():
        try:
            for request in requests:
                async with in_flight() as slot:
                    slots.append(slot)
                    handles.append(observed(slot.track(engine.submit(request))))
            outcomes = [_as_list(await handle) for handle in handles]
            _check(slots)
            return outcomes
        finally:
            _abort(handles)


def scored(engine: Backend, request: ScoreRequest) -> ScoreResult:
    """Score and wait; the request is aborted if the caller goes away."""
    with langchain_errors():
        with in_flight() as slot:
            handle = slot.track(engine.score(request))
        try:
            result = handle.result()
            slot.check()
            return result
        except RequestAborted:  # a score has no first half to give
            slot.check()
            raise
        finally:
            handle.abort()


async def ascored(engine: Backend, request: ScoreRequest) -> ScoreResult:
    """Like ``scored``."""
    with langchain_errors(), on_a_loop():
        async with in_flight() as slot:
            handle = slot.track(engine.score(request))
        try:
            result = await handle
            slot.check()
            return result
        except RequestAborted:
            slot.check()
            raise
        finally:
            handle.abort()


def pieces(engine: Backend, request: GenRequest) -> Generator[str | GenResult, None, None]:
    """Text as it comes, then the result; closing it aborts the request."""
    with langchain_errors():
        with in_flight() as slot:
            handle = observed(slot.track(engine.submit(request)))
        try:
            for delta in handle:
                if delta.text:
                    yield delta.text
            result = handle.result()
            slot.check()
            yield result
        finally:
            handle.abort()


async def apieces(engine: Backend, request: GenRequest) -> AsyncGenerator[str | GenResult, None]:
    """Like ``pieces``; cancelling it aborts the request, too."""
    with langchain_errors(), on_a_loop():
        async with in_flight() as slot:
            handle = observed(slot.track(engine.submit(request)))
        try:
            async for delta in handle:
                if delta.text:
                    yield delta.text
            result = await handle
            slot.check()
            yield result
        finally:
            handle.abort()


def observed(handle: HandleT) -> HandleT:
    """Tell plugins that observe requests when this one ends. Returns it."""
    host = get_host()
    if host.has_observers:
        handle.add_done_callback(partial(_tell, handle))
    return handle


def _tell(handle: Handle[Any]) -> None:
    get_host().request_finished(RequestRecord.of(handle, "langchain"))


def _as_list(given: GenResult | list[GenResult]) -> list[GenResult]:
    return given if isinstance(given, list) else [given]


def _check(slots: Sequence[Slot]) -> None:
    for slot in slots:
        slot.check()


def _abort(handles: Sequence[Handle[Any]]) -> None:
    """No effect on those that have ended."""
    for handle in handles:
        handle.abort()
