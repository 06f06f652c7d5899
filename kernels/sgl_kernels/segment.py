"""Attention of a block of queries over one contiguous segment of keys, with the log-sum-exp that merging needs.

Grouped-query heads are folded into the query dimension, so keys and values are never expanded where no causal mask is
needed: ``G`` query heads that read one KV head become ``G`` times as many queries of it.
"""

from __future__ import annotations

import torch

from sgl_kernels.checks import check_device, check_shape

__all__ = ["batched_segment_attention", "segment_attention"]


def segment_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend every query to the segment.

    Args:
        q: ``[rows, heads, head_dim]``.
        k: ``[length, kv_heads, head_dim]``, dtype of ``q``; ``heads`` is a multiple of ``kv_heads``; length >= 1.
        v: ``[length, kv_heads, value_dim]``.
        scale: multiplies the scores before the softmax.
        causal: row ``i`` sees keys ``0..i``; needs ``rows == length``.

    Returns:
        ``[rows, heads, value_dim]`` in the dtype of ``q``, and the log-sum-exp ``[rows, heads]`` in float32.
    """
    rows, heads, dim = q.shape
    length, kv_heads, _ = k.shape
    check_shape("k", k, rows if causal else None, None, dim)
    check_shape("v", v, length, kv_heads, None)
    check_device("k", k, "q", q)
    group = heads // kv_heads
    if causal:
        k, v = (t.repeat_interleave(group, dim=1) if group > 1 else t for t in (k, v))
        out, lse = _attend(q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], scale, None, causal=True)
        return out[0].transpose(0, 1), lse[0].transpose(0, 1)
    folded = q.view(rows, kv_heads, group, dim).permute(1, 2, 0, 3).reshape(1, kv_heads, group * rows, dim)
    out, lse = _attend(folded, k.transpose(0, 1)[None], v.transpose(0, 1)[None], scale, None, causal=False)
    out = out.reshape(heads, rows, -1).transpose(0, 1)
    return out, lse.reshape(heads, rows).transpose(0, 1)


def batched_segment_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, *, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend one query per sequence to that sequence's own keys, padded to one length.

    Args:
        q: ``[batch, heads, head_dim]``.
        k: ``[batch, length, kv_heads, head_dim]``; ``v`` likewise with its own last dimension.
        bias: ``[batch, 1, 1, length]`` in the dtype of ``q``, 0 or -inf, added to the scores; None where nothing is padded.
            Every sequence has at least one key.
        scale: multiplies the scores.

    Returns:
        ``[batch, heads, value_dim]`` and the log-sum-exp ``[batch, heads]`` in float32.
    """
    batch, heads, dim = q.shape
    kv_heads = k.shape[2]
    check_shape("k", k, batch, None, kv_heads, dim)
    folded = q.view(batch, kv_heads, heads // kv_heads, dim)
    out, lse = _attend(folded, k.transpose(1, 2), v.transpose(1, 2), scale, bias, causal=False)
    return out.reshape(batch, heads, -1), lse.reshape(batch, heads)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias: torch.Tensor | None, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[batch, heads, rows, dim]`` in, output and float32 log-sum-exp ``[batch, heads, rows]`` out."""
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:  # the CPU flash operator, called directly for its log-sum-exp
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
        return out, lse.reshape(q.shape[:3])
    scores = (q.float() @ k.float().transpose(-1, -2)) * scale
    if bias is not None:
        scores = scores + bias.float()
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    lse = scores.logsumexp(-1)
    out = (scores - lse.unsqueeze(-1)).exp() @ v.float()
    return out.to(q.dtype), lse
