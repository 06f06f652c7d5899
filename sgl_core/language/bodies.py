"""Running a program's body: here, in a thread of its own, or on the event loop; and what happens when it has ended.

A body is a callable that returns what the program returns: the author's function for the interpreter, the passing of a graph's
checkpoints for a compiled one. Whoever runs it waits for every stream of the run, so a program leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from sgl_core.language.run import ProgramRun
from sgl_core.language.state import ProgramState

__all__ = ["arun_body", "in_thread", "run_body", "start_body"]


def run_body(state: ProgramState, body: Callable[[], Any]) -> None:
    """Run the body here and wait for all of the program.

    Raises:
        BaseException: what the body raised; or the first error in any stream that nobody has read.
    """
    run = state.run
    try:
        try:
            with _ending(run):
                state.ret_value = body()
        except Exception:
            run.wait()
            raise
        run.wait()
    except Exception:
        raise
    except BaseException:  # KeyboardInterrupt, also while waiting: nobody wants the rest any more
        run.cancel()
        raise
    run.raise_unread()


def start_body(state: ProgramState, body: Callable[[], Any], name: str) -> ProgramState:
    """Run the body in a thread of its own; what goes wrong stays with the run, and readers of the returned state get it."""
    outside = ProgramState(state.run, state.stream, is_outside=True)

    def run_quietly() -> None:
        try:
            run_body(state, body)
        except BaseException as error:
            state.run.body_error = error
        finally:
            outside.ret_value = state.ret_value
            state.run.ended.set()

    work = functools.partial(contextvars.copy_context().run, run_quietly)
    threading.Thread(target=work, name=f"sgl-{name}", daemon=True).start()
    return outside


async def arun_body(state: ProgramState, body: Callable[[], Awaitable[Any]]) -> None:
    """Like ``run_body``, on the loop; cancelling it aborts the program."""
    run = state.run
    try:
        try:
            with _ending(run):
                state.ret_value = await body()
        except Exception:
            await run.wait_async()
            raise
        await run.wait_async()
    except Exception:
        raise
    except BaseException:  # CancelledError, KeyboardInterrupt, also while waiting
        run.cancel()
        raise
    run.raise_unread()


async def in_thread(work: Callable[[], None], name: str) -> None:
    """Run ``work`` in a thread of its own. A shared pool could be full of bodies that wait for each other."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def report(error: BaseException | None) -> None:
        if ended.cancelled():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except StopIteration as raised:  # no future can hold one, and nobody would be woken
            error = RuntimeError("the program raised StopIteration")
            error.__cause__ = raised
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(report, error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name=name, daemon=True).start()
    await ended


@contextlib.contextmanager
def _ending(run: ProgramRun) -> Iterator[None]:
    """Tell the run when its body has ended, and with what."""
    try:
        yield
    except BaseException as error:
        run.end_body(error)
        raise
    run.end_body()
