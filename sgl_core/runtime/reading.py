"""From a step's logits to its result: samples, the grammars' verdicts on them, and log-probabilities.

The runner calls it. Masks of grammars are computed on a thread of their own while the model runs; a matcher is touched by
that thread from ``start`` until ``read`` has its answer, and by nobody else meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from sgl_core.errors import NumericsError
from sgl_core.runtime.plan import Sample, StepPlan, StepResult
from sgl_core.runtime.request import Request
from sgl_core.runtime.sampler import Draw, Pick, logprob_of, sample, score_rows
from sgl_core.types import TokenLogprob

__all__ = ["Masks", "StepReader"]

Masks = dict[str, NDArray[np.uint8] | Exception]
"""By request id: allowed tokens, packed as ``Constraint.mask`` says, or why there are none."""


class StepReader:
    """Reads the logits of one step after another."""

    def __init__(self) -> None:
        """Start without a thread: the first grammar brings it."""
        self._worker: ThreadPoolExecutor | None = None

    def start(self, plan: StepPlan) -> Future[Masks] | None:
        """Begin to compute the masks that a plan's samples need; None if it needs none."""
        constrained = [request for request in _sampling(plan) if request.constraint is not None]
        if not constrained:
            return None
        if self._worker is None:
            self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sgl-grammar")
        return self._worker.submit(_masks_of, constrained)

    def read(self, plan: StepPlan, logits: torch.Tensor, masks: Future[Masks] | None) -> StepResult:
        """The result of a plan.

        Args:
            logits: ``[rows, vocab]``, the rows ``logit_start:end`` of all works in order.
            masks: what ``start`` gave for this plan.
        """
        picks = _pick_all(plan, logits, {} if masks is None else masks.result())
        samples: list[tuple[Sample, ...]] = []
        scored: list[tuple[TokenLogprob, ...]] = []
        errors: list[Exception | None] = []
        first = 0
        for work in plan.works:
            rows = logits[first : first + work.end - work.logit_start]
            first += len(rows)
            scores = _scores(work.request, work.logit_start, rows)
            error = _damage(scores)
            mine: tuple[Sample, ...] = ()
            if work.sample:
                members = [work.request, *work.request.followers]
                drawn = [next(picks) for _ in members]
                mine = tuple(_settle(pick, request, rows[-1]) for request, pick in zip(members, drawn, strict=True))
                if isinstance(drawn[0].error, NumericsError):
                    error = drawn[0].error
            samples.append(mine)
            scored.append(scores)
            errors.append(error)
        return StepResult(tuple(samples), tuple(scored), tuple(errors))

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.shutdown()


def _sampling(plan: StepPlan) -> list[Request]:
    """Requests that a plan's samples are for, in order."""
    return [request for work in plan.works if work.sample for request in (work.request, *work.request.followers)]


def _masks_of(requests: list[Request]) -> Masks:
    masks: Masks = {}
    for request in requests:
        assert request.constraint is not None, "only constrained requests are asked for masks"
        try:
            masks[request.id] = request.constraint.mask()
        except Exception as error:  # one request's grammar must not end its batch mates
            masks[request.id] = error
    return masks


def _pick_all(plan: StepPlan, logits: torch.Tensor, masks: Masks) -> Iterator[Pick]:
    """A pick for each request that samples, in order; a request without a mask that should have one fails."""
    rows: list[int] = []
    draws: list[Draw] = []
    failed: dict[int, Exception] = {}
    behind = 0
    for work in plan.works:
        behind += work.end - work.logit_start
        for request in (work.request, *work.request.followers) if work.sample else ():
            mask = masks.get(request.id)
            if isinstance(mask, Exception):
                failed[len(rows) + len(failed)] = mask
            else:
                rows.append(behind - 1)
                draws.append(Draw(request, mask))
    chosen = logits if rows == list(range(len(logits))) else logits[rows]
    picked = iter(sample(chosen, draws) if draws else ())
    for index in range(len(draws) + len(failed)):
        yield Pick(None, failed[index]) if index in failed else next(picked)


def _settle(pick: Pick, request: Request, row: torch.Tensor) -> Sample:
    """What becomes of a pick: the constraint's verdict, and the log-probability of what is put out."""
    if pick.token is None:
        return Sample(None, error=pick.error)
    try:
        verdict, num_top = None, request.params.logprobs
        if request.constraint is not None:
            remaining = request.max_new_tokens - request.num_generated
            verdict = request.constraint.propose(pick.token, remaining, jump=num_top is None)
        emitted = (pick.token,) if verdict is None else verdict.tokens
        logprob = None
        if num_top is not None and emitted:
            logprob = logprob_of(row, emitted[0], num_top)
        return Sample(pick.token, verdict, logprob, pick.gap)
    except Exception as error:  # likewise
        return Sample(None, error=error)


def _scores(request: Request, first: int, rows: torch.Tensor) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of the tokens that somebody wants behind the tokens from ``first`` on."""
    targets = [request.targets(position) for position in range(first, first + len(rows))]
    if not any(targets):
        return ()
    return tuple(chain.from_iterable(score_rows(rows, targets, 0)))


def _damage(scores: tuple[TokenLogprob, ...]) -> NumericsError | None:
    """The error of a work whose scores are no numbers."""
    if any(math.isnan(score.logprob) for score in scores):
        return NumericsError("this request's logits hold NaN")
    return None
