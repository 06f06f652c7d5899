"""Traps between adapters, modules and optimisers: what a plan may not leak into, and what must stay as DSPy has it."""

import asyncio
import enum
import json
import re
from typing import Literal

import dspy
import pydantic
import pytest

from sgl_core.testing import FakeBackend
from sgl_dspy.adapters import ChatAdapter, JSONAdapter
from sgl_dspy.formats.reply_program import PROGRAM_KEY
from sgl_dspy.lm import SglLM


class Mood(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


class Point(pydantic.BaseModel):
    x: int
    label: str


class Typed(dspy.Signature):
    """Say something of every kind."""

    question: str = dspy.InputField()
    words: str = dspy.OutputField()
    team: Literal["billing", "bug"] = dspy.OutputField()
    mood: Mood = dspy.OutputField()
    sure: bool = dspy.OutputField()
    count: int = dspy.OutputField()
    share: float = dspy.OutputField()
    names: list[str] = dspy.OutputField()
    sizes: dict[str, int] = dspy.OutputField()
    point: Point = dspy.OutputField()


def plans(lm):
    """The plans that calls of an LM were sent with, None where there was none."""
    return [(entry["kwargs"].get("metadata") or {}).get(PROGRAM_KEY) for entry in lm.history]


class Unruly:
    """Makes a backend write no format by itself, and fit a constraint where there is one."""

    def __init__(self, fake):
        self._fake, self._plain = fake, fake.written
        fake._reply = self

    def __call__(self, ids, params):
        is_one_field = self._fake.codec.decode(ids).endswith("## ]]\n")
        is_constrained = any(getattr(params, name) is not None for name in ("regex", "json_schema", "grammar", "choices"))
        return self._plain(ids, params) if is_one_field or is_constrained else "I would rather talk."


@pytest.fixture
def rambling(scripted):
    fake = scripted()
    Unruly(fake)
    return SglLM(backend=fake, cache=False)


# ---- formats ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [ChatAdapter, JSONAdapter])
def test_every_kind_of_field_parses_at_the_first_call(rambling, make):
    with dspy.context(lm=rambling, adapter=make()):
        prediction = dspy.Predict(Typed)(question="why?")
    assert {name: type(prediction[name]) for name in Typed.output_fields} == {
        "words": str, "team": str, "mood": Mood, "sure": bool, "count": int, "share": float, "names": list, "sizes": dict,
        "point": Point,
    }  # fmt: skip
    assert prediction.words.strip()
    assert len(rambling.history) == 1


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), ChatAdapter(structure="off")], ids=["stock", "off"])
def test_without_a_plan_the_same_model_is_asked_twice(rambling, adapter):
    """The second time by the schema of DSPy's JSON fallback, which our engine enforces."""
    with dspy.context(lm=rambling, adapter=adapter):
        assert dspy.Predict("question -> answer")(question="why?").answer
    assert [bool(plan) for plan in plans(rambling)] == [False, False]
    assert len(rambling.history) == 2


def test_structure_off_sends_no_plan(lm):
    with dspy.context(adapter=ChatAdapter(structure="off")):
        dspy.Predict("question -> answer")(question="why?")
    assert plans(lm) == [None]


def test_structure_stop_ends_at_the_completed_marker(scripted):
    fake = scripted()
    fake._reply = lambda ids, params: "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]\nand much more that nobody wants"
    with dspy.context(lm=SglLM(backend=fake), adapter=ChatAdapter(structure="stop")):
        assert dspy.Predict("question -> answer")(question="why?").answer == "yes"
        (entry,) = dspy.settings.lm.history
    assert "nobody wants" not in entry["outputs"][0]


def test_a_reply_is_what_dspy_would_render_of_its_values(lm):
    """So a history of it begins with the ids that were generated."""
    adapter, signature = ChatAdapter(), dspy.Signature("question -> reasoning, answer")
    with dspy.context(adapter=adapter):
        prediction = dspy.Predict(signature)(question="why?")
    assert lm.history[0]["outputs"] == [adapter.format_assistant_message_content(signature, dict(prediction))]


@pytest.mark.parametrize("budget", [150, 400])
def test_a_reply_that_the_budget_cuts_still_parses(scripted, budget):
    fake = scripted({"reasoning": "on and on " * 200, "answer": "so it goes " * 200})
    with dspy.context(lm=SglLM(backend=fake, max_tokens=budget), adapter=ChatAdapter()):
        prediction = dspy.ChainOfThought("question -> answer")(question="why?")
        response = dspy.settings.lm.history[0]["response"]
    assert prediction.reasoning
    assert prediction.answer
    assert response.finish_reason == "length"
    assert response.usage.output_tokens <= budget


def test_forced_text_counts_as_output(lm):
    with dspy.context(adapter=ChatAdapter()):
        dspy.Predict("question -> answer")(question="why?")
    (entry,) = lm.history
    assert entry["usage"]["completion_tokens"] >= len(entry["outputs"][0])


def test_empty_text_is_never_returned(scripted):
    fake = scripted({"answer": "x"})
    with dspy.context(lm=SglLM(backend=fake), adapter=ChatAdapter()):
        dspy.Predict("question -> answer")(question="why?")
    field = next(request for request in fake.requests if fake.codec.decode(request.input_ids).endswith("## answer ## ]]\n"))
    assert field.params.regex is not None  # an empty answer, or white space alone, does not match
    assert re.fullmatch(field.params.regex, "  ") is None
    assert re.fullmatch(field.params.regex, "words") is not None


# ---- what a plan may not leak into -----------------------------------------------------------------------------------
def test_an_lm_that_is_not_ours_gets_no_plan():
    seen = []

    class Other:
        supported_params = frozenset({"temperature"})

        def complete(self, request):
            seen.append(request)
            text = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"
            return dspy.lm15.Response("id", request.model, dspy.lm15.Message.assistant(text), "stop", dspy.lm15.Usage())

    with dspy.context(lm=dspy.LM("other/model", engine=Other()), adapter=ChatAdapter()):
        assert dspy.Predict("question -> answer")(question="why?").answer == "yes"
    assert PROGRAM_KEY not in repr(seen[0])


def test_a_plain_lm_with_our_engine_gets_one(fake):
    from sgl_dspy.engine import SglEngine

    plain = dspy.LM("sgl/x", engine=SglEngine(fake), max_tokens=500)
    with dspy.context(lm=plain, adapter=ChatAdapter()):
        dspy.Predict("question -> answer")(question="why?")
    assert plans(plain)[0] is not None


def test_a_json_fallback_never_carries_the_chat_plan(scripted, monkeypatch):
    """DSPy hands the same options to the fallback after a parse error."""
    fake = scripted({"answer": "yes"})
    lm = SglLM(backend=fake, cache=False)
    failed = []

    def fail_once(self, signature, completion):
        if type(self).__name__ == "ChatAdapter" and not failed:
            failed.append(completion)
            raise dspy.AdapterParseError("ChatAdapter", signature, completion)
        return json.loads(completion)

    monkeypatch.setattr(ChatAdapter, "parse", fail_once)
    monkeypatch.setattr(JSONAdapter, "parse", fail_once)
    with dspy.context(lm=lm, adapter=ChatAdapter()):
        assert dspy.Predict("question -> answer")(question="why?").answer == "yes"
    chat, fallback = plans(lm)
    assert chat is not None
    assert fallback != chat
    assert isinstance(ChatAdapter()._make_json_adapter_fallback(), JSONAdapter)


def test_options_of_a_predictor_stay_untouched(lm):
    predict = dspy.Predict("question -> answer", metadata={"run": "7"})
    with dspy.context(adapter=ChatAdapter()):
        predict(question="why?")
        predict(question="how?")
    assert predict.config == {"metadata": {"run": "7"}}
    assert [entry["kwargs"]["metadata"]["run"] for entry in lm.history] == ["7", "7"]


def test_options_of_one_call_stay_untouched(lm):
    config = {"temperature": 0.5, "metadata": {"run": "7"}}
    with dspy.context(adapter=ChatAdapter()):
        dspy.Predict("question -> answer")(question="why?", config=config)
    assert config == {"temperature": 0.5, "metadata": {"run": "7"}}


def test_the_plan_follows_the_signature_that_the_adapter_gets(lm):
    """Refine and others hand another one over than the predictor's."""
    predict = dspy.Predict("question -> answer")
    longer = predict.signature.append("verdict", dspy.OutputField(), Literal["yes", "no"])
    with dspy.context(adapter=ChatAdapter()):
        prediction = predict(question="why?", signature=longer)
    assert prediction.verdict in {"yes", "no"}


def test_two_signatures_of_one_name_have_their_own_plans(lm):
    for choices in (("a1", "a2"), ("b1", "b2")):
        signature = dspy.Signature("question -> pick").with_updated_fields("pick", type_=Literal[choices])
        with dspy.context(adapter=ChatAdapter()):
            assert dspy.Predict(signature)(question="why?").pick in choices


def test_a_users_stop_still_applies_inside_a_field(scripted):
    fake = scripted({"answer": "one STOP two"})
    with dspy.context(lm=SglLM(backend=fake), adapter=ChatAdapter()):
        assert dspy.Predict("question -> answer", stop=["STOP"])(question="why?").answer == "one"


def test_logprobs_with_a_plan_are_of_every_token_or_the_plan_is_left_out(lm):
    with dspy.context(adapter=ChatAdapter()):
        prediction = dspy.Predict("question -> answer", logprobs=True)(question="why?")
    (entry,) = lm.history
    text = entry["outputs"][0]["text"] if isinstance(entry["outputs"][0], dict) else entry["outputs"][0]
    assert "".join(token["token"] for token in prediction.logprobs["content"]) == text


# ---- one call is one call --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [dspy.ChatAdapter, ChatAdapter, JSONAdapter])
def test_n_candidates_are_one_call_for_callbacks_history_and_trace(lm, counting, make):
    predict = dspy.Predict("question -> answer", n=3, temperature=1.0)
    with dspy.context(adapter=make(), callbacks=[counting], trace=[]):
        prediction = predict(question="why?")
        trace = list(dspy.settings.trace)
    assert len(prediction.completions.answer) == 3
    assert len(set(prediction.completions.answer)) == 3
    assert [kind for kind in counting.kinds() if kind.startswith("lm")] == ["lm_start", "lm_end"]
    assert counting.kinds().count("format") == 1
    assert len(counting.of("parse")) == 3
    assert len(lm.history) == 1
    assert [(predictor is predict, inputs) for predictor, inputs, _ in trace] == [(True, {"question": "why?"})]
    assert trace[0][2] is prediction


def test_an_awaited_call_has_one_trace_entry_too(lm):
    predict = dspy.Predict("question -> answer")

    async def ask():
        with dspy.context(adapter=ChatAdapter(), trace=[]):
            prediction = await predict.acall(question="why?")
            return prediction, list(dspy.settings.trace)

    prediction, trace = asyncio.run(ask())
    assert [(entry[0], entry[2]) for entry in trace] == [(predict, prediction)]


def test_demos_are_rendered_as_dspy_does(lm, fake):
    predict = dspy.Predict("question -> answer")
    predict.demos = [dspy.Example(question="a", answer="b"), dspy.Example(question="c", answer="d", reasoning="e")]
    for adapter in (dspy.ChatAdapter(), ChatAdapter()):
        with dspy.context(adapter=adapter):
            predict(question="why?")
    plain, planned = fake.prompts()[0], next(prompt for prompt in fake.prompts()[1:])
    assert planned.startswith(plain)


# ---- DSPy's own classes around ours ----------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [ChatAdapter, JSONAdapter])
def test_adapters_are_made_without_arguments(make):
    """Refine subclasses the class of the adapter that is configured, and calls it bare."""
    adapter = make()

    class Wrapped(adapter.__class__):
        pass

    assert isinstance(Wrapped(), make)


def test_refine_goes_through_our_adapter_with_a_hint(fake, lm):
    fake.script.update(discussion="it was short", advice={"predict": "be longer", "self": "be longer"})
    module = dspy.ChainOfThought("question -> answer")
    rewards = iter([0.0, 1.0])
    with dspy.context(adapter=ChatAdapter()):
        prediction = dspy.Refine(module, N=2, reward_fn=lambda args, prediction: next(rewards), threshold=1.0)(question="why?")
    assert prediction.answer
    assert any("hint_" in prompt for prompt in fake.prompts())


def test_a_trajectory_is_rendered_by_our_adapter_as_by_dspys():
    signature = dspy.Signature("thought_0, observation_0 -> x")
    values = {"thought_0": "look", "observation_0": "seen"}
    for ours, theirs in ((ChatAdapter(), dspy.ChatAdapter()), (JSONAdapter(), dspy.JSONAdapter())):
        assert ours.format_user_message_content(signature, values) == theirs.format_user_message_content(signature, values)


@pytest.mark.parametrize("wrap", [dspy.TwoStepAdapter, None])
def test_other_adapters_run_on_our_lm_as_they_are(scripted, wrap):
    fake = scripted({"answer": "yes"})
    lm = SglLM(backend=fake)
    adapter = dspy.XMLAdapter() if wrap is None else wrap(lm)
    if wrap is None:
        fake._reply = lambda ids, params: "<answer>yes</answer>"
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict("question -> answer")(question="why?").answer == "yes"


def test_a_history_of_turns_has_a_plan_for_the_reply_only(lm, fake):
    class Talk(dspy.Signature):
        history: dspy.History = dspy.InputField()
        question: str = dspy.InputField()
        answer: str = dspy.OutputField()

    history = dspy.History(messages=[{"question": "a", "answer": "b"}])
    with dspy.context(adapter=ChatAdapter()):
        assert dspy.Predict(Talk)(question="why?", history=history).answer
    assert plans(lm)[0]["shared"] == [
        0,
        1,
    ]  # the system message; what was said before is another conversation's in the next call


def test_a_program_is_no_part_of_what_is_saved(lm, tmp_path):
    predict = dspy.Predict("question -> answer")
    with dspy.context(adapter=ChatAdapter()):
        predict(question="why?")
    predict.save(str(tmp_path / "state.json"))
    assert PROGRAM_KEY not in (tmp_path / "state.json").read_text(encoding="utf-8")


def test_a_backend_without_token_ids_is_refused_and_not_asked(ask):
    class TextOnly(FakeBackend):
        codec = None

    with dspy.context(lm=SglLM(backend=TextOnly()), adapter=ChatAdapter()), pytest.raises(dspy.LMUnsupportedFeatureError):
        dspy.Predict("question -> answer")(question="why?")
