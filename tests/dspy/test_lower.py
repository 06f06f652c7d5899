"""Configurations to sampling parameters; what is refused, and by which name."""

import json

import pytest
from dspy import lm15

from sgl_core.errors import ContextLengthError, InvalidArgumentError, UnknownOptionError
from sgl_core.types import SamplingParams
from sgl_dspy.formats.reply_program import Forced, FreeText, ReplyProgram
from sgl_dspy.requests.lower import lowered, room_behind

PROGRAM = ReplyProgram((Forced("A: "), FreeText("a"))).to_json()


def noted(**notes):
    return {"extensions": {"metadata": notes}}


def params(request):
    return lowered(request).params(room=50)


def test_every_option_reaches_the_sampler(ask):
    request = ask(
        temperature=0.5,
        max_tokens=7,
        top_p=0.9,
        top_k=5,
        stop=("\n",),
        seed=3,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logprobs=2,
        extensions={"logit_bias": {"65": 2, "66": -1.5}},
    )
    assert params(request) == SamplingParams(
        temperature=0.5,
        max_new_tokens=7,
        min_new_tokens=1,
        top_p=0.9,
        top_k=5,
        stop=("\n",),
        seed=3,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logprobs=2,
        logit_bias={65: 2.0, 66: -1.5},
    )


def test_without_options_a_reply_is_greedy_not_empty_and_may_fill_the_room(ask):
    assert params(ask()) == SamplingParams(max_new_tokens=50, min_new_tokens=1)


def test_a_budget_is_clipped_to_the_room(ask):
    assert params(ask(max_tokens=1000)).max_new_tokens == 50
    assert params(ask(max_tokens=20)).max_new_tokens == 20


def test_a_prompt_that_leaves_no_room_is_an_error():
    assert room_behind(9, 10) == 1
    with pytest.raises(ContextLengthError, match="10"):
        room_behind(10, 10)


# ---- our options -----------------------------------------------------------------------------------------------------
def test_our_options_are_read_from_the_metadata(ask):
    own = {
        "min_p": 0.1,
        "min_tokens": 2,
        "repetition_penalty": 1.2,
        "stop_token_ids": [7],
        "stop_regex": "x+",
        "ignore_eos": True,
        "regex": "[a-z]+",
        "namespace": "mine",
        "timeout_s": 3,
    }
    found = lowered(ask(**noted(sgl_options=own, run="7")))
    assert found.params(50) == SamplingParams(
        max_new_tokens=50,
        min_p=0.1,
        min_new_tokens=2,
        repetition_penalty=1.2,
        stop_token_ids=(7,),
        stop_regex="x+",
        ignore_eos=True,
        regex="[a-z]+",
    )
    assert (found.namespace, found.timeout_s) == ("mine", 3)


def test_our_options_may_stand_beside_the_metadata_too(ask):
    assert params(ask(extensions={"sgl_options": {"min_p": 0.25}})).min_p == 0.25


def test_an_unknown_option_of_ours_is_refused_with_the_nearest(ask):
    with pytest.raises(UnknownOptionError, match="Did you mean 'regex'"):
        lowered(ask(**noted(sgl_options={"regexp": "a"})))


@pytest.mark.parametrize("own", [{"min_p": 2}, {"choices": []}, {"regex": 3}, {"repetition_penalty": 0}])
def test_a_value_out_of_range_is_refused(ask, own):
    with pytest.raises(InvalidArgumentError, match=next(iter(own))):
        params(ask(**noted(sgl_options=own)))


@pytest.mark.parametrize(
    "own", [["regex"], "regex", {"namespace": 3}, {"timeout_s": 0}, {"timeout_s": "1"}, {"timeout_s": True}]
)
def test_what_is_no_option_at_all_is_refused(ask, own):
    with pytest.raises(InvalidArgumentError):
        lowered(ask(**noted(sgl_options=own)))


def test_two_constraints_are_refused(ask):
    with pytest.raises(InvalidArgumentError, match="regex"):
        params(ask(**noted(sgl_options={"regex": "a", "choices": ["b"]})))
    with pytest.raises(InvalidArgumentError, match="response_format and regex"):
        lowered(ask(response_format={"type": "json_object"}, **noted(sgl_options={"regex": "a"})))


# ---- response_format -------------------------------------------------------------------------------------------------
def schema_of(request):
    return json.loads(params(request).json_schema)


def test_a_json_object_is_any_object(ask):
    assert schema_of(ask(response_format={"type": "json_object"})) == {"type": "object"}
    assert params(ask(response_format={"type": "json_object"})).min_new_tokens == 0


def test_an_object_of_a_schema_has_no_members_that_the_schema_does_not_name(ask):
    given = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "string"}}}}}
    found = schema_of(ask(response_format={"type": "json_schema", "schema": given}))
    assert found["additionalProperties"] is False
    assert found["properties"]["a"]["additionalProperties"] is False
    assert "additionalProperties" not in given


def test_objects_that_are_put_together_stay_as_open_as_they_are(ask):
    given = {"allOf": [{"properties": {"a": {"type": "string"}}}, {"properties": {"b": {"type": "string"}}}]}
    assert schema_of(ask(response_format={"type": "json_schema", "schema": given})) == given


def test_strict_demands_every_member(ask):
    given = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "null"}}}
    found = {
        strict: schema_of(ask(response_format={"type": "json_schema", "schema": given, "strict": strict}))
        for strict in (True, False)
    }
    assert found[True]["required"] == ["b", "a"]
    assert "required" not in found[False]


# ---- programs --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("extensions", [{"metadata": {"sgl_program": PROGRAM}}, {"sgl_program": PROGRAM}])
def test_a_program_is_read_from_both_places(ask, extensions):
    assert lowered(ask(extensions=extensions)).program.to_json() == PROGRAM


def test_a_program_beside_a_constraint_is_refused(ask):
    with pytest.raises(InvalidArgumentError, match=r"^response_format: .*structure='off'"):
        lowered(ask(response_format={"type": "json_object"}, **noted(sgl_program=PROGRAM)))


def test_alternatives_to_forced_tokens_are_refused_and_log_probabilities_are_not(ask):
    assert lowered(ask(logprobs=0, **noted(sgl_program=PROGRAM))).program is not None
    with pytest.raises(InvalidArgumentError, match="top_logprobs"):
        lowered(ask(logprobs=2, **noted(sgl_program=PROGRAM)))


# ---- namespaces ------------------------------------------------------------------------------------------------------
def test_a_cache_key_is_the_namespace(ask):
    assert lowered(ask(cache=lm15.CacheConfig(key="mine"))).namespace == "mine"
    assert lowered(ask()).namespace is None


def test_two_names_of_one_namespace_must_agree(ask):
    cache = lm15.CacheConfig(key="mine")
    assert lowered(ask(cache=cache, **noted(sgl_options={"namespace": "mine"}))).namespace == "mine"
    with pytest.raises(InvalidArgumentError, match="namespace"):
        lowered(ask(cache=cache, **noted(sgl_options={"namespace": "yours"})))


# ---- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config", [{"store": False}, {"reasoning": lm15.Reasoning("off")}, {"extensions": {"metadata": {"run": "1"}}}]
)
def test_wishes_that_are_granted_anyway_are_accepted(ask, config):
    assert lowered(ask(**config)) == lowered(ask())


@pytest.mark.parametrize(
    ("feature", "config"),
    [
        ("config.reasoning", {"reasoning": lm15.Reasoning("low")}),
        ("config.service_tier", {"service_tier": "flex"}),
        ("config.user_id", {"user_id": "someone"}),
        ("config.store", {"store": True}),
        ("config.extensions.prediction", {"extensions": {"prediction": {"type": "content"}}}),
    ],
)
def test_what_we_lack_is_refused_by_name(ask, feature, config):
    with pytest.raises(lm15.UnsupportedFeatureError, match=feature.rpartition(".")[2]) as raised:
        lowered(ask(**config))
    assert raised.value.feature == feature


@pytest.mark.parametrize("given", [["a"], {"x": 1}, {"1": "much"}, 3])
def test_a_bad_logit_bias_is_an_error(ask, given):
    with pytest.raises(InvalidArgumentError, match="logit_bias"):
        lowered(ask(extensions={"logit_bias": given}))
