"""``select``: the three ways to compare the scores of choices. Pure functions; ``sgl_core.spans`` says what is scored.

The mean over a span (``token_length_normalized``, SGLang's default) favours long continuations of an easy prefix, a sum would
favour the shorter one; the meta info has both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from sgl_core.errors import InvalidArgumentError

__all__ = [
    "CHOICE_METHODS",
    "DEFAULT_CHOICES_METHOD",
    "ChoiceScores",
    "decide",
    "greedy_token_selection",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
]


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """What the backend said about each choice.

    Args:
        spans: scored ids of each choice.
        logprobs: natural-log probability of each of those ids.
        unconditional: the same for each choice alone, without the prompt; None unless the method asks for it.
    """

    spans: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    unconditional: tuple[tuple[float, ...], ...] | None = None


Method = Callable[[ChoiceScores], list[float]]


def token_length_normalized(scores: ChoiceScores) -> list[float]:
    """Mean log-probability of the span's tokens."""
    return [_mean(row) for row in scores.logprobs]


def unconditional_likelihood_normalized(scores: ChoiceScores) -> list[float]:
    """Mean log-probability, less the mean it has without the prompt: how much the prompt speaks for the choice."""
    if scores.unconditional is None:
        raise InvalidArgumentError("unconditional", None, "log-probabilities of each choice without the prompt")
    return [_mean(row) - _mean(alone) for row, alone in zip(scores.logprobs, scores.unconditional, strict=True)]


def greedy_token_selection(scores: ChoiceScores) -> list[float]:
    """Walk token by token and keep the choices whose token is the likeliest; a choice that has ended stands by its mean.

    A choice's score is the number of steps it survived.
    """
    steps = max(len(row) for row in scores.logprobs)
    means = [_mean(row) for row in scores.logprobs]
    survived = [0.0] * len(means)
    alive = list(range(len(means)))
    for step in range(steps):

        def at(index: int, step: int = step) -> float:
            row = scores.logprobs[index]
            return row[step] if step < len(row) else means[index]

        best = max(alive, key=at)
        # By id first: scores of one token may differ in the last bit where a backend computes it twice.
        token = scores.spans[best][step] if step < len(scores.spans[best]) else None
        alive = [i for i in alive if at(i) == at(best) or (token is not None and scores.spans[i][step : step + 1] == (token,))]
        for index in alive:
            survived[index] += 1
    return survived


CHOICE_METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "greedy_token_selection": greedy_token_selection,
        "token_length_normalized": token_length_normalized,
        "unconditional_likelihood_normalized": unconditional_likelihood_normalized,
    }
)
DEFAULT_CHOICES_METHOD: Final = "token_length_normalized"


def decide(method: str, scores: ChoiceScores) -> tuple[int, dict[str, Any]]:
    """Pick a choice.

    Returns:
        Its index (the first of equals) and what the meta info says about all of them.
    """
    values = CHOICE_METHODS[method](scores)
    alone = scores.unconditional
    meta: dict[str, Any] = {
        "scores": tuple(values),
        "normalized_scores": _softmax(values),
        "token_logprobs": scores.logprobs,
        "sum_logprobs": tuple(math.fsum(row) for row in scores.logprobs),
        "mean_logprobs": tuple(_mean(row) for row in scores.logprobs),
        "unconditional_logprobs": None if alone is None else tuple(math.fsum(row) for row in alone),
    }
    return max(range(len(values)), key=values.__getitem__), meta


def _mean(row: Sequence[float]) -> float:
    return math.fsum(row) / len(row)


def _softmax(values: Sequence[float]) -> tuple[float, ...]:
    top = max(values)
    if math.isinf(top):  # every choice is impossible: none is likelier than another
        return tuple(1 / len(values) for _ in values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)
