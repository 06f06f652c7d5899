from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl_core.config import Environment
from sgl_core.errors import InvalidArgumentError, ModelFormatError, UnsupportedModelError
from sgl_core.runtime.model_loader import LoadedModel, default_dtype, load_model, quiet_transformers
from sgl_core.runtime.model_source import ModelSource, resolve_model

ENV = Environment(Path("/nonexistent"), None, frozenset())
CPU = torch.device("cpu")
IDS = torch.arange(5, 25)[None]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return load_model(resolve_model(str(folder), ENV), device=CPU, dtype=dtype)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.fixture
def copied(tiny_model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A private copy of a tiny model, to damage."""
    return lambda kind: shutil.copytree(tiny_model_folder(kind), tmp_path / kind)


def test_a_loaded_model_is_ready_to_run(tiny_llama: Path) -> None:
    loaded = load(tiny_llama)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "eager"
    assert (loaded.context_tokens, loaded.eos_ids, loaded.name) == (512, frozenset({2}), "llama")
    assert loaded.config is loaded.model.config


def test_the_weights_are_those_of_the_file(tiny_llama: Path) -> None:
    state = load(tiny_llama).model.state_dict()
    stored = load_file(tiny_llama / "model.safetensors")
    assert set(stored) == set(state)
    assert all(torch.equal(stored[name], state[name]) for name in stored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_the_one_asked_for_and_the_global_one_stays(tiny_llama: Path, dtype: torch.dtype) -> None:
    loaded = load(tiny_llama, dtype)
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "phi3", "gpt2", "mixtral"])
def test_other_architectures_load_and_run(tiny_model_folder: Callable[[str], Path], kind: str) -> None:
    loaded = load(tiny_model_folder(kind))
    with torch.no_grad():
        assert loaded.model(IDS, use_cache=False).logits.isfinite().all().item()


def test_the_tokenizer_is_the_published_one_whatever_the_model_type(tiny_model_folder: Callable[[str], Path]) -> None:
    tokenizer = load(tiny_model_folder("qwen2")).tokenizer  # AutoTokenizer would split "12", as Qwen's own does
    assert tokenizer.convert_ids_to_tokens(tokenizer("12").input_ids) == ["12"]


def test_all_ends_of_generation_are_collected(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert load(folder).eos_ids == {2, 7, 9}


def test_a_gguf_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="convert_gguf"):
        load_model(ModelSource(tmp_path, "gguf", "m", "0"), device=CPU, dtype=torch.float32)


def test_a_missing_weight_is_named(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFormatError, match=r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load(folder)


def test_a_weight_of_another_shape_is_named_with_both_shapes(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    edit_config(folder, intermediate_size=96)
    with pytest.raises(
        ModelFormatError, match=r"12 of another shape .*mlp\.down_proj\.weight: file \(64, 128\), config \(64, 96\)"
    ):
        load(folder)


def test_damaged_safetensors_are_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFormatError, match="Fetch the model again"):
        load(folder)


def test_a_folder_without_tokenizer_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFormatError, match=r"expected tokenizer\.json"):
        load(folder)


def test_a_damaged_tokenizer_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFormatError, match=r"tokenizer of .* cannot be read"):
        load(folder)


def test_an_unknown_model_type_is_named(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    edit_config(folder, model_type="nosuchmodel")
    with pytest.raises(UnsupportedModelError, match="'nosuchmodel'"):
        load(folder)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "'t5', an encoder-decoder"),
    ({"model_type": "vit", "architectures": ["ViTModel"]}, "'vit', which is not a causal LM"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights"),
])  # fmt: skip
def test_what_is_no_plain_causal_lm_is_refused(copied: Callable[[str], Path], changes: dict[str, Any], reason: str) -> None:
    folder = copied("llama")
    edit_config(folder, **changes)
    with pytest.raises(UnsupportedModelError, match=reason):
        load(folder)


def test_a_model_without_context_length_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("bloom")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="states no context length"):
        load(folder)


def test_loading_prints_nothing(tiny_llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(tiny_llama)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_librarys_log_settings_are_put_back() -> None:
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity(logging.INFO)
    try:
        with quiet_transformers():
            assert hf_logging.get_verbosity() == logging.ERROR
        assert hf_logging.get_verbosity() == logging.INFO
        assert hf_logging.is_progress_bar_enabled()
    finally:
        hf_logging.set_verbosity_warning()


@pytest.mark.parametrize(("name", "fast", "expected"), [
    ("_is_amx_tile_supported", True, torch.bfloat16),
    ("_is_avx512_bf16_supported", True, torch.bfloat16),
    ("_is_amx_tile_supported", False, torch.float32),
])  # fmt: skip
def test_bfloat16_is_the_default_only_on_a_processor_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, name: str, fast: bool, expected: torch.dtype
) -> None:
    for check in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, name, lambda: fast, raising=False)
    assert default_dtype(CPU) == expected
