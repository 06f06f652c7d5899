"""Fixed-tile attention: right against the eager reference in float64, and the same bits in every packing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

from sgl_kernels import FixedTileLayout, TileRows, fixed_tile_attention, fixed_tiles, paged_attention_reference
from sgl_kernels.checks import ShapeError

HEADS, KV_HEADS, DIM = 6, 2, 16
SCALE = DIM**-0.5
LENGTH = 210
SINKS = torch.linspace(-1, 2, HEADS, dtype=torch.float64)

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 70},
    "narrow window": {"sliding_window": 3},
    "soft cap": {"softcap": 2.0},
    "sinks": {"sinks": SINKS},
    "all": {"sliding_window": 70, "softcap": 2.0, "sinks": SINKS},
}
ALL_FEATURES = pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)


@dataclass
class Sequences:
    """Keys and values of some sequences on scattered slots; every foreign slot is NaN. Queries of all of their positions."""

    q: list[torch.Tensor]
    k_pool: torch.Tensor
    v_pool: torch.Tensor
    slots: list[torch.Tensor]

    def layout(self, *parts: tuple[int, int, int]) -> tuple[torch.Tensor, FixedTileLayout]:
        """Packed queries and layout of ``(sequence, start, end)`` one behind another."""
        rows, queries, first = [], [], 0
        for index, start, end in parts:
            queries.append(self.q[index][start:end])
            rows.append(TileRows(first, start, self.slots[index][:end]))
            first += end - start
        return torch.cat(queries), FixedTileLayout(rows, first)

    def attend(self, *parts: tuple[int, int, int], **features: Any) -> torch.Tensor:
        q, layout = self.layout(*parts)
        return fixed_tile_attention(q, self.k_pool, self.v_pool, layout, scale=SCALE, **features)


def sequences(
    *lengths: int, dtype: torch.dtype = torch.float32, value_dim: int = DIM, heads: int = HEADS, kv_heads: int = KV_HEADS
) -> Sequences:
    gen = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)

    free = torch.randperm(2 * sum(lengths), generator=gen)
    slots = list(free[: sum(lengths)].split(lengths))
    pools = [torch.full((len(free), kv_heads, dim), float("nan"), dtype=dtype) for dim in (DIM, value_dim)]
    for pool in pools:
        for own in slots:
            pool[own] = rand(len(own), *pool.shape[1:])
    return Sequences([rand(n, heads, DIM) for n in lengths], *pools, slots)


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@ALL_FEATURES
@pytest.mark.parametrize(
    ("dtype", "value_dim"), [(torch.float32, DIM), (torch.float32, 8), (torch.float32, 24), (torch.bfloat16, DIM)]
)
def test_a_mixed_batch_equals_the_reference(features: dict[str, Any], dtype: torch.dtype, value_dim: int) -> None:
    data = sequences(LENGTH, 5, 97, dtype=dtype, value_dim=value_dim)
    parts = [(0, 33, LENGTH), (1, 4, 5), (2, 0, 97)]
    got = data.attend(*parts, **features)
    packed, _ = data.layout(*parts)
    pools = data.k_pool.double(), data.v_pool.double()
    exact = paged_attention_reference(packed.double(), *pools, [177, 1, 97], data.slots, scale=SCALE, **features)
    assert got.dtype is dtype
    assert not got.isnan().any(), "a slot that no sequence owns was read"
    assert (got.double() - exact).norm() <= 8 * torch.finfo(dtype).eps * exact.norm()


def test_float64_is_computed_in_float64() -> None:
    data = sequences(LENGTH, dtype=torch.float64)
    exact = paged_attention_reference(data.q[0], data.k_pool, data.v_pool, [LENGTH], data.slots, scale=SCALE)
    assert (data.attend((0, 0, LENGTH)) - exact).norm() <= 1e-14 * exact.norm()


@ALL_FEATURES
@pytest.mark.usefixtures("_threads")
def test_bits_do_not_depend_on_chunks_or_batch_mates(features: dict[str, Any]) -> None:
    data = sequences(LENGTH, 150, 64, 211)
    whole = data.attend((0, 0, LENGTH), **features)
    cuts = [0, 1, 4, 20, 37, 101, LENGTH]
    chunks = [data.attend((0, a, b), **features) for a, b in pairwise(cuts)]
    lone = range(0, LENGTH, 7)
    alone = [data.attend((0, p, p + 1), **features) for p in lone]
    mates = [(1, 0, 150), (2, 63, 64), (3, 210, 211)]
    crowded = data.attend(*mates[:1], (0, 0, LENGTH), *mates[1:], **features)[150 : 150 + LENGTH]
    decode = data.attend(*mates[1:], (0, LENGTH - 1, LENGTH), **features)[-1:]
    assert torch.equal(torch.cat(chunks), whole)
    assert torch.equal(torch.cat(alone), whole[lone])
    assert torch.equal(crowded, whole)
    assert torch.equal(decode, whole[-1:])


@pytest.mark.usefixtures("_threads")
def test_bits_of_the_only_head_do_not_depend_on_batch_mates() -> None:
    data = sequences(700, 700, heads=8, kv_heads=1)
    assert torch.equal(data.attend((1, 699, 700), (0, 699, 700))[1:], data.attend((0, 699, 700)))


def test_bits_do_not_depend_on_how_many_tiles_a_call_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = sequences(90, 91, 92, 93)
    decodes = [(index, 89 + index, 90 + index) for index in range(4)]
    together = data.attend(*decodes)
    monkeypatch.setattr(fixed_tiles, "_CALL_SLOTS", 1)
    assert torch.equal(data.attend(*decodes), together)


@ALL_FEATURES
def test_keys_behind_a_query_leave_its_bits_alone(features: dict[str, Any]) -> None:
    data = sequences(LENGTH)
    before = data.attend((0, 0, 102), **features)
    data.k_pool[data.slots[0][102:]] = 1e4
    data.v_pool[data.slots[0][102:]] = -1e4
    assert torch.equal(data.attend((0, 0, LENGTH), **features)[:102], before)


def test_a_spoiled_sequence_leaves_its_batch_mates_alone() -> None:
    data = sequences(66, 66)
    before = data.attend((0, 65, 66), (1, 65, 66))
    data.k_pool[data.slots[1]] = float("nan")
    after = data.attend((0, 65, 66), (1, 65, 66))
    assert torch.equal(after[0], before[0])
    assert after[1].isnan().all()


def test_a_node_of_a_tree_has_the_bits_of_the_same_tokens_in_a_row() -> None:
    data = sequences(80)
    in_a_row = data.attend((0, 70, 80))
    nodes = [TileRows(row, 70 + row, data.slots[0][: 71 + row]) for row in reversed(range(10))]
    layout = FixedTileLayout(nodes, 10)
    assert torch.equal(fixed_tile_attention(data.q[0][70:], data.k_pool, data.v_pool, layout, scale=SCALE), in_a_row)


def test_rows_that_nobody_names_give_zeros() -> None:
    data = sequences(9)
    layout = FixedTileLayout([TileRows(1, 6, data.slots[0][:8])], 5)
    out = fixed_tile_attention(data.q[0][:5], data.k_pool, data.v_pool, layout, scale=SCALE)
    assert [bool(row.any()) for row in out] == [False, True, True, False, False]


def test_queries_of_another_number_than_the_layout_says_are_refused() -> None:
    data = sequences(9)
    _, layout = data.layout((0, 0, 9))
    with pytest.raises(ShapeError, match="q: got shape"):
        fixed_tile_attention(data.q[0][:8], data.k_pool, data.v_pool, layout, scale=SCALE)


@pytest.mark.parametrize("damage", ["tiles by row", "keys by batch"])
def test_the_comparison_sees_shapes_that_follow_the_batch(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sequences(LENGTH, dtype=torch.float64)
    keys_of: Callable[..., tuple[int, int]] = fixed_tiles._Tile.keys
    if damage == "tiles by row":  # a lone query then is the first of its tile, a later one of a long run is not
        monkeypatch.setattr(fixed_tiles, "_tiles_of", _tiles_by_row)
    else:  # as many keys as the sequence has so far
        monkeypatch.setattr(fixed_tiles._Tile, "keys", lambda tile, _: (0, max(keys_of(tile, None)[0], len(tile.source.slots))))
    whole = data.attend((0, 0, LENGTH))
    alone = torch.cat([data.attend((0, p, p + 1)) for p in range(LENGTH)])
    assert not torch.equal(alone, whole)


def _tiles_by_row(source: TileRows) -> Iterator[Any]:
    end = len(source.slots)
    for start in range(source.first_position, end, fixed_tiles.QUERY_TILE):
        present = range(min(end - start, fixed_tiles.QUERY_TILE))
        yield fixed_tiles._Tile(source, start, source.first_row + start - source.first_position, present)
