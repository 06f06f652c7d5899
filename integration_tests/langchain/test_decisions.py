"""SglDecisions on a real engine: many questions cost one prefill of their state."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_core.runtime.engine import Engine

decisions = pytest.importorskip(
    "langchain_core.decisions", reason="langchain-core is older than 1.8; test_versions.py runs this on a newer one"
)
Choice, Noul, Score = decisions.Choice, decisions.Noul, decisions.Score

from sgl_langchain.decisions import SglDecisions  # noqa: E402  (needs the newer core)

STATE = "The kettle that I bought in May has a crack, and nobody has answered my letters. " * 3
QUESTIONS = {
    **{f"topic {n}": Noul(instructions=f"Is it about {what}?") for n, what in enumerate(["a kettle", "a lamp", "ice", "May"])},
    "team": Choice(instructions="Which team?", criteria={"returns": "Broken things.", "sales": None, "sales abroad": None}),
    "anger": Score(instructions="How angry is the writer?", criteria=["Calm.", "Annoyed.", "Furious."]),
}


@pytest.fixture(scope="module")
def shared(tiny_llama: Path) -> Iterator[Engine]:
    with Engine(str(tiny_llama), dtype="float32", device="cpu", cache_tokens=4096) as engine:
        yield engine


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    shared.flush_cache()
    shared.reset_stats()
    yield shared
    shared.check_invariants()
    stats = shared.stats()
    assert stats.num_running == stats.num_waiting == stats.protected_tokens == 0


def test_the_state_is_computed_once_for_all_questions(engine):
    response = SglDecisions(engine=engine).invoke({"state": STATE, "questions": QUESTIONS})
    state_tokens = len(engine.codec.encode(STATE))
    usage, stats = response.usage, engine.stats()
    computed = usage["input_tokens"] - usage["input_token_details"]["cache_read"]
    assert computed == stats.prefilled_tokens
    own = usage["input_tokens"] - len(QUESTIONS) * state_tokens  # template and questions, whether shared or not
    assert stats.prefilled_tokens < state_tokens + own
    assert usage["input_token_details"]["cache_read"] >= (len(QUESTIONS) - 1) * state_tokens


def test_a_second_request_about_the_state_finds_it_in_the_cache(engine):
    model = SglDecisions(engine=engine)
    model.invoke({"state": STATE, "questions": {"team": QUESTIONS["team"]}})
    usage = model.invoke({"state": STATE, "questions": {"anger": QUESTIONS["anger"]}}).usage
    assert usage["input_token_details"]["cache_read"] >= len(engine.codec.encode(STATE))


def test_questions_together_are_answered_as_each_one_alone(engine):
    model = SglDecisions(engine=engine)
    together = model.invoke({"state": STATE, "questions": QUESTIONS})
    for name, question in QUESTIONS.items():
        engine.flush_cache()
        alone = model.invoke({"state": STATE, "questions": {name: question}}).answers[name]
        for field, value in alone.model_dump().items():
            assert together.answers[name].model_dump()[field] == pytest.approx(value, abs=1e-4)


def test_an_awaited_request_is_answered_as_any_other(engine):
    model = SglDecisions(engine=engine)
    request = {"state": STATE, "questions": QUESTIONS}
    first = model.invoke(request)
    for response in asyncio.run(model.abatch([request] * 3)):
        assert response.nouls["topic 0"].noul == pytest.approx(first.nouls["topic 0"].noul, abs=1e-4)
        assert response.choices["team"].choice == first.choices["team"].choice


def test_a_state_that_is_too_long_for_the_model_is_refused_and_leaves_nothing_behind(engine):
    from langchain_core.exceptions import ContextOverflowError

    with pytest.raises(ContextOverflowError, match="Shorten the prompt"):
        SglDecisions(engine=engine).invoke({"state": STATE * 20, "questions": QUESTIONS})
