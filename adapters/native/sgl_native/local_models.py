"""Which models this machine has: the embedded one, converted ones, and those in the local Hugging Face cache.

Called by ``sgl models``. Reads configurations and sizes, no weights; loads no torch and never uses the network. Folders are
judged by the same rules as a ``model=`` argument (``sgl_core.runtime.model_source``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sgl_core.config import Environment
from sgl_core.errors import ModelError, SglError
from sgl_core.runtime.gguf_header import read_gguf_header
from sgl_core.runtime.gguf_model import converted_folder
from sgl_core.runtime.model_source import ModelSource, read_json, resolve_model

__all__ = ["SERVED_ARCHITECTURES", "LocalModel", "local_models"]

SERVED_ARCHITECTURES: Final = frozenset({"gemma2", "gpt2", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3"})
"""Model types whose output is tested equal to transformers'. Of others, the probe at start-up decides."""

_GENERATIVE: Final = ("forcausallm", "lmheadmodel", "forconditionalgeneration", "model")
_UNTESTED: Final = "the probe at start-up decides"
_NO_ENVIRONMENT: Final = Environment(Path("/"), None, frozenset())  # a folder is found without one


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One model on this machine.

    Args:
        model: what to pass as ``model=`` or ``--model``; None for the embedded default.
        name: for people.
        architecture: transformers' model type; None if it cannot be read.
        size_bytes: of its files.
        source: "embedded", "converted" (from GGUF, in our cache) or "hub" (the Hugging Face cache).
        supported: whether an engine can serve it; None where only trying tells.
        note: why not, or what is special; may be empty.
        path: its folder or file.
    """

    model: str | None
    name: str
    architecture: str | None
    size_bytes: int
    source: str
    supported: bool | None
    note: str
    path: str


def local_models(environment: Environment) -> list[LocalModel]:
    """All of them, the embedded one first. What is not there is left out; nothing is raised for it."""
    embedded = _embedded(environment)
    known = {converted_folder(source, environment) for source in embedded}
    converted = [folder for folder in _folders_in(environment.cache_dir / "models") if folder not in known]
    return [
        *(_embedded_model(source, environment) for source in embedded),
        *(_judged(folder, str(folder), folder.name, "converted", _size_of(folder)) for folder in converted),
        *_hub_models(),
    ]


# ---- the embedded model ----------------------------------------------------------------------------------------------
def _embedded(environment: Environment) -> list[ModelSource]:
    try:
        return [resolve_model(None, replace(environment, default_model=None))]
    except ModelError:
        return []


def _embedded_model(source: ModelSource, environment: Environment) -> LocalModel:
    is_default = environment.default_model is None
    return LocalModel(
        model=None if is_default else str(source.path),
        name=source.name,
        architecture=_gguf_architecture(source.path),
        size_bytes=source.path.stat().st_size,
        source="embedded",
        supported=True,
        note="the default" if is_default else "SGL_MODEL names another default",
        path=str(source.path),
    )


def _gguf_architecture(path: Path) -> str | None:
    if importlib.util.find_spec("gguf") is None:
        return None
    from gguf import GGML_QUANT_SIZES

    sizes = {int(kind): (int(elements), int(size)) for kind, (elements, size) in GGML_QUANT_SIZES.items()}
    return read_gguf_header(path, sizes).architecture or None


# ---- folders ---------------------------------------------------------------------------------------------------------
def _folders_in(parent: Path) -> list[Path]:
    """Folders that are complete: one that is still being written has a name with a dot in front."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _hub_models() -> Iterator[LocalModel]:
    if importlib.util.find_spec("huggingface_hub") is None:
        return
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    for repo in sorted(cache.repos, key=lambda repo: repo.repo_id):
        if repo.repo_type != "model":
            continue
        for revision in repo.revisions:
            if "main" in revision.refs:  # the one that a name means
                yield _judged(revision.snapshot_path, repo.repo_id, repo.repo_id, "hub", revision.size_on_disk)


def _judged(folder: Path, model: str, name: str, source: str, size_bytes: int) -> LocalModel:
    kind: object = None
    try:
        resolve_model(str(folder), _NO_ENVIRONMENT)
        config = read_json(folder / "config.json")
        kind = config.get("model_type")
        supported, note = _verdict(config)
    except SglError as error:
        supported, note = False, str(error).removeprefix("model: ")
    return LocalModel(model, name, kind if isinstance(kind, str) else None, size_bytes, source, supported, note, str(folder))


def _verdict(config: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether an engine can serve what a configuration describes, and why not."""
    classes = config.get("architectures")
    named = [str(name) for name in classes] if isinstance(classes, list) else []
    if config.get("is_encoder_decoder"):
        return False, "an encoder-decoder, not a decoder-only causal LM"
    if config.get("quantization_config"):
        return False, "quantised weights; use the unquantised model or a GGUF"
    if named and not any(name.lower().endswith(_GENERATIVE) for name in named):
        return False, f"{named[0]} is not a causal LM"
    return (True, "") if config.get("model_type") in SERVED_ARCHITECTURES else (None, _UNTESTED)
