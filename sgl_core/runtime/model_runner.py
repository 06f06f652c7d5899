"""Runs plans on a model: builds the batch, calls transformers' modules with our attention, samples and scores.

The engine thread alone calls it. It owns the KV pool's memory, the slot table and the scratch that attention gathers into.
"""

from __future__ import annotations

from typing import Any

import torch

from sgl_core.runtime.attention import ShapeRecorder, StepContext, install_attention, run_packed
from sgl_core.runtime.batch import Batch, SlotTable, build_batch
from sgl_core.runtime.kv_pool import KVPool, LayerShape
from sgl_core.runtime.plan import StepPlan, StepResult
from sgl_core.runtime.reading import StepReader
from sgl_core.runtime.tiling import TiledForward
from sgl_kernels import GatherScratch

__all__ = ["ModelRunner", "discover_layer_shapes"]


def discover_layer_shapes(model: Any) -> list[LayerShape]:
    """What every layer writes to the cache, learnt from one tiny forward pass with our attention installed.

    Raises:
        ValueError: the layers do not call the attention once each, numbered from 0; such a model cannot be served.
    """
    recorder = ShapeRecorder()
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    run_packed(model, ids, torch.arange(2, device=model.device).unsqueeze(0), recorder, ids[0, -1:])
    layers = recorder.calls
    if not layers or sorted(recorder.shapes) != list(range(layers)):
        raise ValueError(f"{layers} attention calls for the layers {sorted(recorder.shapes)}")
    return [recorder.shapes[layer] for layer in range(layers)]


class ModelRunner:
    """One model on one device.

    Args:
        model: a causal LM of transformers in eval mode, our attention installed.
        pool: keys and values; its dtype is the model's.
        max_running: requests in one batch.
        context_tokens: tokens of one request at most.
        tile_sizes: run deterministically, in tiles of these sizes (see ``tiling``); empty is one packed pass a step.
    """

    def __init__(
        self, model: Any, pool: KVPool, *, max_running: int, context_tokens: int, tile_sizes: tuple[int, ...] = ()
    ) -> None:
        self._model = model
        self._pool = pool
        self._table = SlotTable(max_running, context_tokens, model.device)
        self._scratch = GatherScratch()
        self._reader = StepReader()
        install_attention(model)
        self._tiled = TiledForward(model, pool, self._table, self._scratch, sizes=tile_sizes) if tile_sizes else None

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """One step."""
        masks = self._reader.start(plan)
        if self._tiled is not None:
            logits = self._tiled.logits(plan)
        else:
            logits = self.forward(build_batch(plan, self._table, dtype=self._pool.keys[0].dtype))
        return self._reader.read(plan, logits, masks)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits ``[len(batch.logit_rows), vocab]``.

        Raises:
            RuntimeError: a layer did not attend, or attended twice.
        """
        step = StepContext(self._pool, batch, self._scratch)
        logits = run_packed(self._model, batch.input_ids, batch.position_ids, step, batch.logit_rows)
        if len(step.layers_seen) != len(self._pool.keys):
            raise RuntimeError(f"{len(step.layers_seen)} attention calls in a model of {len(self._pool.keys)} layers")
        return logits

    def close(self) -> None:
        """End what runs beside the model."""
        self._reader.close()
