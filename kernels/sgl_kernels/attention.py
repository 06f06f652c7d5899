"""Paged attention of one packed batch: extends and decodes together, shared prefixes read once.

Each query's keys are cut into disjoint segments: runs of slots that several sequences share (one attention call for all
their queries), the sequence's own cached tokens, and its new tokens. The segments' results are merged by their
log-sum-exp. Who calls it: the runtime's attention function, once a layer. It owns nothing; the layout is built once a
step and shared by all layers, and so is the memory that scattered keys and values are gathered into.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sgl_kernels.checks import check_device, check_shape
from sgl_kernels.merge import merge_states
from sgl_kernels.segment import batched_segment_attention, segment_attention

__all__ = ["DecodeBucket", "ExtendRow", "GatherScratch", "SharedRun", "StepLayout", "paged_attention", "store_kv"]


@dataclass(frozen=True, slots=True)
class SharedRun:
    """A run of slots that several sequences have in their prefix.

    Args:
        rows: ``[n]`` int64, the packed rows of all queries that read it, or a slice; each comes after the whole run.
        slots: ``[length]`` int64, or a slice where the slots are consecutive (then nothing is gathered).
    """

    rows: torch.Tensor | slice
    slots: torch.Tensor | slice


@dataclass(frozen=True, slots=True)
class DecodeBucket:
    """Sequences with one new token each and own keys of similar length.

    Args:
        rows: ``[b]`` int64, their packed rows, or a slice.
        slots: ``[b, length]`` int64, own slots, the new token's included; padding repeats a valid slot. A slice for a single
            sequence whose slots are consecutive.
        bias: ``[b, 1, 1, length]``, 0 or -inf, None if nothing is padded.
    """

    rows: torch.Tensor | slice
    slots: torch.Tensor | slice
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class ExtendRow:
    """A sequence with several new tokens: packed rows ``start:end``.

    Args:
        prefix: slots of its own cached tokens (behind the shared runs): ``[length]`` int64, a slice, or None for none.
    """

    start: int
    end: int
    prefix: torch.Tensor | slice | None


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Where everything lies in one packed batch of ``T`` tokens.

    Args:
        out_loc: ``[T]`` int64, the slot of each new token.
        shared: runs read by several sequences. ``decodes`` and ``extends`` together hold every packed row once.
    """

    out_loc: torch.Tensor
    shared: tuple[SharedRun, ...]
    decodes: tuple[DecodeBucket, ...]
    extends: tuple[ExtendRow, ...]


class GatherScratch:
    """Memory for gathered keys and values, used again by every layer and every step.

    A fresh tensor of many megabytes is new pages from the operating system each time: on a CPU, gathering into one took two
    to six times as long (64 sequences x 300 tokens of the embedded model: 2.8 ms a layer into scratch, 10.8 without).

    Args:
        max_bytes: of one tensor; larger ones are allocated for the call and not kept.
    """

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        self._max_bytes = max_bytes
        self._buffers: list[torch.Tensor | None] = [None, None]

    def gather(self, which: int, pool: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """``pool[slots]`` for ``slots [n]``; valid until the next call with the same ``which``, 0 (keys) or 1 (values)."""
        shape = (slots.shape[0], *pool.shape[1:])
        size = math.prod(shape)
        if size * pool.element_size() > self._max_bytes:
            return pool.index_select(0, slots)
        buffer = self._buffers[which]
        if buffer is None or buffer.numel() < size or buffer.dtype != pool.dtype or buffer.device != pool.device:
            with torch.inference_mode(False):  # so that it can be written in and out of inference mode
                buffer = self._buffers[which] = torch.empty(size, dtype=pool.dtype, device=pool.device)
        gathered = buffer[:size].view(shape)
        return torch.index_select(pool, 0, slots, out=gathered)


def store_kv(k: torch.Tensor, v: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, out_loc: torch.Tensor) -> None:
    """Write new keys and values into the pool, in place.

    Args:
        k: ``[T, kv_heads, head_dim]``; ``v`` likewise.
        k_pool: ``[slots, kv_heads, head_dim]``, dtype of ``k``; ``v_pool`` likewise.
        out_loc: ``[T]`` int64, distinct.
    """
    check_shape("k", k, out_loc.shape[0], *k_pool.shape[1:])
    check_shape("v", v, out_loc.shape[0], *v_pool.shape[1:])
    check_device("k", k, "k_pool", k_pool)
    k_pool.index_copy_(0, out_loc, k)
    v_pool.index_copy_(0, out_loc, v)


def paged_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    layout: StepLayout,
    *,
    scale: float,
    scratch: GatherScratch | None = None,
) -> torch.Tensor:
    """Attend every new token to its sequence. The new keys and values are in the pool already (``store_kv``).

    Storing first is what lets a sequence ride on a prefix that a batch mate computes in this very step.

    Args:
        q: ``[T, heads, head_dim]``.
        k: ``[T, kv_heads, head_dim]``, the new keys; ``v`` likewise.
        k_pool: ``[slots, kv_heads, head_dim]``; ``v_pool`` likewise.
        layout: of this step.
        scale: multiplies the scores before the softmax.
        scratch: for gathered keys and values; None allocates them anew.

    Returns:
        ``[T, heads, value_dim]`` in the dtype of ``q``.

    Source: cascade inference, Ye et al. 2024; split-KV, Flash-Decoding, Dao et al. 2023.
    """
    rows, heads, _ = q.shape
    check_shape("k", k, rows, *k_pool.shape[1:])
    scratch = GatherScratch() if scratch is None else scratch
    out = q.new_empty(rows, heads, v.shape[-1])
    lse = torch.empty(rows, heads, dtype=torch.float32, device=q.device)
    for bucket in layout.decodes:
        keys, values = _own_kv(k_pool, v_pool, bucket.slots, scratch)
        out[bucket.rows], lse[bucket.rows] = batched_segment_attention(q[bucket.rows], keys, values, bucket.bias, scale=scale)
    for row in layout.extends:
        span = slice(row.start, row.end)
        state = segment_attention(q[span], k[span], v[span], scale=scale, causal=True)
        if row.prefix is not None:
            keys, values = _read(k_pool, v_pool, row.prefix, scratch)
            state = merge_states(*state, *segment_attention(q[span], keys, values, scale=scale, causal=False))
        out[span], lse[span] = state
    for run in layout.shared:
        keys, values = _read(k_pool, v_pool, run.slots, scratch)
        state = segment_attention(q[run.rows], keys, values, scale=scale, causal=False)
        out[run.rows], lse[run.rows] = merge_states(out[run.rows], lse[run.rows], *state)
    return out


def _read(
    k_pool: torch.Tensor, v_pool: torch.Tensor, slots: torch.Tensor | slice, scratch: GatherScratch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, ``[length, kv_heads, dim]`` each; views where the slots are consecutive."""
    if isinstance(slots, slice):
        return k_pool[slots], v_pool[slots]
    return scratch.gather(0, k_pool, slots), scratch.gather(1, v_pool, slots)


def _own_kv(
    k_pool: torch.Tensor, v_pool: torch.Tensor, slots: torch.Tensor | slice, scratch: GatherScratch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a bucket, ``[b, length, kv_heads, dim]`` each."""
    batch = 1 if isinstance(slots, slice) else slots.shape[0]
    flat = slots if isinstance(slots, slice) else slots.reshape(-1)
    keys, values = _read(k_pool, v_pool, flat, scratch)
    return keys.view(batch, -1, *keys.shape[1:]), values.view(batch, -1, *values.shape[1:])
