"""``run_batch``: one program, many arguments, a bounded number of threads, one outcome each."""

from __future__ import annotations

import concurrent.futures
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.run import ProgramRun, derived_seed

if TYPE_CHECKING:
    from sgl_core.language.state import ProgramState

__all__ = ["BatchItem", "Outcomes", "run_batch"]

BatchItem = Mapping[str, Any] | Sequence[Any]

# A body's thread waits while its program is in the engine, so this bounds programs in flight, not work. It is an engine's
# default max_running: fewer would leave rows of its batch empty, more would only queue there instead of here.
_MOST_THREADS: Final = 64


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
    started: list[ProgramRun] = field(default_factory=list)

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


def run_batch(
    run: Callable[..., ProgramState],
    batch: Sequence[BatchItem],
    how: Outcomes,
    *,
    seed: int | None,
    in_order: bool,
    as_completed: bool,
) -> Any:
    """See ``SglFunction.run_batch``."""
    if in_order and as_completed:
        raise InvalidArgumentError("generator_style and as_completed", "both", "one of them")
    jobs = [_job(run, index, item, seed) for index, item in enumerate(batch)]
    threads = how.threads_for(len(jobs))
    if as_completed:
        return _completed(jobs, threads, how)
    if in_order:
        return _ordered(jobs, threads, how)
    with _submitted(jobs, threads, how) as futures:
        concurrent.futures.wait(futures)
        return [_outcome(future, how) for future in futures]


def _job(run: Callable[..., ProgramState], index: int, item: BatchItem, seed: int | None) -> Callable[[], ProgramState]:
    options = {} if seed is None else {"seed": derived_seed(seed, index)}
    if isinstance(item, Mapping):
        return lambda: run(**{**item, **options})
    if isinstance(item, tuple | list):
        return lambda: run(*item, **options)
    raise InvalidArgumentError(f"batch[{index}]", type(item).__name__, "a dict of arguments, or a tuple")


def _ordered(jobs: Sequence[Callable[[], ProgramState]], threads: int, how: Outcomes) -> Iterator[Any]:
    with _submitted(jobs, threads, how) as futures:
        for future in futures:
            yield _outcome(future, how)


def _completed(jobs: Sequence[Callable[[], ProgramState]], threads: int, how: Outcomes) -> Iterator[tuple[int, Any]]:
    with _submitted(jobs, threads, how) as futures:
        places = {future: index for index, future in enumerate(futures)}
        for future in concurrent.futures.as_completed(futures):
            yield places[future], _outcome(future, how)


def _outcome(future: Future, how: Outcomes) -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    if how.return_errors:
        return error
    raise error


@contextlib.contextmanager
def _submitted(jobs: Sequence[Callable[[], ProgramState]], threads: int, how: Outcomes) -> Iterator[list[Future]]:
    """All jobs, queued. When the block is left early, those that have not started never run and the others are cancelled."""
    with (
        _progress(len(jobs), is_shown=how.progress_bar) as advance,
        concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="sgl-batch") as pool,
    ):
        futures = [pool.submit(job) for job in jobs]
        for future in futures:
            future.add_done_callback(lambda _: advance())
        try:
            yield futures
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if not all(future.done() for future in futures):  # Ctrl-C, or an iterator that nobody wants any more
                for run in how.started:
                    run.cancel()


@contextlib.contextmanager
def _progress(total: int, *, is_shown: bool) -> Iterator[Callable[[], None]]:
    """A function to call once for each finished item; it may be called from any thread."""
    if not is_shown:
        yield lambda: None
        return
    try:
        from rich.progress import Progress
    except ImportError:
        yield _plain_progress(total)
        sys.stderr.write("\n")
        return
    with Progress() as bar:
        task = bar.add_task("programs", total=total)
        yield lambda: bar.advance(task)


def _plain_progress(total: int) -> Callable[[], None]:
    done: list[None] = []  # append is atomic

    def advance() -> None:
        done.append(None)
        sys.stderr.write(f"\r{len(done)}/{total} programs")
        sys.stderr.flush()

    return advance
