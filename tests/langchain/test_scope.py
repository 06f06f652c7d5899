"""Gates, slots and scopes: who is let through, who waits, and that nothing is kept by those who leave."""

import asyncio
import threading
from contextvars import copy_context

import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_core.handle import RequestHandle
from sgl_langchain.gates import Gate, Slot, StreamLeft
from sgl_langchain.scope import Scope, current_scope, in_flight, scope

HANG_S = 20


def free_places(gate):
    """How many holders it lets in now."""
    taken = 0
    while gate.ask(never):
        taken += 1
    gate.withdraw(never)
    for _ in range(taken):
        gate.release()
    return taken


def never():
    raise AssertionError("nobody waits here")


def started(target):
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def until_waiting(gate, number):
    """Wait until so many stand in its queue."""
    turn = threading.Event()
    for _ in range(int(HANG_S / 0.001)):
        if len(gate._waiting) == number:
            return
        turn.wait(0.001)
    raise AssertionError(f"{len(gate._waiting)} wait, not {number}")


# ---- gates -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [0, -1, True, "2", 1.5])
def test_a_limit_that_is_no_positive_int_is_refused(limit):
    with pytest.raises(InvalidArgumentError, match="limit"):
        Gate(limit)


def test_no_more_threads_are_inside_than_the_limit_says():
    gate, lock, counts = Gate(3), threading.Lock(), {"inside": 0, "most": 0}

    def enter():
        for _ in range(20):
            with Slot([gate]):
                with lock:
                    counts["inside"] += 1
                    counts["most"] = max(counts["most"], counts["inside"])
                with lock:
                    counts["inside"] -= 1

    threads = [started(enter) for _ in range(12)]
    for thread in threads:
        thread.join(HANG_S)
    assert counts["inside"] == 0
    assert 1 <= counts["most"] <= 3
    assert free_places(gate) == 3


def test_those_who_wait_are_let_in_in_the_order_in_which_they_came():
    gate, order, threads = Gate(1), [], []

    def enter(number):
        with Slot([gate]):
            order.append(number)

    with Slot([gate]):
        for number in range(5):
            threads.append(started(lambda number=number: enter(number)))
            until_waiting(gate, number + 1)
    for thread in threads:
        thread.join(HANG_S)
    assert order == [0, 1, 2, 3, 4]


def test_tasks_wait_without_blocking_their_loop():
    gate = Gate(1)

    async def main():
        order = []

        async def enter(number):
            async with Slot([gate]):
                order.append(number)
                await asyncio.sleep(0)
                order.append(number)

        await asyncio.wait_for(asyncio.gather(*(enter(number) for number in range(4))), HANG_S)
        return order

    assert asyncio.run(main()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert free_places(gate) == 1


def test_a_thread_lets_a_task_in():
    gate = Gate(1)
    assert gate.ask(never)

    async def main():
        async def enter():
            async with Slot([gate]):
                return "in"

        task = asyncio.create_task(enter())
        await asyncio.sleep(0)
        assert not task.done()
        started(gate.release)
        return await asyncio.wait_for(task, HANG_S)

    assert asyncio.run(main()) == "in"
    assert free_places(gate) == 1


def test_a_cancelled_task_leaves_the_queue():
    gate = Gate(1)

    async def main():
        task = asyncio.create_task(Slot([gate]).__aenter__())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=HANG_S)
        return task.cancelled()

    with Slot([gate]):
        assert asyncio.run(main())
        assert not gate._waiting
    assert free_places(gate) == 1


def test_a_task_that_is_cancelled_with_its_place_already_granted_gives_it_back():
    gate = Gate(1)
    assert gate.ask(never)

    async def main():
        task = asyncio.create_task(Slot([gate]).__aenter__())
        await asyncio.sleep(0)
        gate.release()  # the place is the task's now, which does not know it yet
        task.cancel()
        await asyncio.wait([task], timeout=HANG_S)
        return task.cancelled()

    assert asyncio.run(main())
    assert free_places(gate) == 1


def test_a_place_passes_over_a_task_whose_loop_is_closed():
    gate, woken = Gate(1), threading.Event()
    assert gate.ask(never)
    loop = asyncio.new_event_loop()
    gate.ask(lambda: loop.call_soon_threadsafe(never))
    gate.ask(woken.set)
    loop.close()
    gate.release()
    assert woken.is_set()


# ---- slots -------------------------------------------------------------------------------------------------------------
def test_without_a_scope_all_requests_share_one_slot_that_holds_nothing():
    with in_flight() as slot:
        handle = RequestHandle()
        assert slot.track(handle) is handle
        assert slot.ask(never)
    assert in_flight() is slot


def test_a_scope_without_a_limit_and_a_list_costs_no_slot():
    free = in_flight()
    with scope():
        assert in_flight() is free


def test_a_slot_is_the_request_s_until_it_ends():
    handle = RequestHandle()
    with scope(1) as found:
        with in_flight() as slot:
            slot.track(handle)
        assert free_places(found.gates[0]) == 0
        handle.finish("done")
        assert free_places(found.gates[0]) == 1


def test_a_request_that_cannot_be_submitted_gives_its_slot_back():
    with scope(1) as found:
        with pytest.raises(ValueError, match="refused"), in_flight():
            raise ValueError("refused")
        assert free_places(found.gates[0]) == 1


def test_inner_and_outer_gate_both_hold():
    handles = [RequestHandle() for _ in range(3)]
    with scope(2) as outer:
        for handle in handles[:2]:
            with scope(1), in_flight() as slot:
                slot.track(handle)
        with scope(1) as inner:
            asked = in_flight()
            assert not asked.ask(lambda: None)
            assert free_places(inner.gates[0]) == 0
            asked.release()
            assert [free_places(gate) for gate in (*inner.gates, *outer.gates)] == [1, 0, 0]
    for handle in handles[:2]:
        handle.finish("done")
    assert free_places(outer.gates[0]) == 2


def test_whoever_must_not_wait_asks_and_is_woken():
    with scope(1) as found:
        first, second, woken = in_flight(), in_flight(), []
        assert first.ask(never)
        assert not second.ask(lambda: woken.append("now"))
        first.release()
        assert woken == ["now"]
        assert second.ask(never)
        second.release()
        second.release()
        assert free_places(found.gates[0]) == 1


def test_a_slot_waits_on_a_loop():
    handle = RequestHandle()

    async def main():
        with scope(1):
            with in_flight() as slot:
                slot.track(handle)

            async def second():
                async with in_flight():
                    return "in"

            task = asyncio.create_task(second())
            await asyncio.sleep(0)
            assert not task.done()
            handle.finish("done")
            return await asyncio.wait_for(task, HANG_S)

    assert asyncio.run(main()) == "in"


# ---- scopes ------------------------------------------------------------------------------------------------------------
def test_a_scope_is_in_force_inside_its_block_only_and_where_the_context_is_taken_over():
    seen = []
    with scope(2) as found:
        assert current_scope() is found
        context = copy_context()
        thread = started(lambda: context.run(lambda: seen.append(current_scope())))
        thread.join(HANG_S)
    assert seen == [found]
    assert current_scope() is None


def test_an_error_takes_the_scope_out_of_force():
    with pytest.raises(KeyError), scope(1):
        raise KeyError("k")
    assert current_scope() is None


def test_aborting_ends_what_is_under_way_and_what_comes_later():
    aborted = []
    handles = [RequestHandle(lambda _, i=i: aborted.append(i)) for i in range(3)]
    with scope(is_abortable=True) as outer:
        in_flight().track(handles[0])
        with scope():
            in_flight().track(handles[1])
        handles[0].finish("done")
        outer.abort()
        assert aborted == [1]
        with pytest.raises(StreamLeft):
            in_flight().track(handles[2])
        assert aborted == [1, 2]


def test_what_an_aborted_request_has_said_does_not_pass_for_its_answer():
    with scope(is_abortable=True) as found:
        slot = in_flight()
        slot.track(RequestHandle())
        slot.check()
        found.abort()
        with pytest.raises(StreamLeft):
            slot.check()


def test_a_stream_runs_inside_its_scope_and_its_consumer_outside():
    found, seen = Scope(is_abortable=True), []

    def items():
        for number in range(3):
            seen.append(current_scope())
            yield number

    for _ in found.iterate(items):
        assert current_scope() is None
    assert seen == [found] * 3


def test_an_async_stream_runs_inside_its_scope_and_its_consumer_outside():
    found, seen = Scope(is_abortable=True), []

    async def items():
        for number in range(3):
            seen.append(current_scope())
            await asyncio.sleep(0)
            yield number

    async def main():
        async for _ in found.aiterate(items):
            assert current_scope() is None

    asyncio.run(main())
    assert seen == [found] * 3


def test_two_streams_that_are_read_in_turn_keep_their_scopes_apart():
    def items(seen):
        while True:
            seen.append(current_scope())
            yield

    scopes, seen = [Scope(1), Scope(2)], ([], [])
    streams = [found.iterate(lambda mine=mine: items(mine)) for found, mine in zip(scopes, seen, strict=True)]
    for _ in range(3):
        for stream in streams:
            next(stream)
    for stream in streams:
        stream.close()
    assert seen == ([scopes[0]] * 3, [scopes[1]] * 3)
    assert current_scope() is None


@pytest.mark.parametrize("is_left", [True, False])
def test_leaving_a_stream_closes_it_and_aborts_and_reading_it_to_its_end_aborts_nothing(is_left):
    found, told, aborted = Scope(is_abortable=True), [], []

    def items():
        in_flight().track(RequestHandle(lambda _: aborted.append("aborted")))
        try:
            yield from range(3)
        finally:
            told.append(current_scope())

    stream = found.iterate(items)
    next(stream)
    if is_left:
        stream.close()
    else:
        assert list(stream) == [1, 2]
    assert told == [found]
    assert aborted == (["aborted"] if is_left else [])


def test_a_cancelled_async_stream_aborts():
    found, aborted = Scope(is_abortable=True), []

    async def items():
        in_flight().track(RequestHandle(lambda _: aborted.append("aborted")))
        yield 1
        await asyncio.Event().wait()

    async def main():
        async def read():
            async for _ in found.aiterate(items):
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=HANG_S)

    asyncio.run(main())
    assert aborted == ["aborted"]


def test_what_a_stream_reads_from_outside_runs_outside():
    found, seen = Scope(1), []

    def upstream():
        for number in range(2):
            seen.append(current_scope())
            yield number

    assert list(found.iterate(lambda: (2 * item for item in found.outside(upstream())))) == [0, 2]
    assert seen == [None, None]


def test_what_an_async_stream_reads_from_outside_runs_outside():
    found, seen = Scope(1), []

    async def upstream():
        for number in range(2):
            seen.append(current_scope())
            yield number

    async def main():
        return [item async for item in found.aiterate(lambda: found.aoutside(upstream()))]

    assert asyncio.run(main()) == [0, 1]
    assert seen == [None, None]
