"""Variable futures."""

from __future__ import annotations

import pytest

from sgl_core.handle import RequestHandle
from sgl_core.language.variables import VariableFuture
from sgl_core.types import FinishReason, GenDelta, GenResult, Usage


def test_a_callback_runs_once_before_and_at_once_after_the_end() -> None:
    future, called = VariableFuture("x"), []
    future.add_done_callback(lambda: called.append("before"))
    assert called == []
    future.resolve(1, "1")
    future.add_done_callback(lambda: called.append("after"))
    assert called == ["before", "after"]


def test_a_value_that_came_from_no_text_reads_as_its_str() -> None:
    assert VariableFuture.of("x", [1, "a"]).text == "[1, 'a']"
    assert VariableFuture.of("x", "a").text == "a"


def test_a_failed_variable_has_no_text_and_raises_the_same_object_each_time() -> None:
    future, error = VariableFuture("x"), ValueError("no")
    future.fail(error)
    for _ in range(2):
        with pytest.raises(ValueError, match="no") as caught:
            future.result()
        assert caught.value is error
    assert (future.text, future.error) == ("", error)


def test_listeners_hear_each_character_once_and_the_end_once() -> None:
    future = VariableFuture("x")
    heard: list[str | None] = []
    future.listen(heard.append)
    handle: RequestHandle[GenResult] = RequestHandle()
    future.start(handle)
    handle.push(GenDelta("one", ()))
    handle.push(GenDelta("", ()))
    future.resolve("one two", "one two")
    handle.push(GenDelta(" two", ()))  # late: the result has been told already
    handle.finish(GenResult("one two", (), FinishReason.STOP, Usage(1, 0, 1)))
    assert heard == ["one", " two", None]
    late: list[str | None] = []
    future.listen(late.append)
    assert late == ["one two", None]


def test_a_listener_of_an_empty_text_hears_only_the_end() -> None:
    heard: list[str | None] = []
    future = VariableFuture("x")
    future.resolve("", "")
    future.listen(heard.append)
    assert heard == [None]
