"""Prefetching on the embedded model: a program that is called while another one runs finds its prefix computed."""

from __future__ import annotations

import threading
from typing import Any

from sgl_core.runtime.engine import Engine
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.types import SamplingParams

WAIT_S = 600.0
PREFIX_TEXT = "The tide comes in twice a day, and each time it leaves the harbour a little different from what it was. " * 14
GREEDY = SamplingParams(max_new_tokens=8, ignore_eos=True)
DECODED = 40
BESIDE_OTHERS = 16
"""Tokens of a prefetch in a step that decodes, on a CPU."""


def test_a_program_that_is_called_while_another_one_runs_computes_its_tail_alone(embedded_model: LoadedModel) -> None:
    with Engine(loaded=embedded_model, cache_tokens=4_096) as engine:
        prefix = engine.codec.encode(PREFIX_TEXT)[:300]
        assert len(prefix) == 300
        question = engine.codec.encode(" What does the harbour look like in the evening?")
        expected = engine.submit((*prefix, *question), GREEDY).result(WAIT_S).token_ids
        engine.flush_cache()
        engine.reset_stats()

        started: list[Any] = []
        decoded = 0

        def start(_: object) -> None:  # on the engine's thread, so that the first step sees both
            started.append(engine.submit("Once upon a time", SamplingParams(max_new_tokens=DECODED, ignore_eos=True)))
            started.append(engine.prefetch(prefix, when_idle=True, timeout_s=WAIT_S))
            started[0].add_delta_callback(count)

        def count(_: object) -> None:
            nonlocal decoded
            decoded += not started[1].done()

        engine._loop.call(start)
        running, ahead = started
        assert ahead.result(WAIT_S).usage.prompt_tokens == 300
        result = engine.submit((*prefix, *question), GREEDY).result(WAIT_S)
        running.result(WAIT_S)
        stats = engine.stats()
        engine.check_invariants()
    assert result.token_ids == expected
    assert result.usage.cached_tokens == 300
    assert stats.prefetched_tokens == 300
    assert (stats.prefetch_useful, stats.prefetch_late, stats.prefetch_dropped) == (1, 0, 0)
    assert stats.num_retractions == 0
    assert decoded == -(-300 // BESIDE_OTHERS), "a step computed more or less of the prefix than its share"


def test_a_program_that_is_called_early_takes_over_what_is_there_and_says_the_same(embedded_model: LoadedModel) -> None:
    with Engine(loaded=embedded_model, cache_tokens=4_096) as engine:
        prefix = engine.codec.encode(PREFIX_TEXT)[:300]
        expected = engine.submit((*prefix, *engine.codec.encode(" Why?")), GREEDY).result(WAIT_S).token_ids
        engine.flush_cache()
        engine.reset_stats()
        half_way = threading.Event()
        running = engine.submit("Once upon a time", SamplingParams(max_new_tokens=DECODED, ignore_eos=True))
        ahead = engine.prefetch(prefix, when_idle=True)
        running.add_delta_callback(lambda _: half_way.set() if engine.stats().prefetched_tokens >= 100 else None)
        assert half_way.wait(WAIT_S)
        result = engine.submit((*prefix, *engine.codec.encode(" Why?")), GREEDY).result(WAIT_S)
        done = ahead.result(WAIT_S).usage
        running.abort()
        running.result(WAIT_S)
        stats = engine.stats()
        engine.check_invariants()
    assert result.token_ids == expected
    assert stats.prefetched_tokens == result.usage.cached_tokens == done.prompt_tokens
    assert 100 <= result.usage.cached_tokens < 300
    assert (stats.prefetch_useful, stats.prefetch_late, stats.prefetch_dropped) == (1, 1, 0)
