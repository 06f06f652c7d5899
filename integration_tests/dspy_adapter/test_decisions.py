"""SglDecisions on the embedded model: a state costs one prefill, whatever is asked about it."""

import asyncio
import math
from typing import Literal

import dspy
import pytest

from sgl_dspy.decisions import SglDecisions

STATE = "The kettle that I bought in May has a crack, and nobody has answered my letters. " * 3
QUESTIONS = {
    "lamp": {"type": "noul", "instructions": "Is it about a lamp?"},
    "team": {"type": "choice", "instructions": "Which team?", "criteria": {"returns": "Broken things.", "sales": None}},
    "anger": {"type": "score", "instructions": "How angry is the writer?", "criteria": ["Calm.", "Annoyed.", "Furious."]},
}


class Letter(dspy.Signature):
    """Judge a letter."""

    letter: str = dspy.InputField()
    complaint: bool = dspy.OutputField(desc="Is the writer unhappy?")
    subject: Literal["kitchen", "garden"] = dspy.OutputField(desc="What is it about?")


@pytest.fixture
def decisions(lm, engine):
    return SglDecisions(backend=engine)


def test_the_state_is_computed_once_for_all_questions(decisions, engine):
    answers = decisions(state=STATE, questions=QUESTIONS)
    state_tokens = len(engine.codec.encode(STATE))
    usage, stats = decisions.history[-1]["usage"], engine.stats()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert usage["prompt_tokens"] - cached == stats.prefilled_tokens
    assert cached >= (len(QUESTIONS) - 1) * state_tokens
    own = usage["prompt_tokens"] - len(QUESTIONS) * state_tokens  # template and questions, whether shared or not
    assert stats.prefilled_tokens < state_tokens + own
    for name in ("team", "anger"):
        assert math.isclose(math.fsum(answers[name]["probabilities"].values()), 1)


def test_a_question_among_others_is_answered_as_it_is_alone(decisions, engine):
    together = decisions(state=STATE, questions=QUESTIONS)["team"]
    engine.flush_cache()
    alone = decisions(state=STATE, questions={"team": QUESTIONS["team"]})["team"]
    assert alone["probabilities"] == pytest.approx(together["probabilities"], abs=1e-4)


def test_a_predictor_decides_and_the_next_input_shares_what_comes_before_it(decisions, engine):
    predict = dspy.Predict(Letter)
    predict.demos = [dspy.Example(letter="My lawn is lovely.", complaint=False, subject="garden")]
    predict.set_lm(decisions)
    prediction = predict(letter="The kettle has a crack.")
    assert isinstance(prediction.complaint, bool)
    assert prediction.subject in {"kitchen", "garden"}
    before = engine.stats().prefilled_tokens
    predict(letter="The spade is bent.")
    usage = decisions.history[-1]["usage"]
    assert engine.stats().prefilled_tokens - before == usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] / 2


def test_awaited_calls_are_answered_as_any_other(decisions):
    expected = decisions(state=STATE, questions=QUESTIONS)

    async def thrice():
        return await asyncio.gather(*(decisions.acall(state=STATE, questions=QUESTIONS) for _ in range(3)))

    for answers in asyncio.run(thrice()):
        assert answers["team"]["choice"] == expected["team"]["choice"]
        assert answers["anger"]["score"] == pytest.approx(expected["anger"]["score"], abs=1e-4)


def test_a_state_that_is_too_long_for_the_model_is_refused_before_any_prefill(decisions, engine):
    with pytest.raises(dspy.ContextWindowExceededError):
        decisions(state="word " * 9_000, questions=QUESTIONS)
    assert engine.stats().prefilled_tokens == 0
