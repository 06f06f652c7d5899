"""Operators: tensors in, tensors out. Knows nothing of the rest of the project.

Every operator here runs on any torch device and is held against ``paged_attention_reference`` by tests. Hand-written
GPU kernels join them behind the same signatures. Importing this package imports torch.
"""

from sgl_kernels.attention import DecodeBucket, ExtendRow, GatherScratch, SharedRun, StepLayout, paged_attention, store_kv
from sgl_kernels.fixed_tiles import FixedTileLayout, TileRows, fixed_tile_attention
from sgl_kernels.merge import merge_states
from sgl_kernels.reference import paged_attention_reference
from sgl_kernels.segment import segment_attention

__all__ = [
    "DecodeBucket",
    "ExtendRow",
    "FixedTileLayout",
    "GatherScratch",
    "SharedRun",
    "StepLayout",
    "TileRows",
    "fixed_tile_attention",
    "merge_states",
    "paged_attention",
    "paged_attention_reference",
    "segment_attention",
    "store_kv",
]
