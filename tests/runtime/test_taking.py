"""What a sampled token does to its request: ids, text, grammar, stops and budget, and who pays when one of them fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sgl_core.errors import NumericsError
from sgl_core.runtime.constraint import Verdict
from sgl_core.runtime.metrics import Counters
from sgl_core.runtime.plan import Sample
from sgl_core.runtime.request import Kind, Request
from sgl_core.runtime.taking import Taken, take
from sgl_core.testing.simulation import TextSink
from sgl_core.types import FinishReason, GrammarCut, SamplingParams, TokenLogprob


class Committed:
    """A constraint that only remembers what was committed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.verdicts: list[Verdict] = []
        self._error = error

    def mask(self) -> NDArray[np.uint8]:
        raise NotImplementedError

    def propose(self, token: int, remaining: int, *, jump: bool = True) -> Verdict:
        raise NotImplementedError

    def commit(self, verdict: Verdict) -> None:
        if self._error is not None:
            raise self._error
        self.verdicts.append(verdict)


def request(*, new: int = 10, **fields: Any) -> Request:
    options: dict[str, Any] = {"sink": TextSink(), "params": SamplingParams(), "stop_ids": frozenset(), **fields}
    return Request("r", [1, 2, 3], Kind.GENERATE, max_new_tokens=new, submitted_at=0.0, **options)


def step(owner: Request, *tokens: int, counters: Counters | None = None, sampled: int = 9, **verdict: Any) -> Taken:
    """Take a sample, whose verdict emits ``tokens``."""
    owner.constraint = owner.constraint or Committed()
    return take(owner, Sample(sampled, Verdict(tokens, **verdict)), counters or Counters())


def streamed(taken: Taken) -> list[tuple[int, str]]:
    return [(progress.token_id, progress.text) for progress in taken.progress]


# ---- without a grammar -----------------------------------------------------------------------------------------------
def test_a_token_is_appended_streamed_and_counted() -> None:
    owner, counters = request(), Counters()
    taken = take(owner, Sample(9), counters)
    assert (streamed(taken), taken.end) == ([(9, "9 ")], None)
    assert owner.ids == [1, 2, 3, 9]
    assert (counters.generated_tokens, counters.jumped_tokens) == (1, 0)


def test_a_stop_token_is_in_the_ids_and_not_in_the_text() -> None:
    owner, counters = request(stop_ids=frozenset({9})), Counters()
    taken = take(owner, Sample(9), counters)
    assert taken.end is not None
    assert (taken.progress, taken.end.reason, taken.end.matched_stop) == ((), FinishReason.STOP, 9)
    assert owner.ids[-1] == 9
    assert counters.generated_tokens == 1


def test_a_stop_string_ends_before_the_budget_does() -> None:
    taken = take(request(new=1, sink=TextSink(stop=9)), Sample(9), Counters())
    assert taken.end is not None
    assert (taken.end.reason, taken.end.matched_stop) == (FinishReason.STOP, "9")


def test_the_last_token_of_the_budget_ends_by_length() -> None:
    owner = request(new=2)
    assert take(owner, Sample(9), Counters()).end is None
    taken = take(owner, Sample(8), Counters())
    assert taken.end is not None
    assert (streamed(taken), taken.end.reason) == ([(8, "8 ")], FinishReason.LENGTH)


def test_a_sample_that_failed_changes_nothing_and_ends_with_its_error() -> None:
    owner, counters, error = request(), Counters(), NumericsError("planted")
    taken = take(owner, Sample(None, error=error), counters)
    assert taken.end is not None
    assert (taken.progress, taken.end.error, taken.end.reason) == ((), error, None)
    assert owner.ids == [1, 2, 3]
    assert counters == Counters()


def test_log_probabilities_and_gaps_run_along_with_the_ids() -> None:
    owner = request(is_replay=True)
    told = TokenLogprob(9, -1.0)
    take(owner, Sample(9, logprob=told, gap=0.25), Counters())
    owner.constraint = Committed()
    take(owner, Sample(8, Verdict((8, 7, 6)), gap=0.5), Counters())
    assert owner.logprobs == [told]
    assert owner.gaps == [0.25, 0.5, float("inf"), float("inf")], "what a grammar forces has no rival"


# ---- forced runs -----------------------------------------------------------------------------------------------------
def test_a_forced_run_is_streamed_token_by_token_and_counted_as_jumped() -> None:
    owner, counters = request(), Counters()
    taken = step(owner, 9, 8, 7, counters=counters)
    assert (streamed(taken), taken.end) == ([(9, "9 "), (8, "8 "), (7, "7 ")], None)
    assert (counters.generated_tokens, counters.jumped_tokens, owner.num_generated) == (1, 2, 3)


def test_a_verdict_is_committed_once_and_whole() -> None:
    owner = request(constraint=(constraint := Committed()))
    step(owner, 9, 8)
    assert [verdict.tokens for verdict in constraint.verdicts] == [(9, 8)]


def test_a_stop_string_inside_a_forced_run_ends_there() -> None:
    owner, counters = request(sink=TextSink(stop=8)), Counters()
    taken = step(owner, 9, 8, 7, ended=True, counters=counters)
    assert taken.end is not None
    assert (taken.end.reason, taken.end.matched_stop) == (FinishReason.STOP, "8")
    assert owner.ids == [1, 2, 3, 9, 8]
    assert (counters.generated_tokens, counters.jumped_tokens) == (1, 1)


def test_a_stop_token_inside_a_forced_run_ends_there() -> None:
    owner = request(stop_ids=frozenset({8}))
    taken = step(owner, 9, 8, 7)
    assert taken.end is not None
    assert (streamed(taken), taken.end.matched_stop) == ([(9, "9 ")], 8)
    assert owner.ids == [1, 2, 3, 9, 8]


def test_a_budget_that_ends_inside_a_forced_run_cuts_it() -> None:
    owner = request(new=2)
    taken = step(owner, 9, 8, 7, ended=True)
    assert taken.end is not None
    assert (taken.end.reason, owner.ids) == (FinishReason.LENGTH, [1, 2, 3, 9, 8])


# ---- ends of grammars ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("new", [2, 10])
def test_a_complete_output_is_complete_also_where_it_uses_the_whole_budget(new: int) -> None:
    taken = step(request(new=new), 9, 8, ended=True)
    assert taken.end is not None
    assert taken.end.reason is FinishReason.STOP


@pytest.mark.parametrize("new", [2, 10])
def test_an_end_that_the_model_would_have_missed_says_so(new: int) -> None:
    owner = request(new=new)
    assert step(owner, 9, overruled=True).end is None
    taken = step(owner, 8, ended=True)
    assert taken.end is not None
    assert taken.end.reason is FinishReason.GRAMMAR
    assert owner.cut == GrammarCut(1, 0)


def test_the_cut_counts_overruled_tokens_from_the_first_on() -> None:
    owner = request()
    step(owner, 9)
    step(owner, 8, 7, overruled=True)
    step(owner, 6)
    step(owner, 5, overruled=True)
    assert owner.cut == GrammarCut(2, 1)


def test_an_output_that_is_complete_as_it_stands_ends_without_a_token() -> None:
    owner, counters = request(), Counters()
    step(owner, 9)
    taken = step(owner, ended=True, overruled=True, counters=counters)
    assert taken.end is not None
    assert (taken.progress, taken.end.reason) == ((), FinishReason.GRAMMAR)
    assert owner.ids == [1, 2, 3, 9]
    assert owner.cut == GrammarCut(1, 1)
    assert counters == Counters()


def test_a_budget_without_an_end_is_a_length_though_tokens_were_overruled() -> None:
    taken = step(request(new=1), 9, overruled=True)
    assert taken.end is not None
    assert taken.end.reason is FinishReason.LENGTH


def test_a_constraint_that_is_done_lets_go() -> None:
    owner = request()
    step(owner, 9, released=True)
    assert owner.constraint is None


# ---- healed tokens ---------------------------------------------------------------------------------------------------
def test_healed_tokens_belong_to_the_prompt() -> None:
    owner, counters = request(), Counters()
    taken = step(owner, 9, 8, 7, num_healed=2, counters=counters)
    assert streamed(taken) == [(7, "7 ")]
    assert (owner.prompt_len, owner.submitted_len, owner.num_generated) == (5, 3, 1)
    assert (counters.generated_tokens, counters.jumped_tokens) == (0, 1)


def test_healed_tokens_use_no_budget() -> None:
    owner = request(new=1)
    assert step(owner, 9, 8, num_healed=2).end is None
    taken = step(owner, 7)
    assert taken.end is not None
    assert (taken.end.reason, owner.num_generated) == (FinishReason.LENGTH, 1)


def test_a_stop_token_among_healed_ones_stops_nothing() -> None:
    owner = request(stop_ids=frozenset({9}))
    taken = step(owner, 9, 8, num_healed=1)
    assert (streamed(taken), taken.end) == ([(8, "8 ")], None)


# ---- failures --------------------------------------------------------------------------------------------------------
def test_text_that_fails_ends_its_request_with_what_was_streamed_before() -> None:
    owner = request(sink=TextSink(fails_at=2))
    taken = step(owner, 9, 8, 7)
    assert taken.end is not None
    assert streamed(taken) == [(9, "9 ")]
    assert isinstance(taken.end.error, RuntimeError)
    assert taken.end.reason is None


def test_healed_text_that_fails_ends_its_request() -> None:
    taken = step(request(sink=TextSink(fails_at=1)), 9, num_healed=1)
    assert taken.end is not None
    assert isinstance(taken.end.error, RuntimeError)


def test_a_grammar_that_cannot_go_on_ends_its_request_before_anything_is_put_out() -> None:
    error, counters = KeyError("planted"), Counters()
    owner = request(constraint=Committed(error))
    taken = step(owner, 9, 8, counters=counters)
    assert taken.end is not None
    assert (taken.end.error, taken.progress, owner.ids) == (error, (), [1, 2, 3])
    assert counters == Counters()
