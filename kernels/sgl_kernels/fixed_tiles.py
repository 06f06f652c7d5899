"""Attention whose bits depend on a query's position and the content of its sequence, and on nothing else.

Who calls it: the runtime's deterministic forward, once a layer. A query at position ``p`` is row ``p % 4`` of a tile of four
positions, absent ones being zeros; the tile reads keys from a multiple of 64 up to a length that the position alone decides,
masked beyond the query and padded with a slot of the same sequence, to which the softmax gives exactly zero. So every product
has a shape and a row index that chunking, batch mates and cached prefixes cannot change. Tiles of equal shape run in one call
of the CPU flash operator, which computes each pair of tile and head by itself.

Everything is computed in float32 (float64 for float64 input): for shorter types the operator packs its operands where the
number of tiles makes that worthwhile, and bits would follow the batch.

The tile of four was chosen by measurement (float32, one thread, 9 heads on 3 KV heads of 64, 1,024 keys; ms of 64
consecutive queries | of one alone): tiles of 1: 14.6 | 0.37, of 2: 5.6 | 0.38, of 4: 3.8 | 0.34, of 8: 3.5 | 0.48, of 16:
3.0 | 0.91.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from sgl_kernels.attention import GatherScratch
from sgl_kernels.checks import check_device, check_shape

__all__ = ["FixedTileLayout", "TileRows", "fixed_tile_attention"]

QUERY_TILE = 4
_KEY_STEP = 64
_CALL_SLOTS = 1 << 16
"""Keys that one call of several sequences gathers at most; the bits do not depend on it."""


@dataclass(frozen=True, slots=True)
class TileRows:
    """Queries at consecutive positions of one sequence.

    A node of a tree of tokens is a sequence of its own with one query: its ancestors and itself.

    Args:
        first_row: packed row of the first query; the others follow it.
        first_position: of the first query in its sequence.
        slots: ``[first_position + queries]`` int64, slots of all keys up to the last query's own; all are written before
            anything attends.
    """

    first_row: int
    first_position: int
    slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Tile:
    """One tile: where its positions begin, the packed row of the first (which may be absent), and those that are present."""

    source: TileRows
    first_position: int
    first_row: int
    present: range

    def keys(self, window: int | None) -> tuple[int, int]:
        """First key and number of keys that it reads."""
        lowest = 0 if window is None else max(0, self.first_position - window + 1) // _KEY_STEP * _KEY_STEP
        return lowest, _rounded(self.first_position + QUERY_TILE - lowest)


@dataclass(slots=True)
class _Call:
    """Tiles of one shape.

    Args:
        q_rows: ``[tiles * QUERY_TILE]`` int64, packed rows; absent positions name the row behind the last.
        places: ``[n]`` int64, which of ``q_rows`` are present; ``rows``: ``[n]`` int64, their packed rows.
        slots: ``[sequences, keys]`` int64; ``sequences`` is 1 where all tiles are of one, else the number of tiles.
        hidden: ``[tiles, QUERY_TILE, keys]`` bool.
    """

    q_rows: torch.Tensor
    places: torch.Tensor
    rows: torch.Tensor
    slots: torch.Tensor
    hidden: torch.Tensor


class FixedTileLayout:
    """Where the queries and keys of a packed batch lie; made once, read by every layer.

    Args:
        rows: no packed row is named twice. Those that nobody names give zeros.
        num_rows: packed rows.
    """

    def __init__(self, rows: Iterable[TileRows], num_rows: int) -> None:
        self.num_rows = num_rows
        self._tiles = [tile for source in rows for tile in _tiles_of(source)]
        self._calls: dict[int | None, list[_Call]] = {}
        self._biases: dict[tuple[int | None, int, torch.dtype], list[torch.Tensor]] = {}

    def calls(self, window: int | None, group: int, dtype: torch.dtype) -> Iterator[tuple[_Call, torch.Tensor]]:
        """The calls of a layer, each with its bias ``[tiles, 1, group * QUERY_TILE, keys]``, 0 or -inf.

        Args:
            window: keys that a query sees, its own included; None is all.
            group: query heads on one KV head.
        """
        if window not in self._calls:
            self._calls[window] = self._build(window)
        calls = self._calls[window]
        key = (window, group, dtype)
        if key not in self._biases:
            self._biases[key] = [_bias(call.hidden, group, dtype) for call in calls]
        return zip(calls, self._biases[key], strict=True)

    def _build(self, window: int | None) -> list[_Call]:
        """Tiles with equal keys: those of one sequence that has several share a call, single ones of many share another."""
        by_keys: dict[tuple[int, int], dict[int, list[_Tile]]] = defaultdict(lambda: defaultdict(list))
        for tile in self._tiles:
            by_keys[tile.keys(window)][id(tile.source)].append(tile)
        calls = []
        for (lowest, length), by_source in by_keys.items():
            singles = []
            for tiles in by_source.values():
                if len(tiles) > 1:
                    calls.append(self._call(tiles, tiles[:1], lowest, length, window))
                else:
                    singles.extend(tiles)
            most = max(1, _CALL_SLOTS // length)
            for first in range(0, len(singles), most):
                tiles = singles[first : first + most]
                calls.append(self._call(tiles, tiles, lowest, length, window))
        return calls

    def _call(self, tiles: Sequence[_Tile], readers: Sequence[_Tile], lowest: int, length: int, window: int | None) -> _Call:
        """Lay out ``tiles``; ``readers`` are those whose sequences are gathered."""
        device = tiles[0].source.slots.device
        q_rows, places, rows = [], [], []
        for index, tile in enumerate(tiles):
            for offset in range(QUERY_TILE):
                is_present = offset in tile.present
                q_rows.append(tile.first_row + offset if is_present else self.num_rows)
                if is_present:
                    places.append(index * QUERY_TILE + offset)
                    rows.append(tile.first_row + offset)
        keys = torch.arange(lowest, lowest + length, device=device)
        slots = [tile.source.slots[keys.clamp_max(len(tile.source.slots) - 1)] for tile in readers]
        first = torch.tensor([tile.first_position for tile in tiles], device=device)
        positions = (first.unsqueeze(1) + torch.arange(QUERY_TILE, device=device)).unsqueeze(2)
        hidden = keys > positions
        if window is not None:
            hidden |= keys <= positions - window

        def indices(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        return _Call(indices(q_rows), indices(places), indices(rows), torch.stack(slots), hidden)


def fixed_tile_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    layout: FixedTileLayout,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    scratch: GatherScratch | None = None,
) -> torch.Tensor:
    """Attend every query to the keys of its sequence at and before its position, with reproducible bits.

    Args:
        q: ``[rows, heads, head_dim]``.
        k_pool: ``[slots, kv_heads, head_dim]``, dtype of ``q``, the new keys included. ``v_pool`` likewise with its own last
            dimension.
        layout: of the packed batch.
        scale: multiplies the scores before the softmax.
        sliding_window: a query sees only the last so many keys, its own included.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
        sinks: ``[heads]`` logits that join the softmax's denominator.
        scratch: for gathered keys and values; None allocates them anew.

    Returns:
        ``[rows, heads, value_dim]`` in the dtype of ``q``; zeros for rows that the layout does not name.
    """
    num_rows, heads, _ = q.shape
    check_shape("q", q, layout.num_rows, None, k_pool.shape[2])
    check_device("k_pool", k_pool, "q", q)
    kv_heads, value_dim = v_pool.shape[1:]
    group = heads // kv_heads
    scratch = GatherScratch() if scratch is None else scratch
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    padded_q = torch.cat([q.to(wide), q.new_zeros(1, heads, q.shape[2], dtype=wide)])
    out = q.new_zeros(num_rows, heads, value_dim)
    for call, bias in layout.calls(sliding_window, group, wide):
        keys = _gather(scratch, 0, k_pool, call.slots, wide)
        values = _gather(scratch, 1, v_pool, call.slots, wide)
        tiles = padded_q[call.q_rows].view(-1, QUERY_TILE, kv_heads, group, q.shape[2])
        folded = tiles.permute(0, 2, 3, 1, 4).reshape(len(tiles), kv_heads, group * QUERY_TILE, -1)
        attended, lse = _attend(folded, keys, values, bias, scale, softcap)
        if sinks is not None:
            logits = sinks.to(wide).view(kv_heads, group, 1).expand(-1, -1, QUERY_TILE).reshape(kv_heads, -1)
            attended = attended * _share_of_keys(lse, logits).unsqueeze(-1)
        unfolded = attended.view(len(tiles), kv_heads, group, QUERY_TILE, value_dim).permute(0, 3, 1, 2, 4)
        flat = unfolded.reshape(-1, heads, value_dim)
        out.index_copy_(0, call.rows, flat[call.places].to(q.dtype))
    return out


def _tiles_of(source: TileRows) -> Iterator[_Tile]:
    """Cut queries at multiples of the tile's size, counted in positions."""
    end = len(source.slots)
    for start in range(source.first_position // QUERY_TILE * QUERY_TILE, end, QUERY_TILE):
        present = range(max(source.first_position - start, 0), min(end - start, QUERY_TILE))
        yield _Tile(source, start, source.first_row + start - source.first_position, present)


def _rounded(keys: int) -> int:
    """Keys to read for ``keys``: a multiple of 64, at most an eighth more beyond 512, so that few shapes differ."""
    step = max(_KEY_STEP, 1 << max(0, keys.bit_length() - 4))
    return -(-keys // step) * step


def _bias(hidden: torch.Tensor, group: int, dtype: torch.dtype) -> torch.Tensor:
    bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
    return bias.repeat(1, group, 1).unsqueeze(1)


def _share_of_keys(lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """What the sinks leave of the softmax: ``[tiles, kv_heads, rows]``.

    Tile by tile: the last elements of a tensor, and of each thread's part of it, are computed by other instructions.
    """
    return torch.stack([torch.sigmoid(of_tile - sinks) for of_tile in lse])


def _gather(scratch: GatherScratch, which: int, pool: torch.Tensor, slots: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """``[sequences, kv_heads, keys, dim]``, always a fresh copy: how memory is aligned may be part of a product's bits."""
    gathered = scratch.gather(which, pool, slots.view(-1)).to(wide)
    return gathered.view(*slots.shape, *pool.shape[1:]).transpose(1, 2)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output ``[tiles, kv_heads, rows, value_dim]`` and log-sum-exp ``[tiles, kv_heads, rows]``.

    Args:
        q: ``[tiles, kv_heads, rows, head_dim]``.
        k: ``[tiles or 1, kv_heads, keys, head_dim]``; ``v`` likewise.
        bias: ``[tiles, 1, rows, keys]``.
    """
    if q.device.type == "cpu" and softcap is None:
        return _flash(q, k, v, bias, scale)
    several = len(k) > 1
    states = [  # one call a tile: how a library splits a batched product may depend on the size of the batch
        _eager(q[tile], k[tile if several else 0], v[tile if several else 0], bias[tile], scale, softcap)
        for tile in range(len(q))
    ]
    return torch.stack([out for out, _ in states]), torch.stack([lse for _, lse in states])


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    tiles, kv_heads, rows, _ = q.shape
    if tiles == kv_heads == 1:  # a lone unit of work runs outside the operator's threads, and its products may be split
        q, bias = q.expand(2, -1, -1, -1), bias.expand(2, -1, -1, -1)
    value_dim = v.shape[-1]
    widest = max(q.shape[-1], value_dim)  # the operator wants one dimension; zeros change no score and no value
    q, k, v = (torch.nn.functional.pad(t, (0, widest - t.shape[-1])) if t.shape[-1] < widest else t for t in (q, k, v))
    k, v = (t.expand(len(q), -1, -1, -1) for t in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=bias, scale=scale)
    lse = lse.reshape(len(q), kv_heads, rows)
    return out[:tiles, ..., :value_dim].contiguous(), lse[:tiles].contiguous()


def _eager(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = (q @ k.contiguous().transpose(1, 2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + bias
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp() @ v.contiguous(), lse
