"""What a compiled stream that is left does not do: mend, try again, or complain about the requests that went with it."""

import asyncio
import gc
import time
from contextlib import closing

import pytest
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnableParallel

from sgl_core.errors import RequestAborted
from sgl_core.handle import RequestHandle
from sgl_langchain import ChatSgl, SglLLM, compile_runnable

GUARD_S = 30


def add(x: int) -> int:
    """Add."""
    return x


@pytest.fixture
def undecided(endless, monkeypatch):
    """An engine that never comes to an end with a score."""

    def score(request):
        handle = RequestHandle(lambda _: handle.fail(RequestAborted("the scoring was aborted")))
        endless.handles.append(handle)
        return handle

    monkeypatch.setattr(endless, "score", score)
    return endless


class Asking:
    """A chain whose model never ends, guarded; ``log`` is what its own code was called for."""

    def __init__(self, model, guard):
        self.log = []
        asking = RunnableLambda(self._noted("asked")) | model
        self.chain = {
            "fallback": lambda: asking.with_fallbacks([RunnableLambda(self._noted("mended"))]),
            "retry": lambda: asking.with_retry(wait_exponential_jitter=False),
            "nothing": lambda: asking,
        }[guard]()

    def _noted(self, word):
        def note(value):
            self.log.append(word)
            return value

        return note


def wait_until(condition):
    end = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.001)


def left(stream, backend):
    """Leave a stream behind its first item, with a request under way; the errors that nobody was told."""
    untold = []

    async def leave():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: untold.append(context))
        async for _ in stream:
            break
        for _ in range(1000 * GUARD_S):
            if backend.handles:
                break
            await asyncio.sleep(0.001)
        await stream.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=GUARD_S)
        gc.collect()

    asyncio.run(leave())
    return untold


@pytest.mark.parametrize("guard", ["fallback", "retry", "nothing"])
@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_leaving_an_async_stream_runs_no_fallback_and_no_other_attempt(endless, model_class, guard):
    asking = Asking(model_class(engine=endless), guard)
    waiting = RunnableLambda(lambda value: [value]) | asking.chain.map()  # a list is no stream: its models are awaited
    chain = compile_runnable(RunnableParallel(quick=RunnableLambda(str), slow=waiting))
    assert left(chain.astream("x"), endless) == []
    assert asking.log == ["asked"]
    assert all(handle.done() for handle in endless.handles)


@pytest.mark.parametrize("mode", ["scope", "auto"])
@pytest.mark.parametrize("guard", ["fallback", "retry", "nothing"])
@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_leaving_an_async_batch_runs_no_fallback_and_no_other_attempt(endless, model_class, guard, mode):
    asking = Asking(model_class(engine=endless), guard)
    chain = compile_runnable(RunnableBranch((lambda value: value == "quick", RunnableLambda(str)), asking.chain), mode=mode)
    assert left(chain.abatch_as_completed(["slow", "quick"]), endless) == []
    assert asking.log == ["asked"]
    assert all(handle.done() for handle in endless.handles)


@pytest.mark.parametrize("guard", ["fallback", "retry"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_program_that_runs_inside_a_stream_ends_with_it(endless, is_async, guard):
    asking = Asking(ChatSgl(engine=endless), guard)
    inside = compile_runnable(asking.chain)
    chain = compile_runnable(
        RunnableParallel(
            quick=RunnableLambda(lambda value: value), slow=RunnableLambda(lambda value: inside.invoke(value), inside.ainvoke)
        )
    )
    if is_async:
        assert left(chain.astream("x"), endless) == []
    else:
        with closing(chain.stream("x")) as stream:
            next(stream)
            wait_until(lambda: endless.handles)
    assert asking.log == ["asked"]
    assert all(handle.done() for handle in endless.handles)


@pytest.mark.parametrize("guard", ["fallback", "retry", "nothing"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_is_left_before_its_model_has_decided_ends_like_any_other(undecided, is_async, guard):
    asking = Asking(ChatSgl(engine=undecided).bind_tools([add]), guard)
    waiting = RunnableLambda(lambda value: [value]) | asking.chain.map()
    chain = compile_runnable(RunnableParallel(quick=RunnableLambda(str), slow=waiting))
    if is_async:
        assert left(chain.astream("x"), undecided) == []
    else:
        with closing(chain.stream("x")) as stream:
            next(stream)
            wait_until(lambda: undecided.handles)
    assert asking.log == ["asked"]
    assert all(handle.done() for handle in undecided.handles)
