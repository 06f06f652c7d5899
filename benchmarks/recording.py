"""An engine that notes every generation, and what a benchmark counts of its notes: tokens computed, reported and possible."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness import Advance

from sgl_core.backend import Handle
from sgl_core.config import EngineConfig
from sgl_core.runtime.engine import Engine
from sgl_core.testing.optimum import LoggedRequest, optimal_prefill_tokens
from sgl_core.types import GenRequest, GenResult, SamplingParams, Usage

__all__ = ["RecordingEngine", "counts", "most_at_once", "open_engine"]

_WARM_UP = [[*range(100 + n, 148 + n)] for n in range(16)]
"""Wide enough for what is set up at first use: threads, packed weights, buffers of a batch."""


class RecordingEngine(Engine):
    """An engine that notes every generation. It owns the record; ``forget`` empties it."""

    def __init__(self, model: str | None = None, **options: Any) -> None:
        """Load the model."""
        super().__init__(model, **options)
        self.advance: Advance = lambda _: None
        self.forget()

    def forget(self) -> None:
        """Begin a new record; nothing may be under way."""
        self._events = itertools.count()
        self.answered: list[tuple[LoggedRequest, GenResult]] = []

    def submit(self, prompt: Any, params: SamplingParams | None = None, **options: Any) -> Handle[GenResult]:
        """As the engine does."""
        ready = next(self._events)
        handle = super().submit(prompt, params, **options)
        if isinstance(prompt, GenRequest):
            handle.add_done_callback(lambda: self._note(prompt, ready, handle))
        return handle

    def _note(self, request: GenRequest, ready: int, handle: Handle[GenResult]) -> None:
        if handle.error() is None:  # an error is the program's to raise
            result = handle.result(0)
            self.answered.append((LoggedRequest(request.input_ids, result.token_ids, ready, next(self._events)), result))
        self.advance(1)


@contextmanager
def open_engine(**options: object) -> Iterator[RecordingEngine]:
    """An engine with these options, warmed up; it serves the rounds of all programs."""
    with RecordingEngine.from_config(EngineConfig.from_options(**options)) as engine:
        engine.generate(_WARM_UP, SamplingParams(max_new_tokens=8, ignore_eos=True))
        yield engine


def counts(engine: Engine, requests: Sequence[LoggedRequest], usages: Sequence[Usage]) -> dict[str, Any]:
    """What was computed, reported and possible; a prefix that was computed ahead of its prompts counts as computed.

    Args:
        requests: that the engine answered since its counters were at zero. ``usages``: as it reported them.
    """
    stats = engine.stats()
    computed = stats.prefilled_tokens + stats.recomputed_tokens + stats.prefetched_tokens
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    optimum = optimal_prefill_tokens(requests)
    return {
        "dtype": engine.facts.dtype,
        "prompt_tokens": prompt_tokens,
        "computed_tokens": computed,
        "optimal_prefill_tokens": optimum,
        "over_optimum": computed / optimum,
        "cache_read": sum(usage.cached_tokens for usage in usages),
        "ideal_cache_read": prompt_tokens - optimum,
        "generated_tokens": stats.generated_tokens,
        "most_at_once": most_at_once(requests),
    }


def most_at_once(requests: Sequence[LoggedRequest]) -> int:
    """Requests that were in flight together, at most."""
    changes = sorted([(request.ready, 1) for request in requests] + [(request.finished, -1) for request in requests])
    return max(itertools.accumulate(change for _, change in changes))
