"""The sampler against brute force on small vocabularies."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from sgl_core.errors import NumericsError
from sgl_core.runtime.request import Kind, Request
from sgl_core.runtime.sampler import sample, uniform
from sgl_core.types import SamplingParams

LOGITS = torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0, 1.5])


def request(prompt: tuple[int, ...] = (0,), output: tuple[int, ...] = (), **params: object) -> Request:
    made = Request(
        id="r",
        ids=list(prompt),
        kind=Kind.GENERATE,
        params=SamplingParams(**params),  # type: ignore[arg-type]
        max_new_tokens=8,
        stop_ids=frozenset({2}),
        sink=None,
        submitted_at=0.0,
    )
    made.ids.extend(output)
    return made


def draws(count: int, **params: object) -> Counter[int]:
    """Tokens drawn with ``count`` seeds."""
    requests = [request(seed=seed, **params) for seed in range(count)]
    tokens, errors = sample(LOGITS.repeat(count, 1), requests)
    assert not any(errors)
    return Counter(tokens)


def test_greedy_takes_the_largest_and_the_lowest_id_among_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [5.0, 5.0, 5.0], [0.0, -1.0, 2.0]])
    assert sample(logits, [request()] * 3)[0] == [1, 0, 2]


@pytest.mark.parametrize("width", [1_023, 1_024, 1_025, 1_531, 2_048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_over_a_large_vocabulary_takes_the_lowest_id_of_the_largest_logit(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 50, (40, width), generator=generator).to(dtype)  # many rows have their largest value twice
    for row, first in enumerate((0, 511, 512, 1_000, width - 1)):
        logits[row, first] = 99.0
        logits[row, min(width - 1, first + 512)] = 99.0
        logits[row, -1] = 99.0
    want = [row.index(max(row)) for row in logits.tolist()]
    assert sample(logits, [request()] * 40)[0] == want


@pytest.mark.parametrize("column", [0, 700, 1_499])
def test_a_nan_anywhere_in_a_large_vocabulary_ends_its_row_only(column: int) -> None:
    logits = torch.zeros(3, 1_500)
    logits[:, 7] = 1.0
    logits[1, column] = float("nan")
    tokens, errors = sample(logits, [request()] * 3)
    assert [type(error) for error in errors] == [type(None), NumericsError, type(None)]
    assert (tokens[0], tokens[2]) == (7, 7)


def test_frequencies_follow_the_softmax_at_the_temperature() -> None:
    count, temperature = 4_000, 0.7
    expected = (LOGITS / temperature).softmax(-1)
    got = draws(count, temperature=temperature)
    for token, p in enumerate(expected.tolist()):
        assert abs(got[token] / count - p) < 4 * math.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 1}, {2}),
        ({"top_k": 2}, {2, 5}),
        ({"top_p": 0.2}, {2}),
        ({"top_p": 0.65}, {2, 5}),  # softmax: .42 .25 .15 .09 ..: two tokens reach .65
        ({"min_p": 0.5}, {2, 5}),
        ({"top_k": 3, "top_p": 0.99}, {1, 2, 5}),
        ({"logit_bias": {4: 100.0}}, {4}),
    ],
)
def test_truncation_keeps_exactly_the_allowed_tokens(params: dict[str, object], allowed: set[int]) -> None:
    assert set(draws(400, temperature=1.0, **params)) == allowed


def test_a_tiny_top_p_on_a_flat_large_vocabulary_still_counts_to_its_mass() -> None:
    logits = torch.zeros(1, 5_000)
    requests = [request(temperature=1.0, top_p=0.5, seed=seed) for seed in range(200)]
    tokens, _ = sample(logits.repeat(200, 1), requests)
    assert len(set(tokens)) > 100
    assert len(set(tokens)) <= 2_500


def test_the_draw_depends_on_seed_and_index_alone() -> None:
    lonely = sample(LOGITS.unsqueeze(0), [request(temperature=1.0, seed=7)])[0][0]
    crowd = [request(temperature=1.0, seed=s) for s in (1, 7, 3)]
    assert sample(LOGITS.repeat(3, 1), crowd)[0][1] == lonely
    assert len({uniform(7, index) for index in range(100)}) == 100
    assert all(0.0 <= uniform(seed, 0) < 1.0 for seed in range(100))


def test_penalties_count_the_output_and_repetition_counts_the_prompt_too() -> None:
    assert sample(LOGITS.unsqueeze(0), [request(output=(2,), presence_penalty=2.0)])[0] == [5]
    assert sample(LOGITS.unsqueeze(0), [request(output=(2, 2), frequency_penalty=0.3)])[0] == [5]
    assert sample(LOGITS.unsqueeze(0), [request(prompt=(2,), presence_penalty=2.0)])[0] == [2]
    assert sample(LOGITS.unsqueeze(0), [request(prompt=(2,), repetition_penalty=2.0)])[0] == [5]


def test_early_ends_are_masked_until_the_minimum_is_out() -> None:
    assert sample(LOGITS.unsqueeze(0), [request(min_new_tokens=1)])[0] == [5]
    assert sample(LOGITS.unsqueeze(0), [request(output=(5,), min_new_tokens=1)])[0] == [2]


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 1}])
def test_rows_that_cannot_be_sampled_fail_alone(params: dict[str, object]) -> None:
    logits = LOGITS.repeat(4, 1)
    logits[0, 3] = float("nan")
    logits[1] = float("-inf")
    logits[2, 0] = float("inf")
    tokens, errors = sample(logits, [request(**params) for _ in range(4)])
    assert [isinstance(error, NumericsError) for error in errors] == [True, True, True, False]
    assert tokens[3] in range(6)


def test_the_logits_are_not_modified() -> None:
    logits = LOGITS.unsqueeze(0).clone()
    sample(logits, [request(temperature=0.5, seed=1, min_new_tokens=1, presence_penalty=1.0, output=(1,))])
    assert torch.equal(logits[0], LOGITS)
