"""Steps that are made of others: sequences, parallel branches, bindings, lists. They add no run and no copy of any input."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs

from sgl_langchain.programs.effects import Effect, Evaluation, Failure, Outcome, Together, values_of
from sgl_langchain.programs.operation import NO_KWARGS, Frame, Kwargs, Operation
from sgl_langchain.translate.nodes import Binding

__all__ = ["Adding", "Bound", "ForEach", "Side", "Steps"]


class Steps(Operation):
    """One after the other; keyword arguments go to the first."""

    def __init__(self, steps: Sequence[Operation]) -> None:
        """Keep them."""
        self._steps = tuple(steps)
        self.sees_config = any(step.sees_config for step in self._steps)
        self.couples = any(step.couples for step in self._steps)  # type: ignore[misc]

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Go through them."""
        for step in self._steps:
            value = yield from step.run(value, frame, kwargs)
            kwargs = NO_KWARGS
        return value

    def run_item(self, value: Any, frame: Frame, kwargs: Kwargs, trail: list[int]) -> Evaluation:
        """Go through them, and say where it is."""
        depth = len(trail)
        for i, step in enumerate(self._steps):
            trail[depth:] = [i]
            value = yield from step.run_item(value, frame, kwargs, trail)
            kwargs = NO_KWARGS
        return value

    def run_batch(
        self, values: Sequence[Any], frames: Sequence[Frame], kwargs: Kwargs = NO_KWARGS, *, keeps_errors: bool = False
    ) -> Generator[Effect, Any, list[Outcome]]:
        """Step by step where one of them couples the values; otherwise each value goes as far as it can."""
        if not self.couples:
            return (yield from super().run_batch(values, frames, kwargs, keeps_errors=keeps_errors))
        try:
            return (yield from self._step_by_step(values, frames, kwargs, keeps_errors=keeps_errors))
        except Exception as error:
            if not keeps_errors:
                raise
            return [Failure(error)] * len(values)  # a step refused the batch as a whole: LangChain tells all of them

    def _step_by_step(
        self, values: Sequence[Any], frames: Sequence[Frame], kwargs: Kwargs, *, keeps_errors: bool
    ) -> Generator[Effect, Any, list[Outcome]]:
        outcomes: list[Outcome] = list(values)
        for step in self._steps:
            left = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, Failure)]
            given = [outcomes[i] for i in left]
            found = yield from step.run_batch(given, [frames[i] for i in left], kwargs, keeps_errors=keeps_errors)
            for i, outcome in zip(left, found, strict=True):
                outcomes[i] = outcome
            kwargs = NO_KWARGS
        return outcomes


class Side(Operation):
    """The same value for every branch, a dict of what they give."""

    def __init__(self, branches: Sequence[tuple[str, Operation]]) -> None:
        """Keep them."""
        self._branches = tuple(branches)
        self.sees_config = any(branch.sees_config for _, branch in self._branches)

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:  # noqa: ARG002
        """All branches at once; in a thread all of them end before the first error, by the order of the keys, is raised."""
        limit = None if frame.is_async else frame.limit  # LangChain bounds the threads, not the tasks
        outcomes = yield Together([branch.run(value, frame) for _, branch in self._branches], limit)
        return dict(zip((key for key, _ in self._branches), values_of(outcomes), strict=True))


class Adding(Operation):
    """A dict with the keys of a mapper added."""

    def __init__(self, mapper: Operation) -> None:
        """Keep it."""
        self._mapper = mapper
        self.sees_config = mapper.sees_config

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """A new dict; the one that came in is left as it is."""
        if not isinstance(value, dict):
            raise ValueError("The input to RunnablePassthrough.assign() must be a dict.")  # noqa: TRY004  (LangChain's own)
        return {**value, **(yield from self._mapper.run(value, frame, kwargs))}


class ForEach(Operation):
    """The same for every element of a list."""

    def __init__(self, bound: Operation) -> None:
        """Keep it."""
        self._bound = bound
        self.sees_config = bound.sees_config

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """A batch inside the program."""
        elements = list(value)
        return (yield from self._bound.run_batch(elements, [frame] * len(elements), kwargs))


class Bound(Operation):
    """Arguments and configuration of its own, for what is inside."""

    def __init__(self, node: Binding, bound: Operation) -> None:
        """Keep both."""
        self._options = node.options
        self._config = node.config
        self._factories = node.factories
        self._bound = bound
        self.sees_config = bound.sees_config
        self.couples = bound.couples  # type: ignore[misc]

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Go inside."""
        return (yield from self._bound.run(value, self._inside(frame), {**self._options, **kwargs}))

    def run_item(self, value: Any, frame: Frame, kwargs: Kwargs, trail: list[int]) -> Evaluation:
        """Go inside."""
        return (yield from self._bound.run_item(value, self._inside(frame), {**self._options, **kwargs}, trail))

    def run_batch(
        self, values: Sequence[Any], frames: Sequence[Frame], kwargs: Kwargs = NO_KWARGS, *, keeps_errors: bool = False
    ) -> Generator[Effect, Any, list[Outcome]]:
        """Go inside, all of them."""
        inside = [self._inside(frame) for frame in frames]
        return (yield from self._bound.run_batch(values, inside, {**self._options, **kwargs}, keeps_errors=keeps_errors))

    def _inside(self, frame: Frame) -> Frame:
        """Merged as LangChain does it, where anybody could see it or where it says how much may run at once."""
        if not self.sees_config and "max_concurrency" not in self._config:
            return frame
        config: RunnableConfig = merge_configs(self._config, frame.config)
        return frame.under(ensure_config(merge_configs(config, *(make(config) for make in self._factories))))
