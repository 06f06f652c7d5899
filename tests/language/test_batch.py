"""run_batch and arun_batch."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter

import pytest

import sgl_core.language as sgl
from sgl_core.errors import InvalidArgumentError, UnknownOptionError
from sgl_core.language.batch import StartedRuns
from sgl_core.testing import FakeBackend

OPTIONS = {"temperature": 0, "max_new_tokens": 100}


@sgl.function
def echo(s, word, fails=False):
    if fails:
        raise LookupError(word)
    s += word + sgl.gen("x")
    return word


def test_items_are_dicts_or_tuples_and_order_is_kept(backend: FakeBackend) -> None:
    states = echo.run_batch([{"word": "a"}, ("b",), ["c"]], backend=backend, **OPTIONS)
    assert [state.ret_value for state in states] == ["a", "b", "c"]


def test_an_empty_batch_gives_an_empty_list(backend: FakeBackend) -> None:
    assert echo.run_batch([], backend=backend) == []


def test_user_code_runs_exactly_once_per_item(backend: FakeBackend) -> None:
    calls: Counter[int] = Counter()

    @sgl.function
    def counted(s, number):
        calls[number] += 1

    counted.run_batch([(number,) for number in range(100)], backend=backend)
    assert calls == Counter(range(100))


def test_the_first_error_by_position_is_raised_after_all_have_run(backend: FakeBackend) -> None:
    batch = [("a",), ("b", True), ("c",), ("d", True), ("e",)]
    with pytest.raises(LookupError, match="b"):
        echo.run_batch(batch, backend=backend, **OPTIONS)
    assert len(backend.requests) == 3


def test_errors_can_stand_in_their_places(backend: FakeBackend) -> None:
    batch = [("a",), ("b", True), {"wrod": "c"}]
    first, second, third = echo.run_batch(batch, backend=backend, return_errors=True, **OPTIONS)
    assert first["x"]
    assert isinstance(second, LookupError)
    assert isinstance(third, UnknownOptionError)


def test_threads_are_bounded(backend: FakeBackend) -> None:
    running: set[int] = set()
    most: list[int] = []

    @sgl.function
    def program(s, number):
        running.add(number)
        most.append(len(running))
        s += "a" + sgl.gen("x")
        s["x"]
        running.discard(number)

    program.run_batch([(number,) for number in range(30)], backend=backend, num_threads=3)
    assert max(most) <= 3


def test_auto_runs_many_items_at_once() -> None:
    everybody = threading.Barrier(32)

    @sgl.function
    def program(s, number):
        everybody.wait(60)

    with FakeBackend() as backend:
        assert len(program.run_batch([(number,) for number in range(32)], backend=backend)) == 32


def test_one_seed_gives_each_item_its_own_and_repeats(backend: FakeBackend) -> None:
    options = {"backend": backend, "seed": 3, "temperature": 1.0}
    first, second = ([state["x"] for state in echo.run_batch([("a",)] * 3, **options)] for _ in range(2))
    assert first == second
    assert len(set(first)) == 3


def test_a_functions_own_seed_parameter_is_an_argument(backend: FakeBackend) -> None:
    @sgl.function
    def program(s, seed):
        return seed

    assert program.run_batch([{}], backend=backend, seed=3)[0].ret_value == 3


def test_the_ordered_iterator_yields_in_order_and_raises_in_turn(backend: FakeBackend) -> None:
    outcomes = echo.run_batch([("a",), ("b", True), ("c",)], backend=backend, generator_style=True, **OPTIONS)
    assert next(outcomes).ret_value == "a"
    with pytest.raises(LookupError):
        next(outcomes)


def test_the_ordered_iterator_ends_after_the_last_item(backend: FakeBackend) -> None:
    outcomes = echo.run_batch([("a",), ("b",)], backend=backend, generator_style=True, **OPTIONS)
    assert [state.ret_value for state in outcomes] == ["a", "b"]


def test_the_completed_iterator_yields_each_item_once_with_its_index() -> None:
    gate = threading.Event()

    @sgl.function
    def program(s, number):
        if number == 0:
            gate.wait(60)
        return number

    with FakeBackend() as backend:
        order = []
        for index, state in program.run_batch([(0,), (1,), (2,)], backend=backend, as_completed=True):
            assert state.ret_value == index
            order.append(index)
            if len(order) == 2:
                gate.set()
    assert order[-1] == 0


def test_leaving_an_iterator_early_aborts_what_runs_and_starts_nothing_more() -> None:
    started: list[int] = []
    second_is_there = threading.Event()

    @sgl.function
    def program(s, number):
        started.append(number)
        if number:
            s += "a" + sgl.gen("x")
            second_is_there.set()
            s["x"]

    with FakeBackend(latency_s=600) as backend:
        outcomes = program.run_batch([(i,) for i in range(9)], backend=backend, num_threads=1, generator_style=True)
        next(outcomes)
        assert second_is_there.wait(60)
        outcomes.close()
    assert started == [0, 1]


def test_a_run_that_begins_while_a_batch_is_left_is_cancelled_too() -> None:
    class Run:
        is_cancelled = False

        def cancel(self) -> None:
            self.is_cancelled = True

    started, early, late = StartedRuns(), Run(), Run()
    started.append(early)
    assert not early.is_cancelled
    started.cancel()
    started.append(late)
    assert early.is_cancelled
    assert late.is_cancelled


def test_bad_items_and_options_are_refused(backend: FakeBackend) -> None:
    with pytest.raises(InvalidArgumentError, match=r"batch\[1\]"):
        echo.run_batch([("a",), "b"], backend=backend)
    for wrong in (0, True, "many", 1.5):
        with pytest.raises(InvalidArgumentError, match="num_threads"):
            echo.run_batch([("a",)], backend=backend, num_threads=wrong)
    with pytest.raises(InvalidArgumentError, match="generator_style and as_completed"):
        echo.run_batch([("a",)], backend=backend, generator_style=True, as_completed=True)
    with pytest.raises(UnknownOptionError, match="stream"):
        echo.run_batch([("a",)], backend=backend, stream=True)


def test_progress_is_shown_with_and_without_rich(
    backend: FakeBackend, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    echo.run_batch([("a",), ("b",)], backend=backend, progress_bar=True, **OPTIONS)
    out, err = capsys.readouterr()
    assert (out, "programs" in err) == ("", True)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    echo.run_batch([("a",), ("b",)], backend=backend, progress_bar=True, **OPTIONS)
    assert capsys.readouterr().err.endswith("2/2 programs\n")


def test_an_error_carries_the_place_of_its_item(backend: FakeBackend) -> None:
    batch = [("a",), ("b", True), ("c", True)]
    with pytest.raises(LookupError) as caught:
        echo.run_batch(batch, backend=backend, **OPTIONS)
    assert caught.value.__notes__ == ["in batch[1]"]
    for style in ({}, {"generator_style": True}):
        outcomes = list(echo.run_batch(batch, backend=backend, return_errors=True, **style, **OPTIONS))
        assert [getattr(one, "__notes__", None) for one in outcomes] == [None, ["in batch[1]"], ["in batch[2]"]]
    completed = dict(echo.run_batch(batch, backend=backend, return_errors=True, as_completed=True, **OPTIONS))
    assert [completed[index].__notes__ for index in (1, 2)] == [["in batch[1]"], ["in batch[2]"]]


# ---- awaited ---------------------------------------------------------------------------------------------------------
def awaited(program: sgl.SglFunction, batch: list, backend: FakeBackend, **how: object) -> list:
    return asyncio.run(asyncio.wait_for(program.arun_batch(batch, backend=backend, **how, **OPTIONS), 60))


def test_an_awaited_batch_keeps_order_and_seeds(backend: FakeBackend) -> None:
    states = awaited(echo, [{"word": "a"}, ("b",)], backend, seed=3)
    assert [state.ret_value for state in states] == ["a", "b"]
    assert [state["x"] for state in states] == [
        state["x"] for state in echo.run_batch([("a",), ("b",)], backend=backend, seed=3, **OPTIONS)
    ]


def test_an_awaited_batch_isolates_failures_and_names_their_place(backend: FakeBackend) -> None:
    batch = [("a",), ("b", True), ("c",)]
    first, second, third = awaited(echo, batch, backend, return_errors=True)
    assert (first.ret_value, third.ret_value) == ("a", "c")
    assert (type(second), second.__notes__) == (LookupError, ["in batch[1]"])
    with pytest.raises(LookupError, match="b"):
        awaited(echo, batch, backend)
    assert len(backend.requests) == 4


def test_an_awaited_batch_is_bounded(backend: FakeBackend) -> None:
    running: set[int] = set()
    most: list[int] = []

    @sgl.function
    async def program(s, number):
        running.add(number)
        most.append(len(running))
        s += "a" + sgl.gen("x")
        await s.aget("x")
        running.discard(number)

    awaited(program, [(number,) for number in range(30)], backend, num_threads=3)
    assert max(most) == 3


def test_cancelling_an_awaited_batch_aborts_what_runs_and_starts_nothing_more() -> None:
    started: list[int] = []

    @sgl.function
    async def program(s, number):
        started.append(number)
        s += "a" + sgl.gen("x")
        await s.aget("x")

    async def cancelled(backend: FakeBackend) -> None:
        items = [(number,) for number in range(9)]
        batch = asyncio.ensure_future(program.arun_batch(items, backend=backend, num_threads=2))
        while len(backend.requests) < 2:
            await asyncio.sleep(0.001)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch

    with FakeBackend(latency_s=60) as backend:
        asyncio.run(asyncio.wait_for(cancelled(backend), 60))
    assert started == [0, 1]
