"""The n candidates of a call: one prefill and n decodes on the embedded model, each its own, all of them reproducible."""

from __future__ import annotations

import asyncio

import dspy
import pytest

from sgl_dspy.adapters import ChatAdapter

N = 8
PROMPT = "You are at a harbour at dawn. Describe in a few words what you see, what you hear, and what you will do next."
PROBLEM = "Tom has 12 pens and loses two of them. How many are left?"
SAMPLED = {"n": N, "temperature": 1.0}


def test_eight_candidates_are_one_prefill_and_eight_decodes(lm, engine):
    texts = lm(PROMPT, seed=5, **SAMPLED)
    stats = engine.stats()
    prompt = lm.history[-1]["usage"]["prompt_tokens"] // N
    assert len(texts) == stats.num_finished == N
    assert stats.prompt_tokens == N * prompt
    assert stats.prefilled_tokens <= prompt + N - 1  # the last token of a prompt is always computed
    assert stats.cached_tokens >= (N - 1) * (prompt - 1)
    assert stats.generated_tokens > N
    assert stats.num_steps <= 8 + 2, "the candidates were not decoded in one batch"


def test_one_call_is_one_entry_of_the_history_with_the_usage_of_all_candidates(lm, engine):
    lm(PROMPT, seed=5, **SAMPLED)
    assert len(lm.history) == 1
    usage = lm.history[0]["usage"]
    assert usage["prompt_tokens"] == engine.stats().prompt_tokens
    assert usage["prompt_tokens_details"]["cached_tokens"] == engine.stats().cached_tokens
    assert usage["completion_tokens"] >= engine.stats().generated_tokens - N


def test_candidates_differ_and_come_again_with_their_seed(lm):
    texts = lm(PROMPT, seed=5, **SAMPLED)
    assert len(set(texts)) == N
    assert lm(PROMPT, seed=5, **SAMPLED) == texts
    assert not set(lm(PROMPT, seed=6, **SAMPLED)) & set(texts[1:])


def test_a_rollout_has_candidates_of_its_own_which_come_again_too(lm):
    first, second = (lm(PROMPT, seed=5, rollout_id=rollout, **SAMPLED) for rollout in (1, 2))
    assert first != second
    assert lm(PROMPT, seed=5, rollout_id=1, **SAMPLED) == first


def test_candidates_without_a_seed_are_fresh_each_time(lm):
    assert lm(PROMPT, **SAMPLED) != lm(PROMPT, **SAMPLED)


def test_greedy_candidates_are_the_same_and_computed_once(lm, engine):
    assert len(set(lm(PROMPT, n=N))) == 1
    assert engine.stats().num_finished == 1


def test_awaited_candidates_are_those_of_a_call_that_blocks(lm, engine):
    texts = asyncio.run(lm.acall(PROMPT, seed=5, **SAMPLED))
    stats = engine.stats()
    assert stats.prefilled_tokens <= stats.prompt_tokens // N + N - 1
    assert texts == lm(PROMPT, seed=5, **SAMPLED)


@pytest.fixture
def solve(lm):
    """Eight answers, each a program of fields."""
    with dspy.context(lm=lm.copy(max_tokens=40, seed=3), adapter=ChatAdapter()):
        yield dspy.Predict("problem -> thought, answer: int", **SAMPLED)


def test_eight_programs_of_fields_compute_their_problem_once(solve):
    completions = solve(problem=PROBLEM).completions
    usage = dspy.settings.lm.history[-1]["usage"]
    prompt = usage["prompt_tokens"] // N
    assert len(completions.thought) == N
    assert all(isinstance(answer, int) for answer in completions.answer)
    assert usage["prompt_tokens_details"]["cached_tokens"] >= (N - 1) * (prompt - 1)


def test_eight_programs_of_fields_differ_and_come_again_with_their_seed(solve):
    first, second = (solve(problem=PROBLEM).completions.thought for _ in range(2))
    assert len(set(first)) > N // 2
    assert first == second
