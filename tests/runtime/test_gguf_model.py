from __future__ import annotations

import json
import multiprocessing
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sgl_core.config import Environment
from sgl_core.errors import ModelError, ModelFormatError, UnsupportedModelError
from sgl_core.runtime import gguf_model
from sgl_core.runtime.gguf_header import read_gguf_header
from sgl_core.runtime.gguf_model import convert_gguf, converted_folder
from sgl_core.runtime.model_loader import load_model
from sgl_core.runtime.model_source import resolve_model


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k in the order in which GGUF keeps them for llama."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(folder: Path, path: Path, drop: str = "", extra: str = "", pre: str = "smollm", scaling: str = "") -> Path:
    """The tiny llama of ``folder`` as GGUF, in float32; without the tensor ``drop``, with one more called ``extra``."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(config["vocab_size"])
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    controls = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocab)
    writer.add_token_types([3 if token in controls else 1 for token in vocab])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_eot_token_id(5)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            values = interleaved(values, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        if name != drop:
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    if extra:
        writer.add_tensor(extra, np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "cache", None, frozenset())


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def convert(path: Path, env: Environment) -> Path:
    return convert_gguf(resolve_model(str(path), env), env).path


# ---- a sound file ----------------------------------------------------------------------------------------------------
def test_the_converted_weights_equal_the_original_ones(tiny_gguf: Path, tiny_llama: Path, env: Environment) -> None:
    converted = load_file(convert(tiny_gguf, env) / "model.safetensors")
    original = load_file(tiny_llama / "model.safetensors")
    assert set(converted) == set(original)
    assert all(torch.equal(converted[name], original[name]) for name in original)


def test_the_converted_folder_loads_and_computes_the_same(tiny_gguf: Path, tiny_llama: Path, env: Environment) -> None:
    logits = []
    for source in (resolve_model(str(tiny_llama), env), convert_gguf(resolve_model(str(tiny_gguf), env), env)):
        loaded = load_model(source, device=torch.device("cpu"), dtype=torch.float32)
        with torch.no_grad():
            logits.append(loaded.model(torch.arange(5, 45)[None], use_cache=False).logits)
    assert torch.equal(*logits)
    assert loaded.eos_ids == {2, 5}  # the file names an end of turn besides the end of text
    assert loaded.context_tokens == 512


def test_the_tokenizer_is_repaired_and_keeps_its_template(tiny_gguf: Path, env: Environment) -> None:
    loaded = load_model(convert_gguf(resolve_model(str(tiny_gguf), env), env), device=torch.device("cpu"), dtype=torch.float32)
    tokenizer = loaded.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("in 12").input_ids) == ["in", "Ġ", "1", "2"]  # "12" is a merge
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer("<|im_end|>").input_ids == [2]
    assert tokenizer.model_max_length == 512


def test_a_tokenizer_beside_the_file_is_not_taken_for_its_own(tiny_gguf: Path, env: Environment, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny_gguf, tmp_path / "tiny.gguf"))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert (convert(path, env) / "tokenizer.json").stat().st_size > 1000


def test_a_folder_source_is_returned_as_it_is(tiny_llama: Path, env: Environment) -> None:
    source = resolve_model(str(tiny_llama), env)
    assert convert_gguf(source, env) is source


def test_large_models_are_written_in_shards(
    tiny_gguf: Path, tiny_llama: Path, env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_model, "_SHARD_BYTES", 200_000)
    source = convert_gguf(resolve_model(str(tiny_gguf), env), env)
    assert len(list(source.path.glob("*.safetensors"))) > 1
    loaded = load_model(resolve_model(str(source.path), env), device=torch.device("cpu"), dtype=torch.float32)
    original = load_file(tiny_llama / "model.safetensors")
    assert all(torch.equal(tensor, original[name]) for name, tensor in loaded.model.state_dict().items())


@pytest.mark.parametrize(
    "kind", [gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16]
)
def test_quantised_tensors_are_stored_without_further_loss(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 64), dtype=np.float32)
    packed = gguf.quantize(values, kind)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    [info] = read_gguf_header(tmp_path / "m.gguf", gguf_model._block_sizes()).tensors
    assert info.shape == (4, 64)
    read = gguf_model._dequantise(tmp_path / "m.gguf", info)
    assert read.dtype == np.float32
    assert np.array_equal(read, gguf.dequantize(packed, kind))


# ---- the cache -------------------------------------------------------------------------------------------------------
def test_a_second_start_converts_nothing(tiny_gguf: Path, env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    first = convert(tiny_gguf, env)
    monkeypatch.setattr(gguf_model, "_convert", None)
    assert convert(tiny_gguf, env) == first


def test_a_changed_file_is_converted_to_another_folder(
    tiny_gguf: Path, tiny_llama: Path, env: Environment, tmp_path: Path
) -> None:
    changed = write_gguf(tiny_llama, tmp_path / "changed.gguf", pre="gpt-2")
    assert convert(changed, env) != convert(tiny_gguf, env)


def test_a_damaged_conversion_is_made_again(tiny_gguf: Path, env: Environment) -> None:
    weights = convert(tiny_gguf, env) / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(b"")
    convert(tiny_gguf, env)
    assert weights.stat().st_size == size


def test_a_failed_conversion_leaves_nothing_that_is_believed(
    tiny_gguf: Path, env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gguf_model, "_generation_config", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(tiny_gguf, env)
    assert not converted_folder(resolve_model(str(tiny_gguf), env), env).exists()
    assert (convert(tiny_gguf, env) / "config.json").is_file()


def test_what_a_killed_process_left_is_swept(tiny_gguf: Path, env: Environment) -> None:
    target = converted_folder(resolve_model(str(tiny_gguf), env), env)
    stale = target.parent / f".{target.name}.12345"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")
    convert(tiny_gguf, env)
    assert sorted(f.name for f in target.parent.iterdir() if f.is_dir()) == [target.name]


def test_two_processes_at_once_both_end_well(tiny_gguf: Path, env: Environment) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=convert, args=(tiny_gguf, env)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    target = converted_folder(resolve_model(str(tiny_gguf), env), env)
    assert sorted(f.name for f in target.parent.iterdir() if f.is_dir()) == [target.name]
    assert gguf_model._is_complete(target)


def test_a_disk_without_room_names_the_variable(tiny_gguf: Path, env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 30, 1 << 30, 0))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"SGL_CACHE_DIR: .*MiB needed, 0 MiB free"):
        convert(tiny_gguf, env)


def test_a_disk_that_fills_up_while_writing_names_the_variable(
    tiny_gguf: Path, env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        from safetensors import SafetensorError

        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ModelError, match=r"SGL_CACHE_DIR: .*No space left"):
        convert(tiny_gguf, env)


def test_a_cache_that_cannot_be_a_folder_names_the_variable(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="SGL_CACHE_DIR"):
        convert(tiny_gguf, Environment(tmp_path / "file" / "cache", None, frozenset()))


# ---- files that do not hold what they say ----------------------------------------------------------------------------
def test_a_missing_tensor_is_named(tiny_llama: Path, env: Environment, tmp_path: Path) -> None:
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", drop="model.layers.2.mlp.up_proj.weight")
    with pytest.raises(ModelFormatError, match=r"lacks model\.layers\.2\.mlp\.up_proj\.weight"):
        convert(path, env)


def test_a_tensor_without_a_place_is_refused_instead_of_left_out(tiny_llama: Path, env: Environment, tmp_path: Path) -> None:
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", extra="rope_freqs.weight")
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        convert(path, env)


def test_rope_scaling_that_would_be_lost_is_refused(tiny_llama: Path, env: Environment, tmp_path: Path) -> None:
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", scaling="yarn")
    with pytest.raises(UnsupportedModelError, match="rope scaling 'yarn'"):
        convert(path, env)


def test_an_unknown_split_of_the_tokenizer_is_refused(tiny_llama: Path, env: Environment, tmp_path: Path) -> None:
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", pre="no-such-split")
    with pytest.raises(ModelFormatError, match="no-such-split"):
        convert(path, env)


def test_an_unknown_architecture_is_named(env: Environment, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "nosucharch")
    writer.add_tensor("t", np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="'nosucharch'"):
        convert(tmp_path / "m.gguf", env)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.1, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tiny_gguf: Path, env: Environment, tmp_path: Path, share: float) -> None:
    content = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: max(4, int(len(content) * share))])
    with pytest.raises(ModelFormatError, match=r"cut\.gguf is damaged"):
        convert(path, env)


HUGE = 1 << 62


@pytest.mark.parametrize(("content", "reason"), [
    (struct.pack("<IQQ", 3, HUGE, 0), "do not fit"),
    (struct.pack("<IQQ", 3, 0, HUGE), "do not fit"),
    (struct.pack("<IQQ", 9, 0, 0), "version 9"),
    (struct.pack(">IQQ", 3, 0, 0), "version"),
    (struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", HUGE) + bytes(64), "ends inside"),
    (struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, HUGE) + bytes(64), "ends inside"),
    (struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, HUGE) + bytes(64), "cannot be"),
    (struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1) + bytes(64), "cannot be"),
    (struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99) + bytes(64), "value type 99"),
    (struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 9) + bytes(96), "9 dimensions"),
    (struct.pack("<IQQQ1sIQQIQ", 3, 1, 0, 1, b"t", 2, 1 << 32, 1 << 32, 0, 0) + bytes(64), "ends at byte"),
    (struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 8, 0, HUGE) + bytes(64), "ends at byte"),
    (struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 33, 3, 0) + bytes(64), "blocks of 32"),
    (struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 8, 250, 0) + bytes(64), "storage type 250"),
    (struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"\xff", 0) + bytes(64), "utf-8"),
])  # fmt: skip
def test_a_hostile_header_is_refused_before_it_is_believed(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + content)
    with pytest.raises(ModelFormatError, match=reason):
        read_gguf_header(path, gguf_model._block_sizes())


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(ModelFormatError, match="is damaged"):
        read_gguf_header(tmp_path / "m.gguf", gguf_model._block_sizes())


# ---- the embedded model ----------------------------------------------------------------------------------------------
def test_the_embedded_model_is_converted_whole(embedded_folder: Path, embedded_gguf: Path) -> None:
    header = read_gguf_header(embedded_gguf, gguf_model._block_sizes())
    weights = load_file(embedded_folder / "model.safetensors")
    assert len(weights) == len(header.tensors) == 272
    info = next(t for t in header.tensors if t.name == "blk.0.ffn_down.weight")
    stored = weights["model.layers.0.mlp.down_proj.weight"]
    assert np.array_equal(stored.numpy(), gguf_model._dequantise(embedded_gguf, info))


def test_the_embedded_model_splits_digits_as_it_was_trained(embedded_folder: Path, model_cache: Path) -> None:
    source = resolve_model(str(embedded_folder), Environment(model_cache, None, frozenset()))
    loaded = load_model(source, device=torch.device("cpu"), dtype=torch.bfloat16)
    tokenizer = loaded.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  1").input_ids) == ["a", "ĠĠ", "1"]
    assert (loaded.eos_ids, loaded.context_tokens) == (frozenset({2}), 8192)


def test_the_fixture_says_where_the_conversion_is(embedded_folder: Path, model_cache: Path) -> None:
    assert embedded_folder.parent == model_cache / "models"
