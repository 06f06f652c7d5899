"""A checked folder of safetensors becomes a module on its device and a tokenizer.

Called by the engine, on the engine thread (all torch work is done there: a second thread would bring an OpenMP team of its
own). It owns nothing that outlives the call. The module is transformers' own, with eager attention; the runner puts its
attention in afterwards and probes it. Only safetensors are read, nothing is fetched, and no code of the model's is run.

Weights are mapped from the file and cast on the way: with a warm page cache and 2 cores the embedded model (135M, float32
on disk) and its tokenizer take 0.4 to 1.0 s together; importing torch and transformers comes before that and takes 3.5 s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sgl_core.errors import InvalidArgumentError, ModelFormatError, UnsupportedModelError
from sgl_core.runtime.model_source import ModelSource, read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LoadedModel", "default_dtype", "load_model", "quiet_transformers"]

_log = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_UNSET_MAX_LENGTH = 1 << 32  # tokenizers without a length say 1e30
_HEADLESS = ("model",)  # a bare backbone ("GPT2Model"): fine if the head is tied, else missing keys are found below
_GENERATIVE = ("forcausallm", "lmheadmodel", "forconditionalgeneration")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for the runner.

    Args:
        model: in eval mode, without gradients, on its device.
        tokenizer: a fast one (``tokenizer.backend_tokenizer`` is there).
        config: of the text model (``model.config`` itself unless that nests one).
        eos_ids: every id that ends a generation, from generation config, config and tokenizer.
        context_tokens: prompt and output together.
        fingerprint: of the files; part of the key of anything saved.
        name: for people.
        folder: where the safetensors are (for a GGUF file, those of its conversion).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    eos_ids: frozenset[int]
    context_tokens: int
    fingerprint: str
    name: str
    folder: Path


def default_dtype(device: torch.device) -> torch.dtype:
    """The dtype to use where none was asked for: the fastest that the device computes well.

    On a CPU bfloat16 pays only with AMX or AVX512-BF16; without them it is emulated and slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private in torch, hence the defaults
    fast = any(getattr(torch.cpu, name, lambda: False)() for name in checks)
    return torch.bfloat16 if fast else torch.float32


def load_model(source: ModelSource, *, device: torch.device, dtype: torch.dtype, progress: bool = False) -> LoadedModel:
    """Load a folder of safetensors.

    Args:
        source: a folder; a GGUF file goes through ``convert_gguf`` first.
        device: where the weights go.
        dtype: what they are cast to.
        progress: let transformers show its bar on stderr.

    Raises:
        InvalidArgumentError: ``source`` is not a folder.
        UnsupportedModelError: not a causal LM, quantised, or of a type that transformers does not have.
        ModelFormatError: files are damaged or missing, or weights and configuration disagree.
    """
    if source.kind != "folder":
        raise InvalidArgumentError("source", source.kind, '"folder"', "Convert a .gguf file with convert_gguf first.")
    with quiet_transformers(not progress):
        config = _checked_config(source.path)
        tokenizer = _load_tokenizer(source.path)
        model = _load_weights(source.path, config, dtype)
    model.to(device)
    model.eval()
    model.requires_grad_(False)
    text_config = model.config.get_text_config()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=text_config,
        eos_ids=_eos_ids(model, text_config, tokenizer),
        context_tokens=_context_tokens(source.path, text_config, tokenizer),
        fingerprint=source.fingerprint,
        name=source.name,
        folder=source.path,
    )


@contextmanager
def quiet_transformers(quiet: bool = True) -> Iterator[None]:
    """Silence transformers' log lines and progress bars; both settings are its process-wide ones and are put back."""
    from transformers.utils import logging as hf_logging

    if not quiet:
        yield
        return
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


# ---- configuration ---------------------------------------------------------------------------------------------------
def _checked_config(folder: Path) -> PretrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    raw = read_json(folder / "config.json")
    where = f"model: {folder} has model type {raw.get('model_type')!r}"
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (KeyError, ValueError) as error:
        raise UnsupportedModelError(f"{where}, which the installed transformers cannot configure: {error}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{where}, an encoder-decoder; only decoder-only causal LMs run here.")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(f"{where}, which is not a causal LM; only decoder-only causal LMs run here.")
    architectures = [str(name) for name in config.architectures or ()]
    if architectures and not any(name.lower().endswith(_GENERATIVE + _HEADLESS) for name in architectures):
        raise UnsupportedModelError(
            f"{where} with architecture {architectures[0]!r}, which is not a causal LM. Use a generative model."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            f"{where} with quantised weights (quantization_config); use the unquantised model or a GGUF."
        )
    return config


def _context_tokens(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    for name in _CONTEXT_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    if 0 < tokenizer.model_max_length < _UNSET_MAX_LENGTH:
        return int(tokenizer.model_max_length)
    raise UnsupportedModelError(
        f"model: {folder} (type {config.model_type!r}) states no context length. Add max_position_embeddings to its config.json."
    )


def _eos_ids(model: PreTrainedModel, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    holders = (model.generation_config, model.config, config, tokenizer)
    return frozenset(i for holder in holders for i in _as_ids(getattr(holder, "eos_token_id", None)))


def _as_ids(value: int | Iterable[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


# ---- files -----------------------------------------------------------------------------------------------------------
def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelFormatError(f"model: {folder} has no tokenizer; expected tokenizer.json. Copy it from the original model.")
    # tokenizer.json is what the model was published with. AutoTokenizer would rebuild it as the class that usually goes with
    # the model type, and so change how text is split (seen: a qwen2 model with another tokenizer).
    loader = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust library raises bare Exception for a damaged file
        raise ModelFormatError(f"model: the tokenizer of {folder} cannot be read: {error}. Fetch the model again.") from error
    if not tokenizer.is_fast:
        raise ModelFormatError(f"model: {folder} has only a slow tokenizer. Save it once as tokenizer.json with transformers.")
    return tokenizer


def _load_weights(folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are reported below, all of them, with their names
        )
    except (SafetensorError, OSError) as error:
        raise ModelFormatError(f"model: the weights in {folder} cannot be read: {error}. Fetch the model again.") from error
    except (ImportError, NotImplementedError, ValueError) as error:
        raise UnsupportedModelError(f"model: {folder} (type {config.model_type!r}) cannot be built: {error}") from error
    _check_loading(folder, info)
    loaded: PreTrainedModel = model
    return loaded


def _check_loading(folder: Path, info: dict[str, Any]) -> None:
    """Refuse a model of which any parameter was invented instead of read."""
    mismatched = sorted(
        f"{name}: file {tuple(given)}, config {tuple(expected)}" for name, given, expected in info["mismatched_keys"]
    )
    problems = {"missing": sorted(info["missing_keys"]), "of another shape": mismatched, "failed": sorted(info["error_msgs"])}
    for what, names in problems.items():
        if names:
            raise ModelFormatError(
                f"model: {folder} does not hold the weights that its config.json describes: {len(names)} {what} "
                f"({'; '.join(names[:3])}). Fetch the model again, or correct config.json."
            )
    if info["unexpected_keys"]:
        _log.info("%s: %d tensors have no place in the model and were not loaded", folder, len(info["unexpected_keys"]))
