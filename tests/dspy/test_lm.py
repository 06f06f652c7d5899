"""``SglLM``: its label, defaults, copies, states, and what it refuses."""

import asyncio
import copy
import inspect
import json
import re
from multiprocessing.reduction import ForkingPickler

import dspy
import pytest
from dspy import lm15
from dspy.clients.backend_selection import CLIENT_KEYS

from sgl_core.errors import InvalidArgumentError, ModelNotFoundError, UnknownOptionError
from sgl_core.testing import FakeBackend
from sgl_dspy import SglAsyncEngine, SglEngine, SglLM
from sgl_dspy.requests.lower import SUPPORTED_PARAMS
from sgl_dspy.requests.options import OWN_OPTIONS, check_names

OPTIONS = sorted(SUPPORTED_PARAMS | {"n", "rollout_id", "reasoning_effort", "metadata"})


def test_its_defaults_are_explicit(backend):
    lm = SglLM(backend=backend)
    assert lm.kwargs == {"temperature": 0.0, "max_tokens": 1000}
    lm("Hello")
    assert (backend.requests[0].params.temperature, backend.requests[0].params.max_new_tokens) == (0.0, 1000)
    assert lm.num_retries == 0


def test_its_label_is_known_without_loading(engines, model_folder):
    lm = SglLM(str(model_folder))
    assert re.fullmatch(r"sgl/tiny-model@bfloat16#[0-9a-f]{8}", lm.model)
    assert engines == []


def test_the_label_changes_with_the_weights(model_folder):
    before = SglLM(str(model_folder)).model
    (model_folder / "model.safetensors").write_bytes(b"trained")
    assert SglLM(str(model_folder)).model != before


def test_a_model_that_is_not_there_is_an_error_at_once(tmp_path):
    with pytest.raises(ModelNotFoundError):
        SglLM(str(tmp_path / "nothing"))


def test_a_label_is_accepted_for_its_own_weights_only(backend, model_folder):
    engine = SglEngine(model=str(model_folder))
    label = SglLM(engine=engine).model
    assert SglLM(label, engine=engine).model == label
    with pytest.raises(InvalidArgumentError, match="label"):
        SglLM(label, backend=backend)


def test_equal_prompts_of_other_models_do_not_share_answers(model_folder, engines):
    texts = []
    for weights in (b"one", b"two"):
        (model_folder / "model.safetensors").write_bytes(weights)
        texts.append(SglLM(str(model_folder))("Hello"))
    assert [len(engine.requests) for engine in engines] == [1, 1]
    assert SglLM(str(model_folder))("Hello") == texts[1]
    assert [len(engine.requests) for engine in engines] == [1, 1]


def test_all_lms_of_one_model_share_one_engine(engines, model_folder):
    one, two, three = (SglLM(str(model_folder), engine_options={"max_running": 4}) for _ in range(3))
    assert one("one")
    assert two("two")
    assert asyncio.run(three.acall("three"))
    assert [len(engine.requests) for engine in engines] == [3]


def test_launch_loads_and_kill_gives_back(engines, model_folder):
    lm = SglLM(str(model_folder))
    lm.launch()
    assert len(engines) == 1
    lm.kill()
    assert engines[0].is_closed
    assert lm("Hello")
    assert len(engines) == 2


def test_closing_gives_back_what_it_made_and_leaves_what_it_was_given(engines, model_folder):
    given = SglEngine(model=str(model_folder))
    lm = SglLM(engine=given)
    lm("Hello")
    lm.close()
    assert not engines[0].is_closed
    asyncio.run(SglLM(engine=given).aclose())
    assert not engines[0].is_closed
    given.close()
    assert engines[0].is_closed


def test_a_borrowed_backend_may_be_given_as_engine_too(backend):
    assert SglLM(engine=backend)("Hello") == SglLM(backend=backend)("Hello")
    assert SglLM(engine=backend).engine.backend is backend


def test_launch_and_kill_are_what_its_provider_says(backend):
    class Recording(dspy.clients.provider.Provider):
        @staticmethod
        def launch(lm, launch_kwargs=None):
            asked.append(("launch", lm, launch_kwargs))

        @staticmethod
        def kill(lm, launch_kwargs=None):
            asked.append(("kill", lm, launch_kwargs))

    asked = []

    lm = SglLM(backend=backend, provider=Recording())
    lm.launch({"port": 1})
    lm.kill()
    assert asked == [("launch", lm, {"port": 1}), ("kill", lm, None)]


def test_it_trains_nothing_and_says_so(backend):
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="fine-tuning"):
        SglLM(backend=backend).finetune([], None)


# ---- options that DSPy does not know -------------------------------------------------------------------------------
def test_our_options_reach_the_sampler_from_a_call_and_from_the_defaults():
    fake = FakeBackend(reply=lambda ids, params: "red")
    lm = SglLM(backend=fake, cache=False, min_p=0.25, namespace="mine")
    lm("Colour?", choices=("red", "blue"), timeout_s=30)
    asyncio.run(lm.acall("Colour?", choices=["red"], metadata={"run": "7"}))
    first, second = fake.requests
    assert (first.params.choices, first.params.min_p, first.namespace, first.timeout_s) == (("red", "blue"), 0.25, "mine", 30)
    assert (second.params.choices, second.params.min_p, second.namespace, second.timeout_s) == (("red",), 0.25, "mine", None)


def test_our_options_pass_through_a_module():
    fake = FakeBackend(reply=lambda ids, params: "[[ ## answer ## ]]\nred\n\n[[ ## completed ## ]]")
    with dspy.context(lm=SglLM(backend=fake)):
        dspy.Predict("question -> answer", min_p=0.5)(question="Colour?")
    assert fake.requests[0].params.min_p == 0.5


def test_our_options_are_in_the_key_of_the_answer_cache(backend):
    lm = SglLM(backend=backend)
    for min_p in (0.1, 0.2, 0.1):
        lm("Hello", min_p=min_p)
    assert [request.params.min_p for request in backend.requests] == [0.1, 0.2]


def test_a_value_of_ours_out_of_range_is_an_invalid_request(backend):
    with pytest.raises(dspy.LMInvalidRequestError, match="min_p"):
        SglLM(backend=backend)("Hello", min_p=2)


def test_a_typed_request_takes_no_options_beside_it(backend, ask):
    lm = SglLM(backend=backend)
    with pytest.raises(TypeError, match="min_p"):
        lm(ask(model=lm.model), min_p=0.5)


@pytest.mark.parametrize("name", sorted(OWN_OPTIONS))
def test_a_copy_takes_an_option_of_ours_and_leaves_the_original(backend, name):
    lm = SglLM(backend=backend, metadata={"run": 1})
    assert lm.copy(**{name: 3}).kwargs["metadata"] == {"run": 1, "sgl_options": {name: 3}}
    assert lm.kwargs["metadata"] == {"run": 1}


# ---- questions to the engine -----------------------------------------------------------------------------------------
def test_scores_are_sums_over_the_tokens_of_each_text(backend):
    one, two = SglLM(backend=backend).score("Colour?", ["red", "blue"])
    assert [len(span) for span in backend.scores[0].continuations] == [3, 4]
    assert one != two
    for bad in ([], ["red", ""], "red"):
        with pytest.raises(dspy.LMInvalidRequestError, match="continuations"):
            SglLM(backend=backend).score("Colour?", bad)


def test_a_prompt_is_shown_as_the_model_reads_it(backend):
    lm = SglLM(backend=backend)
    assert lm.inspect_prompt("Grüße") == "<|begin|><|user|>Grüße<|end_user|>\n<|assistant|>"
    lm("Grüße")
    assert lm.inspect_prompt("Grüße").encode() == b"".join(
        lm.engine.backend.codec.spell(one).encode() if one > 255 else bytes([one]) for one in backend.requests[0].input_ids
    )
    typed = lm15.Request(lm.model, (lm15.Message.user("Grüße"),))
    assert lm.inspect_prompt(typed) == lm.inspect_prompt("Grüße")
    for both in ({}, {"prompt": "a", "messages": []}, {"prompt": typed, "tools": []}):
        with pytest.raises(InvalidArgumentError, match="prompt"):
            lm.inspect_prompt(**both)


def test_what_is_prefetched_is_what_prompts_begin_with(backend):
    lm = SglLM(backend=backend)
    shared = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    resource = lm.prefetch(messages=shared, key="mine")
    messages = (lm15.Message.user("a"), lm15.Message.assistant("b"), lm15.Message.user("c"))
    config = lm15.Config(cache=lm15.CacheConfig(resource=resource))
    lm(lm15.Request(lm.model, messages, system="Be brief.", config=config))
    (prefetched,), (request,) = backend.prefetches, backend.requests
    assert request.input_ids[: len(prefetched.input_ids)] == prefetched.input_ids
    assert len(request.input_ids) - len(prefetched.input_ids) < 8
    assert prefetched.namespace == request.namespace == "mine"
    with pytest.raises(dspy.LMInvalidRequestError, match="resource"):
        lm("Something else", prompt_cache=lm15.CacheConfig(resource=resource))


def test_stats_load_nothing_and_are_those_of_all_copies(engines, model_folder):
    lm = SglLM(str(model_folder))
    assert lm.stats() == {"label": lm.model, "is_loaded": False, "kept_prefixes": 0, "engine": None}
    assert engines == []
    lm.copy().prefetch("Hello")
    assert (lm.stats()["is_loaded"], lm.stats()["kept_prefixes"]) == (True, 1)


# ---- what it refuses -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("setting", ["api_key", "api_base", "base_url", "timeout", "headers"])
def test_client_settings_are_refused_everywhere(backend, setting):
    lm = SglLM(backend=backend)
    for use in (lambda **k: SglLM(backend=backend, **k), lm.copy, lambda **k: lm("Hello", **k)):
        with pytest.raises(ValueError, match=setting):
            use(**{setting: "x"})
    assert backend.requests == []


def test_engine_options_among_the_request_options_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"engine_options=\{'dtype'"):
        SglLM(dtype="float32")


def test_arguments_that_say_twice_where_to_run_are_refused(backend, model_folder):
    for given in ({"engine": backend}, {"engine_options": {"dtype": "float32"}}, {"model": str(model_folder)}):
        with pytest.raises(InvalidArgumentError):
            SglLM(backend=backend, **given)
    with pytest.raises(InvalidArgumentError, match="model"):
        SglLM(engine_options={"model": str(model_folder)})


def test_a_pair_of_two_backends_is_refused(backend):
    with pytest.raises(InvalidArgumentError, match="async_engine"):
        SglLM(backend=backend, async_engine=SglAsyncEngine(FakeBackend()))
    engine = SglEngine(backend)
    pair = SglAsyncEngine(engine)
    assert asyncio.run(SglLM(engine=engine, async_engine=pair).acall("Hello"))


def test_only_chat_is_a_model_type(backend):
    with pytest.raises(InvalidArgumentError, match="model_type"):
        SglLM(backend=backend, model_type="responses")


@pytest.mark.parametrize(
    ("name", "meant"), [("regexp", "regex"), ("max_token", "max_tokens"), ("temprature", "temperature"), ("extra_body", None)]
)
def test_an_option_that_nobody_knows_is_refused_at_once_and_everywhere(backend, name, meant):
    lm = SglLM(backend=backend)
    uses = (lambda **k: SglLM(backend=backend, **k), lm.copy, lambda **k: lm("Hello", **k), dspy.Predict("question -> answer"))
    for use in (*uses[:3], lambda **k: uses[3](question="What?", config=k)):
        with dspy.context(lm=lm), pytest.raises(UnknownOptionError) as raised:
            use(**{name: 0.5})
        assert raised.value.given == name
        assert raised.value.cure == ("" if meant is None else f"Did you mean {meant!r}?")
    assert backend.requests == []


def test_an_unknown_option_of_an_awaited_call_is_refused(backend):
    with pytest.raises(UnknownOptionError, match="regexp"):
        asyncio.run(SglLM(backend=backend).acall("Hello", regexp="a"))


def test_a_misspelt_argument_of_the_constructor_is_refused_with_the_nearest():
    with pytest.raises(UnknownOptionError, match="Did you mean 'engine_options'"):
        SglLM(engine_option={"dtype": "float32"})


def test_whatever_dspy_takes_is_left_to_dspy():
    taken = set(inspect.signature(dspy.LM).parameters) | CLIENT_KEYS - {"engine"}
    check_names("SglLM", taken - {"engine", "kwargs"}, SUPPORTED_PARAMS)


def test_a_backend_in_the_place_of_the_model_is_refused_with_the_cure(backend):
    with pytest.raises(InvalidArgumentError, match=r"SglLM\(backend=\.\.\.\)"):
        SglLM(backend)


def test_a_class_is_no_backend():
    with pytest.raises(InvalidArgumentError, match="backend"):
        SglLM(backend=FakeBackend)


def test_engine_options_that_are_no_dict_are_refused():
    with pytest.raises(InvalidArgumentError, match="engine_options"):
        SglLM(engine_options="float32")


def test_a_prefix_to_prefetch_is_said_once(backend):
    for given in ({}, {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}):
        with pytest.raises(InvalidArgumentError, match="messages"):
            SglLM(backend=backend).prefetch(**given)


def test_an_unknown_option_of_a_prompt_is_refused(backend):
    with pytest.raises(UnknownOptionError, match="tool_choice"):
        SglLM(backend=backend).inspect_prompt("Hello", tool_choices="auto")


# ---- copies ----------------------------------------------------------------------------------------------------------
def test_no_attribute_is_called_like_an_option(backend):
    assert [name for name in (*OPTIONS, *OWN_OPTIONS) if hasattr(SglLM(backend=backend), name)] == []


@pytest.mark.parametrize("name", OPTIONS)
def test_a_copy_takes_an_option_as_a_request_default(backend, name):
    assert SglLM(backend=backend).copy(**{name: 3}).kwargs[name] == 3


@pytest.mark.parametrize("name", ["model", "backend", "engine", "engine_options"])
def test_a_copy_does_not_change_the_model(backend, name):
    with pytest.raises(InvalidArgumentError, match=name):
        SglLM(backend=backend).copy(**{name: "other"})


def test_copies_of_any_kind_share_the_engine_and_nothing_else(engines, model_folder):
    lm = SglLM(str(model_folder))
    lm("Hello")
    for twin in (copy.copy(lm), lm.copy(), copy.deepcopy(lm), ForkingPickler.loads(bytes(ForkingPickler.dumps(lm)))):
        twin.kwargs = {**twin.kwargs, "stop": ["x"]}
        assert twin.model == lm.model
        assert twin("Hello again", cache=False)
        assert asyncio.run(twin.acall("And again", cache=False))
    assert len(engines) == 1
    assert "stop" not in lm.kwargs


# ---- states ----------------------------------------------------------------------------------------------------------
def test_a_state_is_json_and_leads_back(engines, model_folder):
    lm = SglLM(str(model_folder), temperature=0.5, top_p=0.9, engine_options={"dtype": "float32"})
    state = json.loads(json.dumps(lm.dump_state()))
    loaded = dspy.BaseLM.load_state(state, allow_custom_lm_class=True)
    assert type(loaded) is SglLM
    assert (loaded.model, loaded.kwargs, loaded.dump_state()) == (lm.model, lm.kwargs, lm.dump_state())
    assert engines == []
    assert loaded("Hello")
    assert engines[0].config.dtype == "float32"


def test_a_state_is_not_loaded_unasked(model_folder):
    with pytest.raises(ValueError, match="Refusing"):
        dspy.BaseLM.load_state(SglLM(str(model_folder)).dump_state())


def test_a_state_of_other_weights_is_refused(model_folder):
    state = SglLM(str(model_folder)).dump_state()
    (model_folder / "model.safetensors").write_bytes(b"trained since")
    with pytest.raises(InvalidArgumentError, match="label"):
        SglLM.load_state(state, allow_custom_lm_class=True)


def test_a_borrowed_backend_has_no_state_and_says_what_to_do(backend):
    with pytest.raises(InvalidArgumentError, match="engine_options"):
        SglLM(backend=backend).dump_state()


def test_scores_and_prefetched_prefixes_stay_in_the_namespace_of_the_lm(backend):
    for lm in (SglLM(backend=backend, namespace="ours"), SglLM(backend=backend, prompt_cache=lm15.CacheConfig(key="ours"))):
        lm.score("Hello", ["Hi"])
        lm.prefetch("Hello")
    assert [request.namespace for request in (*backend.scores, *backend.prefetches)] == ["ours"] * 4
