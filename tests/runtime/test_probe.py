"""The start-up probe: accepts what agrees with the full forward pass, refuses the rest by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_core.errors import UnsupportedModelError
from sgl_core.runtime import attention
from sgl_core.runtime.probe import probe_model


def model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_supported_architectures_pass_and_tell_their_cache_shapes(kind: str, tiny_model_folder: Callable[[str], Path]) -> None:
    loaded = model(tiny_model_folder(kind))
    with torch.inference_mode():
        shapes = probe_model(loaded)
    assert len(shapes) == loaded.config.num_hidden_layers
    assert all(shape.key_dim == shape.value_dim > 0 for shape in shapes)


def test_falcon_is_refused_with_its_name_and_what_to_do(tiny_model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'falcon'.*Use a model of another architecture"):
        probe_model(model(tiny_model_folder("falcon")))


def test_a_model_that_claims_support_and_is_wrong_is_refused(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = attention.StepContext.attend

    def off_by_a_scale(self: attention.StepContext, layer: int, q: Any, k: Any, v: Any, scale: float, features: Any) -> Any:
        return plain(self, layer, q, k, v, 1.3 * scale, features)

    monkeypatch.setattr(attention.StepContext, "attend", off_by_a_scale)
    with torch.inference_mode(), pytest.raises(UnsupportedModelError, match="other logits on paged attention"):
        probe_model(model(tiny_llama))


def test_a_model_that_skips_our_attention_in_a_layer_is_refused(tiny_llama: Path) -> None:
    loaded = model(tiny_llama)
    loaded.model.layers[1].self_attn.layer_idx = 0  # two layers write to one pool
    with torch.inference_mode(), pytest.raises(UnsupportedModelError, match="cannot run on paged attention") as caught:
        probe_model(loaded)
    assert caught.value.__cause__ is not None
