"""The eager reference of paged attention: plain, slow, every feature, accumulates in float32 (float64 for float64 input).

The oracle for every faster implementation, and the implementation for models with a sliding window, soft cap or sinks
until a kernel has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["paged_attention_reference"]


def paged_attention_reference(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    q_lens: Sequence[int],
    kv_slots: Sequence[torch.Tensor],
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend each sequence's newest tokens to all of its tokens, causally.

    Args:
        q: ``[T, heads, head_dim]``, sequences packed one after the other.
        k_pool: ``[slots, kv_heads, head_dim]``; ``v_pool`` likewise with its own last dimension.
        q_lens: queries of each sequence; they sum to ``T``.
        kv_slots: per sequence the slots of all its tokens in order, the new ones included (they are stored already).
        scale: multiplies the scores.
        sliding_window: a query sees only the last so many keys, its own included.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
        sinks: ``[heads]`` logits that join the softmax's denominator.

    Returns:
        ``[T, heads, value_dim]`` in the dtype of ``q``.
    """
    heads, kv_heads = q.shape[1], k_pool.shape[1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    outputs = []
    start = 0
    for q_len, slots in zip(q_lens, kv_slots, strict=True):
        queries = q[start : start + q_len].to(wide).transpose(0, 1)
        start += q_len
        keys, values = (
            pool.index_select(0, slots).to(wide).repeat_interleave(heads // kv_heads, dim=1).transpose(0, 1)
            for pool in (k_pool, v_pool)
        )
        scores = (queries @ keys.transpose(1, 2)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        positions = torch.arange(len(slots), device=q.device)
        newest = positions[-q_len:].unsqueeze(1)
        hidden = positions > newest
        if sliding_window is not None:
            hidden = hidden | (positions <= newest - sliding_window)
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(wide).view(-1, 1, 1).expand(-1, q_len, 1)], dim=-1)
        weights = scores.softmax(-1)[..., : len(slots)]
        outputs.append((weights @ values).transpose(0, 1))
    return torch.cat(outputs).to(q.dtype)
