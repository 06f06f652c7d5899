"""Fallbacks, retries and branches: what runs again, and how often."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from langchain_core.runnables import RunnableBranch, RunnableLambda

from sgl_langchain import compile_runnable
from sgl_langchain.programs import RunnableProgram
from sgl_langchain.translate.lower import lower


class Flaky:
    """Fails the first times that it sees a value."""

    def __init__(self, failures, error=ValueError):
        self.calls = Counter()
        self._failures = failures
        self._error = error

    def __call__(self, value):
        self.calls[value] += 1
        if self.calls[value] <= self._failures.get(value, 0):
            raise self._error(f"{value} failed")
        return value * 10


def retried(flaky, **options):
    return RunnableLambda(flaky).with_retry(wait_exponential_jitter=False, **options)


def test_a_batch_tries_only_what_failed_again():
    flaky = Flaky({2: 1, 3: 2})
    assert RunnableProgram(lower(retried(flaky))).batch([1, 2, 3]) == [10, 20, 30]
    assert flaky.calls == {1: 1, 2: 2, 3: 3}


@pytest.mark.parametrize("is_async", [False, True])
def test_attempts_end_with_the_last_error(is_async):
    flaky = Flaky({2: 9})
    program = RunnableProgram(lower(retried(flaky, stop_after_attempt=4)))
    with pytest.raises(ValueError, match="2 failed"):
        asyncio.run(program.ainvoke(2)) if is_async else program.invoke(2)
    assert flaky.calls[2] == 4


def test_an_error_of_another_kind_is_not_tried_again():
    flaky = Flaky({2: 9}, KeyError)
    with pytest.raises(KeyError):
        RunnableProgram(lower(retried(flaky, retry_if_exception_type=(ValueError,)))).invoke(2)
    assert flaky.calls[2] == 1


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("error", [KeyError, ValueError])
def test_a_batch_counts_and_answers_as_the_chain_does(keeps, error):
    def run(make):
        flaky = Flaky({2: 9, 3: 1}, error)
        chain = retried(flaky, stop_after_attempt=3, retry_if_exception_type=(ValueError,)) | RunnableLambda(lambda v: v + 1)
        try:
            return [repr(one) for one in make(chain).batch([1, 2, 3], return_exceptions=keeps)], flaky.calls
        except Exception as raised:
            return repr(raised), flaky.calls

    assert run(lambda chain: RunnableProgram(lower(chain))) == run(lambda chain: chain)


def test_pauses_between_attempts_are_kept_without_blocking_the_loop():
    chain = RunnableLambda(Flaky({2: 1})).with_retry(exponential_jitter_params={"max": 0.05, "jitter": 0}, stop_after_attempt=2)
    program = RunnableProgram(lower(chain))
    ticks = 0

    async def main():
        nonlocal ticks
        task = asyncio.create_task(program.ainvoke(2))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.001)
        return await task

    assert asyncio.run(main()) == 20
    assert ticks > 3


def test_a_fallback_sees_the_error_in_the_callers_own_dict():
    def fail(value):
        raise ValueError("no")

    chain = RunnableLambda(fail).with_fallbacks([RunnableLambda(lambda v: str(v["why"]))], exception_key="why")
    given = {"x": 1}
    assert RunnableProgram(lower(chain)).invoke(given) == "no"
    assert isinstance(given["why"], ValueError)


def test_the_first_error_is_raised_when_all_fallbacks_fail():
    first, second = Flaky({1: 9}, ValueError), Flaky({1: 9}, KeyError)
    chain = RunnableLambda(first).with_fallbacks([RunnableLambda(second)])
    with pytest.raises(ValueError, match="1 failed"):
        RunnableProgram(lower(chain)).invoke(1)
    assert (first.calls[1], second.calls[1]) == (1, 1)


def test_conditions_are_asked_in_turn_up_to_the_first_that_holds():
    asked = []

    def condition(name, holds):
        return lambda value: asked.append(name) or holds

    chain = RunnableBranch((condition("a", False), lambda v: 1), (condition("b", True), lambda v: 2), lambda v: 3)
    chain2 = RunnableBranch(chain.branches[0], chain.default)
    assert RunnableProgram(lower(chain)).invoke(0) == 2
    assert RunnableProgram(lower(chain2)).invoke(0) == 3
    assert asked == ["a", "b", "a"]


@pytest.mark.parametrize("is_async", [False, True])
def test_the_first_error_is_raised_whatever_its_truth_value(is_async):
    class Falsy(ValueError):
        def __bool__(self):
            return False

    first, second = Flaky({2: 9}, Falsy), Flaky({2: 9}, KeyError)
    program = RunnableProgram(lower(RunnableLambda(first).with_fallbacks([RunnableLambda(second)])))
    with pytest.raises(Falsy):
        asyncio.run(program.ainvoke(2)) if is_async else program.invoke(2)


class Ending(BaseException):
    """Of a kind that ends programs."""


@pytest.mark.parametrize(
    "guarded",
    [
        lambda step: step.with_fallbacks([RunnableLambda(lambda value: value * 10)], exceptions_to_handle=(Ending,)),
        lambda step: step.with_retry(retry_if_exception_type=(Ending,), wait_exponential_jitter=False),
    ],
    ids=["fallback", "retry"],
)
def test_an_error_that_ends_programs_is_handled_where_the_chain_says_so(guarded):
    chain = compile_runnable(guarded(RunnableLambda(Flaky({2: 1, 3: 1}, Ending))))
    assert [chain.invoke(2), asyncio.run(chain.ainvoke(3))] == [20, 30]
