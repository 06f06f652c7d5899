"""``run_batch`` and ``arun_batch``: one program, many arguments, a bounded number of threads, one outcome each.

Called by ``SglFunction``. Owns the threads of a batch and its progress bar; the runs own themselves.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.run import ProgramRun, derived_seed

if TYPE_CHECKING:
    from sgl_core.language.state import ProgramState

__all__ = [
    "BATCH_OPTIONS",
    "BatchItem",
    "Outcomes",
    "Pool",
    "StartedRuns",
    "ThreadPool",
    "arun_batch",
    "num_items",
    "run_batch",
]

BatchItem = Mapping[str, Any] | Sequence[Any]

_SHARED_OPTIONS: Final = frozenset({"num_threads", "progress_bar", "return_errors"})
BATCH_OPTIONS: Final = {
    "run_batch": _SHARED_OPTIONS | {"as_completed", "generator_style"},
    "arun_batch": _SHARED_OPTIONS,
}
"""The keywords of both methods that are their own, for errors."""

T = TypeVar("T")

# A body's thread waits while its program is in the engine, so this bounds programs in flight, not work. It is an engine's
# default max_running: fewer would leave rows of its batch empty, more would only queue there instead of here.
_MOST_THREADS: Final = 64


class StartedRuns:
    """The runs of a batch that have begun, so that those under way can be cancelled when it is left early."""

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._runs: list[ProgramRun] = []
        self._is_left = False

    def append(self, run: ProgramRun) -> None:
        """Add a run; one that begins just when the batch is left is cancelled at once."""
        with self._lock:
            self._runs.append(run)
            is_late = self._is_left
        if is_late:
            run.cancel()

    def cancel(self) -> None:
        """Cancel all of them, and whichever still comes."""
        with self._lock:
            self._is_left = True
            runs = tuple(self._runs)
        for run in runs:
            run.cancel()


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How a batch is run and told.

    Args:
        num_threads: an int, or "auto".
        progress_bar: show progress.
        return_errors: errors stand in their places instead of being raised.
        started: every run that has begun, for cancelling what still runs when the batch is left early.
    """

    num_threads: int | str
    progress_bar: bool
    return_errors: bool
    started: StartedRuns = field(default_factory=StartedRuns)

    def threads_for(self, num_items: int) -> int:
        """Threads for a batch.

        Raises:
            InvalidArgumentError: ``num_threads`` is neither "auto" nor a positive int.
        """
        if self.num_threads == "auto":
            return max(1, min(num_items, _MOST_THREADS))
        if isinstance(self.num_threads, bool) or not isinstance(self.num_threads, int) or self.num_threads < 1:
            raise InvalidArgumentError("num_threads", self.num_threads, 'a positive int, or "auto"')
        return self.num_threads


Future = concurrent.futures.Future["ProgramState"]
Job = Callable[[], Any]


class Pool(Protocol):
    """Runs the jobs of a batch, a bounded number at once."""

    def submit(self, job: Job, /) -> Future:
        """Queue a job."""

    def shutdown(self) -> None:
        """Cancel the jobs that have not begun, and wait for nothing."""


class ThreadPool:
    """Jobs that return a state, each in one of some threads; a ``Pool``."""

    def __init__(self, threads: int) -> None:
        """Start no thread yet."""
        self._executor = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="sgl-batch")

    def submit(self, job: Job, /) -> Future:
        """Queue a job; it sees the context variables of whoever queues it, and sets its own."""
        return self._executor.submit(contextvars.copy_context().run, job)

    def shutdown(self) -> None:
        """Cancel the jobs that have not begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def num_items(batch: Sequence[BatchItem]) -> int:
    """How many items a batch has.

    Raises:
        InvalidArgumentError: it is no list of them.
    """
    if not isinstance(batch, Sized) or isinstance(batch, str | bytes | Mapping):
        cure = "Write list(...) around an iterator, and [...] around a single item."
        raise InvalidArgumentError("batch", type(batch).__name__, "a list of dicts or tuples", cure)
    return len(batch)


def run_batch(
    run: Callable[..., Any],
    batch: Sequence[BatchItem],
    how: Outcomes,
    pool: Pool,
    *,
    seed: int | None,
    in_order: bool,
    as_completed: bool,
) -> Any:
    """See ``SglFunction.run_batch``; ``run`` takes an item's arguments and gives what the jobs of ``pool`` give."""
    if in_order and as_completed:
        raise InvalidArgumentError("generator_style and as_completed", "both", "one of them")
    jobs = [_job(run, index, item, seed) for index, item in enumerate(batch)]
    if as_completed:
        return _completed(jobs, pool, how)
    if in_order:
        return _ordered(jobs, pool, how)
    with _submitted(jobs, pool, how) as futures:
        concurrent.futures.wait(futures)
        return [_outcome(index, future, how) for index, future in enumerate(futures)]


async def arun_batch(
    arun: Callable[..., Awaitable[ProgramState]], batch: Sequence[BatchItem], how: Outcomes, *, seed: int | None
) -> list[Any]:
    """See ``SglFunction.arun_batch``. Cancelling it cancels the runs that have begun; the others never begin."""
    num_items(batch)
    jobs = [_job(arun, index, item, seed) for index, item in enumerate(batch)]
    turns = asyncio.Semaphore(how.threads_for(len(jobs)))

    async def outcome(job: Callable[[], Awaitable[ProgramState]]) -> ProgramState:
        async with turns:
            try:
                return await job()
            finally:
                advance()

    with _progress(len(jobs), is_shown=how.progress_bar) as advance:
        found = await asyncio.gather(*map(outcome, jobs), return_exceptions=True)
    return [_told(index, one, how) if isinstance(one, BaseException) else one for index, one in enumerate(found)]


def _job(run: Callable[..., T], index: int, item: BatchItem, seed: int | None) -> Callable[[], T]:
    options = {} if seed is None else {"seed": derived_seed(seed, index)}
    if isinstance(item, Mapping):
        return lambda: run(**{**item, **options})
    if isinstance(item, tuple | list):
        return lambda: run(*item, **options)
    raise InvalidArgumentError(f"batch[{index}]", type(item).__name__, "a dict of arguments, or a tuple")


def _ordered(jobs: Sequence[Job], pool: Pool, how: Outcomes) -> Iterator[Any]:
    with _submitted(jobs, pool, how) as futures:
        for index, future in enumerate(futures):
            yield _outcome(index, future, how)


def _completed(jobs: Sequence[Job], pool: Pool, how: Outcomes) -> Iterator[tuple[int, Any]]:
    with _submitted(jobs, pool, how) as futures:
        places = {future: index for index, future in enumerate(futures)}
        for future in concurrent.futures.as_completed(futures):
            yield places[future], _outcome(places[future], future, how)


def _outcome(index: int, future: Future, how: Outcomes) -> Any:
    error = future.exception()
    return future.result() if error is None else _told(index, error, how)


def _told(index: int, error: BaseException, how: Outcomes) -> BaseException:
    """The error with a note of its place in the batch: returned, or raised."""
    error.add_note(f"in batch[{index}]")
    if how.return_errors:
        return error
    raise error


@contextlib.contextmanager
def _submitted(jobs: Sequence[Job], pool: Pool, how: Outcomes) -> Iterator[list[Future]]:
    """All jobs, queued. When the block is left early, those that have not started never run and the others are cancelled."""
    with _progress(len(jobs), is_shown=how.progress_bar) as advance:
        futures: list[Future] = []
        try:
            for job in jobs:
                future = pool.submit(job)
                futures.append(future)
                future.add_done_callback(lambda _: advance())
            yield futures
        finally:
            pool.shutdown()
            if not all(future.done() for future in futures):  # Ctrl-C, or an iterator that nobody wants any more
                how.started.cancel()
            concurrent.futures.wait([future for future in futures if not future.cancelled()])


@contextlib.contextmanager
def _progress(total: int, *, is_shown: bool) -> Iterator[Callable[[], None]]:
    """A function to call once for each finished item; it may be called from any thread."""
    if not is_shown:
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield _plain_progress(total)
        sys.stderr.write("\n")
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("programs", total=total)
        yield lambda: bar.advance(task)


def _plain_progress(total: int) -> Callable[[], None]:
    done: list[None] = []  # append is atomic

    def advance() -> None:
        done.append(None)
        sys.stderr.write(f"\r{len(done)}/{total} programs")
        sys.stderr.flush()

    return advance
