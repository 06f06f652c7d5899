"""What top-k, top-p and min-p keep of one row. Called by the sampler; owns nothing; NumPy, whose partial sorts are the fastest.

Each of the three keeps a number of leading tokens, likeliest first and of equals the lowest id first; the least number holds.
So a cut is a score and the ids of those equal to it that must go too, and no ids are sorted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgl_core.types import SamplingParams

__all__ = ["Border", "Cut", "is_truncating", "truncate"]

_LOWEST = float(np.finfo(np.float32).min)
_ROUNDING = 1e-3
"""Taken off a threshold (natural log) so that no rounding of a sum can exclude what belongs above it."""

_Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Border:
    """The two sides of a cut: which tokens would change sides first if scores moved.

    Args:
        inside: ids of the least likely tokens that were kept. ``outside``: of the likeliest that were not, and
            ``outside_score`` their score.
        distance: how far scores would have to move, at least, for one of them to change sides.
    """

    inside: _Ids
    outside: _Ids
    outside_score: float
    distance: float


@dataclass(frozen=True, slots=True)
class Cut:
    """What is kept of a row: tokens of a score above ``score``, or equal to it and not in ``excluded_equals``.

    Args:
        excluded_equals: ids, increasing; usually none.
        border: where it was asked for and anything was excluded.
    """

    score: float
    excluded_equals: _Ids
    border: Border | None = None


def is_truncating(params: SamplingParams) -> bool:
    """Whether anything could be cut."""
    return params.top_k != -1 or params.top_p < 1.0 or params.min_p > 0.0


def truncate(scores: NDArray[np.float32], params: SamplingParams, *, wants_border: bool = False) -> Cut:
    """Where to cut a row of scores (logits over temperature, their maximum subtracted).

    Args:
        scores: ``[vocab]``, the largest 0; -inf for tokens that are out already. Not modified.
        params: ``top_k``, then ``top_p`` as a share of what that left, and ``min_p`` are read.
        wants_border: tell the cut's border; costs some passes over the row.
    """
    vocab = scores.size
    top_k = params.top_k if 0 < params.top_k < vocab else vocab
    leading = scores if top_k == vocab else np.partition(scores, vocab - top_k)[vocab - top_k :]
    floor, limit = _LOWEST, math.inf
    if params.top_p < 1.0:
        total = float(np.exp(leading).sum(dtype=np.float64))
        limit = params.top_p * total
        # Tokens below this share of what top-p leaves out cannot, all together, be more than that: no need to sort them.
        floor = max(floor, math.log((1.0 - params.top_p) * total / leading.size) - _ROUNDING)
    if params.min_p > 0.0:
        floor = max(floor, math.log(params.min_p))
    ordered = np.sort(leading[leading >= np.float32(floor)])[::-1]
    masses = np.exp(ordered).cumsum(dtype=np.float64)  # float64: exact to far below any probability that matters
    kept = 1 + int(np.count_nonzero(masses[:-1] < limit))
    score = ordered[kept - 1]
    equals = np.flatnonzero(scores == score)
    room = kept - int(np.count_nonzero(ordered > score))
    border = None
    if wants_border:
        border = _border(scores, equals, room, [float(mass) for mass in masses[max(0, kept - 2) : kept]], limit, params.min_p)
    return Cut(float(score), equals[room:], border)


def _border(
    scores: NDArray[np.float32], equals: _Ids, room: int, masses: list[float], limit: float, min_p: float
) -> Border | None:
    """The border of a cut through ``equals``, of which the first ``room`` are kept.

    Args:
        masses: unnormalised probability before (if any) and with the last token that was kept.
        limit: of top-p on the same scale; infinite where it is off.
    """
    inside, outside = float(scores[equals[0]]), equals[room:]
    if not outside.size:
        others = scores[scores < inside]
        if not others.size or others.max() < _LOWEST:
            return None
        outside = np.flatnonzero(scores == others.max())
    outside_score = float(scores[outside[0]])
    distance = inside - outside_score
    if limit < math.inf:
        distance = min(distance, *(abs(math.log(mass / limit)) for mass in masses))
    if min_p > 0.0:
        distance = min(distance, *(abs(score - math.log(min_p)) for score in (inside, outside_score)))
    return Border(equals[:room], outside, outside_score, distance)
