"""Merging attention states: the result over two disjoint sets of keys from the results over each.

Source: online softmax, Milakov and Gimelshein 2018.
"""

from __future__ import annotations

import torch

from sgl_kernels.checks import check_shape

__all__ = ["merge_states"]


def merge_states(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine two attention states of the same queries.

    Args:
        out_a: ``[rows, heads, head_dim]``; ``out_b`` likewise.
        lse_a: ``[rows, heads]`` float32, log-sum-exp of the scaled scores; ``lse_b`` likewise. At least one is finite.

    Returns:
        ``out`` in the dtype of ``out_a`` and ``lse`` float32.
    """
    rows, heads, dim = out_a.shape
    check_shape("out_b", out_b, rows, heads, dim)
    check_shape("lse_a", lse_a, rows, heads)
    check_shape("lse_b", lse_b, rows, heads)
    weight_b = torch.sigmoid(lse_b - lse_a).unsqueeze(-1).to(out_a.dtype)
    return torch.lerp(out_a, out_b, weight_b), torch.logaddexp(lse_a, lse_b)
