"""What a compiled runnable knows of its chain and keeps for it: plans, warm prefixes, and pins for the time of a batch."""

import asyncio
import gc
import threading
from dataclasses import replace

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from sgl_core.errors import EngineShutdown, PoolExhaustedError
from sgl_core.runtime.pinning import PinnedPrefix
from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl, compile_runnable
from sgl_langchain.scope import current_scope

HANG_S = 20
LONG = "You answer in one sentence, and you never say more than you know. " * 3
QUESTIONS = [{"n": f"#{i}"} for i in range(12)]
TIDE = {"n": "#1"}


def says(engine, text="{n}", **options):
    return ChatPromptTemplate([("system", LONG), ("human", text)]) | ChatSgl(engine=engine, **options) | StrOutputParser()


async def collected(iterator):
    return [item async for item in iterator]


class PinningBackend(FakeBackend):
    """Keeps account of pins. ``shares``: requests wait for a beginning that another one computes."""

    def __init__(self, *, shares=False, refuses=None):
        super().__init__(lambda ids, params: "yes")
        self.capabilities = replace(FakeBackend.capabilities, shares_in_flight=shares)
        self.pins, self.num_pinned, self.refuses = {}, 0, refuses

    def pin(self, ids, *, ttl_s=None, namespace=None):
        if self.refuses is not None:
            raise self.refuses
        self.num_pinned += 1
        self.pins[self.num_pinned] = tuple(ids)
        return PinnedPrefix(lambda number: self.pins.pop(number, None) is not None, self.num_pinned, len(ids), 0)


@pytest.fixture
def pinning():
    with PinningBackend() as backend:
        yield backend


@pytest.fixture(autouse=True)
def no_scope_is_left():
    yield
    assert current_scope() is None


def test_the_plan_is_made_once_until_the_text_of_a_prompt_changes(engine):
    prompt = ChatPromptTemplate([("human", "{n}")])
    compiled = compile_runnable(prompt | ChatSgl(engine=engine) | StrOutputParser())
    first = compiled.plan
    compiled.invoke(TIDE)
    assert compiled.plan is first
    prompt.append(("human", "and this"))
    assert compiled.plan is not first
    for mode in ("program", "scope"):
        compile_runnable(compiled, mode=mode).invoke(TIDE)
        compiled.invoke(TIDE)
        assert "and this" in engine.codec.decode(engine.requests[-1].input_ids)


def test_warmup_pins_the_constant_prefix_once_until_it_is_closed(pinning):
    compiled = compile_runnable(says(pinning))
    tokens = compiled.warmup()
    assert tokens >= len(LONG)
    assert compiled.warmup() == tokens
    assert list(pinning.pins) == [1]
    compiled.invoke(TIDE)
    assert pinning.requests[-1].input_ids[:tokens] == pinning.pins[1]
    compiled.close()
    compiled.close()
    assert not pinning.pins


def test_warmup_follows_a_prompt_that_has_changed(pinning):
    prompt = ChatPromptTemplate([("system", LONG)])
    compiled = compile_runnable(prompt | ChatSgl(engine=pinning))
    before = compiled.warmup()
    prompt.append(("human", "Tell me more of it."))
    assert compiled.warmup() > before
    assert list(pinning.pins) == [2]


def test_a_dropped_runnable_lets_its_prefixes_go(pinning):
    compiled = compile_runnable(says(pinning))
    compiled.warmup()
    del compiled
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "sgl-unpin":
            thread.join(HANG_S)
    assert not pinning.pins


def test_a_warmup_that_fails_keeps_nothing(pinning):
    compiled = compile_runnable(says(pinning))
    pinning.refuses = PoolExhaustedError("full")
    with pytest.raises(PoolExhaustedError):
        compiled.warmup()
    pinning.refuses = None
    assert compiled.warmup() > 0


def test_a_short_prefix_is_not_worth_it(pinning):
    chain = ChatPromptTemplate([("human", "{n}")]) | ChatSgl(engine=pinning)
    assert compile_runnable(chain).warmup() == 0


@pytest.mark.parametrize("mode", ["scope", "program"])
@pytest.mark.parametrize(
    ("run", "num_pinned"),
    [
        (lambda c: c.invoke(TIDE), 0),
        (lambda c: c.batch([TIDE]), 0),
        (lambda c: c.batch(QUESTIONS), 1),
        (lambda c: asyncio.run(c.abatch(QUESTIONS)), 1),
        (lambda c: list(c.batch_as_completed(QUESTIONS)), 1),
        (lambda c: next(c.batch_as_completed(QUESTIONS)), 1),
        (lambda c: asyncio.run(collected(c.abatch_as_completed(QUESTIONS))), 1),
    ],
)
def test_a_batch_keeps_its_prefix_and_unpins_it(pinning, mode, run, num_pinned):
    run(compile_runnable(says(pinning), mode=mode))
    gc.collect()
    assert pinning.num_pinned == num_pinned
    assert not pinning.pins


def test_nothing_is_computed_in_advance_where_requests_wait_for_each_other():
    with PinningBackend(shares=True) as backend:
        compile_runnable(says(backend)).batch(QUESTIONS)
        assert backend.num_pinned == 0


@pytest.mark.parametrize("error", [PoolExhaustedError("full"), EngineShutdown("closed")])
def test_a_prefix_that_cannot_be_kept_does_not_keep_a_batch_from_running(error):
    with PinningBackend(refuses=error) as backend:
        assert compile_runnable(says(backend)).batch(QUESTIONS) == ["yes"] * len(QUESTIONS)


@pytest.mark.parametrize("mode", ["scope", "program"])
def test_a_batch_that_fails_leaves_no_pin_and_no_slot(pinning, mode):
    def fails(text):
        raise KeyError(text)

    compiled = compile_runnable(says(pinning) | RunnableLambda(fails), mode=mode)
    for _ in range(3):
        with pytest.raises(KeyError):
            compiled.batch(QUESTIONS, {"max_concurrency": 1})
    assert not pinning.pins
    assert pinning.num_pinned == 3


def test_a_cancelled_batch_leaves_no_pin():
    entered, go_on = threading.Event(), threading.Event()

    class Slow(PinningBackend):
        def pin(self, ids, **options):
            entered.set()
            assert go_on.wait(HANG_S)
            return super().pin(ids, **options)

    async def main(compiled):
        task = asyncio.create_task(compiled.abatch(QUESTIONS))
        await asyncio.to_thread(entered.wait, HANG_S)
        task.cancel()
        go_on.set()
        await asyncio.wait([task], timeout=HANG_S)
        return task.cancelled()

    with Slow() as backend:
        assert asyncio.run(main(compile_runnable(says(backend))))
        assert not backend.pins
        assert backend.num_pinned == 1
