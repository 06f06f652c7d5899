"""What keeps a chain from running as a program."""

from __future__ import annotations

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager, get_usage_metadata_callback
from langchain_core.globals import set_debug, set_llm_cache, set_verbose
from langchain_core.language_models import FakeListChatModel
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel

from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl
from sgl_langchain.translate.lower import lower
from sgl_langchain.translate.nodes import Call, Sequence
from sgl_langchain.translate.refusals import Refusals


class Own(RunnableLambda):
    """A kind that nobody knows."""


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
ENGINE = FakeBackend(lambda ids, params: "yes")


def refusal(runnable, config=None):
    return Refusals(lower(runnable)).reason(config)


def chat(**options):
    return ChatSgl(engine=ENGINE, **options)


@pytest.mark.parametrize(
    "runnable",
    [chat(), chat() | RunnableLambda(str), chat().bind(stop=["x"]), chat(cache=False), chat().with_config(tags=["t"])],
    ids=["chat", "lambda", "bound", "no cache", "tags"],
)
def test_an_ordinary_chain_may_run(runnable):
    assert refusal(runnable, {"tags": ["a"], "metadata": {"m": 1}, "max_concurrency": 3}) is None


@pytest.mark.parametrize(
    ("runnable", "word"),
    [
        (chat(callbacks=[BaseCallbackHandler()]), "callbacks"),
        (chat(verbose=True), "verbose"),
        (chat(cache=True), "cache"),
        (chat(cache=InMemoryCache()), "cache"),
        (chat(rate_limiter=InMemoryRateLimiter()), "rate limiter"),
        (chat(streaming=True), "streams"),
        (chat(output_version="v1"), "content blocks"),
        (chat(timeout=3.0), "timeout"),
        (chat(n=2), "several answers"),
        (chat().bind(timeout=3.0), "timeout"),
        (chat().bind(n=2), "several answers"),
        (chat().bind_tools([TOOL]), "two requests"),
        (chat().bind(tools=["no tool"]), "tools that cannot be used"),
        (chat().bind(tools=[TOOL], tool_choice="subtract"), "tools that cannot be used"),
        (ChatSgl().bind(model=5), "an option that cannot be used"),
        (chat().bind(tempreature=1), "an option that cannot be used"),
        (chat().with_listeners(on_start=lambda run: None), "listeners"),
        (chat().with_config(callbacks=[BaseCallbackHandler()]), "callbacks"),
        (chat().configurable_fields(temperature=ConfigurableField(id="t")), "configuration of a call"),
        (RunnableParallel(a=chat(), b=chat(namespace="b")), "namespaces"),
        (RunnableParallel(a=chat(), b=chat().bind(namespace="b")), "namespaces"),
        (RunnableParallel(a=chat(), b=ChatSgl(engine=FakeBackend())), "different engines"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_somebody_would_miss_is_refused_by_name(runnable, word):
    assert word in refusal(runnable)


def test_a_step_that_nobody_knows_is_refused():
    own = Own(str)
    root = Sequence(own, (Call(own, "Own", is_known=False),))
    assert "Own" in Refusals(root).reason()


def test_what_lies_in_the_chain_is_told_in_full_and_the_call_is_no_part_of_it():
    chain = RunnableParallel(a=chat(timeout=3.0), b=chat(timeout=3.0).with_listeners(on_start=print), c=chat(n=2))
    with get_usage_metadata_callback():
        told = Refusals(lower(chain)).of_chain()
    assert told == ("ChatSgl has listeners", "ChatSgl has a timeout", "ChatSgl gives several answers")


def test_a_foreign_model_is_host_code():
    assert refusal(FakeListChatModel(responses=["a"]) | RunnableLambda(str)) is None


@pytest.mark.parametrize(
    "callbacks", [[BaseCallbackHandler()], CallbackManager([BaseCallbackHandler()])], ids=["list", "manager"]
)
def test_handlers_of_the_call_refuse(callbacks):
    assert "BaseCallbackHandler" in refusal(chat(), {"callbacks": callbacks})


@pytest.mark.parametrize("callbacks", [None, [], CallbackManager([])], ids=["none", "empty list", "empty manager"])
def test_callbacks_without_handlers_do_not(callbacks):
    assert refusal(chat(), {"callbacks": callbacks}) is None


def test_handlers_that_the_context_brings_refuse():
    refusals = Refusals(lower(chat()))
    with get_usage_metadata_callback():
        assert "UsageMetadataCallbackHandler" in refusals.reason()
    assert refusals.reason() is None


def test_handlers_of_a_chain_around_refuse():
    refusals = Refusals(lower(chat()))
    around = RunnableLambda(lambda _: refusals.reason())
    assert "BaseCallbackHandler" in around.invoke(0, {"callbacks": [BaseCallbackHandler()]})
    assert around.invoke(0) is None


def test_tracing_by_environment_refuses(monkeypatch):
    from langsmith import utils

    refusals = Refusals(lower(chat()))
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_API_KEY", "none")
    utils.get_env_var.cache_clear()
    try:
        assert "LangChainTracer" in refusals.reason()
    finally:
        monkeypatch.undo()
        utils.get_env_var.cache_clear()


@pytest.mark.parametrize("switch", [set_debug, set_verbose])
def test_global_switches_refuse(switch):
    refusals = Refusals(lower(chat()))
    switch(True)
    try:
        assert "debug or verbose" in refusals.reason()
    finally:
        switch(False)
    assert refusals.reason() is None


def test_a_global_cache_refuses_models_that_would_use_it():
    refusals, without = Refusals(lower(chat())), Refusals(lower(chat(cache=False)))
    set_llm_cache(InMemoryCache())
    try:
        assert "cache" in refusals.reason()
        assert without.reason() is None
    finally:
        set_llm_cache(None)


def test_what_is_set_on_a_model_later_counts():
    model = chat()
    refusals = Refusals(lower(model))
    model.verbose = True
    assert "verbose" in refusals.reason()


def test_a_limit_that_lets_nothing_run_is_left_to_langchain():
    assert "max_concurrency" in refusal(chat(), {"max_concurrency": 0})
