"""``RunnableProgram``: a chain that runs as a program, through the methods that a runnable has.

The compiled runnables call it. It owns the operations of a chain; every call owns its own way to the models.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, get_config_list

from sgl_langchain.programs.awaiting import arun
from sgl_langchain.programs.calls import Calls
from sgl_langchain.programs.effects import Failure
from sgl_langchain.programs.function import RunnableFunction
from sgl_langchain.programs.making import operation_of
from sgl_langchain.programs.operation import Frame
from sgl_langchain.programs.waiting import Waiting
from sgl_langchain.scope import Scope, current_scope, scope
from sgl_langchain.translate.nodes import Model, Node
from sgl_langchain.translate.plan import Plan
from sgl_langchain.translate.refusals import Refusals

__all__ = ["RunnableProgram"]

Configs = RunnableConfig | Sequence[RunnableConfig] | None


class RunnableProgram:
    """A chain as a program: the same values, errors and order, without pools, barriers and callbacks.

    All inputs of a batch are under way at once, each as far as it can be; a step waits for nothing but its own input. So an
    input may come to a later step before another one fails in an earlier: with an error in a batch, steps may have run that
    LangChain would have skipped. ``max_concurrency`` bounds inputs and requests.

    Call it only when ``refusal`` says None for the configuration: otherwise somebody would miss something.

    Args:
        plan: of the chain, or its root node.
    """

    def __init__(self, plan: Plan | Node) -> None:
        """Make the operations."""
        self.root: Node = plan if isinstance(plan, Node) else plan.root
        self._operation = operation_of(self.root)
        self._refusals = Refusals(self.root)

    def refusal(self, config: RunnableConfig | None = None) -> str | None:
        """Why it may not run as a program under this configuration, or None."""
        return self._refusals.reason(config)

    @cached_property
    def function(self) -> RunnableFunction:
        """The native program: its argument is ``input``, and ``state.ret_value`` the output."""
        return RunnableFunction(self)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of the chain, in order."""
        return tuple(node for node in self.root.walk() if isinstance(node, Model))

    # ---- in a thread -------------------------------------------------------------------------------------------------
    def invoke(self, value: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """The output for one input."""
        frame = _frame(ensure_config(config), Calls())
        with _bounded(frame.limit), Waiting(frame.calls, frame.limit) as waiting:
            return waiting.run(self._operation.run(value, frame, kwargs))

    def run_in(self, calls: Calls, value: Any) -> Any:
        """The output for one input, with models asked by ``calls``; for ``function``."""
        with Waiting(calls) as waiting:
            return waiting.run(self._operation.run(value, _frame(ensure_config(), calls)))

    def batch(
        self, inputs: Sequence[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """The outputs in order.

        Raises:
            Exception: the one that LangChain would raise, unless exceptions are returned in their places.
        """
        frames = _frames(config, len(inputs))
        if not frames:
            return []
        evaluation = self._operation.run_batch(list(inputs), frames, kwargs, keeps_errors=return_exceptions)
        with _bounded(frames[0].limit), Waiting(frames[0].calls, frames[0].limit) as waiting:
            return _told(waiting.run(evaluation))

    def batch_as_completed(
        self, inputs: Sequence[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Iterator[tuple[int, Any]]:
        """Pairs of place and output as they come. Inputs go on while the caller asks for the next; leaving early aborts them."""
        frames = _frames(config, len(inputs))
        if not frames:
            return iter(())
        evaluations = [self._operation.run(value, frame, kwargs) for value, frame in zip(inputs, frames, strict=True)]

        def pairs() -> Generator[tuple[int, Any], None, None]:
            with Waiting(frames[0].calls, frames[0].limit) as waiting:
                for index, outcome in waiting.each(evaluations, frames[0].limit):
                    if isinstance(outcome, Failure) and not return_exceptions:
                        raise outcome.error
                    yield index, outcome.error if isinstance(outcome, Failure) else outcome

        return Scope(frames[0].limit, current_scope()).iterate(pairs)

    # ---- on a loop ---------------------------------------------------------------------------------------------------
    async def ainvoke(self, value: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Like ``invoke``; cancelling it aborts its requests."""
        frame = _frame(ensure_config(config), Calls(), is_async=True)
        with _bounded(frame.limit):
            return await arun(self._operation.run(value, frame, kwargs), frame.calls)

    async def abatch(
        self, inputs: Sequence[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """Like ``batch``; without ``return_exceptions`` the first error is raised at once, and the other inputs run on."""
        frames = _frames(config, len(inputs), is_async=True)
        if not frames:
            return []
        evaluation = self._operation.run_batch(list(inputs), frames, kwargs, keeps_errors=return_exceptions)
        with _bounded(frames[0].limit):
            return _told(await arun(evaluation, frames[0].calls))

    def abatch_as_completed(
        self, inputs: Sequence[Any], config: Configs = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> AsyncIterator[tuple[int, Any]]:
        """Like ``batch_as_completed``; inputs go on meanwhile."""
        frames = _frames(config, len(inputs), is_async=True)
        limit = frames[0].limit if frames else None
        turns = asyncio.Semaphore(limit or max(1, len(frames)))

        async def one(index: int, frame: Frame) -> tuple[int, Any]:
            async with turns:
                try:
                    return index, await arun(self._operation.run(inputs[index], frame, kwargs), frame.calls)
                except Exception as error:
                    if not return_exceptions:
                        raise
                    return index, error

        async def pairs() -> AsyncGenerator[tuple[int, Any], None]:
            tasks = [asyncio.create_task(one(index, frame)) for index, frame in enumerate(frames)]
            try:
                for ended in asyncio.as_completed(tasks):
                    yield await ended
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        return Scope(limit, current_scope()).aiterate(pairs)


def _frame(config: RunnableConfig, calls: Calls, *, is_async: bool = False) -> Frame:
    """What the steps get: the name and the id of a run are the outermost runnable's alone."""
    for name in ("run_name", "run_id"):
        config.pop(name, None)  # type: ignore[misc]  # a copy of the caller's
    return Frame(config, calls, is_async)


def _frames(config: Configs, number: int, *, is_async: bool = False) -> list[Frame]:
    calls = Calls()
    return [_frame(one, calls, is_async=is_async) for one in get_config_list(config, number)]


def _bounded(limit: int | None) -> AbstractContextManager[object]:
    return nullcontext() if limit is None else scope(limit)


def _told(outcomes: Sequence[Any]) -> list[Any]:
    return [outcome.error if isinstance(outcome, Failure) else outcome for outcome in outcomes]
