"""SglDecisions on an engine without a model: what is asked, how answers come about, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from multiprocessing.reduction import ForkingPickler

import pytest
from langchain_core import exceptions as langchain
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from sgl_core.handle import RequestHandle
from sgl_core.testing import FakeBackend
from sgl_core.types import ScoreRequest, ScoreResult, Usage

decisions = pytest.importorskip(
    "langchain_core.decisions", reason="langchain-core is older than 1.8; integration_tests run this on a newer one"
)
Box, Choice, Noul, Score = decisions.Box, decisions.Choice, decisions.Noul, decisions.Score

from sgl_langchain.decisions import SglDecisions  # noqa: E402  (needs the newer core)

URGENT = Noul(instructions="Is it urgent?")
TEAM = Choice(instructions="Which team?", criteria={"bug": None, "bug report": "It crashes.", 'the "other"': {"when": "else"}})
ANGER = Score(instructions="How angry?", criteria=["Calm.", "Annoyed.", "Furious."])
ALL = {"urgent": URGENT, "team": TEAM, "anger": ANGER}


class ScoringBackend(FakeBackend):
    """Scores each token of a continuation with ``logprob(text of the continuation)``."""

    def __init__(self, logprob, cached_tokens: int = 0):
        super().__init__()
        self._logprob = logprob
        self._cached_tokens = cached_tokens

    def score(self, request: ScoreRequest) -> RequestHandle[ScoreResult]:
        self.scores.append(request)
        rows = tuple(tuple(self._logprob(self.codec.decode(ids)) for _ in range(len(ids))) for ids in request.continuations)
        handle: RequestHandle[ScoreResult] = RequestHandle()
        handle.finish(ScoreResult(rows, Usage(len(request.input_ids), self._cached_tokens, 0)))
        return handle


def prompts(engine: FakeBackend) -> list[str]:
    return [engine.codec.decode(request.input_ids) for request in engine.scores]


def ask(engine: FakeBackend, state="It broke.", questions=ALL, **options):
    return SglDecisions(engine=engine, **options).invoke({"state": state, "questions": questions})


def test_every_question_is_answered_under_its_own_name_in_its_own_type(engine):
    response = ask(engine)
    assert list(response.answers) == list(ALL)
    assert list(response.nouls) == ["urgent"]
    assert list(response.choices) == ["team"]
    assert list(response.scores) == ["anger"]
    assert response.model == "FakeBackend"
    assert response.request_id


def test_the_probabilities_of_an_answer_sum_to_one(engine):
    response = ask(engine)
    assert math.isclose(sum(response.choices["team"].probabilities.values()), 1)
    assert math.isclose(sum(response.scores["anger"].probabilities.values()), 1)
    assert 0 <= response.nouls["urgent"].noul <= 1


def test_a_probability_is_the_models_own_share_and_no_mean_over_tokens():
    with ScoringBackend(lambda text: -0.5) as engine:  # every token equally likely: a longer answer is the less likely one
        team = ask(engine).choices["team"]
    lengths = {label: len(json.dumps(label)) for label in TEAM.criteria}
    weights = {label: math.exp(-0.5 * length) for label, length in lengths.items()}
    assert team.choice == "bug"
    for label, probability in team.probabilities.items():
        assert probability == pytest.approx(weights[label] / sum(weights.values()), rel=0.01)
    assert team.confidence == max(team.probabilities.values())


def test_a_score_is_the_expected_level_with_its_rubric():
    likely = {"0}": math.log(0.1), "1}": math.log(0.2), "2}": math.log(0.7)}
    with ScoringBackend(lambda text: likely[text] / 2) as engine:  # two tokens each
        anger = ask(engine, questions={"anger": ANGER}).scores["anger"]
    assert anger.score == pytest.approx(0.2 + 2 * 0.7)
    assert anger.probabilities == pytest.approx({0: 0.1, 1: 0.2, 2: 0.7})
    assert anger.legend == {0: "Calm.", 1: "Annoyed.", 2: "Furious."}
    assert anger.confidence == pytest.approx(0.7)


def test_no_answer_begins_with_another_one(engine):
    ask(engine, questions={**ALL, "level": Score(instructions="Which?", criteria=["x"] * 12)})
    for request in engine.scores:
        answers = [engine.codec.decode(ids) for ids in request.continuations]
        assert not [(a, b) for a in answers for b in answers if a != b and b.startswith(a)]


def test_all_questions_continue_one_state_behind_which_they_part(engine):
    ask(engine, state="A long story.")
    texts = prompts(engine)
    assert all("A long story.\n\n" in text for text in texts)
    assert len({text.partition("A long story.\n\n")[0] for text in texts}) == 1
    assert len({text.partition("A long story.\n\n")[2] for text in texts}) == len(ALL)


def test_descriptions_of_answers_are_part_of_the_question(engine):
    criteria = decisions.NoulCriteria(true="Within a day.", false=["Never.", 2])
    ask(engine, questions={"urgent": Noul(instructions={"ask": "Urgent?"}, criteria=criteria), "team": TEAM})
    urgent, team = prompts(engine)
    assert '{"ask": "Urgent?"}\n- yes: Within a day.\n- no: ["Never.", 2]\n' in urgent
    assert '- bug\n- bug report: It crashes.\n- the "other": {"when": "else"}\n' in team


def test_usage_is_the_sum_over_the_questions_with_what_the_cache_gave():
    with ScoringBackend(lambda text: -1.0, cached_tokens=7) as engine:
        usage = ask(engine).usage
        assert usage["input_tokens"] == usage["total_tokens"] == sum(len(request.input_ids) for request in engine.scores)
    assert usage["output_tokens"] == 0
    assert usage["input_token_details"]["cache_read"] == 21


def test_messages_anywhere_in_the_state_become_json(engine):
    call = {"name": "look_up", "args": {"order": 7}, "id": "1"}
    talk = [HumanMessage("Where is it?"), AIMessage("", tool_calls=[call])]
    result = ToolMessage("unknown order", tool_call_id="1", name="look_up", status="error")
    ask(engine, state={"talk": [*talk, result], "tries": 2, "note": None}, questions={"urgent": URGENT})
    state = {
        "talk": [
            {"role": "user", "content": "Where is it?"},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "look_up", "arguments": {"order": 7}}]},
            {"role": "tool", "name": "look_up", "status": "error", "content": "unknown order"},
        ],
        "tries": 2,
        "note": None,
    }
    assert json.dumps(state) + "\n\nIs it urgent?" in prompts(engine)[0]


def test_control_tokens_spelled_in_a_state_stay_text_without_a_warning(engine):
    ask(engine, state="<|im_end|> and <|im_start|>", questions={"urgent": URGENT})
    assert "<|im_end|> and <|im_start|>\n\n" in prompts(engine)[0]


async def test_an_awaited_request_is_answered_as_any_other(engine):
    model = SglDecisions(engine=engine)
    request = {"state": "It broke.", "questions": ALL}
    assert (await model.ainvoke(request)).answers == model.invoke(request).answers


def test_a_batch_answers_each_request_in_order(engine):
    model = SglDecisions(engine=engine)
    requests = [{"state": f"Letter {number}", "questions": {"urgent": URGENT}} for number in range(12)]
    alone = [model.invoke(request).answers for request in requests]
    assert [response.answers for response in model.batch(requests)] == alone
    completed = {index: response.answers for index, response in model.batch_as_completed(requests)}
    assert [completed[index] for index in range(12)] == alone


def test_a_namespace_reaches_the_engine(engine):
    ask(engine, namespace="tenant")
    assert {request.namespace for request in engine.scores} == {"tenant"}


IMAGE = {"type": "image", "url": "https://example.org/a.png"}
REFUSED = [
    ("x", {"where": Box(instructions="Where is the cat?")}, "a Box"),
    ("x", {}, "at least one question"),
    ("x", {"q": {"type": "noul"}}, "'dict'"),
    (" \n", ALL, "no text"),
    ({"photo": IMAGE}, ALL, r"state\['photo'\].*'image'"),
    ([HumanMessage(["Look:", IMAGE])], ALL, r"state\[0\].*'image'"),
    ({"blob": b"x"}, ALL, r"state\['blob'\].*'bytes'"),
    ({7: "x"}, ALL, "str as keys"),
    ("x", {"q": Noul(instructions=[IMAGE])}, r"questions\['q'\]\.instructions\[0\].*'image'"),
]


@pytest.mark.parametrize(("state", "questions", "words"), REFUSED)
def test_what_the_model_cannot_judge_is_refused_by_name_before_anything_runs(engine, state, questions, words):
    with pytest.raises(langchain.ModelInvalidRequestError, match=words):
        ask(engine, state=state, questions=questions)
    assert engine.scores == []


def test_a_state_that_is_too_long_is_a_context_overflow(engine):
    with pytest.raises(langchain.ContextOverflowError, match="Shorten the prompt"):
        ask(engine, state="word " * 2_000)


@pytest.mark.parametrize("options", [{"modle": "x"}, {"engine": object()}, {"engine_kwargs": {"max_runing": 1}}])
def test_options_that_nobody_knows_are_refused_when_it_is_made(options):
    with pytest.raises(ValueError, match="expected"):
        SglDecisions(**options)


def test_an_engine_of_ones_own_has_its_own_model(engine):
    with pytest.raises(ValueError, match="nothing beside engine="):
        SglDecisions(engine=engine, model="another")


def test_the_model_has_a_name_without_being_loaded(monkeypatch):
    monkeypatch.delenv("SGL_MODEL", raising=False)
    assert SglDecisions().model == "SmolLM2-135M-Instruct"
    assert SglDecisions(model="a-folder").model == "a-folder"
    monkeypatch.setenv("SGL_MODEL", "another-folder")
    assert SglDecisions().model == "another-folder"


def test_it_copies_on_its_engine_and_pickles_as_its_configuration(engine):
    assert copy.deepcopy(SglDecisions(engine=engine)).engine is engine
    model = SglDecisions(model="a-folder", engine_kwargs={"cache_tokens": 64})
    assert ForkingPickler.loads(ForkingPickler.dumps(model)) == model
    with pytest.raises(ValueError, match="no engine in a pickle"):
        ForkingPickler.dumps(SglDecisions(engine=engine))


def test_it_goes_into_chains(engine):
    chain = (lambda letter: {"state": letter, "questions": {"urgent": URGENT}}) | SglDecisions(engine=engine)
    assert list(chain.invoke("It broke.").answers) == ["urgent"]
