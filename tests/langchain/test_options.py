"""Constructors and calls: typos, aliases, bad values, and what a model object says about itself."""

import copy
import re
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from langchain_core.language_models import BaseChatModel, BaseLanguageModel
from langchain_core.runnables import ConfigurableField

from sgl_core import __version__
from sgl_core.config import EngineConfig
from sgl_core.errors import InvalidArgumentError, UnknownOptionError
from sgl_langchain import ChatSgl, SglLLM
from sgl_langchain.base import SglLanguageModel

BOTH = pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])


def pickled(thing):
    return ForkingPickler.loads(ForkingPickler.dumps(thing))


@BOTH
def test_a_typo_in_the_constructor_names_the_nearest_option(model_class):
    with pytest.raises(ValueError, match="Did you mean 'temperature'"):
        model_class(tempreature=0.2)


@BOTH
def test_a_typo_in_a_call_names_the_nearest_option(engine, model_class):
    with pytest.raises(UnknownOptionError, match="Did you mean 'temperature'"):
        model_class(engine=engine).invoke("x", tempreature=0.2)
    with pytest.raises(UnknownOptionError, match="tempreature"):
        next(model_class(engine=engine).stream("x", tempreature=0.2))
    assert engine.requests == []


def test_a_typo_in_the_engines_options_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'policy'"):
        ChatSgl(engine_kwargs={"polcy": "fcfs"})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens: got 0"),
        ({"min_tokens": 5, "max_tokens": 3}, "min_tokens: got 5, expected at most max_tokens=3"),
        ({"timeout": 0}, "timeout"),
        ({"device": "tpu"}, "device"),
        ({"dtype": "int3"}, "dtype"),
        ({"engine_kwargs": {"device": "cpu"}}, "device= outside"),
        ({"engine": "SmolLM2"}, "engine"),
        ({"engine": EngineConfig}, "engine"),
        ({"stop": ["a"], "stop_sequences": ["b"]}, "stop"),
    ],
)
def test_a_bad_value_is_refused_by_the_constructor(options, named):
    with pytest.raises(ValueError, match=named):
        ChatSgl(**options)


def test_a_bad_value_of_a_call_is_refused_by_name(engine):
    with pytest.raises(InvalidArgumentError, match="temperature: got -1"):
        ChatSgl(engine=engine).invoke("x", temperature=-1)
    with pytest.raises(InvalidArgumentError, match=r"^max_tokens: got 0"):
        ChatSgl(engine=engine).invoke("x", max_tokens=0)
    with pytest.raises(InvalidArgumentError, match=r"^logprobs: got 5, expected True, False or None"):
        ChatSgl(engine=engine).invoke("x", logprobs=5)


@BOTH
def test_a_stop_that_is_no_text_is_refused_by_the_call_and_not_by_tracing(engine, model_class):
    with pytest.raises(InvalidArgumentError, match="stop: got 5"):
        model_class(engine=engine).invoke("x", stop=5)


def test_standard_parameters_and_aliases_are_taken():
    chat = ChatSgl(temperature=0, max_tokens=100, timeout=60, stop=[], max_retries=2, api_key="test", streaming=True)
    assert (chat.max_tokens, chat.timeout, chat.stop) == (100, 60, [])
    renamed = ChatSgl(model_name="some-model", stop_sequences=["a"], max_new_tokens=5)
    assert (renamed.model, renamed.stop, renamed.max_tokens) == ("some-model", ["a"], 5)


def test_a_borrowed_engine_takes_no_engine_options(engine):
    for options in ({"model": "m"}, {"device": "cpu"}, {"dtype": "float32"}, {"engine_kwargs": {"max_running": 2}}):
        with pytest.raises(ValueError, match="beside engine="):
            ChatSgl(engine=engine, **options)
    with pytest.raises(InvalidArgumentError, match="beside engine="):
        ChatSgl(engine=engine).invoke("x", model="m")


def test_the_environment_names_the_default_model(monkeypatch, engine):
    monkeypatch.setenv("SGL_MODEL", "named-by-the-environment")
    assert ChatSgl().model == "named-by-the-environment"
    assert ChatSgl(model="mine").model == "mine"
    assert ChatSgl(engine=engine).invoke("x").response_metadata["model_name"] == "FakeBackend"


@BOTH
def test_identifying_params_hold_every_option_that_decides_an_answer(engine, model_class):
    plain = model_class()._identifying_params
    own = set(SglLanguageModel.model_fields) - set(BaseLanguageModel.model_fields)
    assert own - {"streaming", "timeout"} - set(plain) == {"stop"}
    assert model_class(stop=["a"])._identifying_params["stop_sequences"] == ["a"]
    for options in ({"dtype": "float32"}, {"engine_kwargs": {"prefix_cache": False}}, {"model": "m"}, {"min_p": 0.1}):
        assert model_class(**options)._identifying_params != plain
    assert model_class(engine=engine)._identifying_params != plain


@BOTH
def test_tracing_parameters_name_model_temperature_and_stops(model_class):
    model = model_class(model="m", temperature=0.5, max_tokens=7, stop="a")
    kind = "chat" if model_class is ChatSgl else "llm"
    assert model._get_ls_params() == {
        "ls_provider": "sgl",
        "ls_model_name": "m",
        "ls_model_type": kind,
        "ls_temperature": 0.5,
        "ls_max_tokens": 7,
        "ls_stop": ["a"],
    }
    assert model._get_ls_params(stop=["b"], model="other", temperature=1)["ls_model_name"] == "other"
    assert model._get_ls_params(stop=["b"])["ls_stop"] == ["b"]
    assert model.metadata["lc_versions"]["sgl-core"] == __version__
    assert "langchain-core" in model.metadata["lc_versions"]


@BOTH
def test_models_are_no_serialisable_class_of_langchain(model_class):
    assert not model_class.is_lc_serializable()


@BOTH
def test_a_copy_runs_on_the_same_engine(engine, model_class):
    model = model_class(engine=engine, max_tokens=3)
    for twin in (copy.copy(model), copy.deepcopy(model), model.model_copy(deep=True), model.model_copy()):
        assert twin.engine is engine
        assert twin == model


@BOTH
def test_a_pickle_holds_the_configuration_only(model_class):
    model = model_class(model="m", max_tokens=3, stop=["a"], engine_kwargs={"max_running": 2})
    assert pickled(model) == model


@BOTH
def test_a_model_on_a_borrowed_engine_cannot_be_pickled(engine, model_class):
    with pytest.raises(InvalidArgumentError, match="engine: got 'FakeBackend', expected no engine in a pickle"):
        pickled(model_class(engine=engine))


def test_a_configurable_field_can_be_set_in_a_call(engine):
    chat = ChatSgl(engine=engine).configurable_fields(max_tokens=ConfigurableField(id="budget"))
    chat.invoke("x", config={"configurable": {"budget": 2}})
    assert engine.requests[0].params.max_new_tokens == 2


@BOTH
def test_printing_a_model_shows_no_engine(engine, model_class):
    assert "FakeBackend object" not in repr(model_class(engine=engine))


def test_the_page_names_every_option():
    page = (Path(__file__).resolve().parents[2] / "docs" / "langchain.md").read_text(encoding="utf-8")
    table = page.partition("## Options")[2].partition("## Which engine")[0]
    named = {name for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == set(ChatSgl.model_fields) - set(BaseChatModel.model_fields)
