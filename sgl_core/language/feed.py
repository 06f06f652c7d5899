"""Text as it comes, as iterators over a callback."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterator

from sgl_core.language.variables import Put

__all__ = ["aiterate", "iterate"]

Subscribe = Callable[[Put], None]


def iterate(subscribe: Subscribe) -> Iterator[str]:
    """Yield what ``subscribe``'s callback is called with, until None; empty pieces are left out."""
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    subscribe(pieces.put)
    while (piece := pieces.get()) is not None:
        if piece:
            yield piece


async def aiterate(subscribe: Subscribe) -> AsyncIterator[str]:
    """Like ``iterate``, without blocking the loop."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def put(piece: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody reads any more
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    subscribe(put)
    while (piece := await pieces.get()) is not None:
        if piece:
            yield piece
