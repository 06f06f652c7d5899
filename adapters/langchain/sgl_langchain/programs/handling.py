"""Steps that decide or mend: branches, routers, fallbacks, retries.

In a batch the last three couple the values, as in LangChain: an unknown key refuses all of them, and fallbacks and retries
run again for those that failed, together.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from langchain_core.runnables import RunnableWithFallbacks
from langchain_core.runnables.retry import RunnableRetry
from tenacity import RetryError

from sgl_langchain.programs.effects import Effect, Evaluation, Failure, Outcome, Pause, Together, values_of
from sgl_langchain.programs.operation import NO_KWARGS, Frame, Kwargs, Operation

__all__ = ["Again", "Choose", "Otherwise", "Route"]

BatchOutcomes = Generator[Effect, Any, list[Outcome]]


class Choose(Operation):
    """The first arm whose condition holds, or the default."""

    def __init__(self, arms: Sequence[tuple[Operation, Operation]], default: Operation) -> None:
        """Keep them."""
        self._arms = tuple(arms)
        self._default = default
        self.sees_config = default.sees_config or any(one.sees_config for arm in self._arms for one in arm)

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Ask the conditions in turn; keyword arguments go to the arm."""
        for condition, arm in self._arms:
            if (yield from condition.run(value, frame)):
                return (yield from arm.run(value, frame, kwargs))
        return (yield from self._default.run(value, frame, kwargs))


class Route(Operation):
    """What the input names by its key."""

    couples = True

    def __init__(self, routes: Sequence[tuple[str, Operation]]) -> None:
        """Keep them."""
        self._routes = dict(routes)
        self.sees_config = any(route.sees_config for route in self._routes.values())

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:  # noqa: ARG002
        """LangChain passes no keyword arguments on here."""
        key, given = value["key"], value["input"]
        if key not in self._routes:
            raise ValueError(f"No runnable associated with key '{key}'")
        return (yield from self._routes[key].run(given, frame))

    def run_batch(
        self, values: Sequence[Any], frames: Sequence[Frame], kwargs: Kwargs = NO_KWARGS, *, keeps_errors: bool = False
    ) -> BatchOutcomes:
        """All keys are looked up before anything runs; and here LangChain does pass keyword arguments on."""
        if not values:
            return []
        keys = [value["key"] for value in values]
        given = [value["input"] for value in values]
        if any(key not in self._routes for key in keys):
            raise ValueError("One or more keys do not have a corresponding runnable")
        evaluations = [
            self._routes[key].run(value, frame, kwargs) for key, value, frame in zip(keys, given, frames, strict=True)
        ]
        outcomes: list[Outcome] = yield Together(evaluations, frames[0].limit, keeps_errors)
        return outcomes if keeps_errors else values_of(outcomes)


class Otherwise(Operation):
    """The first of several that does not fail."""

    couples = True

    def __init__(self, runnable: RunnableWithFallbacks[Any, Any], choices: Sequence[Operation]) -> None:
        """Keep them, and what counts as failing."""
        self._handled = tuple(runnable.exceptions_to_handle)
        self._key = runnable.exception_key
        self._choices = tuple(choices)
        self.sees_config = any(choice.sees_config for choice in self._choices)

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Try them in turn; if all fail, the first error is raised."""
        if self._key is not None and not isinstance(value, dict):
            raise ValueError(
                f"If 'exception_key' is specified then input must be a dictionary.However found a type of {type(value)} for input"
            )
        first: BaseException | None = None
        last: BaseException | None = None
        for choice in self._choices:
            try:
                if self._key and last is not None:
                    value[self._key] = last  # the caller's own dict, as in LangChain
                return (yield from choice.run(value, frame, kwargs))
            except self._handled as error:
                first = error if first is None else first
                last = error
        if first is None:
            raise ValueError("No error stored at end of fallbacks.")
        raise first

    def run_batch(
        self, values: Sequence[Any], frames: Sequence[Frame], kwargs: Kwargs = NO_KWARGS, *, keeps_errors: bool = False
    ) -> BatchOutcomes:
        """Each of them gets what has failed so far; an error that it does not handle is raised then, others at the end."""
        if self._key is not None and not all(isinstance(value, dict) for value in values):
            raise ValueError(
                "If 'exception_key' is specified then inputs must be dictionaries."
                f"However found a type of {type(values[0])} for input"
            )
        outcomes: list[Outcome] = [None] * len(values)
        left = list(range(len(values)))
        for choice in self._choices:
            if not left:
                break
            given = [values[i] for i in left]
            found = yield from choice.run_batch(given, [frames[i] for i in left], kwargs, keeps_errors=True)
            outcomes = _with(outcomes, left, found)
            if not keeps_errors:
                values_of(one for one in found if isinstance(one, Failure) and not isinstance(one.error, self._handled))
            left = [i for i in left if self._is_handled(outcomes[i], values[i])]
        return outcomes if keeps_errors else values_of(outcomes)

    def _is_handled(self, outcome: Outcome, value: Any) -> bool:
        """Whether it is to be tried again; the input then holds the error, if it is to."""
        if not isinstance(outcome, Failure) or not isinstance(outcome.error, self._handled):
            return False
        if self._key:
            value[self._key] = outcome.error
        return True


class Again(Operation):
    """The same again after certain errors, as ``tenacity`` has been told."""

    couples = True

    def __init__(self, runnable: RunnableRetry[Any, Any], bound: Operation) -> None:
        """Keep both."""
        self._runnable = runnable
        self._bound = bound
        self.sees_config = bound.sees_config

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Try; the last error is raised as it is."""
        pauses: list[float] = []
        output = None
        for attempt in self._runnable._sync_retrying(reraise=True, sleep=pauses.append):
            yield from _paused(pauses)
            with attempt:
                output = yield from self._bound.run(value, frame, kwargs)
        return output

    def run_batch(
        self, values: Sequence[Any], frames: Sequence[Frame], kwargs: Kwargs = NO_KWARGS, *, keeps_errors: bool = False
    ) -> BatchOutcomes:
        """Only those that failed run again; the first error of an attempt says whether there is another one."""
        pauses: list[float] = []
        outcomes: list[Outcome] = [None] * len(values)
        left = list(range(len(values)))
        is_told = False  # what became of each value; a batch can also be refused as a whole
        try:
            for attempt in self._runnable._sync_retrying(sleep=pauses.append):
                yield from _paused(pauses)
                with attempt:
                    given = [values[i] for i in left]
                    found = yield from self._bound.run_batch(given, [frames[i] for i in left], kwargs, keeps_errors=True)
                    outcomes, is_told = _with(outcomes, left, found), True
                    left = [i for i in left if isinstance(outcomes[i], Failure)]
                    values_of(found)
        except RetryError as error:  # the attempts are used up: what failed last stands
            if not is_told:
                outcomes = [Failure(error)] * len(values)
        except Exception as error:
            if not keeps_errors:
                raise
            return [Failure(error)] * len(values)  # LangChain gives an error that is not tried again to all of them
        return outcomes if keeps_errors else values_of(outcomes)


def _paused(pauses: list[float]) -> Generator[Effect, Any, None]:
    while pauses:
        yield Pause(pauses.pop())


def _with(outcomes: Sequence[Outcome], places: Sequence[int], found: Sequence[Outcome]) -> list[Outcome]:
    replaced = list(outcomes)
    for place, outcome in zip(places, found, strict=True):
        replaced[place] = outcome
    return replaced
