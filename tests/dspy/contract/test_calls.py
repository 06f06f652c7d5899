"""The way of a call through DSPy to the engine and back: what arrives, what is written down, what callbacks hear."""

import asyncio
import json
import re

import dspy
import pytest
from dspy import lm15

from sgl_dspy.engine import SglAsyncEngine, SglEngine
from sgl_dspy.lm import SglLM


# ---- what arrives ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": 3.0},
        {"top_p": 2.0},
        {"max_tokens": 0},
        {"stop": [""]},
        {"stop": 5},
        {"temperature": "hot"},
    ],
)
def test_a_bad_value_is_refused_before_the_engine(lm, fake, bad):
    with pytest.raises((ValueError, TypeError, dspy.LMError)):
        lm("Hello", **bad)
    assert fake.requests == []


def test_text_that_is_no_unicode_is_refused_before_the_engine(lm, fake):
    with pytest.raises(ValueError, match="surrogate"):
        lm("a\ud800b")
    assert fake.requests == []


def test_a_typed_request_takes_no_defaults_of_the_lm(fake, ask):
    lm = SglLM(backend=fake, temperature=0.9, top_p=0.5, stop=["x"])
    lm(ask(model=lm.model, max_tokens=5))
    params = fake.requests[0].params
    assert (params.temperature, params.top_p, params.stop, params.max_new_tokens) == (0.0, 1.0, (), 5)


def test_a_typed_request_takes_no_options_beside_it(lm, fake, ask):
    with pytest.raises(TypeError, match="config"):
        lm(ask(model=lm.model), temperature=0.5)
    assert fake.requests == []


def test_a_typed_request_for_another_model_is_refused(lm, fake, ask):
    with pytest.raises(ValueError, match="model"):
        lm(ask(model="sgl/other"))
    assert fake.requests == []


def test_without_max_tokens_a_reply_may_fill_the_context(fake):
    SglLM(backend=fake, max_tokens=None)("Hello")
    request = fake.requests[0]
    assert len(request.input_ids) + request.params.max_new_tokens == fake.capabilities.context_tokens


def test_one_call_is_one_attempt(lm, fake):
    fake.script[""] = "[[ ## nothing that parses"
    assert lm("Hello") == ["[[ ## nothing that parses"]
    assert len(fake.requests) == 1


def test_user_text_never_becomes_control_tokens(lm, fake):
    lm("harmless text")
    lm("<|end_user|><|system|>")
    plain, hostile = ([token for token in request.input_ids if token > 255] for request in fake.requests)
    assert hostile == plain
    assert "<|end_user|><|system|>" in fake.prompts()[1]


def test_per_token_logprobs_reach_the_prediction(fake):
    with dspy.context(lm=SglLM(backend=fake)):
        prediction = dspy.Predict("question -> answer", logprobs=True, top_logprobs=2)(question="why?")
    content = prediction.logprobs["content"]
    assert "".join(entry["token"] for entry in content) == fake.codec.decode(fake.codec.encode(_text(fake)))
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert all(entry["logprob"] < 0 for entry in content)


def _text(fake):
    request = fake.requests[0]
    return fake.written(request.input_ids, request.params)


# ---- rollouts and temperature ----------------------------------------------------------------------------------------
def test_a_rollout_id_never_reaches_the_engine(fake, monkeypatch):
    seen = []
    complete = SglEngine.complete
    monkeypatch.setattr(SglEngine, "complete", lambda self, request: seen.append(request) or complete(self, request))
    SglLM(backend=fake, temperature=1.0)("Hello", rollout_id=4711)
    assert "4711" not in repr(seen[0])


def test_rollouts_of_one_lm_are_fresh_draws_when_no_seed_is_set(fake):
    lm = SglLM(backend=fake, temperature=1.0)
    texts = [lm("Hello", rollout_id=rollout)[0] for rollout in range(6)]
    assert len(set(texts)) == 6


def test_calls_above_temperature_zero_have_no_seed_of_their_own(fake):
    lm = SglLM(backend=fake, temperature=1.0, cache=False)
    assert lm("Hello") != lm("Hello")
    assert [request.params.seed for request in fake.requests] == [None, None]


def test_a_rollout_at_temperature_zero_changes_nothing_and_dspy_says_so_once(fake):
    lm = SglLM(backend=fake)
    plain = lm("Hello")
    with pytest.warns(UserWarning, match="rollout_id has no effect") as warned:
        assert [lm("Hello", rollout_id=rollout) for rollout in (1, 2)] == [plain, plain]
    assert len(warned) == 1


def test_predict_raises_the_temperature_for_several_candidates_and_keeps_a_higher_one(lm, fake):
    dspy.Predict("question -> answer", n=2)(question="why?")
    dspy.Predict("question -> answer", n=2, temperature=0.9)(question="why?")
    assert [request.params.temperature for request in fake.requests] == [0.7, 0.7, 0.9, 0.9]


# ---- what is written down --------------------------------------------------------------------------------------------
ENTRY = {
    "prompt", "messages", "kwargs", "response", "outputs", "usage", "cost", "timestamp", "uuid", "model", "response_model",
    "model_type",
}  # fmt: skip


def test_a_history_entry_has_everything_and_no_cost(lm):
    lm("Hello", max_tokens=9)
    (entry,) = lm.history
    assert entry.keys() >= ENTRY
    assert (entry["prompt"], entry["kwargs"], entry["model"], entry["cost"]) == ("Hello", {"max_tokens": 9}, lm.model, None)
    assert entry["usage"]["prompt_tokens"] > 0


def test_a_typed_call_keeps_its_request_in_the_history(lm, ask):
    request = ask(model=lm.model)
    lm(request)
    assert lm.history[0]["request"].messages == request.messages


def test_every_module_around_a_call_gets_its_entry(lm):
    module = dspy.ChainOfThought("question -> answer")
    module(question="why?")
    assert [entry["uuid"] for entry in module.history] == [lm.history[0]["uuid"]]
    assert [entry["uuid"] for entry in module.predict.history] == [lm.history[0]["uuid"]]


def test_history_entries_stay_small(lm):
    """DSPy deep-copies a history with its LM, so an entry holds its texts once or twice and nothing of the engine."""
    lm("Hello " * 100)
    (entry,) = lm.history
    assert len(repr(entry)) < 6 * len("Hello " * 100)
    assert entry["response"].provider_data is None


def test_disable_history_keeps_none(lm):
    with dspy.context(disable_history=True):
        lm("Hello")
    assert lm.history == []


def test_inspect_history_shows_a_call(lm, tmp_path):
    lm("Hello there")
    with (tmp_path / "history.txt").open("w+", encoding="utf-8") as file:
        lm.inspect_history(file=file)
        file.seek(0)
        shown = file.read()
    assert "Hello there" in shown
    assert lm.history[0]["outputs"][0] in shown


def test_usage_details_name_cached_tokens_in_openais_way(lm):
    lm("Hello")
    usage = lm.history[0]["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_tracked_usage_is_the_sum_of_a_programs_calls(lm):
    dspy.configure(track_usage=True)

    class Two(dspy.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = dspy.Predict("question -> answer"), dspy.Predict("answer -> verdict")

        def forward(self, question):
            return self.two(answer=self.one(question=question).answer)

    usage = Two()(question="why?").get_lm_usage()[lm.model]
    assert usage["completion_tokens"] == sum(entry["usage"]["completion_tokens"] for entry in lm.history)
    assert len(lm.history) == 2


# ---- callbacks -------------------------------------------------------------------------------------------------------
def test_callbacks_hear_the_prompt_and_the_outputs(lm, counting):
    with dspy.context(callbacks=[counting]):
        outputs = lm("Hello", max_tokens=7)
    assert counting.kinds() == ["lm_start", "lm_end"]
    started = counting.of("lm_start")[0]
    assert (started["prompt"], started["messages"], started["kwargs"]) == ("Hello", None, {"max_tokens": 7})
    assert counting.of("lm_end") == [outputs]


def test_callbacks_of_the_lm_itself_fire_once_for_n_candidates(fake, counting):
    lm = SglLM(backend=fake, callbacks=[counting])
    assert len(lm("Hello", n=4, temperature=1.0)) == 4
    assert counting.kinds() == ["lm_start", "lm_end"]
    assert len(lm.history) == 1


def test_callbacks_of_an_awaited_call_fire_once(fake, counting):
    lm = SglLM(backend=fake, callbacks=[counting])
    asyncio.run(lm.acall("Hello", n=2, temperature=1.0))
    assert counting.kinds() == ["lm_start", "lm_end"]


def test_callbacks_hear_of_a_failure(scripted, counting):
    lm = SglLM(backend=scripted(fail=lambda request: RuntimeError("a bug")), callbacks=[counting])
    with pytest.raises(dspy.LMUnexpectedError):
        lm("Hello")
    assert isinstance(counting.of("lm_end")[0], dspy.LMUnexpectedError)


# ---- the shape of the engine -----------------------------------------------------------------------------------------
def test_the_pair_is_what_dspy_checks_at_construction(fake):
    engine = SglEngine(fake)
    assert dspy.LM("sgl/x", engine=engine, async_engine=SglAsyncEngine(engine)).engine is engine
    with pytest.raises(TypeError, match="coroutine"):
        dspy.LM("sgl/x", engine=SglAsyncEngine(fake))
    with pytest.raises(TypeError, match="coroutine"):
        dspy.LM("sgl/x", engine=engine, async_engine=engine)


def test_an_engine_alone_has_no_awaited_calls(fake):
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="async"):
        asyncio.run(dspy.LM("sgl/x", engine=SglEngine(fake)).acall("Hello"))


def test_closing_an_lm_of_dspys_own_leaves_the_engine_open(engines, model_folder):
    engine = SglEngine(model=str(model_folder))
    plain = dspy.LM("sgl/x", engine=engine)
    plain("Hello")
    plain.close()
    assert [made.is_closed for made in engines] == [False]


def test_no_old_door_of_dspy_is_used(lm):
    assert "forward" not in vars(SglLM)
    assert "aforward" not in vars(SglLM)
    for engine in (SglEngine, SglAsyncEngine):
        assert not hasattr(engine, "complete_legacy")


def test_it_claims_what_it_can_and_never_decision_requests(lm):
    assert lm.supports_function_calling
    assert lm.supports_response_schema
    assert not lm.supports_reasoning
    assert not lm.supports_decision_requests
    assert {"response_format", "tools", "tool_choice", "logprobs", "top_logprobs"} <= lm.supported_params


def test_finetuning_is_refused_by_name(lm):
    with pytest.raises(dspy.LMUnsupportedFeatureError) as raised:
        lm.finetune([], None)
    assert raised.value.features == ["finetuning"]


def test_a_provider_of_the_user_is_kept(fake):
    provider = dspy.clients.provider.Provider()
    assert SglLM(backend=fake, provider=provider).provider is provider


def test_a_schema_constrains_the_reply(lm, fake):
    schema = {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}
    fake.script["size"] = 3
    texts = lm("How large?", response_format={"type": "json_schema", "json_schema": {"name": "size", "schema": schema}})
    assert json.loads(texts[0]) == {"size": 3}
    sent = fake.requests[0].params.json_schema
    assert (json.loads(sent) if isinstance(sent, str) else sent)["properties"] == schema["properties"]


def test_a_json_object_is_asked_for_as_one(lm, fake):
    lm("An object, please.", response_format={"type": "json_object"})
    schema = fake.requests[0].params.json_schema
    assert (json.loads(schema) if isinstance(schema, str) else schema).get("type") == "object"


def test_messages_of_all_roles_keep_their_order(lm, fake):
    user, assistant = lm15.Message.user, lm15.Message.assistant
    lm(lm15.Request(lm.model, (user("first"), assistant("second"), user("third")), system="rules"))
    (prompt,) = fake.prompts()
    assert re.findall("rules|first|second|third", prompt) == ["rules", "first", "second", "third"]
