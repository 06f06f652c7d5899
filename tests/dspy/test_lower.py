"""Requests to ids and parameters; what is refused, and by which name."""

import pytest
from dspy import lm15

from sgl_core.chat.conversation import Message, render
from sgl_core.errors import ContextLengthError, InvalidArgumentError
from sgl_core.testing import FakeBackend
from sgl_core.types import SamplingParams
from sgl_dspy.lower import SUPPORTED_PARAMS, gen_request

TOOL = lm15.FunctionTool("add", "Adds.", {"type": "object", "properties": {}})


def test_system_and_developer_messages_are_system_turns(backend, ask):
    messages = (lm15.Message.user("a"), lm15.Message.developer("b"), lm15.Message.assistant("c"), lm15.Message.user("d"))
    request = lm15.Request("sgl/x", messages, system="s")
    turns = [("system", "s"), ("user", "a"), ("system", "b"), ("assistant", "c"), ("user", "d")]
    assert gen_request(request, backend).input_ids == render(backend.codec, [Message(*turn) for turn in turns]).ids


def test_text_parts_are_joined(backend):
    request = lm15.Request("sgl/x", (lm15.Message.user(["one ", "two"]),), system=("a", "b"))
    turns = [("system", "ab"), ("user", "one two")]
    assert gen_request(request, backend).input_ids == render(backend.codec, [Message(*turn) for turn in turns]).ids


def test_every_option_reaches_the_sampler(backend, ask):
    request = ask(
        temperature=0.5,
        max_tokens=7,
        top_p=0.9,
        top_k=5,
        stop=("\n",),
        seed=3,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        extensions={"logit_bias": {"65": 2, "66": -1.5}},
    )
    assert gen_request(request, backend).params == SamplingParams(
        temperature=0.5,
        max_new_tokens=7,
        top_p=0.9,
        top_k=5,
        stop=("\n",),
        seed=3,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias={65: 2.0, 66: -1.5},
    )
    assert len(SUPPORTED_PARAMS) == 9


def test_without_options_a_request_is_greedy_and_may_fill_the_context(backend, ask):
    lowered = gen_request(ask(), backend)
    room = backend.capabilities.context_tokens - len(lowered.input_ids)
    assert lowered.params == SamplingParams(max_new_tokens=room)


def test_a_budget_is_clipped_to_the_context(backend, ask):
    lowered = gen_request(ask("x" * 8000, max_tokens=1000), backend)
    assert len(lowered.input_ids) + lowered.params.max_new_tokens == backend.capabilities.context_tokens


def test_a_prompt_that_does_not_fit_is_an_error(backend, ask):
    with pytest.raises(ContextLengthError, match="8191"):
        gen_request(ask("x" * 8192, max_tokens=1), backend)


def test_a_cache_key_is_the_namespace(backend, ask):
    assert gen_request(ask(cache=lm15.CacheConfig(key="mine")), backend).namespace == "mine"
    assert gen_request(ask(), backend).namespace is None


@pytest.mark.parametrize(
    "config",
    [
        {"store": False},
        {"reasoning": lm15.Reasoning("off")},
        {"tool_choice": lm15.ToolChoice("none")},
        {"cache": lm15.CacheConfig(prefix="history", retention="short")},
        {"extensions": {"metadata": {"run": "1"}}},
    ],
)
def test_wishes_that_are_granted_anyway_are_accepted(backend, ask, config):
    assert gen_request(ask(**config), backend) == gen_request(ask(), backend)


@pytest.mark.parametrize(
    ("feature", "config"),
    [
        ("config.response_format", {"response_format": {"type": "json_object"}}),
        ("config.tool_choice", {"tool_choice": lm15.ToolChoice("required")}),
        ("config.reasoning", {"reasoning": lm15.Reasoning("low")}),
        ("config.logprobs", {"logprobs": 0}),
        ("config.probabilities", {"probabilities": "if_available"}),
        ("config.service_tier", {"service_tier": "flex"}),
        ("config.user_id", {"user_id": "someone"}),
        ("config.store", {"store": True}),
        ("config.cache.mode", {"cache": lm15.CacheConfig(mode="off")}),
        ("config.cache.retention", {"cache": lm15.CacheConfig(retention="long")}),
        ("config.cache.resource", {"cache": lm15.CacheConfig(resource="r")}),
        ("config.extensions.prediction", {"extensions": {"prediction": {"type": "content"}}}),
    ],
)
def test_what_we_lack_is_refused_by_name(backend, ask, feature, config):
    with pytest.raises(lm15.UnsupportedFeatureError, match=feature.rpartition(".")[2]) as raised:
        gen_request(ask(**config), backend)
    assert raised.value.feature == feature


def test_tools_are_refused_by_name(backend):
    with pytest.raises(lm15.UnsupportedFeatureError, match="tools") as raised:
        gen_request(lm15.Request("sgl/x", (lm15.Message.user("Hi"),), tools=(TOOL,)), backend)
    assert raised.value.feature == "tools"


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("messages[1]", lm15.Message.tool("id", "42")),
        ("messages[1].parts[0]", lm15.Message.assistant(lm15.ToolCallPart("id", "add", {}))),
        ("messages[1].parts[1]", lm15.Message.user(["look", lm15.ImagePart("image/png", url="https://example.org/a.png")])),
        ("messages[1].parts[0]", lm15.Message.assistant(lm15.ThinkingPart("hm"))),
    ],
)
def test_parts_that_are_no_text_are_refused_by_place(backend, feature, message):
    with pytest.raises(lm15.UnsupportedFeatureError) as raised:
        gen_request(lm15.Request("sgl/x", (lm15.Message.user("Hi"), message)), backend)
    assert raised.value.feature == feature


@pytest.mark.parametrize("given", [["a"], {"x": 1}, {"1": "much"}, 3])
def test_a_bad_logit_bias_is_an_error(backend, ask, given):
    with pytest.raises(InvalidArgumentError, match="logit_bias"):
        gen_request(ask(extensions={"logit_bias": given}), backend)


def test_no_error_holds_prompt_text(backend, ask):
    with pytest.raises(ContextLengthError) as raised:
        gen_request(ask("nonce-4711 " * 1000), backend)
    assert "nonce" not in str(raised.value)


def test_a_backend_that_takes_no_ids_is_refused(ask):
    class TextOnly(FakeBackend):
        codec = None

    with pytest.raises(lm15.UnsupportedFeatureError, match="TextOnly"):
        gen_request(ask(), TextOnly())
