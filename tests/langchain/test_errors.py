"""Errors: ours and LangChain's at once."""

import asyncio

import pytest
from langchain_core import exceptions as langchain

from sgl_core import errors as ours
from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl, SglLLM
from sgl_langchain.errors import langchain_errors

PAIRS = [
    (ours.InvalidArgumentError("top_p", 2, "less"), langchain.ModelInvalidRequestError),
    (ours.UnknownOptionError("ChatSgl", "tempreature", ["temperature"]), langchain.ModelInvalidRequestError),
    (ours.GrammarError("json_schema", "nothing satisfies it"), langchain.ModelInvalidRequestError),
    (ours.TemplateError("refused"), langchain.ModelInvalidRequestError),
    (ours.ModelNotFoundError("no such model"), langchain.ModelNotFoundError),
    (ours.DeadlineExceeded("60 s passed"), langchain.ModelTimeoutError),
    (ours.QueueFull("8 requests wait"), langchain.ModelRateLimitError),
    (ours.EngineStepError("a step failed"), langchain.ModelAPIError),
]


@pytest.mark.parametrize(("error", "theirs"), PAIRS, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_an_error_is_both_ours_and_langchains_with_the_same_message(error, theirs):
    error.__cause__ = KeyError("reason")
    with pytest.raises(theirs) as raised, langchain_errors():
        raise error
    assert isinstance(raised.value, type(error))
    assert str(raised.value) == str(error)
    assert raised.value.__cause__ is error.__cause__
    assert raised.value.__dict__ == error.__dict__


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ours.GrammarError("json_schema", "too long", "Raise max_new_tokens."), "Raise max_tokens."),
        (ours.InvalidArgumentError("timeout_s", "a", "seconds"), "timeout: got 'a'"),
        (ours.DeadlineExceeded("timeout_s passed"), "timeout passed"),
        (ours.InvalidArgumentError("default_max_new_tokens", 0, "more"), "default_max_new_tokens: got 0"),
    ],
)
def test_an_error_names_options_as_users_of_langchain_type_them(error, said):
    with pytest.raises(type(error)) as raised, langchain_errors():
        raise error
    assert said in str(raised.value)


def test_an_overflow_is_both_with_the_numbers_and_the_callers_names():
    with (
        pytest.raises(langchain.ContextOverflowError, match=r"9 tokens \+ max_tokens=16.*lower max_tokens;") as raised,
        langchain_errors(),
    ):
        raise ours.ContextLengthError(9, 16, 8, "the context")
    assert isinstance(raised.value, ours.ContextLengthError)
    assert (raised.value.prompt_tokens, raised.value.limit_tokens) == (9, 8)
    assert raised.value.cure.startswith("Shorten the prompt or lower max_tokens;")


@pytest.mark.parametrize("error", [ours.EngineShutdown("closed"), ZeroDivisionError()])
def test_an_error_that_langchain_has_no_class_for_passes_as_it_is(error):
    with pytest.raises(type(error)) as raised, langchain_errors():
        raise error
    assert raised.value is error


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_a_prompt_that_does_not_fit_overflows_on_every_road(engine, model_class):
    model = model_class(engine=engine)
    too_long = "x" * 9000
    roads = [
        lambda: model.invoke(too_long),
        lambda: asyncio.run(model.ainvoke(too_long)),
        lambda: list(model.stream(too_long)),
        lambda: model.batch([too_long]),
        lambda: model.invoke("x", max_tokens=9000),
    ]
    for road in roads:
        with pytest.raises(langchain.ContextOverflowError, match="Shorten the prompt"):
            road()


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_a_request_that_fails_under_way_raises_on_every_road(model_class):
    with FakeBackend(fail=lambda _: ours.DeadlineExceeded("1 s passed")) as backend:
        model = model_class(engine=backend)

        async def drain():
            async for _ in model.astream("x"):
                pass

        for road in (
            lambda: model.invoke("x"),
            lambda: asyncio.run(model.ainvoke("x")),
            lambda: list(model.stream("x")),
            lambda: asyncio.run(drain()),
        ):
            with pytest.raises(langchain.ModelTimeoutError) as raised:
                road()
            assert isinstance(raised.value, TimeoutError)


def test_an_engine_without_a_codec_is_refused(engine, monkeypatch):
    monkeypatch.setattr(type(engine), "codec", None)
    with pytest.raises(ours.InvalidArgumentError, match="token ids"):
        ChatSgl(engine=engine).invoke("x")


def test_a_closed_engine_says_so(engine):
    engine.close()
    with pytest.raises(ours.EngineShutdown):
        ChatSgl(engine=engine).invoke("x")
