"""Running requests: all of them submitted before any is awaited, and aborted when their caller goes away.

Called by both models. Errors come out as LangChain's, see ``sgl_langchain.errors``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence

from sgl_core.backend import Backend, Handle
from sgl_core.types import GenRequest, GenResult
from sgl_langchain.errors import langchain_errors

__all__ = ["apieces", "aresults", "pieces", "results"]


def results(engine: Backend, requests: Sequence[GenRequest]) -> list[GenResult]:
    """Results in order; the first error by position, with everything else aborted."""
    handles: list[Handle[GenResult]] = []
    with langchain_errors():
        try:
            handles += (engine.submit(request) for request in requests)
            return [handle.result() for handle in handles]
        finally:
            _abort(handles)


async def aresults(engine: Backend, requests: Sequence[GenRequest]) -> list[GenResult]:
    """Like ``results``; cancelling it aborts the requests."""
    handles: list[Handle[GenResult]] = []
    with langchain_errors():
        try:
            handles += (engine.submit(request) for request in requests)
            return [await handle for handle in handles]
        finally:
            _abort(handles)


def pieces(engine: Backend, request: GenRequest) -> Generator[str | GenResult, None, None]:
    """Text as it comes, then the result; closing it aborts the request."""
    with langchain_errors():
        handle = engine.submit(request)
        try:
            for delta in handle:
                if delta.text:
                    yield delta.text
            yield handle.result()
        finally:
            handle.abort()


async def apieces(engine: Backend, request: GenRequest) -> AsyncGenerator[str | GenResult, None]:
    """Like ``pieces``; cancelling it aborts the request, too."""
    with langchain_errors():
        handle = engine.submit(request)
        try:
            async for delta in handle:
                if delta.text:
                    yield delta.text
            yield await handle
        finally:
            handle.abort()


def _abort(handles: Sequence[Handle[GenResult]]) -> None:
    """No effect on those that have ended."""
    for handle in handles:
        handle.abort()
