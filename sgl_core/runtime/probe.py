"""The start-up probe: does this architecture really run on our attention?

Some architectures accept a registered attention function and are then silently wrong, so a model is served only if it
claims support *and* its packed, cached logits agree with its own eager full forward pass.
"""

from __future__ import annotations

from typing import Any

import torch

from sgl_core.errors import UnsupportedModelError
from sgl_core.runtime.attention import install_attention
from sgl_core.runtime.batch import SlotTable, build_batch
from sgl_core.runtime.kv_pool import KVPool, LayerShape
from sgl_core.runtime.model_runner import ModelRunner, discover_layer_shapes
from sgl_core.runtime.plan import StepPlan, Work
from sgl_core.runtime.request import Kind, Request
from sgl_core.types import SamplingParams

__all__ = ["probe_model"]

_LENGTHS = (21, 17)
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Of the largest logit. A low precision dtype rounds differently in packed and in full form; wrong attention is far off."""


def probe_model(model: Any) -> list[LayerShape]:
    """Install our attention and check it against the model's eager attention.

    Two sequences are packed and run in three phases (a first part of one, the rest of it with all of the other but its
    last token, then one decode each), on scattered slots.

    Args:
        model: a causal LM of transformers in eval mode.

    Returns:
        What every layer writes to the cache.

    Raises:
        UnsupportedModelError: it does not claim support, does not call the function once a layer, or disagrees.
    """
    kind = str(model.config.model_type)
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModelError(
            f"model type {kind!r} {_CURE.format('does not support attention backends in transformers')}"
        )
    vocab = int(model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in _LENGTHS]
    model.set_attn_implementation("eager")
    expected = [_full_forward(model, ids) for ids in sequences]
    install_attention(model)
    try:
        shapes = discover_layer_shapes(model)
        got = _packed_forward(model, shapes, sequences)
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UnsupportedModelError(f"model type {kind!r} {_CURE.format('cannot run on paged attention')}") from error
    tolerance = _TOLERANCE[model.dtype]
    for want, have in zip(expected, got, strict=True):
        gap = float((want - have).abs().max() / want.abs().max().clamp_min(1e-3))
        if not gap <= tolerance:  # NaN fails too
            reason = (
                f"gives other logits on paged attention than in full (relative difference {gap:.2g}, bound {tolerance:.0e})"
            )
            raise UnsupportedModelError(f"model type {kind!r} {_CURE.format(reason)}")
    return shapes


_CURE = (
    "{}, so it is refused rather than served wrongly. Use a model of another architecture: llama, mistral, mixtral, qwen2, "
    "qwen3, gemma2, phi3 and gpt2 are known to work"
)


def _full_forward(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits ``[len(ids), vocab]`` of the model's own eager attention, in float32."""
    logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    return logits.float()


def _packed_forward(model: Any, shapes: list[LayerShape], sequences: list[list[int]]) -> list[torch.Tensor]:
    """The same logits through the pool."""
    total = sum(map(len, sequences))
    pool = KVPool(shapes, total, dtype=model.dtype, device=model.device)
    runner = ModelRunner(model, pool, max_running=len(sequences), context_tokens=max(map(len, sequences)))
    table = SlotTable(len(sequences), max(map(len, sequences)), model.device)
    slots = torch.randperm(total, generator=torch.Generator().manual_seed(1)).tolist()
    first, second = (_probe_request(ids, row) for row, ids in enumerate(sequences))
    first.slots, second.slots = slots[: len(first.ids)], slots[len(first.ids) :]
    cut, last_a, last_b = 9, len(first.ids) - 1, len(second.ids) - 1
    phases = [
        [(first, 0, cut)],
        [(first, cut, last_a), (second, 0, last_b)],
        [(first, last_a, last_a + 1), (second, last_b, last_b + 1)],
    ]
    parts: dict[int, list[torch.Tensor]] = {first.row: [], second.row: []}
    for phase in phases:
        works = tuple(Work(r, start, end, start, 0, logit_start=start, sample=False) for r, start, end in phase)
        batch = build_batch(StepPlan(works, ()), table, dtype=model.dtype)
        logits = runner.forward(batch).float()
        for work, part in zip(works, torch.split(logits, [work.end - work.start for work in works]), strict=True):
            parts[work.request.row].append(part)
    return [torch.cat(parts[row]) for row in sorted(parts)]


def _probe_request(ids: list[int], row: int) -> Request:
    request = Request(
        id=f"probe-{row}",
        ids=list(ids),
        kind=Kind.PREFETCH,
        params=SamplingParams(),
        max_new_tokens=0,
        stop_ids=frozenset(),
        sink=None,
        submitted_at=0.0,
    )
    request.row = row
    return request
