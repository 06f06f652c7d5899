"""The KV pool: one key and one value tensor a layer, a row a slot. It owns the memory; the allocator owns who uses it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

import torch

__all__ = ["Bytes", "KVPool", "LayerShape", "available_host_bytes", "default_num_slots", "slot_bytes"]

Bytes = NewType("Bytes", int)

_MEMORY_SHARE = 0.25
"""Part of the memory free at start that the pool may take; pages that no token ever used cost nothing on a CPU."""
_MAX_DEFAULT_SLOTS = 131_072


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Key and value of one token in one layer: ``kv_heads`` x ``key_dim`` and ``kv_heads`` x ``value_dim`` elements."""

    kv_heads: int
    key_dim: int
    value_dim: int


class KVPool:
    """Keys and values of every cached token.

    Args:
        shapes: one per layer.
        num_slots: usable slots; one padding slot is added behind them and never handed out.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(self, shapes: Sequence[LayerShape], num_slots: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.num_slots = num_slots
        self.keys = [torch.empty(num_slots + 1, s.kv_heads, s.key_dim, dtype=dtype, device=device) for s in shapes]
        self.values = [torch.empty(num_slots + 1, s.kv_heads, s.value_dim, dtype=dtype, device=device) for s in shapes]
        self.bytes_per_slot = slot_bytes(shapes, dtype)


def slot_bytes(shapes: Sequence[LayerShape], dtype: torch.dtype) -> Bytes:
    """Memory of one token over all layers."""
    return Bytes(sum(s.kv_heads * (s.key_dim + s.value_dim) for s in shapes) * dtype.itemsize)


def default_num_slots(
    shapes: Sequence[LayerShape], *, dtype: torch.dtype, device: torch.device, context_tokens: int, free_bytes: int
) -> int:
    """Slots for ``cache_tokens=None``: a share of the free memory, at least one whole context.

    Args:
        free_bytes: memory free on ``device`` once the model is loaded.
    """
    share = int(free_bytes * (_MEMORY_SHARE if device.type == "cpu" else 2 * _MEMORY_SHARE))
    return max(context_tokens, min(_MAX_DEFAULT_SLOTS, share // slot_bytes(shapes, dtype)))


def available_host_bytes() -> Bytes:
    """Host memory that can be taken without swapping: what the kernel says, or half of all where it says nothing."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return Bytes(int(line.split()[1]) * 1024)
    return Bytes(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
