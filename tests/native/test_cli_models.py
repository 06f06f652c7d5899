"""``sgl models``: what this machine has, and what of it can be served."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from sgl_core.config import Environment
from sgl_core.runtime.gguf_model import converted_folder
from sgl_core.runtime.model_source import resolve_model
from sgl_core.testing.tiny_models import TINY_KINDS
from sgl_native import cli
from sgl_native.local_models import SERVED_ARCHITECTURES, local_models

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty machine, but for the embedded model: our cache and the hub's are below this folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SGL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SGL_MODEL", raising=False)
    return tmp_path


def write_model(folder: Path, config=LLAMA, *, weights="model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / weights).write_bytes(b"0123456789")
    return folder


def write_hub_model(home: Path, name: str, config=LLAMA, **options) -> Path:
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c0ffee", encoding="utf-8")
    return write_model(repo / "snapshots" / "c0ffee", config, **options)


def found(source: str):
    return [model for model in local_models(Environment.read()) if model.source == source]


def test_the_embedded_model_is_the_default_and_comes_first(home):
    first, *others = local_models(Environment.read())
    assert (first.source, first.model, first.architecture, first.supported) == ("embedded", None, "llama", True)
    assert first.size_bytes > 90_000_000
    assert others == []


def test_the_embedded_model_is_named_by_its_path_where_another_is_the_default(home, monkeypatch):
    monkeypatch.setenv("SGL_MODEL", "org/name")
    (model,) = found("embedded")
    assert model.model == model.path
    assert "SGL_MODEL" in model.note


def test_the_conversion_of_the_embedded_model_is_not_listed_again(home):
    environment = Environment.read()
    write_model(converted_folder(resolve_model(None, environment), environment))
    assert found("converted") == []


def test_a_converted_model_is_named_by_its_folder(home):
    folder = write_model(home / "cache" / "models" / "abc-v1")
    (model,) = found("converted")
    assert (model.model, model.architecture, model.supported) == (str(folder), "llama", True)
    assert model.size_bytes == 10 + (folder / "config.json").stat().st_size


def test_a_conversion_under_way_is_not_listed(home):
    write_model(home / "cache" / "models" / ".abc-v1.4711")
    assert found("converted") == []


def test_a_model_of_the_hub_cache_is_named_as_the_hub_names_it(home):
    write_hub_model(home, "org/name")
    (model,) = found("hub")
    assert (model.model, model.architecture, model.supported, model.note) == ("org/name", "llama", True, "")


def test_data_sets_are_not_listed(home):
    write_hub_model(home, "org/name")
    (home / "hub" / "models--org--name").rename(home / "hub" / "datasets--org--name")
    assert found("hub") == []


@pytest.mark.parametrize(
    ("config", "weights", "reason"),
    [
        (LLAMA, "pytorch_model.bin", "pickle is never loaded"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "model.safetensors", "encoder-decoder"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "model.safetensors", "not a causal LM"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "model.safetensors", "quantised"),
        ({**LLAMA, "auto_map": {"AutoModel": "code.py"}}, "model.safetensors", "custom code"),
    ],
)
def test_what_cannot_be_served_is_listed_with_the_reason(home, config, weights, reason):
    write_hub_model(home, "org/name", config, weights=weights)
    (model,) = found("hub")
    assert model.supported is False
    assert reason in model.note


def test_of_an_architecture_that_is_not_tested_only_the_probe_can_tell(home):
    write_hub_model(home, "org/name", {"model_type": "falcon", "architectures": ["FalconForCausalLM"]})
    (model,) = found("hub")
    assert model.supported is None
    assert "probe" in model.note


def test_json_holds_every_field(home, capsys):
    write_hub_model(home, "org/name")
    assert cli.main(["models", "--json"]) == 0
    embedded, other = json.loads(capsys.readouterr().out)
    assert set(embedded) == {"model", "name", "architecture", "size_bytes", "source", "supported", "note", "path"}
    assert other["model"] == "org/name"


def test_the_table_says_what_to_pass_and_whether_it_can_be_served(home, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    write_hub_model(home, "org/bad", {**LLAMA, "quantization_config": {"bits": 4}})
    assert cli.main(["models"]) == 0
    out = capsys.readouterr().out
    assert "SmolLM2-135M-Instruct" in out
    assert "yes: the default" in out
    assert "98 MB" in out
    assert "org/bad" in out
    assert "no: quantised" in out


def test_the_architectures_that_are_said_to_work_are_tested_ones():
    assert SERVED_ARCHITECTURES - set(TINY_KINDS) == set()
