"""Picking tokens: penalties, bias and grammar mask, temperature, top-k / top-p / min-p, then one draw per row; and scores.

The model runner calls it. It owns nothing: what it picks is a function of the row's logits, the request's parameters, its
ids and its seed, so a request's text depends neither on its batch mates nor on when and in which chunks it runs. Greedy ties
go to the lowest id. The noise is a race (see noise.py) that logits which differ in their last bits rarely change.

A row that cannot be sampled ends with its own error; the others get, bit for bit, what they get without it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sgl_core.errors import InvalidArgumentError, NumericsError
from sgl_core.runtime.noise import fill_uniform, log_race_times
from sgl_core.runtime.request import Request
from sgl_core.runtime.truncation import Border, Cut, is_truncating, truncate
from sgl_core.types import TokenLogprob

__all__ = ["Draw", "Pick", "logprob_of", "sample", "score_rows"]

_CHUNK = 512
_BLOCK_ROWS = 16
"""Rows that are adjusted and drawn at a time; bounds the float32 copies."""
_SCORE_ROWS = 64
"""Rows whose log-softmax exists at a time."""
_COLDEST = 1e-30
"""Lower temperatures count as this one: float32 still holds what it divides."""
_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Draw:
    """One row to sample.

    Args:
        request: read only.
        mask: what its grammar allows: bits of tokens, lowest first, ``[4 * ceil(vocab / 32)]``; None is everything.
    """

    request: Request
    mask: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Pick:
    """What came of a row: a token, or an error.

    Args:
        gap: where the request wants it: how far logits would have to move for another token to be picked. That is the
            difference of the two best scores, noise included, times the temperature; or less, if the winner, or one who
            would have beaten it, is the nearest to the border of top-k, top-p or min-p. Infinite where nothing else can be.
    """

    token: int | None
    error: Exception | None = None
    gap: float | None = None


def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> list[Pick]:
    """One token per row.

    Args:
        logits: ``[len(draws), vocab]``, any float dtype; not modified.
        draws: what to do with each row.

    On a CPU, one thread, 49,152 tokens: a plain greedy row takes 0.01 ms, a drawn one 0.47, truncation 0.2 to 0.8 more.

    Returns:
        Picks, in order. ``error`` is a NumericsError where logits hold NaN or infinity or no token is allowed, and whatever
        a row's own parameters or mask raised otherwise.
    """
    best, tokens = _largest(logits)
    picks = [
        Pick(token) if math.isfinite(top) else Pick(None, _numerics(top))
        for top, token in zip(best.tolist(), tokens.tolist(), strict=True)
    ]
    rest = [row for row, draw in enumerate(draws) if picks[row].error is None and not _is_plain_greedy(draw)]
    for start in range(0, len(rest), _BLOCK_ROWS):
        rows = rest[start : start + _BLOCK_ROWS]
        block = logits[rows].to(torch.float32)  # indexing with a list copies
        for row, pick in zip(rows, _pick_block(block, [draws[row] for row in rows]), strict=True):
            picks[row] = pick
    return picks


def logprob_of(logits_row: torch.Tensor, token: int, num_top: int) -> TokenLogprob:
    """``score_rows`` for one row ``[vocab]`` and one token."""
    return score_rows(logits_row.unsqueeze(0), [[token]], num_top)[0][0]


def score_rows(logits: torch.Tensor, targets: Sequence[Sequence[int]], num_top: int) -> list[list[TokenLogprob]]:
    """Log-probabilities of given tokens, and the likeliest ones, under the model's own distribution.

    That is the softmax of the raw logits in float32: before penalties, bias, grammar mask and temperature.

    Args:
        logits: ``[rows, vocab]``, any float dtype; not modified.
        targets: per row any number of token ids; they must be the vocabulary's.
        num_top: alternatives to report; equal logits come lowest id first.

    Returns:
        One entry per target, all of a row with the same ``top``. NaN where the row holds NaN or +inf: the caller checks.
    """
    scored: list[list[TokenLogprob]] = []
    for start in range(0, len(targets), _SCORE_ROWS):
        wanted = targets[start : start + _SCORE_ROWS]
        block = logits[start : start + _SCORE_ROWS].to(torch.float32)
        logprobs = block.log_softmax(-1)
        rows = torch.tensor([row for row, tokens in enumerate(wanted) for _ in tokens], dtype=torch.int64, device=block.device)
        columns = torch.tensor([token for tokens in wanted for token in tokens], dtype=torch.int64, device=block.device)
        found = iter(logprobs[rows, columns].tolist())
        tops = _likeliest(block, logprobs, num_top) if num_top else [()] * len(wanted)
        scored += [[TokenLogprob(t, next(found), top) for t in tokens] for tokens, top in zip(wanted, tops, strict=True)]
    return scored


def _likeliest(logits: torch.Tensor, logprobs: torch.Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """Per row the ``count`` largest logits' ids and log-probabilities, ties by id.

    By logits, whose ties are fewer: two that differ may have one log-probability. Only the smallest of the largest values
    is searched for, and ids are looked up by it, since of equals at the end a search by ids takes any.
    """
    count = min(count, logits.shape[-1])
    tops = []
    for row, scores in enumerate(logits.cpu().numpy()):
        ids = np.flatnonzero(scores >= np.partition(scores, scores.size - count)[-count])
        best = ids[np.argsort(-scores[ids], kind="stable")[:count]]
        found = logprobs[row, torch.from_numpy(best).to(logprobs.device)]
        tops.append(tuple(zip(best.tolist(), found.tolist(), strict=True)))
    return tops


# ---- one block of rows -----------------------------------------------------------------------------------------------
def _largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest value of each row, NaN if it has one, and its lowest id; ``[rows]`` each.

    On a CPU the maximum alone is vectorised and its index is not, so the index is looked for in one chunk of each row only
    (64 rows of 49,152 in float32 on one thread: 0.54 ms; ``max`` 10.0, ``argmax`` 10.3).
    """
    rows, width = logits.shape
    chunks = width // _CHUNK
    if logits.device.type != "cpu" or chunks < 2:
        best, tokens = logits.max(dim=-1)
        return best, tokens
    body, rest = logits[:, : chunks * _CHUNK], logits[:, chunks * _CHUNK :]
    tops = body.reshape(rows, chunks, _CHUNK).amax(-1)
    if rest.shape[1]:
        tops = torch.cat([tops, rest.amax(-1, keepdim=True)], dim=-1)
    best, chunk = tops.max(dim=-1)
    starts = (chunk * _CHUNK).clamp_max(width - _CHUNK)  # what the last chunk has in common with the one before is smaller
    window = starts.unsqueeze(1) + torch.arange(_CHUNK)
    return best, starts + logits.gather(1, window).max(dim=-1).indices


def _numerics(top: float) -> NumericsError:
    what = "no token is allowed" if top == _NEVER else f"the largest logit is {top}"
    return NumericsError(f"this request's logits cannot be sampled: {what}")


def _is_plain_greedy(draw: Draw) -> bool:
    """Whether the largest of the raw logits is the answer, and the whole of it."""
    request, p = draw.request, draw.request.params
    adjusted = p.frequency_penalty or p.presence_penalty or p.repetition_penalty != 1.0 or p.logit_bias
    plain = p.temperature == 0.0 and not adjusted and request.num_generated >= p.min_new_tokens
    return plain and draw.mask is None and not request.wants_gap


def _pick_block(logits: torch.Tensor, draws: Sequence[Draw]) -> list[Pick]:
    """Picks from finite rows, ``[rows, vocab]`` float32, which are used up."""
    picks: list[Pick | None] = [None] * len(draws)
    for row, draw in enumerate(draws):
        try:
            _adjust(logits[row], draw)
        except Exception as error:  # one request's parameters must not end its batch mates
            picks[row] = Pick(None, error)
    best, tokens = _largest(logits)
    drawn: list[int] = []
    for row, (top, token) in enumerate(zip(best.tolist(), tokens.tolist(), strict=True)):
        request = draws[row].request
        if picks[row] is not None:
            continue
        if not math.isfinite(top):
            picks[row] = Pick(None, _numerics(top))
        elif request.params.temperature > 0.0:
            drawn.append(row)
        else:
            picks[row] = Pick(token, gap=_lead(logits[row], token) if request.wants_gap else None)
    if drawn:
        centred = (logits if len(drawn) == len(draws) else logits[drawn]).sub_(best[drawn].unsqueeze(1))
        for row, pick in zip(drawn, _race(centred, [draws[row].request for row in drawn]), strict=True):
            picks[row] = pick
    return [pick for pick in picks if pick is not None]


def _race(logits: torch.Tensor, requests: Sequence[Request]) -> list[Pick]:
    """Draws from rows ``[rows, vocab]`` whose largest value is 0; they are used up."""
    temperatures = [max(request.params.temperature, _COLDEST) for request in requests]
    scores = logits.div_(torch.tensor(temperatures, device=logits.device).unsqueeze(1))
    uniforms = np.full(scores.shape, 0.5, dtype=np.float32)
    errors: dict[int, Exception] = {}
    borders: list[Border | None] = [None] * len(requests)
    for row, request in enumerate(requests):
        try:
            assert request.params.seed is not None, "the engine resolves the seed at submit"
            fill_uniform(uniforms[row], request.params.seed, len(request.ids))
            if is_truncating(request.params):
                cut = truncate(scores[row].cpu().numpy(), request.params, wants_border=request.wants_gap)
                _keep(scores[row], cut)
                borders[row] = cut.border
        except Exception as error:  # as in _pick_block
            errors[row] = error
    times = torch.from_numpy(uniforms).to(scores.device)
    for race in times:  # one by one: the last bits of a logarithm depend on the shape that it is computed in
        log_race_times(race)
    winners = _largest(scores.sub_(times))[1].tolist()
    picks = []
    for row, (request, token) in enumerate(zip(requests, winners, strict=True)):
        gap = None
        if request.wants_gap and row not in errors:
            gap = temperatures[row] * _race_gap(scores[row], times[row], token, borders[row])
        picks.append(Pick(None, errors[row]) if row in errors else Pick(token, gap=gap))
    return picks


# ---- one row ---------------------------------------------------------------------------------------------------------
def _adjust(row: torch.Tensor, draw: Draw) -> None:
    """Penalties, bias, the grammar's mask and the ban on early ends, in place: ``[vocab]`` float32.

    Repetition reads prompt and output anew at every step: 8,000 ids take about 0.3 ms.
    """
    request, params = draw.request, draw.request.params
    if params.repetition_penalty != 1.0:
        seen = _token_index("prompt", request.ids, row)
        values, penalty = row[seen], params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)  # a repeated id is written the same value
    if request.num_generated and (params.frequency_penalty or params.presence_penalty):
        tokens, counts = np.unique(np.array(request.output_ids(), dtype=np.int64), return_counts=True)
        penalties = params.frequency_penalty * counts + params.presence_penalty
        row[_token_index("output", tokens, row)] -= torch.from_numpy(penalties).to(row)
    if params.logit_bias:
        biased = _token_index("logit_bias", params.logit_bias.keys(), row)
        row[biased] += torch.tensor(list(params.logit_bias.values())).to(row)
    if draw.mask is not None:
        row.masked_fill_(_forbidden(draw.mask, row), _NEVER)
    if request.num_generated < params.min_new_tokens and request.stop_ids:
        ends = _token_index("stop_token_ids", request.stop_ids, row)
        values = row[ends]
        row[ends] = _NEVER
        if draw.mask is not None and float(row.amax()) == _NEVER:
            row[ends] = values  # the grammar allows nothing else, and a minimum cannot make it longer


def _token_index(argument: str, ids: Collection[int], row: torch.Tensor) -> torch.Tensor:
    """Ids as an index into a row; checked, for a GPU answers one that is out of range by ending every request."""
    index = np.fromiter(ids, dtype=np.int64, count=len(ids))
    for token in (int(index.min()), int(index.max())):
        if not 0 <= token < row.numel():
            raise InvalidArgumentError(argument, token, f"token ids in [0, {row.numel()})")
    return torch.from_numpy(index).to(row.device)


def _forbidden(mask: NDArray[np.uint8], row: torch.Tensor) -> torch.Tensor:
    """``[vocab]`` bool, the opposite of the mask's bits."""
    if mask.dtype != np.uint8 or mask.size * 8 < row.numel():
        raise ValueError(f"a mask of {mask.size} x {mask.dtype} for {row.numel()} tokens; one bit each, as uint8")
    bits = np.unpackbits(~mask, count=row.numel(), bitorder="little")
    return torch.from_numpy(bits).view(torch.bool).to(row.device)


def _keep(scores: torch.Tensor, cut: Cut) -> None:
    """Exclude from ``[vocab]`` scores, in place, what a cut does not keep."""
    scores.masked_fill_(scores < cut.score, _NEVER)
    if cut.excluded_equals.size:
        scores[torch.from_numpy(cut.excluded_equals).to(scores.device)] = _NEVER


# ---- gaps ------------------------------------------------------------------------------------------------------------
def _lead(scores: torch.Tensor, token: int) -> float:
    """By how much the best of ``[vocab]`` scores is ahead of the second."""
    others = scores.clone()
    others[token] = _NEVER
    return float(scores[token]) - float(others.amax())


def _race_gap(scores: torch.Tensor, times: torch.Tensor, token: int, border: Border | None) -> float:
    """How far scores of a race would have to move, at least, for another winner.

    At the border of truncation a winner may drop out, or somebody come in who would have won; neither shows in the lead.
    """
    lead = _lead(scores, token)
    if border is None:
        return lead
    fastest = float(times[torch.from_numpy(border.outside).to(times.device)].amin())
    is_beaten = border.outside_score - fastest > float(scores[token])
    return min(lead, border.distance) if is_beaten or token in border.inside else lead
