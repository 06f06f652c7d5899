"""Our attention inside transformers' own modules: one registered function that reads and writes the KV pool.

The modules call it once a layer with the new queries, keys and values of the packed batch; the step's tensors travel as a
keyword argument through ``model(...)``, so nothing is global but the registration itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from sgl_core.runtime.batch import Batch
from sgl_core.runtime.kv_pool import KVPool, LayerShape
from sgl_kernels import GatherScratch, paged_attention, paged_attention_reference, store_kv

__all__ = ["ATTENTION_NAME", "AttentionStep", "ShapeRecorder", "StepContext", "install_attention", "run_packed"]

ATTENTION_NAME = "sgl_paged"
STEP_ARGUMENT = "sgl_step"


class AttentionStep(Protocol):
    """What the modules reach during one forward pass."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, features: dict[str, Any]
    ) -> torch.Tensor:
        """Take a layer's new queries, keys and values ``[T, heads, head_dim]``; return ``[T, heads, value_dim]``."""


@dataclass(slots=True)
class StepContext:
    """One forward pass.

    Args:
        pool: where keys and values are.
        batch: the packed batch.
        scratch: the runner's, for gathered keys and values.
        layers_seen: indices of the layers that attended, in order; the probe checks them.
    """

    pool: KVPool
    batch: Batch
    scratch: GatherScratch
    layers_seen: list[int] = field(default_factory=list)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, features: dict[str, Any]
    ) -> torch.Tensor:
        """Store the new keys and values, then attend. All ``[T, heads, head_dim]``."""
        self.layers_seen.append(layer)
        k_pool, v_pool = self.pool.keys[layer], self.pool.values[layer]
        batch = self.batch
        store_kv(k, v, k_pool, v_pool, batch.layout.out_loc)
        window = features.get("sliding_window")
        if window is not None and window >= batch.sequences.longest:
            features = {**features, "sliding_window": None}
        if all(value is None for value in features.values()):
            return paged_attention(q, k, v, k_pool, v_pool, batch.layout, scale=scale, scratch=self.scratch)
        q_lens, kv_slots = zip(*batch.sequences.runs, strict=True)
        return paged_attention_reference(q, k_pool, v_pool, q_lens, kv_slots, scale=scale, **features)


@dataclass(slots=True)
class ShapeRecorder:
    """Stands in for a StepContext once, before there is a pool, to learn what every layer writes."""

    shapes: dict[int, LayerShape] = field(default_factory=dict)
    calls: int = 0

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, features: dict[str, Any]
    ) -> torch.Tensor:
        """Note the shapes; the output only has to have the right one."""
        del scale, features
        self.calls += 1
        self.shapes[layer] = LayerShape(k.shape[1], k.shape[2], v.shape[2])
        return q.new_zeros(q.shape[0], q.shape[1], v.shape[2])


def _paged_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls: ``[1, heads, T, head_dim]`` in, ``[1, T, heads, head_dim]`` out."""
    del attention_mask
    step: AttentionStep = kwargs[STEP_ARGUMENT]
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    q, k, v = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))
    features = {"sliding_window": sliding_window, "softcap": softcap, "sinks": s_aux}
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return step.attend(layer, q.contiguous(), k, v, scale, features).unsqueeze(0), None


def install_attention(model: Any) -> None:
    """Make ``model`` call our attention. Registers it with transformers on first use."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _paged_attention_forward)
    model.set_attn_implementation(ATTENTION_NAME)


def run_packed(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, step: AttentionStep, logit_rows: torch.Tensor
) -> torch.Tensor:
    """Logits ``[len(logit_rows), vocab]`` of one packed forward pass of a model with our attention installed.

    Args:
        input_ids: ``[1, T]`` int64. ``position_ids`` likewise.
        step: takes every layer's queries, keys and values.
        logit_rows: ``[n]`` int64, packed rows.
    """
    output = model(
        input_ids=input_ids, position_ids=position_ids, use_cache=False, logits_to_keep=logit_rows, **{STEP_ARGUMENT: step}
    )
    logits: torch.Tensor = output.logits[0]
    return logits
