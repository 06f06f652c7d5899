"""Runs plans on a model: builds the batch, calls transformers' modules with our attention, samples and scores.

The engine thread alone calls it. It owns the KV pool's memory, the slot table and the scratch that attention gathers into.
"""

from __future__ import annotations

from typing import Any

import torch

from sgl_core.runtime.attention import STEP_ARGUMENT, ShapeRecorder, StepContext, install_attention
from sgl_core.runtime.batch import Batch, SlotTable, build_batch
from sgl_core.runtime.kv_pool import KVPool, LayerShape
from sgl_core.runtime.plan import StepPlan, StepResult
from sgl_core.runtime.sampler import sample
from sgl_kernels import GatherScratch

__all__ = ["ModelRunner", "discover_layer_shapes"]


def discover_layer_shapes(model: Any) -> list[LayerShape]:
    """What every layer writes to the cache, learnt from one tiny forward pass with our attention installed.

    Raises:
        ValueError: the layers do not call the attention once each, numbered from 0; such a model cannot be served.
    """
    recorder = ShapeRecorder()
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    _forward(model, ids, torch.arange(2, device=model.device).unsqueeze(0), recorder, ids[0, -1:])
    layers = recorder.calls
    if not layers or sorted(recorder.shapes) != list(range(layers)):
        raise ValueError(f"{layers} attention calls for the layers {sorted(recorder.shapes)}")
    return [recorder.shapes[layer] for layer in range(layers)]


def _forward(
    model: Any,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    step: StepContext | ShapeRecorder,
    logit_rows: torch.Tensor,
) -> torch.Tensor:
    """Logits ``[rows, vocab]`` of a packed batch."""
    output = model(
        input_ids=input_ids,
        position_ids=position_ids,
        use_cache=False,
        logits_to_keep=logit_rows,
        **{STEP_ARGUMENT: step},
    )
    logits: torch.Tensor = output.logits[0]
    return logits


class ModelRunner:
    """One model on one device.

    Args:
        model: a causal LM of transformers in eval mode, our attention installed.
        pool: keys and values; its dtype is the model's.
        max_running: requests in one batch.
        context_tokens: tokens of one request at most.
    """

    def __init__(self, model: Any, pool: KVPool, *, max_running: int, context_tokens: int) -> None:
        self._model = model
        self._pool = pool
        self._table = SlotTable(max_running, context_tokens, model.device)
        self._scratch = GatherScratch()
        install_attention(model)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """One step."""
        batch = build_batch(plan, self._table, dtype=self._pool.keys[0].dtype)
        logits = self.forward(batch)
        return _read(plan, batch, logits)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits ``[len(batch.logit_rows), vocab]``.

        Raises:
            RuntimeError: a layer did not attend, or attended twice.
        """
        step = StepContext(self._pool, batch, self._scratch)
        logits = _forward(self._model, batch.input_ids, batch.position_ids, step, batch.logit_rows)
        if len(step.layers_seen) != len(self._pool.keys):
            raise RuntimeError(f"{len(step.layers_seen)} attention calls in a model of {len(self._pool.keys)} layers")
        return logits


def _read(plan: StepPlan, batch: Batch, logits: torch.Tensor) -> StepResult:
    """Tokens and scores from a step's logits."""
    count = len(plan.works)
    tokens: list[int | None] = [None] * count
    errors: list[Exception | None] = [None] * count
    logprobs: list[tuple[float, ...]] = [()] * count
    sampled: list[tuple[int, int]] = []  # (work, logits row)
    first = 0
    for index, (work, rows) in enumerate(zip(plan.works, batch.logit_counts, strict=True)):
        if work.sample:
            sampled.append((index, first))
        elif rows:
            logprobs[index] = _score(logits[first : first + rows], work.request.ids[work.end - rows + 1 : work.end + 1])
        first += rows
    if sampled:
        rows_wanted = [row for _, row in sampled]
        chosen = logits if len(rows_wanted) == logits.shape[0] else logits[rows_wanted]
        picked, failures = sample(chosen, [plan.works[index].request for index, _ in sampled])
        for (index, _), token, failure in zip(sampled, picked, failures, strict=True):
            tokens[index], errors[index] = token, failure
    return StepResult(tuple(tokens), tuple(logprobs), tuple(errors))


def _score(logits: torch.Tensor, targets: list[int]) -> tuple[float, ...]:
    """Natural-log probability of each target under its row of logits, in float32."""
    wanted = torch.tensor(targets, device=logits.device).unsqueeze(1)
    return tuple(logits.float().log_softmax(-1).gather(1, wanted).squeeze(1).tolist())
