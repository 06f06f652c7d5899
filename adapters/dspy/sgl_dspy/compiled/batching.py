"""``run_batch``: a module on many examples at once, in one event loop instead of one blocked thread each.

What all of them begin with is computed first; then every example is a task, and the engine sees all their requests together.
Results and errors come back as from ``dspy.Parallel``. A ``_Batch`` belongs to one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import dspy

from sgl_core.errors import InvalidArgumentError, RequestAborted, SglError
from sgl_core.types import PrefetchRequest
from sgl_dspy.compiled.compiling import compiled_scope, named_predictors, plan_of
from sgl_dspy.compiled.static_prefix import PromptReader, StaticPrefix, static_prefix

__all__ = ["run_batch"]

_MOST_THREADS: Final = 32
"""For modules that cannot be awaited."""
_LEAST_PREFIX: Final = 64
"""Tokens from which computing a prefix ahead is worth a request."""

_logger = logging.getLogger(__name__)


def run_batch(
    module: Any,
    examples: Sequence[Any],
    *,
    max_errors: int | None = None,
    return_failed_examples: bool = False,
    provide_traceback: bool | None = None,
    max_concurrency: int | None = None,
    progress: bool = True,
) -> Any:
    """Run a module on examples, all at once.

    Args:
        module: compiled or not. With an ``aforward`` it is awaited, otherwise it runs in at most 32 threads.
        examples: ``dspy.Example`` (its inputs are used), dicts of inputs, or tuples of positional arguments.
        max_errors: failed examples that end the batch; None is DSPy's setting.
        return_failed_examples: return these and their errors, too.
        provide_traceback: write tracebacks to the log; None is DSPy's setting.
        max_concurrency: examples under way at most; None is no limit.
        progress: show a bar on stderr.

    Returns:
        Results in the order of the examples, None for those that failed; with ``return_failed_examples`` a tuple of results,
        failed examples and their errors, in the same order. Inside a running loop it blocks that loop until all are done.

    Raises:
        InvalidArgumentError: an argument cannot be used; nothing has run.
        RequestAborted: ``max_errors`` examples failed; the last error is its cause.
    """
    if not isinstance(module, dspy.Module):
        cure = "Make an instance of it first." if isinstance(module, type) else ""
        raise InvalidArgumentError("module", type(module).__name__, "a dspy.Module", cure)
    if isinstance(examples, str | dspy.Example | dict) or not isinstance(examples, Sequence):
        raise InvalidArgumentError("examples", type(examples).__name__, "a list of examples")
    for name, value in (("max_errors", max_errors), ("max_concurrency", max_concurrency)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InvalidArgumentError(name, value, "an int of at least 1, or None")
    calls = [_call_of(index, example) for index, example in enumerate(examples)]
    batch = _Batch(
        module,
        calls,
        max_errors=dspy.settings.max_errors if max_errors is None else max_errors,
        with_traceback=dspy.settings.provide_traceback if provide_traceback is None else provide_traceback,
        max_concurrency=max_concurrency,
    )
    if calls:
        if len(calls) > 1:
            _compute_prefixes(module)
        with _progress(len(calls), is_shown=progress) as advance:
            _run_apart(batch, advance)
    if not return_failed_examples:
        return batch.results
    failed = sorted(batch.errors)
    return batch.results, [examples[index] for index in failed], [batch.errors[index] for index in failed]


Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Batch:
    """Examples under way; used on one event loop."""

    def __init__(
        self, module: Any, calls: Sequence[Call], *, max_errors: int, with_traceback: bool, max_concurrency: int | None
    ) -> None:
        self.results: list[Any] = [None] * len(calls)
        self.errors: dict[int, Exception] = {}
        self._module = module
        self._calls = calls
        self._max_errors = max_errors
        self._with_traceback = with_traceback
        self._width = len(calls) if max_concurrency is None else min(max_concurrency, len(calls))
        self._is_async = hasattr(type(module), "aforward") or "aforward" in module.__dict__

    async def run(self, advance: Callable[[], None]) -> None:
        """All of them, each a task with a context of its own.

        Raises:
            RequestAborted: too many failed.
        """
        places = asyncio.Semaphore(self._width)
        threads = ThreadPoolExecutor(1 if self._is_async else min(self._width, _MOST_THREADS), thread_name_prefix="sgl-batch")
        tasks = [asyncio.ensure_future(self._one(index, places, threads, advance)) for index in range(len(self._calls))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            threads.shutdown(wait=False, cancel_futures=True)

    async def _one(
        self, index: int, places: asyncio.Semaphore, threads: ThreadPoolExecutor, advance: Callable[[], None]
    ) -> None:
        args, kwargs = self._calls[index]
        async with places:
            try:
                if self._is_async:
                    self.results[index] = await self._module.acall(*args, **kwargs)
                else:
                    call = partial(contextvars.copy_context().run, self._module, *args, **kwargs)
                    self.results[index] = await asyncio.get_running_loop().run_in_executor(threads, call)
            except Exception as error:
                self._note(index, error)
        advance()

    def _note(self, index: int, error: Exception) -> None:
        self.errors[index] = error
        info = error if self._with_traceback else None
        _logger.error("run_batch: example %d failed: %s: %s", index, type(error).__name__, error, exc_info=info)
        if len(self.errors) >= self._max_errors:
            message = (
                f"run_batch: {len(self.errors)} examples failed, which is max_errors; the last error is the cause of this one"
            )
            raise RequestAborted(message) from error


def _call_of(index: int, example: Any) -> Call:
    if isinstance(example, dspy.Example):
        return (), dict(example.inputs())
    if isinstance(example, dict):
        return (), example
    if isinstance(example, tuple):
        return example, {}
    raise InvalidArgumentError(f"examples[{index}]", type(example).__name__, "a dspy.Example, a dict or a tuple")


def _run_apart(batch: _Batch, advance: Callable[[], None]) -> None:
    """Run it on a loop of its own: here, or in another thread where a loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(batch.run(advance))
        return
    with ThreadPoolExecutor(1, thread_name_prefix="sgl-batch-loop") as beside:
        stop = threading.Event()
        done = beside.submit(contextvars.copy_context().run, asyncio.run, _until(stop, batch.run(advance)))
        try:
            done.result()
        except BaseException:
            stop.set()
            raise


async def _until(stop: threading.Event, work: Any) -> None:
    """Do ``work``, and leave it when ``stop`` is set: Ctrl-C reaches another thread than this one."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait([task], timeout=0.2)
        if stop.is_set():
            task.cancel()
    await task


# ---- what comes first ------------------------------------------------------------------------------------------------
def _compute_prefixes(module: Any) -> None:
    """Have prefixes computed that all examples begin with: the first predictor's now, the others' with idle capacity.

    An engine that lets requests wait for each other's prefixes computes the first one by itself.
    """
    prefixes = [prefix for prefix in _prefixes(module) if prefix.call is not None and len(prefix.ids) >= _LEAST_PREFIX]
    asked: set[tuple[int, ...]] = set()
    for number, prefix in enumerate(prefixes):
        assert prefix.call is not None, "filtered above"
        ids, backend = tuple(map(int, prefix.ids)), prefix.call.backend
        is_known = ids in asked
        asked.add(ids)
        if is_known or (number == 0 and backend.capabilities.shares_in_flight):
            continue
        with contextlib.suppress(SglError):  # it only saves time
            handle = backend.prefetch(PrefetchRequest(ids, namespace=prefix.call.namespace, when_idle=number > 0))
            if number == 0:
                handle.result()


def _prefixes(module: Any) -> Iterator[StaticPrefix]:
    """Of all predictors, those first that a recorded run asked first."""
    plan = plan_of(module)
    scope = contextlib.nullcontext() if plan is None else compiled_scope(plan.layout)
    recording = None if plan is None else plan.first_run.recording
    order = {} if recording is None else {call.predictor: at for at, call in reversed(list(enumerate(recording.calls)))}
    predictors = named_predictors(module)
    with scope:
        adapter = dspy.settings.adapter or dspy.ChatAdapter()
        for name in sorted(predictors, key=lambda name: order.get(name, len(order))):
            found = static_prefix(adapter, predictors[name], PromptReader(predictors[name].lm or dspy.settings.lm))
            if found is not None:
                yield found


@contextlib.contextmanager
def _progress(total: int, *, is_shown: bool) -> Iterator[Callable[[], None]]:
    """A function to call once for each example that is done."""
    if not is_shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("examples", total=total)
        yield lambda: bar.advance(task)
