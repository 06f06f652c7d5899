"""select in programs, against scoring each choice by itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sgl_core.language as sgl
from sgl_core.errors import InvalidArgumentError, NumericsError, ProgramError
from sgl_core.handle import RequestHandle
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_core.types import ScoreRequest

texts = st.text("abcdef .", max_size=10)
choice_lists = st.lists(st.text("abcdef .", min_size=1, max_size=6), min_size=1, max_size=6)


def mean_alone(backend: FakeBackend, prompt: tuple[int, ...], span: tuple[int, ...]) -> float:
    row = backend.score(ScoreRequest(prompt, (span,))).result(60).token_logprobs[0]
    return math.fsum(row) / len(row)


@settings(max_examples=40, deadline=None)
@given(texts, choice_lists)
def test_a_select_equals_brute_force_over_its_choices(merging_codec: ByteCodec, text: str, choices: list[str]) -> None:
    @sgl.function
    def program(s):
        s += text + sgl.select("x", choices)

    with FakeBackend(codec=merging_codec) as backend:
        state = program.run(backend=backend)
        asked = backend.scores[0]
        means = [mean_alone(backend, asked.input_ids, span) for span in asked.continuations]
        whole = [merging_codec.begin() + merging_codec.encode(text + choice) for choice in choices]
        assert [asked.input_ids + span for span in asked.continuations] == whole
    assert state["x"] == choices[means.index(max(means))]
    assert state.get_meta_info("x")["mean_logprobs"] == tuple(means)
    assert state.text() == text + state["x"]


def test_duplicates_score_the_same_and_the_first_wins(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.select("x", ["same", "same"])

    state = program.run(backend=backend)
    first, second = state.get_meta_info("x")["scores"]
    assert first == second
    assert state.get_meta_info("x")["choices"] == ("same", "same")


def test_after_a_generation_choices_are_encoded_alone(merging_codec: ByteCodec) -> None:
    @sgl.function
    def program(s):
        s += "q" + sgl.gen("x", max_tokens=64) + sgl.select("y", ["ab", "cd"]) + "e" + sgl.gen("z", max_tokens=64)

    with FakeBackend(lambda ids, params: "abc", codec=merging_codec) as backend:
        state = program.run(backend=backend)
        encode = merging_codec.encode
        prompt = merging_codec.begin() + encode("q") + encode("abc")
        assert backend.scores[0].input_ids == prompt
        assert backend.scores[0].continuations == (encode("ab"), encode("cd"))
        assert backend.requests[1].input_ids == prompt + encode(state["y"]) + encode("e")


def test_the_unconditional_method_scores_the_choices_without_the_prompt_too(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        s += "q" + sgl.select("x", ["a", "b"], choices_method="unconditional_likelihood_normalized")

    meta = program.run(backend=backend, namespace="n").get_meta_info("x")
    assert [request.input_ids for request in backend.scores] == [(256, 113), (256,)]
    assert {request.namespace for request in backend.scores} == {"n"}
    expected = [a - b for a, b in zip(meta["mean_logprobs"], meta["unconditional_logprobs"], strict=True)]
    assert meta["scores"] == pytest.approx(expected)


class WithoutBegin(ByteCodec):
    def begin(self) -> tuple[int, ...]:
        return ()


def test_where_a_prompt_has_no_beginning_a_newline_stands_for_it() -> None:
    @sgl.function
    def program(s):
        s += "q" + sgl.select("x", ["a", "b"], choices_method="unconditional_likelihood_normalized")

    with FakeBackend(codec=WithoutBegin()) as backend:
        program.run(backend=backend)
        assert backend.scores[1].input_ids == (10,)


def test_a_select_with_nothing_before_it_is_an_error_with_a_cure() -> None:
    @sgl.function
    def program(s):
        s += sgl.select("x", ["a", "b"])

    with FakeBackend(codec=WithoutBegin()) as backend, pytest.raises(ProgramError, match="append some"):
        program.run(backend=backend)


def test_bad_choices_show_where_they_are_written() -> None:
    for wrong in ([], "AB", None, 3, {"a"}, ["a", ""], ["a", 3]):
        with pytest.raises(InvalidArgumentError, match="choices"):
            sgl.select("x", wrong)
    with pytest.raises(InvalidArgumentError, match="token_length_normalized"):
        sgl.select("x", ["a"], choices_method="best")
    with pytest.raises(InvalidArgumentError, match="temperature"):
        sgl.select("x", ["a"], temperature=-1)


def test_a_scoring_that_fails_fails_its_variable() -> None:
    class Failing(FakeBackend):
        def score(self, request):
            handle = RequestHandle()
            handle.fail(NumericsError("bad row"))
            return handle

    @sgl.function
    def program(s):
        s += "a" + sgl.select("x", ["a", "b"])
        with pytest.raises(NumericsError):
            s["x"]

    with Failing() as backend:
        program.run(backend=backend)


def test_a_fork_that_starts_with_a_select_announces_its_siblings(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        forks = s.fork(3)
        forks += "a" + sgl.select("x", ["a", "b"]) + sgl.gen("y", max_tokens=64)
        forks.join()

    program.run(backend=backend)
    assert [request.hints.siblings for request in backend.scores] == [2, 1, 0]
    assert {request.hints.siblings for request in backend.requests} == {0}
