"""What a sampled token does to its request: ids, text, grammar, stops, budget. Called by the scheduler, which owns the request.

Nothing here knows slots or the queue: the answer says what was put out and whether that was the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sgl_core.runtime.constraint import Verdict
from sgl_core.runtime.metrics import Counters
from sgl_core.runtime.plan import Progress, Sample
from sgl_core.runtime.request import Request
from sgl_core.types import FinishReason, GrammarCut

__all__ = ["End", "Taken", "take"]


@dataclass(frozen=True, slots=True)
class End:
    """A request's end; see ``plan.Finished`` for the fields."""

    reason: FinishReason | None
    matched_stop: str | int | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a sample.

    Args:
        progress: a token and its text each, in order.
        end: None if the request goes on.
    """

    progress: tuple[Progress, ...]
    end: End | None


def take(request: Request, sample: Sample, counters: Counters) -> Taken:
    """Append a sampled token and whatever its grammar forces behind it.

    An error in the request's own text (its sink) ends it, and no other.
    """
    if sample.token is None:
        return Taken((), End(None, error=sample.error))
    verdict = sample.verdict
    if verdict is None:
        verdict = Verdict((sample.token,))
    else:
        _commit(request, verdict)
    progress: list[Progress] = []
    for index, token in enumerate(verdict.tokens):
        _append(request, token, sample if index == 0 else None)
        if index < verdict.num_healed:
            request.prompt_len += 1
        else:
            counters.put_out(request, forced=index > 0)
        end = _push(request, token, progress)
        if index < verdict.num_healed:
            progress.clear()  # the prompt's, which nobody is waiting for
        if end is not None:
            return Taken(tuple(progress), end)
    if verdict.ended:
        return Taken(tuple(progress), End(FinishReason.STOP if request.cut is None else FinishReason.GRAMMAR))
    return Taken(tuple(progress), None)


def _commit(request: Request, verdict: Verdict) -> None:
    assert request.constraint is not None, "a verdict is a constraint's"
    request.constraint.commit(verdict)
    if verdict.released:
        request.constraint = None
    if verdict.overruled:
        cut = request.cut or GrammarCut(0, request.num_generated)
        request.cut = replace(cut, num_tokens=cut.num_tokens + 1)


def _append(request: Request, token: int, sample: Sample | None) -> None:
    """Add a token to the ids, and what is reported of it to the lists that run along with them."""
    request.ids.append(token)
    if sample is not None and sample.logprob is not None:
        request.logprobs.append(sample.logprob)
    if request.wants_gap:
        request.gaps.append(float("inf") if sample is None or sample.gap is None else sample.gap)


def _push(request: Request, token: int, progress: list[Progress]) -> End | None:
    """Text, stops and budget of one token."""
    if token in request.stop_ids:
        return End(FinishReason.STOP, matched_stop=token)
    assert request.sink is not None, "a request that samples has a sink"
    try:
        text = request.sink.push(token)
    except Exception as error:  # one request's text must not end the others
        return End(None, error=error)
    progress.append(Progress(request, token, text))
    if request.sink.matched_stop is not None:
        return End(FinishReason.STOP, matched_stop=request.sink.matched_stop)
    if request.num_generated >= request.max_new_tokens:
        return End(FinishReason.LENGTH)
    return None
