"""Batches: the engine sees them whole, and never more at once than the caller allows."""

import asyncio

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from sgl_langchain import ChatSgl, SglLLM

INPUTS = [f"#{i}" for i in range(48)]
ANSWERS = [str(i) for i in range(48)]


def chain(engine):
    return ChatPromptTemplate([("system", "Say the number."), ("human", "{n}")]) | ChatSgl(engine=engine) | StrOutputParser()


@pytest.mark.parametrize(
    "run",
    [
        lambda e: [m.text for m in ChatSgl(engine=e).batch(INPUTS)],
        lambda e: [m.text for m in asyncio.run(ChatSgl(engine=e).abatch(INPUTS))],
        lambda e: [m.text for _, m in sorted(ChatSgl(engine=e).batch_as_completed(INPUTS), key=lambda pair: pair[0])],
        lambda e: chain(e).batch([{"n": n} for n in INPUTS]),
        lambda e: asyncio.run(chain(e).abatch([{"n": n} for n in INPUTS])),
        lambda e: SglLLM(engine=e).batch(INPUTS),
        lambda e: asyncio.run(SglLLM(engine=e).abatch(INPUTS)),
        lambda e: SglLLM(engine=e).batch(INPUTS, return_exceptions=True),
    ],
    ids=["batch", "abatch", "batch_as_completed", "chain", "async chain", "llm", "async llm", "llm each"],
)
def test_a_batch_of_48_reaches_the_engine_together(counting, run):
    engine = counting(gate=40)
    assert [text.split("<")[0] for text in run(engine)] == ANSWERS
    assert engine.most_in_flight >= 40
    assert engine.in_flight == 0


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_a_callers_max_concurrency_is_never_exceeded(counting, model_class):
    engine = counting(latency_s=0.005)
    config = {"max_concurrency": 2}
    model = model_class(engine=engine)
    assert len(model.batch(INPUTS[:12], config)) == 12
    assert len(asyncio.run(model.abatch(INPUTS[:12], config))) == 12
    assert len(model.batch(INPUTS[:6], config, return_exceptions=True)) == 6
    assert len(model.batch(INPUTS[:6], [config] * 6)) == 6
    if model_class is ChatSgl:
        assert len(list(model.batch_as_completed(INPUTS[:12], config))) == 12
    assert 1 <= engine.most_in_flight <= 2


def test_a_batch_is_no_wider_than_the_engine(counting):
    engine = counting(latency_s=0.005)
    engine.width = 3
    ChatSgl(engine=engine).batch(INPUTS[:12])
    assert 1 <= engine.most_in_flight <= 3


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_an_empty_batch_has_no_answers(engine, model_class):
    model = model_class(engine=engine)
    assert model.batch([]) == []
    assert asyncio.run(model.abatch([])) == []
    assert list(ChatSgl(engine=engine).batch_as_completed([])) == []


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_with_return_exceptions_one_bad_prompt_fails_alone(engine, model_class):
    model = model_class(engine=engine, max_tokens=100)
    too_long = "x" * 9000
    for results in (
        model.batch(["a", too_long, "b"], return_exceptions=True),
        asyncio.run(model.abatch(["a", too_long, "b"], return_exceptions=True)),
    ):
        assert [isinstance(result, Exception) for result in results] == [False, True, False]


def test_the_caller_s_config_is_not_changed(engine):
    config = {"tags": ["mine"]}
    ChatSgl(engine=engine).batch(["a", "b"], config)
    assert config == {"tags": ["mine"]}
