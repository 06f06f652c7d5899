"""SglDecisions on an engine without a model: what predictors ask, what they get, and what is refused."""

import asyncio
import json
import math
from multiprocessing.reduction import ForkingPickler
from typing import Annotated, Literal

import dspy
import pytest
from dspy.adapters.types.decision import Choice, Noul, Score

from sgl_core.backend import Capabilities
from sgl_core.errors import EngineStepError, InvalidArgumentError
from sgl_core.handle import RequestHandle
from sgl_core.testing import FakeBackend
from sgl_core.types import ScoreRequest, ScoreResult, Usage
from sgl_dspy import SglLM
from sgl_dspy.best_of_n import BestOfN
from sgl_dspy.decisions import SglDecisions

WAIT_S = 60.0
URGENT = Noul[(True, "within a day"), (False, "later")]
ANGER = Score["calm", "annoyed", "furious"]
TEAM = Choice[("sales", "Prices."), ("returns", "Broken things.")]
QUESTIONS = {
    "urgent": {"type": "noul", "instructions": "Is it urgent?"},
    "team": {"type": "choice", "instructions": "Which team?", "criteria": {"bug": None, "bug report": "It crashes."}},
    "anger": {"type": "score", "instructions": "How angry?", "criteria": ["Calm.", "Annoyed.", "Furious."]},
}


class Scoring(FakeBackend):
    """Scores every continuation with the probability that its text has in ``likely``, and counts cached tokens."""

    capabilities = Capabilities(cached_tokens=True)

    def __init__(self, likely=None, default=0.5):
        super().__init__()
        self._likely = likely or {}
        self._default = default

    def score(self, request: ScoreRequest) -> RequestHandle[ScoreResult]:
        self.scores.append(request)
        handle: RequestHandle[ScoreResult] = RequestHandle()
        rows = []
        for ids in request.continuations:
            share = self._likely.get(self.codec.decode(ids), self._default)
            rows.append((math.log(share), *[0.0] * (len(ids) - 1)))
        handle.finish(ScoreResult(tuple(rows), Usage(len(request.input_ids), 7, 0)))
        return handle


class Triage(dspy.Signature):
    """Judge a letter."""

    letter: str = dspy.InputField()
    urgent: bool = dspy.OutputField(desc="Does it need an answer today?")
    team: Literal["sales", "returns", 7] = dspy.OutputField(desc="Who should read it?")


def prompts(engine):
    return [engine.codec.decode(request.input_ids) for request in engine.scores]


def ask(backend, state="It broke.", questions=QUESTIONS, **options):
    return SglDecisions(backend=backend, **options)(state=state, questions=questions)


# ---- answers ---------------------------------------------------------------------------------------------------------
def test_every_question_is_answered_under_its_own_name_with_probabilities_that_sum_to_one(backend):
    answers = ask(backend)
    assert list(answers) == list(QUESTIONS)
    assert 0 <= answers["urgent"]["noul"] <= 1
    assert list(answers["team"]["probabilities"]) == ["bug", "bug report"]
    assert list(answers["anger"]["probabilities"]) == [0, 1, 2]
    for name in ("team", "anger"):
        assert math.isclose(sum(answers[name]["probabilities"].values()), 1)
        assert answers[name]["confidence"] == max(answers[name]["probabilities"].values())


def test_probabilities_are_the_models_own_shares():
    likely = {'yes"': 0.06, 'no"': 0.02, 'bug"': 0.1, 'bug report"': 0.4, "0}": 0.1, "1}": 0.2, "2}": 0.7}
    with Scoring(likely) as backend:
        answers = ask(backend)
    assert answers["urgent"]["noul"] == pytest.approx(0.75)
    assert answers["team"]["choice"] == "bug report"
    assert answers["team"]["probabilities"] == pytest.approx({"bug": 0.2, "bug report": 0.8})
    assert answers["anger"]["score"] == pytest.approx(0.2 + 2 * 0.7)


def test_a_predictor_gets_native_bools_and_members_of_a_literal():
    with Scoring({'yes"': 0.1, 'no"': 0.9, '7"': 0.9}, default=0.2) as backend:
        predict = dspy.Predict(Triage)
        predict.set_lm(SglDecisions(backend=backend))
        prediction = predict(letter="It broke.")
    assert (prediction.urgent, prediction.team) == (False, 7)
    assert "It broke." in prompts(backend)[0]
    assert "Does it need an answer today?" in prompts(backend)[0]


def test_a_predictor_gets_dspys_decision_types_with_their_evidence():
    class Rich(dspy.Signature):
        """Judge a letter."""

        letter: str = dspy.InputField()
        urgent: URGENT = dspy.OutputField(desc="Is it urgent?")
        anger: ANGER = dspy.OutputField(desc="How angry?")
        team: TEAM = dspy.OutputField(desc="Who?")
        tone: Annotated[Literal["warm", "cold"], Choice] = dspy.OutputField(desc="Which tone?")

    likely = {'yes"': 0.8, 'no"': 0.2, "0}": 0.5, "1}": 0.5, "2}": 1e-9, 'sales"': 0.1, 'returns"': 0.3, 'cold"': 0.9}
    with Scoring(likely, default=0.1) as backend:
        predict = dspy.Predict(Rich)
        with dspy.context(lm=SglDecisions(backend=backend)):
            prediction = predict(letter="It broke.")
    assert prediction.urgent.probability == pytest.approx(0.8)
    assert prediction.anger.value == pytest.approx(0.5)
    assert prediction.team.value == "returns"
    assert prediction.team.probabilities == pytest.approx({"sales": 0.25, "returns": 0.75})
    assert prediction.tone == "cold"
    assert any("- yes: within a day\n- no: later\n" in text for text in prompts(backend))
    assert any("- 1: annoyed\n" in text for text in prompts(backend))


def test_thresholds_of_a_predictor_apply():
    with Scoring({'yes"': 0.6, 'no"': 0.4}) as backend:
        predict = dspy.Predict(Triage)
        predict.fields = {"urgent": {"threshold": 0.7}}
        predict.set_lm(SglDecisions(backend=backend))
        assert predict(letter="x").urgent is False


# ---- what is asked ---------------------------------------------------------------------------------------------------
def test_all_questions_continue_one_state_behind_which_they_part(backend):
    ask(backend, state="A long story.")
    texts = prompts(backend)
    assert len({text.partition("A long story.\n\n")[0] for text in texts}) == 1
    assert len({text.partition("A long story.\n\n")[2] for text in texts}) == len(QUESTIONS)


def test_calls_of_a_predictor_begin_alike_up_to_their_inputs(backend):
    predict = dspy.Predict(Triage)
    predict.demos = [dspy.Example(letter="Thanks!", urgent=False, team="sales")]
    predict.set_lm(SglDecisions(backend=backend))
    predict(letter="one")
    predict(letter="two")
    first, *_, last = prompts(backend)
    shared = first.partition('"inputs"')[0]
    assert "Thanks!" in shared
    assert last.startswith(shared)


def test_control_tokens_spelled_in_a_state_stay_text(backend):
    ask(backend, state="<|im_end|> and <|im_start|>")
    assert "<|im_end|> and <|im_start|>\n\n" in prompts(backend)[0]
    assert len({tuple(request.input_ids[:20]) for request in backend.scores}) == 1


def test_a_namespace_reaches_the_engine(backend):
    ask(backend, namespace="tenant")
    assert {request.namespace for request in backend.scores} == {"tenant"}


# ---- DSPy's books ----------------------------------------------------------------------------------------------------
def test_usage_is_the_sum_over_the_questions_and_is_tracked():
    with Scoring() as backend:
        decisions = SglDecisions(backend=backend)
        with dspy.track_usage() as tracker:
            decisions(state="It broke.", questions=QUESTIONS)
        prompt_tokens = sum(len(request.input_ids) for request in backend.scores)
        usage = tracker.get_total_tokens()[decisions.model]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt_tokens, 0)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 21}


def test_a_prediction_carries_its_usage():
    with Scoring() as backend:
        decisions = SglDecisions(backend=backend)
        with dspy.context(lm=decisions, track_usage=True):
            usage = dspy.Predict(Triage)(letter="x").get_lm_usage()
    assert usage[decisions.model]["prompt_tokens_details"] == {"cached_tokens": 14}


def test_a_call_is_one_history_entry_of_client_and_module(backend, capsys):
    decisions = SglDecisions(backend=backend)
    predict = dspy.Predict(Triage)
    predict.set_lm(decisions)
    predict(letter="It broke.")
    assert len(decisions.history) == len(predict.history) == 1
    entry = decisions.history[0]
    assert json.loads(entry["outputs"][0]).keys() == {"urgent", "team"}
    assert "It broke." in entry["prompt"]
    assert entry["model"] == decisions.model
    decisions.inspect_history()
    assert "Who should read it?" in capsys.readouterr().out


def test_a_second_call_is_answered_from_dspys_cache(backend):
    decisions = SglDecisions(backend=backend)
    first = decisions(state="x", questions=QUESTIONS)
    first["urgent"]["noul"] = None  # the caller's own
    num_scored = len(backend.scores)
    with dspy.track_usage() as tracker:
        second = decisions(state="x", questions=QUESTIONS)
    assert len(backend.scores) == num_scored
    assert second["urgent"]["noul"] is not None
    assert tracker.get_total_tokens() == {}
    assert [entry["usage"] == {} for entry in decisions.history] == [False, True]


def test_the_cache_knows_the_order_of_answers(backend):
    turned = {"team": {**QUESTIONS["team"], "criteria": dict(reversed(QUESTIONS["team"]["criteria"].items()))}}
    ask(backend, questions={"team": QUESTIONS["team"]})
    ask(backend, questions=turned)
    assert len(backend.scores) == 2


def test_without_a_cache_every_call_is_computed(backend):
    decisions = SglDecisions(backend=backend, cache=False)
    decisions(state="x", questions=QUESTIONS)
    decisions(state="x", questions=QUESTIONS)
    assert len(backend.scores) == 2 * len(QUESTIONS)


def test_callbacks_hear_it_as_an_lm(backend):
    heard = []

    class Listening(dspy.utils.BaseCallback):
        def on_lm_start(self, call_id, instance, inputs):
            heard.append(inputs["state"])

        def on_lm_end(self, call_id, outputs, exception=None):
            heard.append(list(outputs))

    ask(backend, state="x", callbacks=[Listening()])
    assert heard == ["x", list(QUESTIONS)]


async def test_an_awaited_call_is_answered_as_any_other(backend):
    decisions = SglDecisions(backend=backend, cache=False)
    expected = decisions(state="x", questions=QUESTIONS)
    assert await decisions.acall(state="x", questions=QUESTIONS) == expected
    predict = dspy.Predict(Triage)
    predict.set_lm(decisions)
    assert (await predict.acall(letter="x")).toDict() == predict(letter="x").toDict()


async def test_an_awaited_call_that_is_cancelled_ends_its_requests():
    handles = []

    class Held(FakeBackend):
        def score(self, request):
            handles.append(super().score(request))
            return handles[-1]

    backend = Held(latency_s=WAIT_S)
    task = asyncio.create_task(SglDecisions(backend=backend).acall(state="x", questions=QUESTIONS))
    while len(handles) < len(QUESTIONS):
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    while not all(handle.done() for handle in handles):
        await asyncio.sleep(0.001)
    assert {type(handle.error()).__name__ for handle in handles} == {"RequestAborted"}
    backend.close()


# ---- errors ----------------------------------------------------------------------------------------------------------
BAD = [
    ("x", {}, "at least one question"),
    (" \n", QUESTIONS, "no text"),
    ({"blob": object()}, QUESTIONS, "what JSON can say"),
    ("x", {"q": {"type": "box", "instructions": "Where?"}}, r"questions\['q'\]\['type'\].*'box'"),
    ("x", {"q": {"type": "choice", "instructions": "Which?", "criteria": {}}}, "descriptions by answer"),
    ("x", {"q": {"type": "score", "instructions": "Which?", "criteria": {"a": "b"}}}, "a list of levels"),
    ("x", {"q": {"type": "choice", "instructions": "Which?", "criteria": {1: "one", "1": "uno"}}}, "the same as text"),
    ("x", {"q": "Which?"}, r"questions\['q'\].*'str'"),
    ("x", None, "questions.*'NoneType'"),
]


@pytest.mark.parametrize(("state", "questions", "words"), BAD)
def test_what_cannot_be_judged_is_refused_by_name_before_anything_runs(backend, state, questions, words):
    with pytest.raises(dspy.LMInvalidRequestError, match=words):
        ask(backend, state=state, questions=questions)
    assert backend.scores == []


def test_a_picture_in_the_inputs_is_refused(backend):
    class Look(dspy.Signature):
        """Look."""

        picture: dspy.Image = dspy.InputField()
        is_cat: bool = dspy.OutputField(desc="Is it a cat?")

    with dspy.context(lm=SglDecisions(backend=backend)), pytest.raises(dspy.LMInvalidRequestError, match="reads text"):
        dspy.Predict(Look)(picture=dspy.Image("data:image/png;base64,AAAA"))
    assert backend.scores == []


def test_a_state_that_is_too_long_is_a_context_overflow(backend):
    with pytest.raises(dspy.ContextWindowExceededError):
        ask(backend, state="word " * 2_000)


def test_an_engine_that_fails_is_a_server_error():
    class Broken(FakeBackend):
        def score(self, request):
            raise EngineStepError("a step failed")

    with pytest.raises(dspy.LMServerError) as raised:
        ask(Broken())
    assert isinstance(raised.value.__cause__.__cause__, EngineStepError)


def test_a_text_output_is_refused_by_dspy(backend):
    with dspy.context(lm=SglDecisions(backend=backend)), pytest.raises(ValueError, match="answer"):
        dspy.Predict("question -> answer")(question="why?")


# ---- copies and states -----------------------------------------------------------------------------------------------
def test_copies_run_on_the_same_engine_with_a_history_of_their_own(backend):
    decisions = SglDecisions(backend=backend)
    decisions(state="x", questions=QUESTIONS)
    for copied in (decisions.copy(rollout_id=3, temperature=1.0, cache=False), decisions.copy(namespace="n")):
        assert copied.history == []
        copied(state="y", questions=QUESTIONS)
    assert len(decisions.history) == 1
    assert decisions.cache is True
    assert len(backend.scores) == 3 * len(QUESTIONS)


def test_a_deep_copied_program_decides_on_the_same_engine(backend):
    predict = dspy.Predict(Triage)
    predict.set_lm(SglDecisions(backend=backend))
    predict.deepcopy()(letter="x")
    assert len(backend.scores) == 2


def test_a_copy_with_an_option_of_text_is_refused(backend):
    with pytest.raises(InvalidArgumentError, match="max_tokens"):
        SglDecisions(backend=backend).copy(max_tokens=5)


def test_it_is_saved_and_loaded_with_a_program_without_loading_weights(engines, model_folder, tmp_path):
    predict = dspy.Predict(Triage)
    predict.set_lm(SglDecisions(str(model_folder), namespace="n", cache=False, engine_options={"cache_tokens": 64}))
    predict.save(str(tmp_path / "program.json"))
    loaded = dspy.Predict(Triage)
    loaded.load(str(tmp_path / "program.json"), allow_unsafe_lm_state=True)
    assert type(loaded.lm) is SglDecisions
    assert (loaded.lm.model, loaded.lm.namespace, loaded.lm.cache) == (predict.lm.model, "n", False)
    assert loaded.lm.dump_state() == predict.lm.dump_state()
    assert engines == []


def test_a_pickle_is_a_handle_that_finds_the_engine_again(engines, model_folder):
    decisions = SglDecisions(str(model_folder))
    again = ForkingPickler.loads(bytes(ForkingPickler.dumps(decisions)))
    decisions(state="x", questions=QUESTIONS)
    again(state="y", questions=QUESTIONS)
    assert len(engines) == 1
    decisions.close()
    again.close()
    assert engines[0].is_closed


def test_changed_weights_are_noticed_when_it_is_loaded(engines, model_folder):
    state = SglDecisions(str(model_folder)).dump_state()
    (model_folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InvalidArgumentError, match="label"):
        SglDecisions.load_state(state)


def test_a_borrowed_backend_is_neither_saved_nor_pickled(backend):
    decisions = SglDecisions(backend=backend)
    for save in (decisions.dump_state, lambda: bytes(ForkingPickler.dumps(decisions))):
        with pytest.raises(InvalidArgumentError, match="borrowed"):
            save()


def test_an_lm_and_its_decisions_share_an_engine(engines, model_folder):
    lm = SglLM(str(model_folder))
    SglDecisions(engine=lm.engine)(state="x", questions=QUESTIONS)
    lm("Hello")
    assert len(engines) == 1
    lm.close()


def test_a_search_over_decisions_runs_once_for_every_rollout_and_finds_the_same(backend):
    with dspy.context(lm=SglDecisions(backend=backend)):
        best = BestOfN(dspy.Predict(Triage), 2, lambda args, p: 0.0, 1.0)
        assert best(letter="x").toDict() == dspy.Predict(Triage)(letter="x").toDict()
