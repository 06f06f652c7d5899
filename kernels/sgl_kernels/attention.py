"""Paged attention of one packed batch: extends and decodes together, shared prefixes read once.

Each query's keys are cut into disjoint segments: runs of slots that several sequences share (one attention call for all
their queries), the sequence's own cached tokens, and its new tokens. The segments' results are merged by their
log-sum-exp. Who calls it: the runtime's attention function, once a layer. It owns nothing; the layout is built once a
step and shared by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sgl_kernels.checks import check_device, check_shape
from sgl_kernels.merge import merge_states
from sgl_kernels.segment import batched_segment_attention, segment_attention

__all__ = ["DecodeBucket", "ExtendRow", "SharedRun", "StepLayout", "paged_attention", "store_kv"]


@dataclass(frozen=True, slots=True)
class SharedRun:
    """A run of slots that several sequences have in their prefix.

    Args:
        rows: ``[n]`` int64, the packed rows of all queries that read it; each comes after the whole run.
        slots: ``[length]`` int64, or a slice where the slots are consecutive (then nothing is gathered).
    """

    rows: torch.Tensor
    slots: torch.Tensor | slice


@dataclass(frozen=True, slots=True)
class DecodeBucket:
    """Sequences with one new token each and own keys of similar length.

    Args:
        rows: ``[b]`` int64, their packed rows.
        slots: ``[b, length]`` int64, own slots, the new token's included; padding repeats a valid slot. A slice for a single
            sequence whose slots are consecutive.
        bias: ``[b, 1, 1, length]``, 0 or -inf, None if nothing is padded.
    """

    rows: torch.Tensor
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
) -> torch.Tensor:
    """Attend every new token to its sequence. The new keys and values are in the pool already (``store_kv``).

    Storing first is what lets a sequence ride on a prefix that a batch mate computes in this very step.

    Args:
        q: ``[T, heads, head_dim]``.
        k: ``[T, kv_heads, head_dim]``, the new keys; ``v`` likewise.
        k_pool: ``[slots, kv_heads, head_dim]``; ``v_pool`` likewise.
        layout: of this step.
        scale: multiplies the scores before the softmax.

    Returns:
        ``[T, heads, value_dim]`` in the dtype of ``q``.

    Source: cascade inference, Ye et al. 2024; split-KV, Flash-Decoding, Dao et al. 2023.
    """
    rows, heads, _ = q.shape
    check_shape("k", k, rows, *k_pool.shape[1:])
    out = q.new_empty(rows, heads, v.shape[-1])
    lse = torch.empty(rows, heads, dtype=torch.float32, device=q.device)
    for bucket in layout.decodes:
        own_k, own_v = _gather(k_pool, bucket.slots), _gather(v_pool, bucket.slots)
        out[bucket.rows], lse[bucket.rows] = batched_segment_attention(q[bucket.rows], own_k, own_v, bucket.bias, scale=scale)
    for row in layout.extends:
        span = slice(row.start, row.end)
        state = segment_attention(q[span], k[span], v[span], scale=scale, causal=True)
        if row.prefix is not None:
            prefix_k, prefix_v = k_pool[row.prefix], v_pool[row.prefix]
            state = merge_states(*state, *segment_attention(q[span], prefix_k, prefix_v, scale=scale, causal=False))
        out[span], lse[span] = state
    for run in layout.shared:
        state = segment_attention(q[run.rows], k_pool[run.slots], v_pool[run.slots], scale=scale, causal=False)
        out[run.rows], lse[run.rows] = merge_states(out[run.rows], lse[run.rows], *state)
    return out


def _gather(pool: torch.Tensor, slots: torch.Tensor | slice) -> torch.Tensor:
    """``[b, length, kv_heads, dim]``; a view where the slots are consecutive."""
    if isinstance(slots, slice):
        return pool[slots].unsqueeze(0)
    return pool.index_select(0, slots.reshape(-1)).view(*slots.shape, *pool.shape[1:])
