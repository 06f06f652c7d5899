"""How programs run: everything in flight at once and no thread each, within the user's limit, and nothing left behind."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnableParallel
from langchain_core.runnables.config import ensure_config, var_child_runnable_config

from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl
from sgl_langchain.programs import RunnableProgram
from sgl_langchain.scope import scope
from sgl_langchain.translate.lower import lower

PROMPT = ChatPromptTemplate([("human", "# {x}")])
GUARD_S = 30


def program_of(runnable):
    return RunnableProgram(lower(runnable))


def text(message):
    return message.text


def num_threads():
    return sum("sgl-langchain" in thread.name for thread in threading.enumerate())


def until(condition):
    end = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.002)


def inputs(n):
    return [{"x": str(i)} for i in range(n)]


# ---- widths ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("is_async", [False, True])
def test_all_requests_of_a_batch_are_in_flight_at_once_without_threads(counting, is_async):
    engine = counting(gate=64)
    program = program_of(PROMPT | ChatSgl(engine=engine))
    before = threading.active_count()
    seen = []
    engine.submit = lambda request, submit=engine.submit: (seen.append(threading.active_count()), submit(request))[1]
    outputs = asyncio.run(program.abatch(inputs(64))) if is_async else program.batch(inputs(64))
    assert [one.text for one in outputs] == [str(i) for i in range(64)]
    assert engine.most_in_flight == 64
    assert max(seen) <= before + 12  # the fake's own eight, and the dispatcher


def test_branches_of_all_inputs_are_in_flight_at_once(counting):
    engine = counting(gate=40)
    chain = RunnableParallel({key: PROMPT | ChatSgl(engine=engine) for key in "abcde"})
    assert len(program_of(chain).batch(inputs(8))) == 8
    assert engine.most_in_flight == 40


@pytest.mark.parametrize("run", ["batch", "abatch", "batch_as_completed", "abatch_as_completed", "invoke", "ainvoke"])
def test_the_users_max_concurrency_is_never_exceeded(counting, run):
    engine = counting()
    chain = RunnableParallel({key: PROMPT | ChatSgl(engine=engine) | RunnableLambda(text) for key in "abc"})
    program, config = program_of(chain), {"max_concurrency": 2}

    async def aall():
        return [pair async for pair in program.abatch_as_completed(inputs(6), config)]

    match run:
        case "batch":
            found = program.batch(inputs(6), config)
        case "abatch":
            found = asyncio.run(program.abatch(inputs(6), config))
        case "batch_as_completed":
            found = list(program.batch_as_completed(inputs(6), config))
        case "abatch_as_completed":
            found = asyncio.run(aall())
        case "invoke":
            found = [program.invoke({"x": "0"}, config)] * 6
        case _:
            found = [asyncio.run(program.ainvoke({"x": "0"}, config))] * 6
    assert len(found) == 6
    assert 1 <= engine.most_in_flight <= 2


def test_no_more_inputs_than_max_concurrency_are_under_way():
    under_way, most, lock = 0, 0, threading.Lock()

    def enter(value):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        return value

    def leave(value):
        nonlocal under_way
        with lock:
            under_way -= 1
        return value

    chain = RunnableLambda(enter) | RunnableLambda(lambda v: v) | RunnableLambda(leave)
    assert program_of(chain).batch(list(range(20)), {"max_concurrency": 3}) == list(range(20))
    assert asyncio.run(program_of(chain).abatch(list(range(20)), {"max_concurrency": 3})) == list(range(20))
    assert most <= 3


def test_a_scope_around_holds_the_program_back(counting):
    engine = counting()
    with scope(3):
        program_of(PROMPT | ChatSgl(engine=engine)).batch(inputs(20))
    assert engine.most_in_flight <= 3


def test_no_input_waits_for_another_ones_step():
    released = threading.Event()

    def first(value):
        assert value != "slow" or released.wait(GUARD_S)
        return value

    def second(value):
        if value == "fast":
            released.set()
        return value

    chain = RunnableLambda(first) | RunnableLambda(second)
    assert program_of(chain).batch(["slow", "fast"]) == ["slow", "fast"]


# ---- host code -------------------------------------------------------------------------------------------------------
def test_host_code_that_is_alone_runs_in_the_callers_thread():
    chain = RunnableLambda(lambda v: threading.current_thread()) | RunnableLambda(lambda v: (v, threading.current_thread()))
    assert set(program_of(chain).invoke(0)) == {threading.current_thread()}


def test_host_code_of_several_runs_side_by_side():
    barrier = threading.Barrier(4, timeout=GUARD_S)
    chain = RunnableLambda(lambda v: barrier.wait() >= 0)
    assert program_of(chain).batch([1, 2, 3, 4]) == [True] * 4
    assert num_threads() == 0


def test_an_input_is_passed_on_as_the_object_that_it_is():
    given = {"x": "1"}
    chain = RunnableParallel(a=lambda v: v, b=lambda v: v) | RunnableLambda(lambda v: [v["a"] is given, v["b"] is given])
    assert program_of(chain).invoke(given) == [True, True]


@pytest.mark.parametrize("is_async", [False, True])
def test_host_code_sees_the_configuration_that_langchain_would_give_it(is_async):
    def look(value, config):
        inherited = ensure_config()
        return [
            (
                one["tags"],
                one["metadata"],
                one["configurable"],
                one["max_concurrency"],
                "run_name" in one,
                one["recursion_limit"],
            )
            for one in (config, inherited)
        ]

    chain = (RunnableLambda(lambda v: v) | RunnableLambda(look).with_config(tags=["b", "a"], metadata={"own": 1})).with_config(
        metadata={"outer": 2}
    )
    config = {
        "tags": ["z", "c"],
        "metadata": {"m": 1},
        "configurable": {"k": "v"},
        "max_concurrency": 4,
        "run_name": "n",
        "recursion_limit": 9,
    }

    def run(runnable):
        return asyncio.run(runnable.ainvoke(0, config)) if is_async else runnable.invoke(0, config)

    assert run(program_of(chain)) == run(chain)
    assert var_child_runnable_config.get() is None


def test_a_system_exit_in_host_code_ends_the_batch_with_it():
    def leave(value):
        raise SystemExit(value)

    with pytest.raises(SystemExit):
        program_of(RunnableLambda(leave)).batch([1, 2, 3])
    assert num_threads() == 0


# ---- leaving early ---------------------------------------------------------------------------------------------------
def all_ended(engine):
    return all(handle.done() for handle in engine.handles)


def test_cancelling_a_batch_aborts_its_requests(endless):
    async def main():
        task = asyncio.create_task(program_of(PROMPT | ChatSgl(engine=endless)).abatch(inputs(5)))
        while len(endless.handles) < 5:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), GUARD_S))
    until(lambda: all_ended(endless))


def test_an_interrupt_aborts_the_requests_of_the_batch(endless):
    def interrupt(value):
        until(lambda: len(endless.handles) == 2)
        raise KeyboardInterrupt

    chain = RunnableParallel(a=PROMPT | ChatSgl(engine=endless), b=PROMPT | ChatSgl(engine=endless), c=interrupt)
    with pytest.raises(KeyboardInterrupt):
        program_of(chain).invoke({"x": "1"})
    until(lambda: all_ended(endless))
    assert num_threads() == 0


def quick_or_endless(endless):
    """Input 0 is answered by host code, once all others have asked the model."""

    def quick(value):
        until(lambda: len(endless.handles) == 2)
        return value

    return RunnableBranch((lambda value: value["x"] == "0", quick), PROMPT | ChatSgl(engine=endless))


def test_leaving_batch_as_completed_aborts_the_others(endless):
    pairs = program_of(quick_or_endless(endless)).batch_as_completed(inputs(3))
    assert next(pairs) == (0, {"x": "0"})
    pairs.close()
    until(lambda: all_ended(endless))
    assert num_threads() == 0


def test_leaving_abatch_as_completed_aborts_the_others(endless):
    async def main():
        pairs = program_of(quick_or_endless(endless)).abatch_as_completed(inputs(3))
        assert await anext(pairs) == (0, {"x": "0"})
        await pairs.aclose()

    asyncio.run(asyncio.wait_for(main(), GUARD_S))
    until(lambda: all_ended(endless))


def test_on_a_loop_the_first_error_is_raised_at_once_and_siblings_run_on():
    release = threading.Event()
    with FakeBackend(lambda ids, params: str(release.wait(GUARD_S))) as engine:

        async def fail(value):
            while not engine.requests:
                await asyncio.sleep(0.001)
            raise ValueError("at once")

        ended = asyncio.Event()

        async def note(value):
            ended.set()
            return value

        chain = RunnableParallel(a=PROMPT | ChatSgl(engine=engine) | RunnableLambda(note), b=RunnableLambda(fail))

        async def main():
            with pytest.raises(ValueError, match="at once"):
                await program_of(chain).ainvoke({"x": "1"})
            assert not ended.is_set()
            release.set()
            await asyncio.wait_for(ended.wait(), GUARD_S)

        asyncio.run(main())


def test_one_program_serves_many_threads_at_once(counting):
    program = program_of(PROMPT | ChatSgl(engine=counting()) | text)
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: program.invoke({"x": str(i)})}), daemon=True) for i in range(64)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD_S)
    assert found == {i: str(i) for i in range(64)}
