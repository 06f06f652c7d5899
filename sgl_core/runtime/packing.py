"""Prepacked linears: weights in the blocked layout of oneDNN, so that no product has to rearrange them again.

Called once by start-up, after loading, in the place of ``fuse_siblings``, which it calls: a group of siblings gets one packed
weight. It owns the packed copies; parameters, ``state_dict`` and the modules' classes stay as they were. Float32 or bfloat16
on an x86 CPU; everything else keeps ``F.linear``, and so does a product whose packing the library refuses (bfloat16 on a
processor without AVX512, where it would be emulated).

Memory: the packed copy is the one that steps read. Parameters that are mapped from a file (a model loaded in the dtype of
its file) then are clean pages that nobody touches, which the system takes back when it needs them; parameters that were
cast while loading stay in memory beside it. So a model whose linears would take more than a share of the free memory is only
fused.

Source of the layout: oneDNN's "blocked memory format". Of the row counts that the library can be told to pack for, 1 gives a
layout that is slow for every other one (51 ms against 27 for all linears of the embedded model at 2 rows); 16, 64 and 256
differ by less than the noise from 1 to 2,048 rows, so one copy serves decode and prefill. Measured in float32 on 2 cores
with AVX2 (torch 2.13), against ``F.linear``, all linears of the embedded model, ms:

    rows        1    2    8   16   32   64  256 (without head)  2048 (without head)
    F.linear   47   82   69   78  127  237  462                 3558
    packed     25   27   45   57   86  165  398                 3111

Results agree with ``F.linear`` to 1e-6 of the largest, and a row's bits were the same whatever rows were beside it
(1 to 64 rows), which ``F.linear`` does not give.

The library compiles a kernel for every shape of weight and number of rows, which takes about 1 ms and 0.6 MB and is kept.
As a serving engine sees every number of rows sooner or later, they are rounded up to a few dozen and the rest is zeros: at
most one row in eight, one in 16 on average, none below 16.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgl_core.runtime.fusion import FusionReport, Product, concatenated_product, fuse_siblings
from sgl_core.runtime.kv_pool import available_host_bytes

__all__ = ["PackReport", "PackedProduct", "pack_linears"]

_ROWS_HINT = 64
_MEMORY_SHARE = 0.5
_LARGEST_STEP = 64
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of the largest result; its keys are the dtypes that are packed."""
_MACHINES = ("x86_64", "AMD64")


@dataclass(frozen=True, slots=True)
class PackReport:
    """What became of a model's linears.

    Args:
        fused: groups of siblings that run as one product.
        packed_linears: linears that run from a packed weight, those of such groups included. ``packed_bytes``: of them all.
    """

    fused: FusionReport
    packed_linears: int
    packed_bytes: int


class PackedProduct:
    """``x @ W.T + b`` from a packed copy of one weight, or of several on top of each other.

    Args:
        weights: ``[out, in]`` each, one dtype; only read. ``biases``: ``[out]`` of all of them, or empty.

    Raises:
        RuntimeError, AttributeError: this library or processor cannot pack them, or multiplies wrongly.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self._parameters = (*weights, *biases)
        self._marks = self._current_marks()
        self._dtype = weights[0].dtype
        with torch.inference_mode(False), torch.no_grad():
            joined = weights[0].detach() if len(weights) == 1 else torch.cat([w.detach() for w in weights])
            self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(joined, _ROWS_HINT)
            self._bias = torch.cat([b.detach() for b in biases]) if biases else None
            self._probe(joined)

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``, contiguous; no gradients."""
        rows = x.shape[:-1].numel()
        padding = _rounded(rows) - rows
        if not padding:
            return self._multiply(x)
        padded = functional.pad(x.reshape(rows, -1), (0, 0, 0, padding))
        return self._multiply(padded)[:rows].view(*x.shape[:-1], -1)

    def serves(self, x: Tensor) -> bool:
        """Whether it can stand for ``F.linear`` on this input: the parameters are those that were packed, the dtypes agree.

        Storage that ``model.to`` or ``load_state_dict`` gave, and writes in place, are seen; writes through ``.data`` are not.
        """
        return x.dtype is self._dtype and x.dim() > 1 and self._current_marks() == self._marks

    def _probe(self, weight: Tensor) -> None:
        """Compare two rows with the plain product: the model's own probe runs packed on both of its sides."""
        x = torch.arange(2 * weight.shape[1]).cos().view(2, -1).to(weight.dtype)
        want, got = functional.linear(x, weight, self._bias), self._multiply(x)
        if not (got - want).abs().max() <= _TOLERANCE[weight.dtype] * want.abs().max():  # NaN fails too
            raise RuntimeError("the packed product differs from the plain one")

    def _multiply(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return product

    def _current_marks(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._parameters]


def pack_linears(model: nn.Module) -> PackReport:
    """Fuse sibling linears as ``fuse_siblings`` does, and pack them and all others, the language-model head included.

    Call it after the model is on its device in its dtype. What is fused, packed or patched already is left alone.

    Args:
        model: a module in eval mode, gradients off.
    """
    linears = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
    if not _is_worth_packing(linears):
        return PackReport(fuse_siblings(model), 0, 0)
    packer = _Packer()
    fused = fuse_siblings(model, product=packer.product)
    for linear in linears:
        if "forward" not in vars(linear):
            packer.pack(linear)
    return PackReport(fused, packer.linears, packer.num_bytes)


class _Packer:
    """Packs, falls back where that fails, and counts."""

    def __init__(self) -> None:
        self.linears = 0
        self.num_bytes = 0

    def product(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Product:
        return self._try_pack(weights, biases) or concatenated_product(weights, biases)

    def pack(self, linear: nn.Linear) -> None:
        product = self._try_pack([linear.weight], [] if linear.bias is None else [linear.bias])
        if product is not None:
            linear.forward = partial(_run, product, linear.weight, linear.bias)  # type: ignore[method-assign]

    def _try_pack(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> PackedProduct | None:
        try:
            product = PackedProduct(weights, biases)
        except (RuntimeError, AttributeError):  # the library lacks the operators, or the processor what they need
            return None
        self.linears += len(weights)
        self.num_bytes += sum(w.nbytes for w in weights)
        return product


def _rounded(rows: int) -> int:
    """The number of rows to compute for ``rows``: the next of eight steps per power of two, or of steps of 64."""
    step = min(_LARGEST_STEP, 1 << max(0, rows.bit_length() - 4))
    return -(-rows // step) * step


def _run(product: PackedProduct, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return product(x) if product.serves(x) else functional.linear(x, weight, bias)


def _is_worth_packing(linears: Sequence[nn.Linear]) -> bool:
    """Where packing was measured to win: large enough a share of memory is free, on an x86 processor, in a dtype it packs."""
    suited = all(linear.weight.device.type == "cpu" and linear.weight.dtype in _TOLERANCE for linear in linears)
    if not suited or platform.machine() not in _MACHINES:
        return False
    return sum(linear.weight.nbytes for linear in linears) <= _MEMORY_SHARE * available_host_bytes()
