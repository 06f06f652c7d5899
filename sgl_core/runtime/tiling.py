"""The deterministic forward: a row's bits depend on its token, its position and its own past, and on nothing else.

The runner calls ``TiledForward`` in place of its one packed pass where the engine is deterministic. The rows of a step are cut
into tiles of a few fixed sizes and the model runs once a tile, so every operator outside attention sees one of a few shapes;
attention is ``fixed_tile_attention``, whose shapes follow from positions. Which sizes may be mixed is not assumed but
measured, at start-up, on the model itself: a size is used only if every row had the same bits in it as in the reference,
wherever it stood and whatever stood beside it. A model whose rows influence each other at the reference size (experts that
compute as many rows as were routed to them) runs its rows one by one, which is exact by construction.

Cost, measured on the embedded model (float32, packed linears, one thread of an AVX2 processor, slots scattered; ms a step,
tiled | one packed pass): decode of 1 at 300 tokens 85 | 88, at 1,000 tokens 118 | 98; of 16 at 300 205 | 204, of 64 740 | 679;
1,000 tokens of prefill 4,320 | 3,910. With packed linears single rows agree with larger passes; plain products agree from 4 or
16 rows on. Larger tiles than 128 rows gained 2 % of a prefill and doubled the probe, which takes some 4 s of one processor.

It keeps nothing between steps. What a work rides on is run by an earlier work of the plan, hence in an earlier tile or in the
same one, where keys are stored before anybody attends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sgl_core.runtime.attention import run_packed
from sgl_core.runtime.batch import SlotTable, positions_of, query_runs
from sgl_core.runtime.kv_pool import KVPool
from sgl_core.runtime.plan import StepPlan, Work
from sgl_kernels import FixedTileLayout, GatherScratch, TileRows, fixed_tile_attention, store_kv

__all__ = ["TileBatch", "TiledForward", "agreeing_tile_sizes", "build_tile", "split_into_tiles"]

_REFERENCE_SIZE = 16
_OTHER_SIZES = (1, 2, 4, 8, 32, 64, 128)
_PROBE_ROWS = 32
"""Distinct rows that the probe runs in every size."""
_LONE_ROWS = 8
"""Passes in which the probe puts one row among copies of another."""
_CHEAP_SIZE = 32
"""Up to here a pass costs mostly its reading of the weights, and padding is cheaper than a second pass; beyond, a tile is
padded by at most a third. (All linears of the embedded model: 25 ms for 1 row, 57 for 16, 86 for 32, 165 for 64.)"""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class TileBatch:
    """The tensors of one tile of ``R`` rows, of which the first ``n`` are tokens and the others padding.

    Args:
        input_ids: ``[1, R]`` int64. ``position_ids`` likewise.
        out_loc: ``[n]`` int64, the slot of each token; padding is stored nowhere.
        layout: what the tokens attend to; padding attends to nothing.
        logit_rows: ``[m]`` int64, rows whose logits are needed, then repetitions of the first up to one of the sizes.
        num_logits: how many of them are needed.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    out_loc: torch.Tensor
    layout: FixedTileLayout
    logit_rows: torch.Tensor
    num_logits: int


class TiledForward:
    """Runs plans on a model tile by tile.

    Args:
        model: a causal LM of transformers in eval mode, our attention installed.
        pool: keys and values, written here.
        table: the runner's; brought up to date here.
        scratch: the runner's, for gathered keys and values.
        sizes: rows of a tile, ascending, as ``agreeing_tile_sizes`` found them.
    """

    def __init__(self, model: Any, pool: KVPool, table: SlotTable, scratch: GatherScratch, *, sizes: tuple[int, ...]) -> None:
        self._model = model
        self._pool = pool
        self._table = table
        self._scratch = scratch
        self._sizes = sizes

    def logits(self, plan: StepPlan) -> torch.Tensor:
        """Logits ``[rows, vocab]`` of tokens ``logit_start:end`` of every work, in the plan's order.

        Raises:
            RuntimeError: a layer did not attend, or attended twice.
        """
        self._table.update(plan.works)
        return torch.cat(
            [self._run(build_tile(t, self._table, self._sizes)) for t in split_into_tiles(plan.works, self._sizes)]
        )

    def _run(self, batch: TileBatch) -> torch.Tensor:
        step = _TileStep(self._pool, batch, self._scratch)
        logits = run_packed(self._model, batch.input_ids, batch.position_ids, step, batch.logit_rows)
        if step.layers_seen != len(self._pool.keys):
            raise RuntimeError(f"{step.layers_seen} attention calls in a model of {len(self._pool.keys)} layers")
        return logits[: batch.num_logits]


def split_into_tiles(works: Sequence[Work], sizes: Sequence[int]) -> list[list[Work]]:
    """Cut works, in order, into tiles: each is a list of works or parts of them, of which only a work's last one samples.

    Args:
        sizes: rows that a tile may be padded to, ascending.
    """
    tiles: list[list[Work]] = []
    left = sum(work.end - work.start for work in works)
    room = 0
    for work in works:
        start = work.start
        while start < work.end:
            if not room:
                tiles.append([])
                room = _rows_of_next_tile(left, sizes)
                left -= room
            end = min(work.end, start + room)
            logit_start = min(max(work.logit_start, start), end)
            is_last = end == work.end
            tiles[-1].append(replace(work, start=start, end=end, logit_start=logit_start, sample=work.sample and is_last))
            room -= end - start
            start = end
    return tiles


def build_tile(works: Sequence[Work], table: SlotTable, sizes: Sequence[int]) -> TileBatch:
    """Lay out a tile, padded to the smallest size that holds it.

    Args:
        works: what it runs; together at most the largest size.
        table: up to date.
        sizes: ascending.
    """
    device = table.slots.device
    ids: list[int] = []
    positions: list[int] = []
    out_loc: list[int] = []
    logit_rows: list[int] = []
    queries: list[TileRows] = []
    for work in works:
        logit_rows.extend(range(len(ids) + work.logit_start - work.start, len(ids) + work.end - work.start))
        row = len(ids)
        for count, slots in query_runs(work, table):
            queries.append(TileRows(row, len(slots) - count, slots))
            row += count
        ids.extend(work.request.ids[work.start : work.end])
        positions.extend(positions_of(work))
        out_loc.extend(work.request.slots[work.start : work.end])
    size = _smallest(sizes, len(ids))
    num_logits = len(logit_rows)
    if num_logits:
        logit_rows.extend(logit_rows[:1] * (_smallest(sizes, num_logits) - num_logits))
    padding = [0] * (size - len(ids))
    return TileBatch(
        input_ids=torch.tensor([ids + padding], dtype=torch.int64, device=device),
        position_ids=torch.tensor([positions + padding], dtype=torch.int64, device=device),
        out_loc=torch.tensor(out_loc, dtype=torch.int64, device=device),
        layout=FixedTileLayout(queries, size),
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64, device=device),
        num_logits=num_logits,
    )


def agreeing_tile_sizes(model: Any, context_tokens: int) -> tuple[int, ...]:
    """Which numbers of rows a pass may have so that a row's bits do not depend on it, nor on the row's place and company.

    Runs random rows through the model, each attending to itself alone, drawn anew for every pass: 16 rows are the reference,
    and where those depend on their company, single rows are the only size.

    Args:
        model: a causal LM of transformers in eval mode, our attention installed, on the threads that will run it.
        context_tokens: positions are drawn below it.

    Returns:
        Ascending.
    """
    probe = _SizeProbe(model, context_tokens)
    if not (probe.agrees(_REFERENCE_SIZE) and probe.agrees_among_copies(_REFERENCE_SIZE)):
        return (1,)
    return tuple(sorted([_REFERENCE_SIZE, *filter(probe.agrees, _OTHER_SIZES)]))


@dataclass(slots=True)
class _TileStep:
    """One forward pass of a tile."""

    pool: KVPool
    batch: TileBatch
    scratch: GatherScratch
    layers_seen: int = 0

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, features: dict[str, Any]
    ) -> torch.Tensor:
        self.layers_seen += 1
        k_pool, v_pool, out_loc = self.pool.keys[layer], self.pool.values[layer], self.batch.out_loc
        store_kv(k[: len(out_loc)], v[: len(out_loc)], k_pool, v_pool, out_loc)
        return fixed_tile_attention(q, k_pool, v_pool, self.batch.layout, scale=scale, scratch=self.scratch, **features)


class _SelfAttending:
    """Attention for the size probe: from a row's own query, key and value alone, by exact operations on all of them."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, features: dict[str, Any]
    ) -> torch.Tensor:
        del layer, scale, features
        heads, width = q.shape[1], v.shape[2]
        keys, values = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (k, v))
        asked = (q + keys).mul(0.5)
        return values + torch.nn.functional.pad(asked, (0, max(0, width - asked.shape[2])))[..., :width]


class _SizeProbe:
    """Random rows and the bits of their logits in passes of the reference size."""

    def __init__(self, model: Any, context_tokens: int) -> None:
        self._model = model
        self._generator = torch.Generator().manual_seed(0)
        vocab = int(model.get_input_embeddings().weight.shape[0])
        self._ids, self._positions = (self._draw(limit, _PROBE_ROWS) for limit in (vocab, context_tokens))
        every = torch.arange(_PROBE_ROWS).view(-1, _REFERENCE_SIZE)
        self._expected = torch.cat([self._bits(rows) for rows in every])

    def agrees(self, size: int) -> bool:
        """Whether rows drawn at random, with repetition, have the expected bits in passes of ``size``."""
        passes = min(4, max(1, 2 * _PROBE_ROWS // size))
        return all(self._is_expected(self._draw(_PROBE_ROWS, size)) for _ in range(passes))

    def agrees_among_copies(self, size: int) -> bool:
        """Whether a row beside copies of another one has the expected bits: whatever is routed goes apart to the utmost."""
        for _ in range(_LONE_ROWS):
            rows = self._draw(_PROBE_ROWS, 1).repeat(size)
            rows[self._draw(size, 1)] = self._draw(_PROBE_ROWS, 1)
            if not self._is_expected(rows):
                return False
        return True

    def _draw(self, limit: int, count: int) -> torch.Tensor:
        return torch.randint(0, limit, (count,), generator=self._generator)

    def _is_expected(self, rows: torch.Tensor) -> bool:
        return torch.equal(self._bits(rows), self._expected[rows.to(self._expected.device)])

    @torch.inference_mode()
    def _bits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits ``[len(rows), vocab]``, as integers: NaN equals itself, and zeros have signs."""
        device = self._model.device
        ids, positions, every = (t.to(device) for t in (self._ids[rows], self._positions[rows], torch.arange(len(rows))))
        logits = run_packed(self._model, ids.unsqueeze(0), positions.unsqueeze(0), _SelfAttending(), every)
        return logits.contiguous().view(_BITS[logits.element_size()])


def _rows_of_next_tile(left: int, sizes: Sequence[int]) -> int:
    """How many of the rows that are left run in the next tile."""
    if left >= sizes[-1]:
        return sizes[-1]
    padded = _smallest(sizes, left)
    fitting = [size for size in sizes if size <= left]
    if padded <= _CHEAP_SIZE or 3 * padded <= 4 * left or not fitting:
        return left
    return fitting[-1]


def _smallest(sizes: Sequence[int], rows: int) -> int:
    """The smallest size that holds so many rows."""
    return next(size for size in sizes if size >= rows)
