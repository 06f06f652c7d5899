"""The noise of sampling: keyed, stable, exponential."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sgl_core.runtime.noise import fill_uniform, log_race_times


def uniforms(seed: int, position: int, size: int) -> np.ndarray:
    out = np.empty(size, dtype=np.float32)
    fill_uniform(out, seed, position)
    return out


def times(seed: int, position: int, size: int) -> np.ndarray:
    return log_race_times(torch.from_numpy(uniforms(seed, position, size))).numpy()


def test_the_stream_of_a_key_stays_what_it_is_from_version_to_version() -> None:
    words = [round(float(u) * 2**32 / (1 - 2**-24) - 0.5) for u in uniforms(7, 3, 4)]
    assert words == pytest.approx([2_251_081_202, 2_070_726_577, 1_262_456_223, 3_110_138_602], rel=1e-6)


@pytest.mark.parametrize(("small", "large"), [(1, 2), (7, 8), (511, 4_096), (1_000, 49_153)])
def test_a_larger_vocabulary_leaves_the_noise_of_smaller_ids_as_it_was(small: int, large: int) -> None:
    assert np.array_equal(times(5, 9, small), times(5, 9, large)[:small])


def test_rows_computed_together_have_the_noise_of_rows_computed_alone() -> None:
    block = np.stack([uniforms(seed, 4, 1_003) for seed in range(5)])
    together = log_race_times(torch.from_numpy(block)).numpy()
    assert all(np.array_equal(together[seed], times(seed, 4, 1_003)) for seed in range(5))


def test_seeds_and_positions_each_give_noise_of_their_own() -> None:
    keys = [(seed, position) for seed in (0, 1, 2**32, 2**63 - 1) for position in (0, 1, 2**20)]
    rows = np.stack([uniforms(seed, position, 2_000) for seed, position in keys])
    correlations = np.corrcoef(rows) - np.eye(len(keys))
    assert np.abs(correlations).max() < 5 / math.sqrt(2_000)


def test_times_are_exponential() -> None:
    size = 200_000
    arrivals = np.exp(times(1, 2, size).astype(np.float64))
    for quantile in (1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999):
        share = float((arrivals < -math.log1p(-quantile)).mean())
        assert abs(share - quantile) < 4 * math.sqrt(quantile * (1 - quantile) / size)


def test_every_time_is_finite_even_of_words_that_round_to_the_ends() -> None:
    ends = torch.tensor([0.5 * 2.0**-32, 2.0**-32, 1.0 - 2.0**-24])
    got = log_race_times(ends.clone()).tolist()
    want = [math.log(-math.log1p(-u)) for u in ends.tolist()]
    assert got == pytest.approx(want, rel=1e-6)


def test_the_largest_word_gives_a_number_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ones:
        def __init__(self, key: object) -> None:
            pass

        def random_raw(self, size: int) -> np.ndarray:
            return np.full(size, 2**64 - 1, dtype=np.uint64)

    monkeypatch.setattr(np.random, "Philox", Ones)
    assert float(uniforms(0, 0, 3).max()) == 1.0 - 2.0**-24
