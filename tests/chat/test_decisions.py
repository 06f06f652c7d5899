"""Questions in words, and answers as probabilities."""

import json
import math

import pytest

from sgl_core.chat.decisions import Verdict, as_text, decide, decide_async, level_of, one_of, yes_or_no
from sgl_core.errors import InvalidArgumentError
from sgl_core.handle import RequestHandle
from sgl_core.testing import FakeBackend
from sgl_core.types import ScoreResult, Usage

QUESTIONS = (yes_or_no("Is it late?"), one_of("Who?", {"bug": None, "bug report": "It crashes."}), level_of("How?", ["a", "b"]))


def test_every_answer_completes_a_piece_of_json():
    for question in QUESTIONS:
        for answer in question.answers:
            closed = answer if answer.endswith("}") else answer + "}"
            assert list(json.loads(question.opening + closed)) == ["answer"]


def test_answers_that_are_described_stand_in_the_question():
    assert yes_or_no("Late?", yes="After six.").text.startswith("Late?\n- yes: After six.\nAnswer with")
    assert one_of("Who?", {"bug": None, "crash": "It ends."}).text.startswith("Who?\n- bug\n- crash: It ends.\nAnswer")
    assert level_of("How?", ["calm", None]).text.startswith("How?\n- 0: calm\n- 1\nAnswer with")


def test_labels_with_quotes_are_written_as_json_writes_them():
    assert one_of("Who?", {'the "other"': None}).answers == ('the \\"other\\""',)


def test_text_stays_as_it_is_and_all_else_is_json_in_its_own_order():
    assert as_text("ä") == "ä"
    assert as_text({"b": "ä", "a": [1, None]}) == '{"b": "ä", "a": [1, null]}'


def test_a_verdict_knows_its_likeliest_answer_and_its_mean():
    verdict = Verdict((0.2, 0.5, 0.3))
    assert (verdict.likeliest, verdict.confidence) == (1, 0.5)
    assert verdict.mean == pytest.approx(1.1)
    assert Verdict((0.5, 0.5)).likeliest == 0


def test_shares_of_every_question_sum_to_one():
    with FakeBackend() as backend:
        decisions = decide("It broke.", QUESTIONS, backend)
    assert [len(verdict.shares) for verdict in decisions.verdicts] == [2, 2, 2]
    for verdict in decisions.verdicts:
        assert math.isclose(math.fsum(verdict.shares), 1)


def test_answers_that_are_all_impossible_are_equally_likely():
    class Impossible(FakeBackend):
        def score(self, request):
            handle = RequestHandle()
            handle.finish(ScoreResult(tuple((-math.inf,) * len(ids) for ids in request.continuations), Usage(1, 0, 0)))
            return handle

    with Impossible() as backend:
        assert decide("x", QUESTIONS[:1], backend).verdicts[0].shares == (0.5, 0.5)


def test_requests_of_one_call_say_that_they_belong_together():
    with FakeBackend() as backend:
        decisions = decide("It broke.", QUESTIONS, backend, namespace="tenant")
        assert {request.hints.program_id for request in backend.scores} == {decisions.program_id}
        assert {request.namespace for request in backend.scores} == {"tenant"}


async def test_an_awaited_call_is_answered_as_any_other():
    with FakeBackend() as backend:
        assert (await decide_async("x", QUESTIONS, backend)).verdicts == decide("x", QUESTIONS, backend).verdicts


@pytest.mark.parametrize(
    ("state", "questions", "words"), [(" \n", QUESTIONS, "state: got 'no text'"), ("x", (), "at least one")]
)
def test_nothing_to_judge_and_nothing_to_ask_are_refused(state, questions, words):
    with FakeBackend() as backend, pytest.raises(InvalidArgumentError, match=words):
        decide(state, questions, backend)
