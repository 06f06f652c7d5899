"""What a sampled token does to its request: ids, text, grammar, stops, budget. Called by the scheduler, which owns the request.

Nothing here knows slots or the queue: the answer says what was put out and whether that was the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sgl_core.runtime.constraint import Verdict
from sgl_core.runtime.metrics import Counters
from sgl_core.runtime.plan import Progress, Sample
from sgl_core.runtime.request import Request, TextSink
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

    An error in the request's own text or grammar (its sink, its constraint) ends it, and no other.
    """
    if sample.token is None:
        return Taken((), End(None, error=sample.error))
    verdict = Verdict((sample.token,)) if sample.verdict is None else sample.verdict
    progress: list[Progress] = []
    try:
        if sample.verdict is not None:
            _commit(request, verdict)
        end = _emit(request, sample, verdict, progress, counters)
    except Exception as error:  # one request's text must not end the others
        end = End(None, error=error)
    return Taken(tuple(progress), end)


def _emit(request: Request, sample: Sample, verdict: Verdict, progress: list[Progress], counters: Counters) -> End | None:
    """Put out a verdict's tokens, up to the first that ends the request."""
    for index, token in enumerate(verdict.tokens):
        if index and request.num_generated >= request.max_new_tokens:
            return End(FinishReason.LENGTH)
        _append(request, token, sample if index == 0 else None)
        if index < verdict.num_healed:  # the prompt's: it has no text, stops nothing, and nobody is waiting for it
            request.prompt_len += 1
            _sink(request).push(token)
            continue
        counters.put_out(request, forced=index > 0)
        end = _push(request, token, progress)
        if end is not None:
            return end
    if verdict.ended:
        return End(FinishReason.STOP if request.cut is None else FinishReason.GRAMMAR)
    if request.num_generated >= request.max_new_tokens:
        return End(FinishReason.LENGTH)
    return None


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
    """Text and stops of one token."""
    if token in request.stop_ids:
        return End(FinishReason.STOP, matched_stop=token)
    sink = _sink(request)
    progress.append(Progress(request, token, sink.push(token)))
    if sink.matched_stop is not None:
        return End(FinishReason.STOP, matched_stop=sink.matched_stop)
    return None


def _sink(request: Request) -> TextSink:
    assert request.sink is not None, "a request that samples has a sink"
    return request.sink
