"""Log-probabilities beside their slots: known as far as all are, forgotten when a slot is given anew."""

from __future__ import annotations

from sgl_core.runtime.prompt_scores import PromptScores
from sgl_core.types import TokenLogprob


def told(*pairs: tuple[int, float]) -> list[TokenLogprob]:
    return [TokenLogprob(token, logprob) for token, logprob in pairs]


def test_nothing_is_known_before_anything_is_noted() -> None:
    scores = PromptScores(8)
    scores.forget([1, 2])
    assert scores.known([5, 6], [1, 2]) == []


def test_what_was_noted_is_known_with_the_tokens_that_ask() -> None:
    scores = PromptScores(8)
    scores.note([3, 1], told((5, -0.5), (6, -1.5)))
    assert scores.known([5, 6], [3, 1]) == told((5, -0.5), (6, -1.5))


def test_alternatives_are_not_kept() -> None:
    scores = PromptScores(2)
    scores.note([0], [TokenLogprob(5, -0.5, ((4, -0.1),))])
    assert scores.known([5], [0]) == told((5, -0.5))


def test_a_gap_ends_what_is_known() -> None:
    scores = PromptScores(8)
    scores.note([0, 2], told((5, -1.0), (7, -3.0)))
    assert scores.known([5, 6, 7], [0, 1, 2]) == told((5, -1.0))
    assert scores.known([6, 7], [1, 2]) == []


def test_a_slot_that_is_given_anew_knows_nothing() -> None:
    scores = PromptScores(8)
    scores.note([0, 1, 2], told((5, -1.0), (6, -2.0), (7, -3.0)))
    scores.forget([1])
    assert scores.known([5, 6, 7], [0, 1, 2]) == told((5, -1.0))
    scores.note([1], told((9, -4.0)))
    assert scores.known([5, 9, 7], [0, 1, 2]) == told((5, -1.0), (9, -4.0), (7, -3.0))


def test_certainty_and_impossibility_are_known_too() -> None:
    scores = PromptScores(2)
    scores.note([0, 1], told((5, 0.0), (6, float("-inf"))))
    assert scores.known([5, 6], [0, 1]) == told((5, 0.0), (6, float("-inf")))
