"""Top-k, top-p and min-p against sorting everything in float64."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from sgl_core.runtime.truncation import Cut, is_truncating, truncate
from sgl_core.types import SamplingParams


def centred(logits: list[float]) -> np.ndarray:
    row = np.array(logits, dtype=np.float32)
    return row - row.max()


def kept_by(scores: np.ndarray, cut: Cut) -> set[int]:
    return set(np.flatnonzero(scores >= np.float32(cut.score)).tolist()) - set(cut.excluded_equals.tolist())


def kept_by_sorting(scores: np.ndarray, params: SamplingParams) -> set[int]:
    ids = sorted((i for i in range(len(scores)) if scores[i] > -math.inf), key=lambda i: (-scores[i], i))
    if params.top_k != -1:
        ids = ids[: params.top_k]
    weights = {i: math.exp(float(scores[i])) for i in ids}
    total, before, kept = sum(weights.values()), 0.0, []
    for i in ids:
        if before < params.top_p * total and weights[i] >= params.min_p:
            kept.append(i)
        before += weights[i]
    return set(kept)


def cases(count: int) -> list[tuple[list[float], SamplingParams]]:
    rng = random.Random(0)
    made = []
    for _ in range(count):
        width = rng.choice((2, 5, 17, 60))
        scale = rng.choice((0.1, 1.0, 4.0))
        logits = [rng.gauss(0, scale) for _ in range(width)]
        if rng.random() < 0.5:
            logits = [float(round(value)) for value in logits]  # ties
        for index in rng.sample(range(1, width), rng.randrange(width // 2 + 1)):
            logits[index] = rng.choice((logits[index], -math.inf))
        params = SamplingParams(
            top_k=rng.choice((-1, 1, 2, 5, 16, 100)),
            top_p=rng.choice((1.0, rng.uniform(0.01, 0.999))),
            min_p=rng.choice((0.0, 0.0, rng.uniform(0.001, 1.0))),
        )
        made.append((logits, params))
    return made


def test_what_is_kept_is_what_sorting_keeps() -> None:
    for logits, params in cases(600):
        scores = centred(logits)
        finite = set(np.flatnonzero(scores > -math.inf).tolist())
        got = kept_by(scores, truncate(scores, params)) & finite
        assert got == kept_by_sorting(scores, params), (logits, params)


def test_each_of_the_three_is_enough_to_truncate_and_none_is_not() -> None:
    assert not is_truncating(SamplingParams(temperature=1.0))
    assert all(is_truncating(SamplingParams(**{name: 1})) for name in ("top_k", "min_p"))
    assert is_truncating(SamplingParams(top_p=0.5))


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 1 - 1e-12])
def test_top_p_of_a_large_vocabulary_reaches_its_mass_with_no_token_to_spare(top_p: float) -> None:
    for scale in (0.0, 1.0, 8.0):
        scores = centred((np.random.default_rng(1).normal(size=20_000) * scale).tolist())
        kept = np.array(sorted(kept_by(scores, truncate(scores, SamplingParams(top_p=top_p)))))
        weights = np.exp(scores.astype(np.float64))
        limit, mass = top_p * weights.sum(), weights[kept].sum()
        assert mass >= limit * (1 - 1e-6)
        assert mass - weights[kept].min() < limit * (1 + 1e-6)


def test_the_scores_are_not_modified() -> None:
    scores = centred([0.3, 1.0, 2.0, -1.0])
    before = scores.copy()
    truncate(scores, SamplingParams(top_k=2, top_p=0.9, min_p=0.01), wants_border=True)
    assert np.array_equal(scores, before)


@pytest.mark.parametrize(
    ("params", "inside", "outside", "distance"),
    [
        ({"top_k": 2}, [2], [1, 3], 0.25),
        ({"top_k": 3}, [1], [3], 0.0),  # 1 and 3 are equal: the lower id stays
        ({"min_p": math.exp(-0.3)}, [2], [1, 3], 0.05),
        ({"top_p": 0.999999}, None, None, None),
    ],
)
def test_a_border_names_both_sides_and_how_far_they_are(
    params: dict[str, float], inside: list[int] | None, outside: list[int] | None, distance: float | None
) -> None:
    scores = np.array([0.0, -0.5, -0.25, -0.5], dtype=np.float32)
    cut = truncate(scores, SamplingParams(**params), wants_border=True)  # type: ignore[arg-type]
    if inside is None:
        assert cut.border is None
    else:
        assert cut.border is not None
        assert (cut.border.inside.tolist(), cut.border.outside.tolist()) == (inside, outside)
        assert cut.border.distance == pytest.approx(distance, abs=1e-6)


def test_the_border_of_top_p_is_as_near_as_its_mass() -> None:
    scores = centred([math.log(0.5), math.log(0.3), math.log(0.2)])
    near = truncate(scores, SamplingParams(top_p=0.5001), wants_border=True)  # .5 is just not enough
    assert near.border is not None
    assert near.border.distance == pytest.approx(math.log(0.5001 / 0.5), rel=1e-2)
    far = truncate(scores, SamplingParams(top_p=0.65), wants_border=True)
    assert far.border is not None
    assert far.border.distance == pytest.approx(math.log(0.8 / 0.65), rel=1e-4)
