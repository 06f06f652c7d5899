"""The sampler against brute force on small vocabularies, and against itself in other company."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from sgl_core.errors import InvalidArgumentError, NumericsError
from sgl_core.runtime import sampler
from sgl_core.runtime.request import Kind, Request
from sgl_core.runtime.sampler import Draw, Pick, logprob_of, sample, score_rows
from sgl_core.types import SamplingParams

LOGITS = torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0, 1.5])
STOP = 2
NAN, INF = float("nan"), float("inf")


def request(prompt: Sequence[int] = (0,), output: Sequence[int] = (), *, wants_gap: bool = False, **params: object) -> Request:
    made = Request(
        id="r",
        ids=list(prompt),
        kind=Kind.GENERATE,
        params=SamplingParams(**params),  # type: ignore[arg-type]
        max_new_tokens=8,
        stop_ids=frozenset({STOP}),
        sink=None,
        submitted_at=0.0,
        is_replay=wants_gap,
    )
    made.ids.extend(output)
    return made


def allow(tokens: Sequence[int], vocab: int) -> np.ndarray:
    """A mask as grammars give it: whole words of 32 bits."""
    bits = np.zeros((vocab + 31) // 32 * 32, dtype=np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little")


def pick(logits: torch.Tensor, mask: np.ndarray | None = None, **params: object) -> Pick:
    """One row, alone."""
    return sample(logits.unsqueeze(0), [Draw(request(**params), mask)])[0]  # type: ignore[arg-type]


def token(**params: object) -> int | None:
    return pick(LOGITS, **params).token


def tokens_of(logits: torch.Tensor, count: int, mask: np.ndarray | None = None, **params: object) -> list[int]:
    """Tokens drawn with ``count`` seeds."""
    draws = [Draw(request(seed=seed, **params), mask) for seed in range(count)]  # type: ignore[arg-type]
    picks = sample(logits.expand(count, -1), draws)
    assert not any(p.error for p in picks)
    return [p.token for p in picks if p.token is not None]


def probabilities(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    allowed: Sequence[int] | None = None,
) -> list[float]:
    """The distribution that SamplingParams describes, step by step in float64."""
    adjusted = list(logits)
    for seen in {*prompt, *output}:
        penalty = params.repetition_penalty
        adjusted[seen] = adjusted[seen] / penalty if adjusted[seen] > 0 else adjusted[seen] * penalty
    for seen, count in Counter(output).items():
        adjusted[seen] -= params.frequency_penalty * count + params.presence_penalty
    for biased, bias in (params.logit_bias or {}).items():
        adjusted[biased] += bias
    ids = [i for i in range(len(logits)) if allowed is None or i in allowed]
    if len(output) < params.min_new_tokens:
        ids = [i for i in ids if i != STOP] or ids
    weights = {i: math.exp(adjusted[i] / params.temperature) for i in ids}
    order = sorted(ids, key=lambda i: (-weights[i], i))
    if params.top_k != -1:
        order = order[: params.top_k]
    total, before, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if before < params.top_p * total and weights[i] >= params.min_p * weights[order[0]]:
            kept.append(i)
        before += weights[i]
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


# ---- greedy ----------------------------------------------------------------------------------------------------------
def test_greedy_takes_the_largest_and_the_lowest_id_among_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [5.0, 5.0, 5.0], [0.0, -1.0, 2.0]])
    assert [p.token for p in sample(logits, [Draw(request())] * 3)] == [1, 0, 2]


@pytest.mark.parametrize("width", [1_023, 1_024, 1_025, 1_531, 2_048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wants_gap", [False, True])
def test_greedy_over_a_large_vocabulary_takes_the_lowest_id_of_the_largest_logit(
    width: int, dtype: torch.dtype, wants_gap: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 50, (40, width), generator=generator).to(dtype)  # many rows have their largest value twice
    for row, first in enumerate((0, 511, 512, 1_000, width - 1)):
        logits[row, first] = 99.0
        logits[row, min(width - 1, first + 512)] = 99.0
        logits[row, -1] = 99.0
    want = [row.index(max(row)) for row in logits.tolist()]
    assert [p.token for p in sample(logits, [Draw(request(wants_gap=wants_gap))] * 40)] == want


def test_penalties_count_the_output_and_repetition_counts_the_prompt_too() -> None:
    assert token(output=(2,), presence_penalty=2.0) == 5
    assert token(output=(2, 2), frequency_penalty=0.3) == 5
    assert token(prompt=(2,), presence_penalty=2.0) == 2
    assert token(prompt=(2, 2, 2), repetition_penalty=1.2) == 2
    assert token(prompt=(2,), repetition_penalty=2.0) == 5


def test_a_repetition_penalty_makes_negative_logits_more_negative() -> None:
    logits = torch.tensor([-1.0, -1.5])
    assert pick(logits, repetition_penalty=2.0).token == 1


def test_early_ends_are_masked_until_the_minimum_is_out() -> None:
    assert token(min_new_tokens=1) == 5
    assert token(output=(5,), min_new_tokens=1) == 2


def test_a_mask_leaves_only_what_it_allows_up_to_the_last_token() -> None:
    for width in (31, 32, 33, 1_500):
        logits = torch.arange(width, dtype=torch.float32)
        assert pick(logits, allow([0, 7, width - 1], width)).token == width - 1
        assert pick(logits, allow([0, 7], width)).token == 7


def test_a_minimum_of_tokens_yields_to_a_grammar_that_allows_the_end_only() -> None:
    assert pick(LOGITS, allow([STOP], 6), min_new_tokens=3).token == STOP
    assert pick(LOGITS, allow([STOP, 4], 6), min_new_tokens=3).token == 4


# ---- draws -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 4},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"top_k": 6, "top_p": 0.8, "min_p": 0.05, "temperature": 1.3},
        {"frequency_penalty": 0.4, "presence_penalty": 0.3},
        {"repetition_penalty": 1.6},
        {"logit_bias": {3: 1.5, 0: -2.0}},
        {"min_new_tokens": 5, "top_k": 5},
        {"repetition_penalty": 0.7, "presence_penalty": -0.5, "logit_bias": {1: 0.5}, "temperature": 0.8, "top_p": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("allowed", [None, (1, 2, 4, 5, 7, 9)])
def test_frequencies_follow_the_distribution_that_the_parameters_describe(
    params: dict[str, object], allowed: tuple[int, ...] | None
) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0, 1.5, -0.3, 0.8, 1.2, 0.1])
    prompt, output, count = (1, 5, 8), (2, 2, 5), 2_000
    params = {"temperature": 1.0} | params
    got = Counter(tokens_of(logits, count, allowed and allow(allowed, 10), prompt=prompt, output=output, **params))
    expected = probabilities(logits.tolist(), SamplingParams(**params), prompt, output, allowed)  # type: ignore[arg-type]
    assert all(got[i] == 0 for i, p in enumerate(expected) if p == 0.0)
    cells = [(got[i], p * count) for i, p in enumerate(expected) if p > 0.0]
    chi_square = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = len(cells) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 4


def test_a_tiny_top_p_on_a_flat_large_vocabulary_still_counts_to_its_mass() -> None:
    drawn = set(tokens_of(torch.zeros(5_000), 200, temperature=1.0, top_p=0.5))
    assert len(drawn) > 100
    assert max(drawn) < 2_500


def test_a_temperature_near_zero_is_greedy_among_those_that_differ_and_fair_among_equals() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, 2.999999])
    drawn = Counter(tokens_of(logits, 1_000, temperature=1e-300))
    assert set(drawn) == {1, 2}
    assert abs(drawn[1] - 500) < 4 * math.sqrt(250)


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    logits = torch.randn(1_500, generator=torch.Generator().manual_seed(3))
    as_prompt = pick(logits, prompt=(0, 1, 2), temperature=1.0, seed=7).token
    as_output = pick(logits, prompt=(0,), output=(1, 2), temperature=1.0, seed=7).token
    assert as_prompt == as_output
    assert len({pick(logits, prompt=(0,) * n, temperature=1.0, seed=7).token for n in range(1, 30)}) > 10


def test_more_ids_that_cannot_be_drawn_change_no_draw() -> None:
    logits = torch.randn(700, generator=torch.Generator().manual_seed(4))
    padded = torch.cat([logits, torch.full((68,), -INF)])
    assert tokens_of(logits, 100, temperature=1.2) == tokens_of(padded, 100, temperature=1.2)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_logits_that_differ_in_their_last_bits_hardly_ever_flip_a_draw(temperature: float) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(8_192, generator=generator) * 3
    nearly = logits * (1 + 1e-6 * (2 * torch.rand(8_192, generator=generator) - 1))
    assert not torch.equal(logits, nearly)
    pairs = zip(
        tokens_of(logits, 2_000, temperature=temperature), tokens_of(nearly, 2_000, temperature=temperature), strict=True
    )
    assert sum(a != b for a, b in pairs) <= 2


# ---- isolation -------------------------------------------------------------------------------------------------------
def mixed(vocab: int) -> list[Draw]:
    """Healthy rows of all kinds, more than a block of them."""
    some = allow(range(3, vocab, 7), vocab)
    kinds: list[tuple[dict[str, object], np.ndarray | None]] = [
        ({}, None),
        ({"temperature": 1.0, "seed": 3}, None),
        ({"presence_penalty": 1.0, "output": (4, 4)}, None),
        ({"temperature": 0.7, "seed": 4, "top_k": 40, "top_p": 0.9, "wants_gap": True}, None),
        ({"temperature": 1.4, "seed": 5, "min_p": 0.01}, some),
        ({}, some),
        ({"wants_gap": True}, some),
        ({"temperature": 1.0, "seed": 6, "repetition_penalty": 1.3, "logit_bias": {9: 3.0}, "min_new_tokens": 2}, None),
    ]
    return [Draw(request(**params), mask) for params, mask in kinds * 4]  # type: ignore[arg-type]


def spoil_logits(value: float) -> Callable[[torch.Tensor], None]:
    def spoil(row: torch.Tensor) -> None:
        row[701] = value

    return spoil


BAD_ROWS: dict[str, tuple[Draw, Callable[[torch.Tensor], object], type[Exception]]] = {
    "nan": (Draw(request()), spoil_logits(NAN), NumericsError),
    "nan in a draw": (Draw(request(temperature=1.0, seed=1)), spoil_logits(NAN), NumericsError),
    "infinity": (Draw(request(temperature=1.0, seed=1)), spoil_logits(INF), NumericsError),
    "nothing left": (Draw(request(temperature=1.0, seed=1)), lambda row: row.fill_(-INF), NumericsError),
    "an empty mask": (Draw(request(), allow([], 1_500)), lambda row: None, NumericsError),
    "an empty mask in a draw": (Draw(request(temperature=1.0, seed=1), allow([], 1_500)), lambda row: None, NumericsError),
    "an early end is all there is": (
        Draw(request(min_new_tokens=1)),
        lambda row: row.copy_(torch.where(torch.arange(1_500) == STOP, 0.0, -INF)),
        NumericsError,
    ),
    "a mask too short": (Draw(request(), allow([1], 1_400)), lambda row: None, ValueError),
    "a mask of words": (Draw(request(), allow([1], 1_500).view(np.int32)), lambda row: None, ValueError),
    "a bias that is nobody's": (Draw(request(logit_bias={1_500: 1.0})), lambda row: None, InvalidArgumentError),
    "a prompt that is nobody's": (Draw(request((9_999,), repetition_penalty=1.5)), lambda row: None, InvalidArgumentError),
    "a penalty beyond floats": (Draw(request((1,), repetition_penalty=1e-300)), lambda row: None, NumericsError),
    "no seed": (Draw(request(temperature=1.0)), lambda row: None, AssertionError),
}


@pytest.mark.parametrize("name", BAD_ROWS)
@pytest.mark.parametrize("position", [0, 5, 32])
def test_a_row_that_cannot_be_sampled_fails_alone_and_changes_no_other(name: str, position: int) -> None:
    draw, spoil, error = BAD_ROWS[name]
    draws = mixed(1_500)
    logits = torch.randn(len(draws) + 1, 1_500, generator=torch.Generator().manual_seed(6)) * 2
    logits[position, 1] = 50.0  # so that a penalty finds it positive
    healthy = [row for row in range(len(logits)) if row != position]
    alone = sample(logits[healthy], draws)
    spoil(logits[position])
    together = sample(logits, [*draws[:position], draw, *draws[position:]])
    failed = together.pop(position)
    assert isinstance(failed.error, error)
    assert (failed.token, failed.gap) == (None, None)
    assert together == alone
    assert not any(p.error for p in together)


def test_a_row_is_picked_alike_alone_and_in_company() -> None:
    draws = mixed(1_500)
    logits = torch.randn(len(draws), 1_500, generator=torch.Generator().manual_seed(7)) * 2
    together = sample(logits, draws)
    assert [sample(logits[row : row + 1], draws[row : row + 1])[0] for row in range(len(draws))] == together


def test_an_error_of_infinite_logits_names_neither_prompt_nor_tokens() -> None:
    logits = LOGITS.clone()
    logits[3] = INF
    assert str(pick(logits).error) == "this request's logits cannot be sampled: the largest logit is inf"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_are_not_modified(dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype).repeat(2, 1)
    params: dict[str, object] = {"min_new_tokens": 1, "presence_penalty": 1.0, "output": (1,), "logit_bias": {0: 1.0}}
    draws = [Draw(request(**params)), Draw(request(temperature=0.5, seed=1, top_k=2, **params), allow([1, 3], 6))]  # type: ignore[arg-type]
    sample(logits, draws)
    assert torch.equal(logits, LOGITS.to(dtype).repeat(2, 1))


# ---- gaps ------------------------------------------------------------------------------------------------------------
def test_the_gap_is_told_to_those_alone_who_want_it() -> None:
    assert pick(LOGITS).gap is None
    assert pick(LOGITS, temperature=1.0, seed=1).gap is None
    assert pick(LOGITS, wants_gap=True).gap == pytest.approx(0.5)
    assert pick(LOGITS, allow([0, 3], 6), wants_gap=True).gap == pytest.approx(0.5)
    assert pick(LOGITS, output=(2,), presence_penalty=0.25, wants_gap=True).gap == pytest.approx(0.25)


def test_where_nothing_else_is_allowed_the_gap_is_infinite() -> None:
    assert pick(LOGITS, allow([3], 6), wants_gap=True).gap == INF
    assert pick(LOGITS, allow([3], 6), temperature=1.0, seed=1, wants_gap=True).gap == INF


@pytest.mark.parametrize(
    ("params", "most"),
    [
        ({"temperature": 0.3}, INF),
        ({"temperature": 2.0}, INF),
        ({"temperature": 1.0, "top_k": 5}, 0.02),  # of the border's tokens the gap knows the nearest only
        ({"temperature": 1.5, "min_p": 0.1}, 0.02),
        ({"temperature": 1.0, "top_p": 0.8}, 0.02),
    ],
)
def test_a_draw_stays_when_logits_move_by_less_than_its_gap(params: dict[str, object], most: float) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(8))
    for seed in range(150):
        found = pick(logits, seed=seed, wants_gap=True, **params)
        assert found.gap is not None
        against = torch.full((40,), 0.49 * min(found.gap, most))  # the worst: the winner down, everybody else up
        against[found.token] *= -1
        assert pick(logits + against, seed=seed, **params).token == found.token


def test_a_draw_flips_when_a_rival_gains_more_than_the_gap() -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(9))
    for seed in range(50):
        found = pick(logits, seed=seed, temperature=0.7, wants_gap=True)
        assert found.gap is not None
        weaker = logits.clone()
        weaker[found.token] -= found.gap * 1.01 + 1e-5
        assert pick(weaker, seed=seed, temperature=0.7).token != found.token


def test_a_winner_at_the_border_of_truncation_has_the_gap_of_the_border() -> None:
    logits = torch.tensor([3.0, 0.0, 1e-5])  # 1 and 2 fight for the second place of top-k
    gaps = {p.token: p.gap for p in (pick(logits, temperature=1.0, top_k=2, seed=s, wants_gap=True) for s in range(300))}
    assert set(gaps) == {0, 2}
    assert gaps[2] == pytest.approx(1e-5, rel=0.1)


def test_a_rival_shut_out_by_a_hair_has_the_gap_of_the_border() -> None:
    logits = torch.tensor([0.0, -1.0, -1.0 - 1e-5])  # top-k 2 shuts out the last, which sometimes would have won
    found = [
        (pick(logits, temperature=1.0, seed=seed).token, pick(logits, temperature=1.0, top_k=2, seed=seed, wants_gap=True))
        for seed in range(60)
    ]
    shut_out = [cut for free, cut in found if free == 2]
    assert {cut.token for cut in shut_out} == {0, 1}
    assert all(cut.gap == pytest.approx(1e-5, rel=0.1) for cut in shut_out)


# ---- log-probabilities -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_the_log_softmax_of_the_raw_logits(dtype: torch.dtype) -> None:
    rows, vocab = 150, 300  # more than two slices
    logits = (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(10)) * 4).to(dtype)
    targets = [[(row * 7 + i) % vocab for i in range(row % 4)] for row in range(rows)]
    scored = score_rows(logits, targets, 3)
    exact = logits.double().log_softmax(-1)
    for row in range(rows):
        assert [s.token_id for s in scored[row]] == targets[row]
        want = sorted(range(vocab), key=lambda i: (-float(logits[row, i]), i))[:3]
        for s in scored[row]:
            assert s.logprob == pytest.approx(float(exact[row, s.token_id]), abs=1e-5)
            assert [i for i, _ in s.top] == want
            assert [p for _, p in s.top] == pytest.approx(exact[row, want].tolist(), abs=1e-5)


def test_no_more_rows_than_a_slice_are_normalised_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    plain = torch.Tensor.log_softmax

    def spy(self: torch.Tensor, dim: int) -> torch.Tensor:
        shapes.append(tuple(self.shape))
        return plain(self, dim)

    monkeypatch.setattr(torch.Tensor, "log_softmax", spy)
    score_rows(torch.zeros(200, 5), [[1]] * 200, 0)
    assert sum(rows for rows, _ in shapes) == 200
    assert max(rows for rows, _ in shapes) <= sampler._SCORE_ROWS


def test_equal_alternatives_come_lowest_id_first_also_where_only_some_of_them_fit() -> None:
    logits = torch.tensor([1.0, 5.0, 1.0, 5.0, 1.0, 1.0])
    assert [i for i, _ in logprob_of(logits, 0, 4).top] == [1, 3, 0, 2]
    assert [i for i, _ in logprob_of(logits, 0, 1).top] == [1]
    assert [i for i, _ in logprob_of(logits, 0, 100).top] == [1, 3, 0, 2, 4, 5]


def test_a_token_is_scored_alike_alone_and_in_company() -> None:
    logits = torch.randn(70, 1_500, generator=torch.Generator().manual_seed(11))
    together = score_rows(logits, [[row] for row in range(70)], 2)
    assert [[logprob_of(logits[row], row, 2)] for row in range(70)] == together


def test_a_damaged_row_scores_nan_and_leaves_the_others_alone() -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1, 4] = NAN
    scored = score_rows(logits, [[1], [1, 2], [1]], 2)
    assert scored[0] == scored[2] == [logprob_of(LOGITS, 1, 2)]
    assert all(math.isnan(s.logprob) for s in scored[1])
