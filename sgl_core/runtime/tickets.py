"""What the engine owes for each request: events in, deltas and one result or error out. Used on the engine thread."""

from __future__ import annotations

from collections.abc import Callable
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

__all__ = ["GenTicket", "PrefetchTicket", "ScoreTicket", "Ticket"]


class Ticket(Protocol):
    """Takes the events of one or more requests."""

    def progress(self, event: Progress) -> None:
        """A token came."""

    def finished(self, event: Finished, now: float) -> None:
        """A request ended."""

    def fail(self, error: Exception) -> None:
        """The engine cannot go on with it."""


class GenTicket:
    """A generation."""

    def __init__(self, handle: RequestHandle[GenResult], decoder: StreamDecoder) -> None:
        self._handle = handle
        self._decoder = decoder

    def progress(self, event: Progress) -> None:
        """Stream the token."""
        self._handle.push(GenDelta(event.text, (event.token_id,)))

    def finished(self, event: Finished, now: float) -> None:
        """Flush held text, then end the handle."""
        if event.reason is None:
            assert event.error is not None, "a request without a reason has an error"
            self._handle.fail(event.error)
            return
        try:
            held = self._decoder.finish()
            result = self._result(event, event.reason, now)
        except Exception as error:  # one request's text must not end the engine
            self._handle.fail(error)
            return
        if held:
            self._handle.push(GenDelta(held, ()))
        self._handle.finish(result)

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self._handle.fail(error)

    def _result(self, event: Finished, reason: FinishReason, now: float) -> GenResult:
        request, decoder = event.request, self._decoder
        ids = tuple(request.output_ids())
        if isinstance(event.matched_stop, int):
            ids = ids[:-1]
        return GenResult(
            text=decoder.text,
            token_ids=ids[: decoder.kept_tokens],
            finish_reason=reason,
            usage=Usage(request.prompt_len, request.cached_len, request.num_generated),
            matched_stop=event.matched_stop,
            text_behind_ids=decoder.text_behind_ids,
            seed=request.params.seed if request.params.temperature > 0 else None,
            timings=_timings(request, now),
        )


class ScoreTicket:
    """A scoring: one request a continuation, one handle for all.

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
            scores = tuple(tuple(r.logprobs) for r in self._requests)
            self._handle.finish(ScoreResult(scores, usage, _timings(self._requests[0], now)))

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self._handle.fail(error)


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
            self._handle.finish(PrefetchResult(Usage(event.request.prompt_len, event.request.cached_len, 0)))

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
