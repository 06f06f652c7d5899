"""What a model itself says, by plain full forward passes: no cache, no batch, no paging. Tests compare the runtime with it.

Stateless; torch is imported when a reference is computed, not before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["full_forward", "reference_logprobs", "reference_scores"]

_BATCH = 64


def full_forward(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities ``[len(ids), vocab]`` float32: row ``i`` is what the model expects behind ``ids[: i + 1]``.

    Args:
        model: a causal language model of transformers in evaluation mode, its own attention in place.
    """
    import torch

    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)  # type: ignore[no-any-return]


def reference_logprobs(model: Any, ids: Sequence[int], start: int = 1) -> list[float]:
    """The log-probability of each of ``ids[start:]`` behind all that precedes it; ``start`` is at least 1."""
    rows = full_forward(model, ids)
    return [float(rows[index - 1, ids[index]]) for index in range(start, len(ids))]


def reference_scores(model: Any, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    """For each continuation of ``prompt`` the log-probabilities of its tokens, from a full forward pass of its own.

    Those of equal length run together: nothing is padded, so no mask or position differs from a pass alone.
    """
    import torch

    by_length: dict[int, list[int]] = defaultdict(list)
    for index, continuation in enumerate(continuations):
        by_length[len(continuation)].append(index)
    found: dict[int, tuple[float, ...]] = {}
    for length, members in by_length.items():
        for start in range(0, len(members), _BATCH):
            batch = members[start : start + _BATCH]
            ids = torch.tensor([[*prompt, *continuations[index]] for index in batch])
            with torch.inference_mode():
                logits = model(ids).logits[:, len(prompt) - 1 : -1].float().log_softmax(-1)
            scores = logits.gather(-1, ids[:, -length:, None])[..., 0].tolist()
            found.update((index, tuple(row)) for index, row in zip(batch, scores, strict=True))
    return [found[index] for index in range(len(continuations))]
