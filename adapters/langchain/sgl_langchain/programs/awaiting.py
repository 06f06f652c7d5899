"""Evaluations on an event loop: each is driven by the task that awaits it, and those that run together by tasks of their own."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

from langchain_core.runnables.config import set_config_context
from langchain_core.runnables.utils import coro_with_context

from sgl_core.backend import Handle
from sgl_core.types import GenResult
from sgl_langchain.gates import on_a_loop
from sgl_langchain.programs.calls import Asked, Calls
from sgl_langchain.programs.effects import Ask, Effect, Evaluation, Failure, Host, Load, Outcome, Pause, Together
from sgl_langchain.scope import in_flight

__all__ = ["arun"]


async def arun(evaluation: Evaluation, calls: Calls) -> Any:
    """The output of an evaluation; cancelling it aborts its model calls."""
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            effect = evaluation.send(value) if error is None else evaluation.throw(error)
        except StopIteration as stop:
            return stop.value
        value, error = None, None
        try:
            value = await _carry_out(effect, calls)
        except Exception as raised:
            error = raised
        except BaseException:  # cancelled: nobody wants the rest
            evaluation.close()
            raise


async def _carry_out(effect: Effect, calls: Calls) -> Any:
    match effect:
        case Ask():
            return await _ask(effect, calls)
        case Host():
            return await _call(effect)
        case Load(model=model, options=options):
            call, _ = model._for_call(None, options)
            return await call._aengine()
        case Pause(seconds=seconds):
            return await asyncio.sleep(seconds)
        case Together():
            return await _together(effect, calls)


async def _ask(ask: Ask, calls: Calls) -> GenResult:
    with on_a_loop():
        async with in_flight() as slot:
            asked = calls.start(ask)
            slot.track(cast("Handle[Any]", asked))
        try:
            await _ended(asked)
        except BaseException:
            asked.abort()
            raise
        slot.check()
        return asked.result()


async def _ended(asked: Asked) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def end() -> None:
        try:
            loop.call_soon_threadsafe(wake)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
            return

    asked.add_done_callback(end)
    await waiter


async def _call(host: Host) -> Any:
    """Run host code as a step of LangChain's runs, in a task of its own."""
    with set_config_context(host.config) as context:
        part = partial(host.runnable.ainvoke, host.value, host.config, **host.kwargs)
        return await coro_with_context(part(), context, create_task=True)


async def _together(effect: Together, calls: Calls) -> list[Outcome]:
    turns = asyncio.Semaphore(effect.limit or max(1, len(effect.evaluations)))

    async def one(evaluation: Evaluation) -> Outcome:
        async with turns:
            try:
                return await arun(evaluation, calls)
            except Exception as error:
                if not effect.keeps_errors:
                    raise
                return Failure(error)

    return list(await asyncio.gather(*map(one, effect.evaluations)))
