"""The three ways to choose, against their definitions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.choices import (
    CHOICE_METHODS,
    ChoiceScores,
    decide,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sgl_core.spans import encode_alone, plan_spans
from sgl_core.testing import ByteCodec

rows = st.lists(st.floats(-20, 0), min_size=1, max_size=4).map(tuple)
tables = st.lists(st.tuples(rows, rows), min_size=1, max_size=5)


def scores_of(table) -> ChoiceScores:
    spans = tuple(tuple(range(10 * i, 10 * i + len(row))) for i, (row, _) in enumerate(table))
    return ChoiceScores(spans, tuple(row for row, _ in table), tuple(alone for _, alone in table))


@given(tables, st.sampled_from(sorted(CHOICE_METHODS)))
def test_every_method_picks_the_first_of_the_best_and_reports_all(table, method: str) -> None:
    index, meta = decide(method, scores_of(table))
    assert index == meta["scores"].index(max(meta["scores"]))
    assert math.isclose(sum(meta["normalized_scores"]), 1.0)
    assert len(meta["sum_logprobs"]) == len(meta["mean_logprobs"]) == len(meta["unconditional_logprobs"]) == len(table)


def test_the_mean_favours_a_long_easy_continuation_and_the_sum_is_reported() -> None:
    scores = ChoiceScores(((1,), (1, 2, 3)), ((-1.32,), (-1.32, -0.16, -0.19)))
    index, meta = decide("token_length_normalized", scores)
    assert index == 1
    assert meta["mean_logprobs"] == pytest.approx((-1.32, -0.5567), abs=1e-3)
    assert meta["sum_logprobs"] == pytest.approx((-1.32, -1.67))
    assert meta["unconditional_logprobs"] is None
    assert token_length_normalized(scores) == list(meta["scores"])


def test_greedy_walks_token_by_token() -> None:
    scores = ChoiceScores(((1, 2), (1, 3), (4,)), ((-1.0, -5.0), (-1.0, -2.0), (-1.5,)))
    assert greedy_token_selection(scores) == [1.0, 2.0, 0.0]


def test_greedy_follows_ids_where_a_backend_rounds_one_token_in_two_ways() -> None:
    scores = ChoiceScores(((1, 2), (1, 3)), ((-1.0, -5.0), (-1.0000001, -2.0)))
    assert decide("greedy_token_selection", scores)[0] == 1


def test_greedy_lets_a_finished_choice_stand_by_its_mean() -> None:
    scores = ChoiceScores(((1,), (1, 2)), ((-1.0,), (-1.0, -0.5)))
    assert decide("greedy_token_selection", scores)[0] == 1
    worse = ChoiceScores(((1,), (1, 2)), ((-1.0,), (-1.0, -3.0)))
    assert decide("greedy_token_selection", worse)[0] == 0


def test_unconditional_takes_away_what_a_choice_has_without_the_prompt() -> None:
    scores = ChoiceScores(((1,), (2,)), ((-1.0,), (-2.0,)), ((-1.0,), (-9.0,)))
    assert unconditional_likelihood_normalized(scores) == [0.0, 7.0]
    with pytest.raises(InvalidArgumentError, match="unconditional"):
        unconditional_likelihood_normalized(ChoiceScores(((1,),), ((-1.0,),)))


def test_impossible_choices_are_equally_likely() -> None:
    scores = ChoiceScores(((1,), (2,)), ((-math.inf,), (-math.inf,)))
    assert decide("token_length_normalized", scores)[1]["normalized_scores"] == (0.5, 0.5)


words = st.text("abcxyz ", min_size=1, max_size=8)


@given(st.text("abcxyz ", max_size=12), st.lists(words, min_size=1, max_size=5))
def test_shared_ids_and_span_are_the_ids_of_tail_and_choice_together(merging_codec: ByteCodec, tail: str, choices) -> None:
    spans = plan_spans(merging_codec, tail, choices)
    for choice, span in zip(choices, spans.spans, strict=True):
        assert spans.shared + span == merging_codec.encode(tail + choice)
        assert span
    assert len(merging_codec.decode(spans.shared)) <= len(tail)


def test_a_choice_that_merges_with_the_tail_moves_the_border_for_all(merging_codec: ByteCodec) -> None:
    assert merging_codec.encode("x: ac") != merging_codec.encode("x: a") + merging_codec.encode("c")
    spans = plan_spans(merging_codec, "x: a", ["c", "!"])
    assert merging_codec.decode(spans.shared) == "x: "


def test_a_choice_without_tokens_borrows_one_from_the_tail_or_is_refused() -> None:
    class Silent(ByteCodec):
        def encode(self, text: str) -> tuple[int, ...]:
            return super().encode(text.replace("\x04", ""))

    spans = plan_spans(Silent(), "ab", ["\x04", "c"])
    assert spans.shared + spans.spans[0] == (97, 98)
    with pytest.raises(InvalidArgumentError, match=r"choices\[0\]"):
        plan_spans(Silent(), "", ["\x04", "c"])
    with pytest.raises(InvalidArgumentError, match=r"choices\[1\]"):
        encode_alone(Silent(), ["c", "\x04"])
    with pytest.raises(InvalidArgumentError, match="choices"):
        plan_spans(Silent(), "\x04", ["\x04"])
