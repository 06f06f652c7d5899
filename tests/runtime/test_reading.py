"""From logits to a step's result: masks, verdicts and scores, each request's failure its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sgl_core.errors import GrammarError, NumericsError
from sgl_core.runtime.choice_trie import build_tries
from sgl_core.runtime.constraint import Verdict
from sgl_core.runtime.plan import StepPlan, StepResult, Work
from sgl_core.runtime.reading import StepReader
from sgl_core.runtime.request import Kind, Request
from sgl_core.testing.simulation import TextSink
from sgl_core.types import SamplingParams

VOCAB = 40


class Scripted:
    """A constraint that allows some tokens, puts out what it is told to, and notes what it was asked."""

    def __init__(self, allowed: Sequence[int], verdict: Verdict | None = None, *, fails: str = "") -> None:
        self.asked: list[tuple[int, int, bool]] = []
        self.threads: set[str] = set()
        self._allowed, self._verdict, self._fails = allowed, verdict, fails

    def mask(self) -> NDArray[np.uint8]:
        self.threads.add(threading.current_thread().name)
        if self._fails == "mask":
            raise GrammarError("regex", "planted")
        bits = np.zeros(4 * -(-VOCAB // 32) * 8, np.uint8)
        bits[list(self._allowed)] = 1
        return np.packbits(bits, bitorder="little")

    def propose(self, token: int, remaining: int, *, jump: bool = True) -> Verdict:
        self.asked.append((token, remaining, jump))
        if self._fails == "propose":
            raise GrammarError("regex", "planted")
        return self._verdict or Verdict((token,))

    def commit(self, verdict: Verdict) -> None:
        raise NotImplementedError


def generation(name: str, ids: Sequence[int] = (1, 2, 3), **fields: Any) -> Request:
    options: dict[str, Any] = {"params": SamplingParams(), "stop_ids": frozenset(), "sink": TextSink(), **fields}
    return Request(name, list(ids), Kind.GENERATE, max_new_tokens=10, submitted_at=0.0, **options)


def decode(request: Request) -> Work:
    end = len(request.ids)
    return Work(request, end - 1, end, 0, 0, end - 1, sample=True)


def rows_with(*best: int) -> torch.Tensor:
    """Rows whose likeliest tokens are these, the next lower ids following in order."""
    logits = torch.zeros(len(best), VOCAB)
    for row, token in enumerate(best):
        logits[row] = -torch.arange(VOCAB).roll(token).float()
    return logits


@pytest.fixture
def reader() -> Iterator[StepReader]:
    made = StepReader()
    yield made
    made.close()


def read(reader: StepReader, logits: torch.Tensor, *works: Work) -> StepResult:
    plan = StepPlan(works, ())
    return reader.read(plan, logits, reader.start(plan))


def test_a_plan_without_grammars_needs_no_masks_and_no_thread(reader: StepReader) -> None:
    before = set(threading.enumerate())
    assert reader.start(StepPlan((decode(generation("a")),), ())) is None
    assert not any(thread.name.startswith("sgl-grammar") for thread in set(threading.enumerate()) - before)


def test_masks_are_computed_on_a_thread_of_their_own(reader: StepReader) -> None:
    constraint = Scripted([5])
    result = read(reader, rows_with(7), decode(generation("a", constraint=constraint)))
    assert result.samples[0][0].token == 5
    assert all(name.startswith("sgl-grammar") for name in constraint.threads)


def test_each_request_gets_its_own_row_and_mask(reader: StepReader) -> None:
    works = [decode(generation("a", constraint=Scripted([3]))), decode(generation("b"))]
    works.append(decode(generation("c", constraint=Scripted([4, 6]))))
    result = read(reader, rows_with(7, 8, 5), *works)
    assert [samples[0].token for samples in result.samples] == [3, 8, 6]
    assert result.errors == (None, None, None)


def test_a_mask_that_cannot_be_had_ends_its_request_alone(reader: StepReader) -> None:
    works = [decode(generation("a", constraint=Scripted([3]))), decode(generation("b", constraint=Scripted([3], fails="mask")))]
    works.append(decode(generation("c")))
    result = read(reader, rows_with(7, 8, 9), *works)
    assert [samples[0].token for samples in result.samples] == [3, None, 9]
    assert isinstance(result.samples[1][0].error, GrammarError)
    assert result.errors == (None, None, None), "the row's numbers are fine"


def test_a_verdict_that_cannot_be_had_ends_its_request_alone(reader: StepReader) -> None:
    works = [decode(generation("a", constraint=Scripted([3], fails="propose"))), decode(generation("b"))]
    result = read(reader, rows_with(7, 8), *works)
    assert [samples[0].token for samples in result.samples] == [None, 8]
    assert isinstance(result.samples[0][0].error, GrammarError)


def test_followers_draw_from_their_leaders_row_under_their_own_grammars(reader: StepReader) -> None:
    followers = [generation("f1", constraint=Scripted([3])), generation("f2", constraint=Scripted([4], fails="mask"))]
    leader = generation("l", constraint=Scripted([5]), followers=followers)
    result = read(reader, rows_with(7, 8), decode(leader), decode(generation("b")))
    assert [sample.token for sample in result.samples[0]] == [5, 3, None]
    assert [sample.token for sample in result.samples[1]] == [8]
    assert result.errors == (None, None)


def test_a_leaders_grammar_that_fails_is_no_damage_to_its_followers(reader: StepReader) -> None:
    leader = generation("l", constraint=Scripted([5], fails="mask"), followers=[generation("f")])
    result = read(reader, rows_with(7), decode(leader))
    assert [sample.token for sample in result.samples[0]] == [None, 7]
    assert result.errors == (None,)


def test_the_verdict_is_asked_with_what_remains(reader: StepReader) -> None:
    constraint = Scripted(range(VOCAB))
    request = generation("a", constraint=constraint)
    request.ids += [4, 4, 4]
    read(reader, rows_with(7), decode(request))
    assert constraint.asked == [(7, 7, True)]


def test_where_log_probabilities_are_wanted_nothing_is_jumped(reader: StepReader) -> None:
    constraint = Scripted(range(VOCAB))
    read(reader, rows_with(7), decode(generation("a", constraint=constraint, params=SamplingParams(logprobs=0))))
    assert constraint.asked == [(7, 10, False)]


def test_the_log_probability_is_of_what_is_put_out(reader: StepReader) -> None:
    params, logits = SamplingParams(logprobs=2), rows_with(7)
    overruling = Scripted(range(VOCAB), Verdict((9,), overruled=True))
    (sample,) = read(reader, logits, decode(generation("a", constraint=overruling, params=params))).samples[0]
    assert (sample.token, sample.logprob and sample.logprob.token_id) == (7, 9)
    assert sample.logprob is not None
    assert sample.logprob.logprob == pytest.approx(float(logits.log_softmax(-1)[0, 9]))
    assert [token for token, _ in sample.logprob.top] == [7, 8]
    silent = Scripted(range(VOCAB), Verdict((), ended=True, overruled=True))
    (nothing,) = read(reader, logits, decode(generation("b", constraint=silent, params=params))).samples[0]
    assert nothing.logprob is None


def test_prompt_tokens_are_scored_by_the_rows_before_them(reader: StepReader) -> None:
    request = generation("a", [1, 9, 4, 2], params=SamplingParams(prompt_logprobs=True))
    logits = rows_with(3, 5, 8, 6)
    result = read(reader, logits, Work(request, 0, 4, 0, 0, request.logit_start(0, 4, sample=True), sample=True))
    expected = logits.log_softmax(-1)
    assert [score.token_id for score in result.scored[0]] == [9, 4, 2]
    assert [score.logprob for score in result.scored[0]] == pytest.approx(
        [float(expected[i, t]) for i, t in enumerate((9, 4, 2))]
    )
    assert result.samples[0][0].token == 6


def scoring(*choices: tuple[int, ...]) -> Request:
    (trie,) = build_tries(choices, 100)
    return Request("s", [1, 2], Kind.SCORE, SamplingParams(), 0, frozenset(), None, 0.0, branches=trie)


def test_a_trie_is_scored_row_by_row(reader: StepReader) -> None:
    request = scoring((5, 6), (5, 7), (8,))
    logits = rows_with(3, 4)
    start = request.logit_start(0, 3, sample=False)
    result = read(reader, logits, Work(request, 0, 3, 0, 0, start, sample=False))
    expected = logits.log_softmax(-1)
    assert start == 1
    assert [score.token_id for score in result.scored[0]] == [5, 8, 6, 7]
    cells = [(0, 5), (0, 8), (1, 6), (1, 7)]
    assert [score.logprob for score in result.scored[0]] == pytest.approx([float(expected[cell]) for cell in cells])
    assert result.samples == ((),)


def test_scores_that_are_no_numbers_are_damage(reader: StepReader) -> None:
    logits = rows_with(3, 4, 5)
    logits[1, 0] = float("nan")
    result = read(reader, logits, Work(scoring((5, 6)), 0, 3, 0, 0, 1, sample=False), decode(generation("b")))
    assert isinstance(result.errors[0], NumericsError)
    assert result.errors[1] is None
    assert result.samples[1][0].token == 5


def test_a_row_without_numbers_is_damage_to_all_who_draw_from_it_and_to_nobody_else(reader: StepReader) -> None:
    logits = rows_with(3, 4)
    logits[0, 2] = float("nan")
    leader = generation("l", followers=[generation("f", params=SamplingParams(temperature=1.0, seed=1))])
    result = read(reader, logits, decode(leader), decode(generation("b")))
    assert [sample.token for sample in result.samples[0]] == [None, None]
    assert isinstance(result.errors[0], NumericsError)
    assert (result.errors[1], result.samples[1][0].token) == (None, 4)


def test_a_chunk_that_samples_nothing_has_no_rows(reader: StepReader) -> None:
    request = generation("a", range(8))
    work = Work(request, 0, 4, 0, 0, request.logit_start(0, 4, sample=False), sample=False)
    result = read(reader, rows_with(5), work, decode(generation("b")))
    assert result.samples[0] == ()
    assert result.scored[0] == ()
    assert result.samples[1][0].token == 5
