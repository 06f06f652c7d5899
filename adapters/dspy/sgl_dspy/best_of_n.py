"""``BestOfN``: DSPy's, with attempts that run at the same time; and the same for an instance of DSPy's own.

Attempts begin alike, so together they cost one prefill and ride in one batch. Their rewards are looked at in the order of
their numbers, on the caller's thread, and the first that is good enough ends the search: prediction, trace and ``fail_count``
are those of DSPy's loop, and attempts behind the winner are left (see ``leaving``). ``Refine`` stays as it is: each of its
attempts but the first needs the advice that came of the one before.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import dspy

from sgl_core.errors import InvalidArgumentError
from sgl_dspy.engine import SglEngine
from sgl_dspy.running.leaving import Exit

__all__ = ["BestOfN", "arun_best_of_n", "run_best_of_n"]

_logger = logging.getLogger(__name__)


class BestOfN(dspy.BestOfN):  # type: ignore[misc]  # dspy has no types
    """Runs a module up to ``N`` times, several at once, and returns the prediction with the best reward.

    Exactly the prediction that ``dspy.BestOfN`` returns for the same seeds: attempts are rollouts ``0 .. N-1`` at temperature
    1.0, the first in order whose reward reaches ``threshold`` wins, and what is behind it is aborted. What differs: attempts
    behind the winner have begun, so tools in them may have been called, and usage and histories count what they computed.

    Args:
        module: to run; each attempt has a deep copy.
        N: attempts at most.
        reward_fn: of the inputs and a prediction; called on the caller's thread, in order, never for an attempt behind the
            winner.
        threshold: a reward that is good enough.
        fail_count: attempts that may fail; None is ``N``.
        speculate: attempts that run at once. None is all of them on an engine of this package and one on any other, whose
            requests cannot be aborted and may cost money; 1 is DSPy's own loop. Where tokens are streamed to a listener it
            is 1, too, or the streams of several attempts would mix.

    Raises:
        InvalidArgumentError: ``module`` is no module, ``N`` no count, or ``speculate`` neither None nor a positive int.
    """

    def __init__(
        self,
        module: dspy.Module,
        N: int,  # noqa: N803  (DSPy's name)
        reward_fn: Callable[[dict[str, Any], dspy.Prediction], float],
        threshold: float,
        fail_count: int | None = None,
        *,
        speculate: int | None = None,
    ) -> None:
        """Run nothing."""
        if not isinstance(module, dspy.Module):
            cure = "Make an instance of it first." if isinstance(module, type) else ""
            raise InvalidArgumentError("module", type(module).__name__, "a dspy.Module", cure)
        if N != 0 and not _is_count(N):
            raise InvalidArgumentError("N", N, "an int, not negative")
        _check_speculate(speculate)
        super().__init__(module, N, reward_fn, threshold, fail_count)
        self.speculate = speculate

    def forward(self, **inputs: Any) -> Any:
        """See ``run_best_of_n``."""
        return run_best_of_n(self, inputs, speculate=self.speculate)

    async def aforward(self, **inputs: Any) -> Any:
        """See ``arun_best_of_n``."""
        return await arun_best_of_n(self, inputs, speculate=self.speculate)


def run_best_of_n(best: dspy.BestOfN, inputs: Mapping[str, Any], *, speculate: int | None = None) -> Any:
    """What ``best(**inputs)`` returns, with attempts that run at the same time.

    Args:
        best: DSPy's module or ours; its ``fail_count`` counts down as in its own loop.
        inputs: of the module inside.
        speculate: as for ``BestOfN``.

    Returns:
        The prediction; None if no attempt gave one.

    Raises:
        InvalidArgumentError: ``speculate`` is neither None nor a positive int.
        Exception: an attempt's own, once more failed than may.
    """
    _check_speculate(speculate)
    search = _Search(best, inputs)
    width = search.width(speculate)
    if width == 1:
        return dspy.BestOfN.forward(best, **inputs)
    started: list[tuple[_Attempt, Future[Any]]] = []
    with ThreadPoolExecutor(width, thread_name_prefix="sgl-best-of-n") as pool:
        try:
            for index in range(best.N):
                while len(started) < min(index + width, best.N):
                    attempt = search.attempt(len(started))
                    started.append((attempt, pool.submit(contextvars.copy_context().run, attempt.run)))
                attempt, future = started[index]
                try:
                    if search.accepts(attempt, future.result()):
                        break
                except Exception as error:
                    search.forgive(attempt, error)
        finally:
            for attempt, _ in started:
                attempt.exit.leave()
    return search.finish()


async def arun_best_of_n(best: dspy.BestOfN, inputs: Mapping[str, Any], *, speculate: int | None = None) -> Any:
    """Like ``run_best_of_n`` on the running loop, where attempts are tasks; ``reward_fn`` blocks it while it runs."""
    _check_speculate(speculate)
    search = _Search(best, inputs)
    width = search.width(speculate)
    started: list[tuple[_Attempt, asyncio.Task[Any]]] = []
    try:
        for index in range(best.N):
            while len(started) < min(index + width, best.N):
                attempt = search.attempt(len(started))
                started.append((attempt, asyncio.create_task(attempt.arun())))
            attempt, task = started[index]
            try:
                if search.accepts(attempt, await task):
                    break
            except Exception as error:
                search.forgive(attempt, error)
    finally:
        for attempt, task in started:
            attempt.exit.leave()
            task.cancel()
        await asyncio.gather(*(task for _, task in started), return_exceptions=True)
    return search.finish()


class _Attempt:
    """One run of a copy of the module.

    Args:
        index: its number, from 0. ``rollout``: its rollout id.
        module: the copy, with its LM.
        inputs: of the module.
    """

    def __init__(self, index: int, rollout: int, module: dspy.Module, inputs: Mapping[str, Any]) -> None:
        self.index = index
        self.rollout = rollout
        self.trace: list[Any] = []
        self.exit = Exit()
        self._module = module
        self._inputs = inputs

    def run(self) -> Any:
        """Its prediction; the trace is in ``trace``."""
        with dspy.context(trace=self.trace), self.exit.inside():
            return self._module(**self._inputs)

    async def arun(self) -> Any:
        """The same, awaited."""
        with dspy.context(trace=self.trace), self.exit.inside():
            return await self._module.acall(**self._inputs)


class _Search:
    """What DSPy's loop does between attempts, in order; used by one call, on its thread."""

    def __init__(self, best: dspy.BestOfN, inputs: Mapping[str, Any]) -> None:
        self._best = best
        self._inputs = dict(inputs)
        self._lm = best.module.get_lm() or dspy.settings.lm
        self._prediction: Any = None
        self._trace: list[Any] | None = None
        self._reward = -float("inf")

    def width(self, speculate: int | None) -> int:
        """Attempts at once."""
        is_ours = isinstance(getattr(self._lm, "engine", None), SglEngine)
        wanted = (self._best.N if is_ours else 1) if speculate is None else speculate
        return max(1, min(wanted, self._best.N)) if dspy.settings.send_stream is None else 1

    def attempt(self, index: int) -> _Attempt:
        """A copy of the module, on the LM with its own rollout id."""
        rollout = self._lm.kwargs.get("rollout_id", 0) + index
        module = self._best.module.deepcopy()
        module.set_lm(self._lm.copy(rollout_id=rollout, temperature=1.0))
        return _Attempt(index, rollout, module, self._inputs)

    def accepts(self, attempt: _Attempt, prediction: Any) -> bool:
        """Look at the reward of the next attempt in order; whether it ends the search."""
        trace = attempt.trace.copy()  # without what the reward function may add
        with dspy.context(trace=attempt.trace):
            reward = self._best.reward_fn(self._inputs, prediction)
        if reward > self._reward:
            self._reward, self._prediction, self._trace = reward, prediction, trace
        return bool(reward >= self._best.threshold)

    def forgive(self, attempt: _Attempt, error: Exception) -> None:
        """Count a failed attempt; too many are an error."""
        _logger.warning("BestOfN: attempt %d failed with rollout id %d: %s", attempt.index + 1, attempt.rollout, error)
        if attempt.index > self._best.fail_count:
            raise error
        self._best.fail_count -= 1

    def finish(self) -> Any:
        """Hand over the best prediction, and its trace."""
        if self._trace and dspy.settings.trace is not None:
            dspy.settings.trace.extend(self._trace)
        return self._prediction


def _check_speculate(speculate: object) -> None:
    if speculate is not None and not _is_count(speculate):
        raise InvalidArgumentError("speculate", speculate, "the number of attempts that run at once, from 1, or None")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
