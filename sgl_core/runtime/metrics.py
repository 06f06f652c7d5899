"""What the engine counts and reports. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sgl_core.runtime.request import Kind, Request

__all__ = ["CacheMiss", "Counters", "EngineStats"]


@dataclass(slots=True)
class Counters:
    """Sums since the start or the last reset; written on the engine thread alone. See EngineStats for meanings."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    recomputed_tokens: int = 0
    prefetched_tokens: int = 0
    scored_tokens: int = 0
    jumped_tokens: int = 0
    num_steps: int = 0
    num_finished: int = 0
    num_aborted: int = 0
    num_failed: int = 0
    num_retractions: int = 0
    scheduling_s: float = 0.0
    model_s: float = 0.0

    def attached(self, request: Request) -> None:
        """A request was admitted with ``attached_len`` tokens at hand."""
        cached = min(request.attached_len, request.prompt_len) - request.covered_len
        if cached > 0 and _owns_prompt(request):
            self.prompt_tokens += cached
            self.cached_tokens += cached
        # Of the output, what a sibling with the same text computed: it was counted when it was put out, and has yet to run.
        request.given.update(range(max(request.covered_len, request.prompt_len), request.attached_len))
        request.covered_len = max(request.covered_len, request.attached_len)

    def ran(self, request: Request, start: int, end: int) -> None:
        """Tokens ``start:end`` of a request went through the model."""
        first = end if request.is_replay else max(start, request.covered_len)
        for_the_first_time = request.given.intersection(range(start, min(end, first)))
        request.given -= for_the_first_time
        self.recomputed_tokens += min(end, first) - start - len(for_the_first_time)
        request.covered_len = max(request.covered_len, end)
        prompt = max(0, min(end, request.prompt_len) - first)
        rest = max(0, end - first) - prompt
        if request.kind is Kind.PREFETCH:
            self.prefetched_tokens += prompt
        elif _owns_prompt(request):
            self.prompt_tokens += prompt
            self.prefilled_tokens += prompt
        elif (
            request.group is not None
        ):  # not the first of a scoring: its prompt's last token gives the logits of what it scores
            again = max(0, min(end, request.prompt_len - 1) - first)
            self.recomputed_tokens += again
            self.scored_tokens += prompt - again
        if request.kind is Kind.SCORE:
            self.scored_tokens += rest
        if request.kind is Kind.PREFETCH or _owns_prompt(request):
            request.prefilled_len += prompt

    def put_out(self, request: Request, *, forced: bool) -> None:
        """A request got a token: drawn, or forced by its grammar; a replay's are counted when they run."""
        if request.is_replay:
            return
        if forced:
            self.jumped_tokens += 1
        else:
            self.generated_tokens += 1

    def followed(self, request: Request) -> None:
        """A request starts from the logits that another one computed for the same prompt."""
        self.prompt_tokens += request.prompt_len
        self.cached_tokens += request.prompt_len
        request.covered_len = request.prompt_len


def _owns_prompt(request: Request) -> bool:
    """Whether its prompt is accounted for as such: a prefetch's is not, and that of a scoring once."""
    if request.group is not None:
        return request.group.leader is request
    return request.kind is Kind.GENERATE and not request.is_replay


@dataclass(frozen=True, slots=True)
class CacheMiss:
    """Where a prompt left what the cache holds.

    Args:
        request_id: whose prompt. ``prompt_tokens``: its length. ``cached_tokens``: of these, cached: so the token at this
            index is the first that differs.
        prompt_token: that token.
        cache_tokens: what the cache has in its place, at most a few; empty if it has nothing behind the cached part.
        prompt_text, cache_texts: the same as text; filled in by ``Engine.stats``.
    """

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    prompt_token: int
    cache_tokens: tuple[int, ...]
    prompt_text: str = ""
    cache_texts: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for people."""
        where = f"{self.cached_tokens} of {self.prompt_tokens} prompt tokens were cached; the prompt goes on with"
        behind = (
            "; the cache ends there" if not self.cache_texts else f", the cache with {' or '.join(map(repr, self.cache_texts))}"
        )
        return f"{where} {self.prompt_text!r}{behind}"


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of one engine.

    Args:
        prompt_tokens: prompt tokens of all admitted requests, as far as they are cached or run; the shared prompt of a scoring
            counts once.
        cached_tokens: of these, not computed because their KV was there, or came from a batch mate.
        prefilled_tokens: of these, run through the model: ``prompt_tokens == cached_tokens + prefilled_tokens``.
        generated_tokens: tokens sampled. ``jumped_tokens``: put out without sampling, because a grammar forced them.
        recomputed_tokens: run again after a retraction, for another part of a scoring after eviction, or by ``verify``.
        prefetched_tokens: run for ``prefetch``.
        scored_tokens: run for choices and continuations, beyond their shared prompt.
        evicted_tokens: tokens whose KV was dropped to make room.
        num_steps: forward passes.
        num_finished: requests that ended with a result; ``num_aborted`` of them by abort; ``num_failed``: with an error.
        num_retractions: running requests sent back to the queue.
        scheduling_s: seconds spent on deciding what runs and on taking results back; ``model_s``: on running it.
        num_running: requests in the batch now; ``num_waiting``: queued.
        pool_tokens: slots in all; ``free_tokens``: unused; ``evictable_tokens``: cached, nobody uses them now;
            ``protected_tokens``: cached and in use; ``pinned_tokens``: kept by ``pin``.
        prefetch_useful: prefetches with ``when_idle`` of which a later request used a token that they had computed, or, where
            they found all but the last token cached, all of that. ``prefetch_late``: that ended because a request that begins
            with their prefix was admitted before they were complete. ``prefetch_dropped``: that ended incomplete because
            their time was over or memory was short. One may be useful and late; one that nobody used is none of them.
        misses: the last prompts that were not cached whole, newest last; not in the repr, as they hold prompt text.
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
    scheduling_s: float
    model_s: float
    num_running: int
    num_waiting: int
    pool_tokens: int
    free_tokens: int
    evictable_tokens: int
    protected_tokens: int
    pinned_tokens: int = 0
    prefetch_useful: int = 0
    prefetch_late: int = 0
    prefetch_dropped: int = 0
    misses: tuple[CacheMiss, ...] = field(default=(), repr=False)

    @property
    def total_computed_tokens(self) -> int:
        """Everything that went through the model."""
        prompts = self.prefilled_tokens + self.prefetched_tokens + self.scored_tokens
        return prompts + self.recomputed_tokens + self.jumped_tokens + self.generated_tokens

    @property
    def cache_hit_rate(self) -> float:
        """Cached share of the prompt tokens, 0 when there were none."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0
