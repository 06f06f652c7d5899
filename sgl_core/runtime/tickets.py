"""What the engine owes for each request: events in, deltas and one result or error out. Used on the engine thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sgl_core.errors import RequestAborted
from sgl_core.handle import RequestHandle
from sgl_core.runtime.detokenizer import StreamDecoder
from sgl_core.runtime.plan import Finished, Progress
from sgl_core.runtime.request import Request
from sgl_core.types import (
    FinishReason,
    GenDelta,
    GenResult,
    PrefetchResult,
    ScoreResult,
    Timings,
    Usage,
)

__all__ = ["Completions", "GenReceiver", "GenTicket", "PrefetchTicket", "ScoreTicket", "Ticket"]


class Ticket(Protocol):
    """Takes the events of one or more requests."""

    def progress(self, event: Progress) -> None:
        """A token came."""

    def finished(self, event: Finished, now: float) -> None:
        """A request ended."""

    def fail(self, error: Exception) -> None:
        """The engine cannot go on with it."""


class GenReceiver(Protocol):
    """Where a generation is handed in: a handle, or what stands before one."""

    def push(self, delta: GenDelta) -> None:
        """Stream a delta."""

    def finish(self, result: GenResult) -> None:
        """It has ended."""

    def fail(self, error: BaseException) -> None:
        """It cannot go on."""


class GenTicket:
    """A generation.

    Args:
        index: which of several completions of one prompt it is.
    """

    def __init__(self, receiver: GenReceiver, decoder: StreamDecoder, index: int = 0) -> None:
        self._receiver = receiver
        self._decoder = decoder
        self._index = index

    def progress(self, event: Progress) -> None:
        """Stream the token."""
        self._receiver.push(GenDelta(event.text, (event.token_id,), self._index))

    def finished(self, event: Finished, now: float) -> None:
        """Flush held text, then hand the result over."""
        if event.reason is None:
            assert event.error is not None, "a request without a reason has an error"
            self._receiver.fail(event.error)
            return
        try:
            held = self._decoder.finish()
            result = _gen_result(event, event.reason, self._decoder, now)
        except Exception as error:  # one request's text must not end the engine
            self._receiver.fail(error)
            return
        if held:
            self._receiver.push(GenDelta(held, (), self._index))
        self._receiver.finish(result)

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self._receiver.fail(error)


def _gen_result(event: Finished, reason: FinishReason, decoder: StreamDecoder, now: float) -> GenResult:
    """The result of a generation that has ended, its decoder's text flushed."""
    request = event.request
    params, num_healed = request.params, request.prompt_len - request.submitted_len
    ids = request.ids[request.submitted_len :]
    if isinstance(event.matched_stop, int):
        ids = ids[:-1]
    kept = ids[: decoder.kept_tokens]
    num_prompt = max(0, request.submitted_len - request.logprobs_from)
    output_scores = request.logprobs[num_prompt + num_healed :]
    return GenResult(
        text=decoder.text,
        token_ids=tuple(kept[num_healed:]),
        finish_reason=reason,
        usage=Usage(request.prompt_len, request.cached_len, request.num_generated),
        matched_stop=event.matched_stop,
        text_behind_ids=decoder.text_behind_ids,
        seed=params.seed if params.temperature > 0 else None,
        logprobs=None if params.logprobs is None else tuple(output_scores[: max(0, len(kept) - num_healed)]),
        prompt_logprobs=(None, *request.logprobs[:num_prompt]) if params.prompt_logprobs else None,
        healed_ids=tuple(kept[:num_healed]),
        grammar_cut=request.cut,
        timings=_timings(request, now),
    )


class Completions:
    """Collects ``n`` completions of one prompt for one handle.

    Args:
        handle: of all; a failure of one aborts the others through it.
        num: how many.
    """

    def __init__(self, handle: RequestHandle[list[GenResult]], num: int) -> None:
        self._handle = handle
        self._results: list[GenResult | None] = [None] * num

    def part(self, index: int) -> GenReceiver:
        """Where one of them is handed in."""
        return _Part(self, index)

    def push(self, delta: GenDelta) -> None:
        """Stream a delta of any of them."""
        self._handle.push(delta)

    def put(self, index: int, result: GenResult) -> None:
        """One has ended; the last one ends the handle."""
        self._results[index] = result
        done = [r for r in self._results if r is not None]
        if len(done) == len(self._results):
            self._handle.finish(done)

    def fail(self, error: BaseException) -> None:
        """One has failed: the others' results would be for nobody."""
        self._handle.abort()
        self._handle.fail(error)


@dataclass(frozen=True, slots=True)
class _Part:
    whole: Completions
    index: int

    def push(self, delta: GenDelta) -> None:
        self.whole.push(delta)

    def finish(self, result: GenResult) -> None:
        self.whole.put(self.index, result)

    def fail(self, error: BaseException) -> None:
        self.whole.fail(error)


class ScoreTicket:
    """A scoring: one request a trie of continuations, one handle for all.

    Args:
        prompt_len: tokens of the shared prompt.
        clean_up: called when the last of them has ended; None where their KV may stay.
    """

    def __init__(
        self,
        handle: RequestHandle[ScoreResult],
        requests: list[Request],
        prompt_len: int,
        clean_up: Callable[[], None] | None,
    ) -> None:
        self._clean_up = clean_up
        self._handle = handle
        self._requests = requests
        self._prompt_len = prompt_len
        self._left = len(requests)

    def progress(self, event: Progress) -> None:
        """Scoring generates nothing."""

    def finished(self, event: Finished, now: float) -> None:
        """Collect; the last one ends the handle."""
        self._left -= 1
        if not self._left and self._clean_up is not None:
            self._clean_up()
        if event.error is not None or event.reason is FinishReason.ABORT:
            self._handle.abort()  # the others' results would be for nobody
            self._handle.fail(event.error or _aborted())
        elif not self._left:
            group = self._requests[0].group
            assert group is not None, "scored requests have a group"
            assert group.leader is not None, "the first of them was admitted"
            usage = Usage(self._prompt_len, group.leader.cached_len, 0)
            scores = _scores_by_choice(self._requests)
            self._handle.finish(ScoreResult(scores, usage, _timings(self._requests[0], now)))

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self._handle.fail(error)


def _scores_by_choice(requests: list[Request]) -> tuple[tuple[float, ...], ...]:
    """Log-probabilities of each continuation's tokens, read off the tries."""
    scores: dict[int, tuple[float, ...]] = {}
    for request in requests:
        trie = request.branches
        assert trie is not None, "a scoring has tries"
        for index, places in zip(trie.continuations, trie.places, strict=True):
            scores[index] = tuple(request.logprobs[place].logprob for place in places)
    return tuple(scores[index] for index in range(len(scores)))


class PrefetchTicket:
    """A prefetch."""

    def __init__(self, handle: RequestHandle[PrefetchResult]) -> None:
        self._handle = handle

    def progress(self, event: Progress) -> None:
        """Prefetching generates nothing."""

    def finished(self, event: Finished, now: float) -> None:
        """End the handle."""
        del now
        if event.error is not None:
            self._handle.fail(event.error)
        elif event.reason is FinishReason.ABORT:
            self._handle.fail(_aborted())
        else:
            done, computed = event.request.covered_len, event.request.prefilled_len
            self._handle.finish(PrefetchResult(Usage(done, done - computed, 0)))

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self._handle.fail(error)


def _aborted() -> RequestAborted:
    return RequestAborted("the request was aborted before it had a result")


def _timings(request: Request, now: float) -> Timings:
    if not request.admitted_at:
        return Timings(queue_s=now - request.submitted_at)
    first = request.first_token_at or now
    return Timings(request.admitted_at - request.submitted_at, first - request.admitted_at, now - first)
