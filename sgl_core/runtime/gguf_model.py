"""GGUF to a folder of safetensors: done once per file, kept under ``SGL_CACHE_DIR``, then loaded like any other model.

Called by the engine between ``model_source`` (what ``model=`` means) and ``model_loader`` (which only reads folders). It
owns ``<cache>/models``: one folder per converted file, complete or absent. A folder is written under another name and
renamed at the end, under a file lock, so that neither a killed conversion nor two at once leave a half one that is later
believed; sizes are recorded in a manifest and compared at each start.

Weights are stored as float32. Dequantised values are ``d * q + m`` with 16-bit ``d`` and ``m``: for Q4_1 and Q8_0 of the
embedded model only 3 to 33 % of them survive bfloat16 unchanged, and float16 is not exact either. The names of tensors, the
permutations and the tokenizer follow transformers' own reading; what it would leave out in silence is refused here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_core.config import Environment
from sgl_core.errors import MissingExtraError, ModelError, ModelFormatError, UnsupportedModelError
from sgl_core.runtime.gguf_header import GgufHeader, TensorInfo, read_gguf_header
from sgl_core.runtime.model_source import ModelSource

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["convert_gguf", "converted_folder"]

_LAYOUT = 1  # raise it when the conversion changes: older folders are then left alone and no longer read
_MANIFEST = "converted.json"
_SHARD_BYTES = 2 << 30  # bounds memory: a shard is written and dropped before the next one is filled
_LOCK_TIMEOUT_S = 1800.0

Advance = Callable[[str], None]


def converted_folder(source: ModelSource, env: Environment) -> Path:
    """Where the conversion of ``source`` is kept; it need not exist."""
    return env.cache_dir / "models" / f"{source.fingerprint[:40]}-v{_LAYOUT}"


def convert_gguf(source: ModelSource, env: Environment, *, progress: bool = False) -> ModelSource:
    """Convert a GGUF file unless that was done before; a folder source is returned as it is.

    Args:
        source: from ``resolve_model``.
        env: says where the cache is.
        progress: show a bar on stderr while converting, if that is a terminal.

    Returns:
        A folder source with the name and fingerprint of ``source``.

    Raises:
        ModelFormatError: the file is damaged, or its tensors do not match the model it describes.
        UnsupportedModelError: an architecture, storage type or rope scaling that cannot be converted faithfully.
        ModelError: the cache cannot be written; names ``SGL_CACHE_DIR``.
    """
    if source.kind == "folder":
        return source
    target = converted_folder(source, env)
    if not _is_complete(target):
        with _storage(target.parent), _locked(target):
            if not _is_complete(target):  # another process may have converted it while we waited
                with _progress(progress) as advance:
                    _convert(source, target, advance)
    return ModelSource(target, "folder", source.name, source.fingerprint, source.is_embedded)


def _is_complete(target: Path) -> bool:
    try:
        sizes: dict[str, int] = json.loads((target / _MANIFEST).read_bytes())["files"]
        return all((target / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


# ---- the cache folder ------------------------------------------------------------------------------------------------
@contextmanager
def _storage(parent: Path) -> Iterator[None]:
    """Turn failures to write below ``parent`` into an error that names the variable to change."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise _storage_error(parent, error.strerror or type(error).__name__) from error


def _storage_error(parent: Path, reason: str) -> ModelError:
    return ModelError(
        f"SGL_CACHE_DIR: the converted model cannot be written to {parent} ({reason}). "
        "Free space there, or set SGL_CACHE_DIR to an absolute path on a disk with room."
    )


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(f"{target}.lock", timeout=_LOCK_TIMEOUT_S)  # the system frees it when its holder dies
    try:
        lock.acquire()
    except Timeout as error:
        raise ModelError(
            f"another process holds {lock.lock_file} for {_LOCK_TIMEOUT_S:.0f} s; end it and try again."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _convert(source: ModelSource, target: Path, advance: Advance) -> None:
    """Write the conversion beside ``target`` and rename it; the caller holds the lock."""
    for stale in target.parent.glob(f".{target.name}.*"):  # left by a conversion that was killed
        shutil.rmtree(stale, ignore_errors=True)
    work = target.parent / f".{target.name}.{os.getpid()}"
    work.mkdir()
    try:
        header = read_gguf_header(source.path, _block_sizes())
        _check_room(header, target.parent)
        _write_folder(source.path, header, work, advance)
        sizes = {f.name: f.stat().st_size for f in sorted(work.iterdir())}
        (work / _MANIFEST).write_text(json.dumps({"source": source.fingerprint, "files": sizes}, indent=1))
        shutil.rmtree(target, ignore_errors=True)  # an earlier one that did not match its manifest
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_room(header: GgufHeader, parent: Path) -> None:
    needed = sum(4 * _num_elements(t) for t in header.tensors)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise _storage_error(parent, f"{needed >> 20} MiB needed, {free >> 20} MiB free")


def _num_elements(info: TensorInfo) -> int:
    count = 1
    for size in info.shape:
        count *= size
    return count


@contextmanager
def _progress(shown: bool) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("Converting the model (once)", total=None)

        def advance(what: str) -> None:
            bar.update(task, advance=1, description=f"Converting the model (once): {what}")

        yield advance


# ---- the conversion --------------------------------------------------------------------------------------------------
def _block_sizes() -> dict[int, tuple[int, int]]:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("runtime", "gguf") from error
    return {int(kind): (int(elements), int(size)) for kind, (elements, size) in gguf.GGML_QUANT_SIZES.items()}


@dataclass(frozen=True, slots=True)
class _Plan:
    """The model that a file describes.

    Args:
        config: as transformers reads it from the file.
        raw_config: the same before it became a config object; transformers' tensor processors want it.
        skeleton: the module on the meta device.
        shapes: parameter name -> shape, for every parameter that must be in the file.
    """

    config: PretrainedConfig
    raw_config: dict[str, Any]
    skeleton: PreTrainedModel
    shapes: dict[str, tuple[int, ...]]


def _write_folder(path: Path, header: GgufHeader, work: Path, advance: Advance) -> None:
    from sgl_core.runtime.model_loader import quiet_transformers

    with quiet_transformers():
        advance("configuration")
        plan = _plan(path, header)
        advance("tokenizer")
        _write_tokenizer(path, header, plan.config, work)
        _write_weights(path, header, plan, work, advance)
        plan.config.save_pretrained(work)
        _generation_config(header, plan.config).save_pretrained(work)


def _plan(path: Path, header: GgufHeader) -> _Plan:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    where = f"model: {path} (architecture {header.architecture!r})"
    try:
        raw = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
        raw.pop("_model_name_or_path", None)
        config = AutoConfig.for_model(**raw)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # the header is sound, so whatever fails here is a kind of model that cannot be read
        raise UnsupportedModelError(f"{where} cannot be read as a causal LM by transformers: {error}") from error
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    rope = getattr(config, "rope_parameters", None) or {}
    if scaling != "none" and rope.get("rope_type", "default") == "default":
        raise UnsupportedModelError(f"{where} uses rope scaling {scaling!r}, which is lost on the way. Use its safetensors.")
    config.architectures = [type(skeleton).__name__]
    config.dtype = "float32"
    return _Plan(config, raw, skeleton, _required_shapes(skeleton))


def _required_shapes(skeleton: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters; of tied ones, which are one object, only the first name."""
    return {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}


def _write_weights(path: Path, header: GgufHeader, plan: _Plan, work: Path, advance: Advance) -> None:
    shards = _ShardWriter(work)
    pending = dict(plan.shapes)
    for name, tensor in _named_tensors(path, header, plan, advance):
        expected = pending.pop(name, None)
        if expected is None:
            raise ModelFormatError(f"model: {path} holds {name!r} twice, or for no parameter of the model. Use another file.")
        if tuple(tensor.shape) != expected:
            raise ModelFormatError(
                f"model: {path} has {name!r} with shape {tuple(tensor.shape)}, but its own configuration says {expected}. Fetch the file again."
            )
        shards.add(name, tensor)
    if pending:
        raise ModelFormatError(
            f"model: {path} lacks {', '.join(sorted(pending)[:3])} ({len(pending)} tensors). Fetch the file again."
        )
    shards.close()


def _named_tensors(path: Path, header: GgufHeader, plan: _Plan, advance: Advance) -> Iterator[tuple[str, torch.Tensor]]:
    """Dequantised tensors under the names of the transformers module, in the order of the file."""
    import numpy as np
    import torch
    from transformers import modeling_gguf_pytorch_utils as hf

    processor = hf.TENSOR_PROCESSORS.get(header.architecture, hf.TensorProcessor)(config=plan.raw_config)
    try:
        names = hf.get_gguf_hf_weights_map(_NamedModule(plan.skeleton, depth=1), processor)
    except NotImplementedError as error:
        raise UnsupportedModelError(f"model: {path}: {error}") from error
    gathered: dict[str, torch.Tensor] = {}  # parameters that are put together from several tensors of the file
    for info in header.tensors:
        advance(info.name)
        result = processor.process(
            weights=_dequantise(path, info),
            name=info.name,
            tensor_key_mapping=names,
            parsed_parameters={"config": plan.raw_config, "tensors": gathered},
        )
        if result.name is None:  # the processor has put it into ``gathered``
            continue
        if result.name not in names:
            raise UnsupportedModelError(
                f"model: {path} holds {info.name!r}, which transformers would leave out in silence. Use the model's safetensors."
            )
        yield names[result.name], torch.from_numpy(np.ascontiguousarray(result.weights))
    yield from gathered.items()


class _NamedModule:
    """What transformers' name mapping reads of a module, without the deeper submodules.

    The mapping visits every submodule and builds its tables anew for each: 10 s for 30 layers. The names of a causal LM are
    known with or without the prefix of its backbone, so one level is enough; a name lost thereby would be reported as missing.
    """

    def __init__(self, module: torch.nn.Module, depth: int) -> None:
        self.config = module.config
        self.state_dict = module.state_dict
        self._module = module
        self._depth = depth

    def named_children(self) -> list[tuple[str, _NamedModule]]:
        if self._depth == 0:
            return []
        children = self._module.named_children()
        return [(name, _NamedModule(child, self._depth - 1)) for name, child in children if hasattr(child, "config")]


def _dequantise(path: Path, info: TensorInfo) -> Any:
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType(info.ggml_type)
    rows = info.shape[:-1]
    raw = np.memmap(path, dtype=np.uint8, mode="r", offset=info.start, shape=(info.num_bytes,))
    try:
        values = gguf.dequantize(raw.reshape(*rows, -1), kind)
    except NotImplementedError as error:
        raise UnsupportedModelError(f"model: {path} stores {info.name!r} as {kind.name}, which cannot be read.") from error
    return np.array(values, dtype=np.float32)  # a copy: the processors may write into it, the mapped file is read-only


class _ShardWriter:
    """Writes tensors to safetensors files of bounded size, with an index if there are several."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._files: dict[str, str] = {}
        self._num_shards = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self._tensors[name] = tensor
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes >= _SHARD_BYTES:
            self._flush()

    def close(self) -> None:
        if self._tensors:
            self._flush()
        if self._num_shards == 1:
            (self._folder / self._shard_name(1)).rename(self._folder / "model.safetensors")
            return
        index = {"metadata": {}, "weight_map": self._files}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))

    @staticmethod
    def _shard_name(number: int) -> str:
        return f"model-{number:05d}.safetensors"

    def _flush(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        self._num_shards += 1
        name = self._shard_name(self._num_shards)
        try:
            save_file(self._tensors, self._folder / name, metadata={"format": "pt"})
        except SafetensorError as error:  # how the library reports a full disk
            raise _storage_error(self._folder.parent, str(error)) from error
        self._files.update(dict.fromkeys(self._tensors, name))
        self._tensors, self._bytes = {}, 0


# ---- what goes beside the weights ------------------------------------------------------------------------------------
def _write_tokenizer(path: Path, header: GgufHeader, config: PretrainedConfig, work: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from sgl_core.runtime.gguf_tokenizer import repair_gguf_tokenizer

    # Read through a link in a folder of its own: a tokenizer.json lying beside the file would be taken instead of it.
    alone = work / "source"
    alone.mkdir()
    (alone / "model.gguf").symlink_to(path)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(alone), gguf_file="model.gguf", local_files_only=True)
    except Exception as error:  # sound header, unreadable vocabulary: the library has no common root for it
        raise ModelFormatError(f"model: the tokenizer inside {path} cannot be read: {error}") from error
    finally:
        shutil.rmtree(alone)
    pre = header.metadata.get("tokenizer.ggml.pre")
    repair_gguf_tokenizer(tokenizer, None if pre is None else str(pre))
    tokenizer.model_max_length = config.max_position_embeddings  # the file does not say, and the default is 1e30
    tokenizer.save_pretrained(work)


def _generation_config(header: GgufHeader, config: PretrainedConfig) -> Any:
    from transformers import GenerationConfig

    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    ends = list(dict.fromkeys(int(header.metadata[key]) for key in keys if key in header.metadata))
    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=ends or config.eos_token_id, pad_token_id=config.pad_token_id
    )
