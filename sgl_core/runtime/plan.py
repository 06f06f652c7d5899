"""The contract between scheduler and runner: what one step runs, and what came of it. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from sgl_core.runtime.constraint import Verdict
from sgl_core.runtime.request import Request
from sgl_core.types import FinishReason, TokenLogprob

__all__ = ["Finished", "Progress", "Sample", "SharedPrefix", "StepPlan", "StepResult", "Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """Run ``ids[start:end]`` of one request.

    Args:
        request: read by the runner, written by the scheduler only.
        start: first token to run; the KV of all earlier ones is computed, here or by a batch mate in this very step.
        end: behind the last token to run. A decode is ``end == start + 1``.
        table_start: the row's slot table must be updated from here: to ``request.slots[table_start:end]``.
        shared_len: leading tokens that lie in ``StepPlan.shared`` runs.
        logit_start: the logits of ``logit_start:end`` are needed.
        sample: those of ``end - 1`` give the next token, of the request and of its followers.
    """

    request: Request
    start: int
    end: int
    table_start: int
    shared_len: int
    logit_start: int
    sample: bool


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Tokens ``start:end`` of several requests that are the same slots.

    Args:
        members: indices into ``StepPlan.works``; none of them runs a token before ``end``.
    """

    start: int
    end: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One packed batch, in order."""

    works: tuple[Work, ...]
    shared: tuple[SharedPrefix, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that run."""
        return sum(w.end - w.start for w in self.works)


@dataclass(frozen=True, slots=True)
class Sample:
    """A request's next token.

    Args:
        token: what was drawn; None with ``error``.
        verdict: of the request's constraint on it, if it has one.
        logprob: of the token that is put out first, if the request wants it.
        gap: how far the second best choice was, if the request wants it.
        error: why this request, and no other, cannot go on.
    """

    token: int | None
    verdict: Verdict | None = None
    logprob: TokenLogprob | None = None
    gap: float | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the runner found, one entry per work.

    Args:
        samples: where ``Work.sample``: the request's, then one for each of its followers; else empty.
        scored: log-probabilities of ``Request.targets`` of the rows ``logit_start:end``, in order.
        errors: why a row's logits mean nothing (NaN, no allowed token), so that its KV is not to be trusted; else None.
    """

    samples: tuple[tuple[Sample, ...], ...]
    scored: tuple[tuple[TokenLogprob, ...], ...]
    errors: tuple[Exception | None, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """A request got a token; ``text`` may be empty."""

    request: Request
    token_id: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A request ended. Its slots are free or in the tree.

    Args:
        reason: None if it ended with ``error``.
        matched_stop: the stop token or stop string that ended it.
    """

    request: Request
    reason: FinishReason | None
    matched_stop: str | int | None = None
    error: Exception | None = None
