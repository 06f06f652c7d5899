"""Scheduling on the embedded model: shared prefixes are computed once, and no history of a request changes its text."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import sgl_native as sgl
from sgl_core.runtime.model_loader import LoadedModel

ESSAY = "The tide comes in twice a day, and each time it leaves the harbour a little different from what it was. " * 46
STORY = ESSAY[:300]
QUESTIONS = [f" Question {i}: what does line {i} say about boats?" for i in range(6)]
PARAMS = sgl.SamplingParams(max_new_tokens=8, ignore_eos=True)
WAIT_S = 600.0


@pytest.fixture(scope="module")
def undisturbed(embedded_model: LoadedModel) -> list[str]:
    """Texts of the questions, each alone in an engine that has room for everything and shares nothing."""
    with sgl.Engine(loaded=embedded_model, prefix_cache=False, cache_tokens=8_192) as engine:
        return [engine.submit(STORY + question, PARAMS).result(WAIT_S).text for question in QUESTIONS]


def texts_under(embedded_model: LoadedModel, **options: Any) -> tuple[list[str], Any]:
    with sgl.Engine(loaded=embedded_model, **options) as engine:
        results = engine.generate([STORY + question for question in QUESTIONS], PARAMS)
        engine.check_invariants()
        return [result.text for result in results], engine.stats()


def test_a_cold_fan_out_of_sixty_four_computes_its_prefix_once(one_layer_model: LoadedModel) -> None:
    with sgl.Engine(loaded=one_layer_model, cache_tokens=16_384) as engine:
        prefix = engine.codec.encode(ESSAY)[:1_000]
        assert len(prefix) == 1_000
        tails = [engine.codec.encode(f" {i}. Why?") for i in range(64)]
        one = sgl.SamplingParams(max_new_tokens=1)
        handles = [engine.submit([*prefix, *tail], one) for tail in tails]
        results = [handle.result(WAIT_S) for handle in handles]
        stats = engine.stats()
    assert 1_000 <= stats.prefilled_tokens <= 1_000 + sum(map(len, tails))
    computed = sorted(result.usage.prompt_tokens - result.usage.cached_tokens for result in results)
    assert computed[-1] >= 1_000
    assert computed[-2] <= max(map(len, tails)), "a second request computed the prefix"


def test_chunks_a_small_pool_and_retraction_change_no_text(embedded_model: LoadedModel, undisturbed: list[str]) -> None:
    together, _ = texts_under(embedded_model, cache_tokens=8_192)
    assert together == undisturbed
    chunked, stats = texts_under(embedded_model, cache_tokens=8_192, prefill_chunk_tokens=33)
    assert chunked == undisturbed
    assert stats.num_steps > PARAMS.max_new_tokens + len(STORY) // 200
    squeezed, stats = texts_under(embedded_model, cache_tokens=140)
    assert squeezed == undisturbed
    assert stats.evicted_tokens > 0


def test_a_request_that_makes_way_for_a_higher_priority_gives_its_text_all_the_same(
    embedded_model: LoadedModel, undisturbed: list[str]
) -> None:
    with sgl.Engine(loaded=embedded_model, cache_tokens=4_096, max_running=1) as engine:
        under_way = threading.Event()
        low = engine.submit(STORY + QUESTIONS[0], PARAMS)
        low.add_delta_callback(lambda _: under_way.set())
        assert under_way.wait(WAIT_S)
        high = engine.submit(STORY + QUESTIONS[1], PARAMS, priority=1)
        assert high.result(WAIT_S).text == undisturbed[1]
        assert low.result(WAIT_S).text == undisturbed[0]
        assert engine.stats().num_retractions == 1


def test_a_retracted_generation_with_a_seed_draws_the_same_tokens(embedded_model: LoadedModel) -> None:
    params = sgl.SamplingParams(max_new_tokens=20, ignore_eos=True, temperature=0.8, top_k=20, seed=11)
    prompts = [f"Write down number {i}." for i in range(6)]
    texts = {}
    for pool in (4_096, 62):
        with sgl.Engine(loaded=embedded_model, cache_tokens=pool) as engine:
            texts[pool] = [result.text for result in engine.generate(prompts, params)]
            stats = engine.stats()
    assert stats.num_retractions > 0
    assert texts[62] == texts[4_096]
