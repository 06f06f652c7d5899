"""From an engine's configuration to a machine that can step: find, load, fuse and pack, probe, size the pool.

Runs on the engine thread.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sgl_core.config import EngineConfig, Environment
from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.engine_loop import Machine
from sgl_core.runtime.gguf_model import convert_gguf
from sgl_core.runtime.kv_pool import KVPool, LayerShape, available_host_bytes, default_num_slots, slot_bytes
from sgl_core.runtime.model_loader import LoadedModel, default_dtype, load_model
from sgl_core.runtime.model_runner import ModelRunner
from sgl_core.runtime.model_source import resolve_model
from sgl_core.runtime.packing import pack_linears
from sgl_core.runtime.probe import probe_model
from sgl_core.runtime.scheduler import Scheduler, SchedulerOptions
from sgl_core.runtime.tiling import agreeing_tile_sizes

__all__ = ["ModelFacts", "assemble", "load"]

_CHUNK_TOKENS = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the engine must know of its model to check requests.

    Args:
        name: for people. ``fingerprint``: of its files. ``folder``: where its safetensors are.
        architecture: transformers' model type.
        vocab_size: rows of the embedding: valid ids are below it.
        context_tokens: prompt and output together.
        eos_ids: tokens that end a text.
        pool_tokens: slots of the KV pool. ``bytes_per_token``: of KV.
        dtype, device: as text.
        num_layers, fused_linears: layers, and linears that run inside another one's matrix product.
    """

    name: str
    fingerprint: str
    folder: Path
    architecture: str
    vocab_size: int
    context_tokens: int
    eos_ids: frozenset[int]
    pool_tokens: int
    bytes_per_token: int
    dtype: str
    device: str
    num_layers: int
    fused_linears: int


def load(config: EngineConfig) -> tuple[LoadedModel, LocalCodec]:
    """Find and load what the configuration names, on its device and in its dtype.

    Raises:
        ModelError: it cannot be found, read or used.
        InvalidArgumentError: the device is not there.
    """
    device = _device(config.device)
    dtype = default_dtype(device) if config.dtype is None else getattr(torch, config.dtype)
    environment = Environment.read()
    source = resolve_model(config.model, environment)
    progress = sys.stderr.isatty()
    if source.kind == "gguf":
        source = convert_gguf(source, environment, progress=progress)
    loaded = load_model(source, device=device, dtype=dtype, progress=progress)
    return loaded, LocalCodec(loaded.tokenizer)


@torch.inference_mode()
def assemble(loaded: LoadedModel, config: EngineConfig) -> tuple[Machine, ModelFacts]:
    """Build scheduler, pool and runner around a loaded model, which is probed first.

    Raises:
        UnsupportedModelError: the model does not run on our attention.
    """
    model: Any = loaded.model
    device = torch.device(model.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    linears = pack_linears(model)
    shapes = probe_model(model)
    num_slots = _num_slots(config, shapes, model.dtype, device, loaded.context_tokens)
    pool = KVPool(shapes, num_slots, dtype=model.dtype, device=device)
    context = min(loaded.context_tokens, num_slots + 1)
    runner = ModelRunner(
        model,
        pool,
        max_running=config.max_running,
        context_tokens=context,
        tile_sizes=agreeing_tile_sizes(model, context) if config.deterministic else (),
    )
    scheduler = Scheduler(
        num_slots,
        max_running=config.max_running,
        chunk_tokens=config.prefill_chunk_tokens or _CHUNK_TOKENS[device.type],
        policy=config.policy,
        options=SchedulerOptions(
            in_flight_sharing=config.in_flight_sharing,
            cascade=config.cascade and not config.deterministic,
            cache_levels=config.cache_levels,
            namespace_quota_tokens=config.namespace_quota_tokens,
            seed=config.seed or 0,
        ),
    )
    facts = ModelFacts(
        name=loaded.name,
        fingerprint=loaded.fingerprint,
        folder=loaded.folder,
        architecture=str(model.config.model_type),
        vocab_size=int(model.get_input_embeddings().weight.shape[0]),
        context_tokens=loaded.context_tokens,
        eos_ids=loaded.eos_ids,
        pool_tokens=num_slots,
        bytes_per_token=pool.bytes_per_slot,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(device),
        num_layers=len(shapes),
        fused_linears=linears.fused.num_linears,
    )
    return Machine(scheduler, runner), facts


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidArgumentError(
            "device", name, 'a device that torch sees here ("cpu")', "Leave device out to use the best one."
        )
    return torch.device(name)


def _num_slots(
    config: EngineConfig, shapes: list[LayerShape], dtype: torch.dtype, device: torch.device, context_tokens: int
) -> int:
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_host_bytes()
    if config.cache_tokens is None:
        return default_num_slots(shapes, dtype=dtype, device=device, context_tokens=context_tokens, free_bytes=free_bytes)
    most = free_bytes // slot_bytes(shapes, dtype)
    if config.cache_tokens > most:
        raise InvalidArgumentError(
            "cache_tokens",
            config.cache_tokens,
            f"at most {most}, as one token takes {slot_bytes(shapes, dtype)} bytes and {free_bytes} are free",
            "Lower it, or leave it out to size the pool from memory.",
        )
    return config.cache_tokens
