"""What the engine counts and reports. No torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counters", "EngineStats"]


@dataclass(slots=True)
class Counters:
    """Sums since the start or the last reset; written by the scheduler alone. See EngineStats for meanings."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    recomputed_tokens: int = 0
    prefetched_tokens: int = 0
    scored_tokens: int = 0
    jumped_tokens: int = 0
    evicted_tokens: int = 0
    num_steps: int = 0
    num_finished: int = 0
    num_aborted: int = 0
    num_failed: int = 0
    num_retractions: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of one engine.

    Args:
        prompt_tokens: prompt tokens of all admitted requests; the shared prompt of a scoring counts once.
        cached_tokens: of these, not computed because their KV was there, or came from a batch mate.
        prefilled_tokens: of these, run through the model: ``prompt_tokens == cached_tokens + prefilled_tokens``.
        generated_tokens: tokens sampled.
        recomputed_tokens: run again after retraction or eviction.
        prefetched_tokens: run for ``prefetch``.
        scored_tokens: run for choices and continuations, beyond their shared prompt.
        jumped_tokens: forced by a grammar, not sampled.
        evicted_tokens: tokens whose KV was dropped to make room.
        num_steps: forward passes.
        num_finished: requests that ended with a result; ``num_aborted`` of them by abort; ``num_failed``: with an error.
        num_retractions: running requests sent back to the queue.
        num_running: requests in the batch now; ``num_waiting``: queued.
        pool_tokens: slots in all; ``free_tokens``: unused; ``evictable_tokens``: cached, nobody uses them now;
            ``protected_tokens``: cached and in use.
    """

    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    generated_tokens: int
    recomputed_tokens: int
    prefetched_tokens: int
    scored_tokens: int
    jumped_tokens: int
    evicted_tokens: int
    num_steps: int
    num_finished: int
    num_aborted: int
    num_failed: int
    num_retractions: int
    num_running: int
    num_waiting: int
    pool_tokens: int
    free_tokens: int
    evictable_tokens: int
    protected_tokens: int

    @property
    def total_computed_tokens(self) -> int:
        """Everything that went through the model."""
        return (
            self.prefilled_tokens + self.recomputed_tokens + self.prefetched_tokens + self.scored_tokens + self.generated_tokens
        )

    @property
    def cache_hit_rate(self) -> float:
        """Cached share of the prompt tokens, 0 when there were none."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0
