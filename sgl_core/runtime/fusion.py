"""Sibling-linear fusion: q, k and v (and gate and up) become one matrix product, without touching the model's classes.

Called once by start-up after loading. The product over a group's weights is the caller's choice: ``concatenated_product``
joins them in one storage of which the modules' own parameters become views, so that memory, names and ``state_dict`` stay as
they were; ``packing`` brings one with a packed copy.

The first sibling that is called with a tensor computes all of them and parks the others' slices; a sibling that is called
with *the same tensor object* takes its slice, anything else computes alone. So results do not depend on the order of calls
or on whether all siblings are called. Parked slices go with the last sibling's call, and at the latest with the next first
call. Siblings that never share a tensor are noticed and left apart for good.

Only the engine thread may run the model afterwards: parking is not locked.

Exactness: a fused product computes the same dot products, but a library may pick another blocking for another width, so
equal bits are not promised. Measured on CPU (torch 2.13; 1 to 300 rows, widths 576+192+192, 1536+1536 and 64+32+32, 1 and 2
threads, float32 and bfloat16) the difference was 0.0 everywhere. Tests hold tiny models to 1e-6.

Rejected: replacing the modules (loses the class that others patch), one product per model traced by torch.fx (slow to start).
Fusing gate and up is off on a CPU by default: the halves are then strided, and the activation on them costs more than the
second product saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FusionReport", "Product", "concatenated_product", "fuse_siblings"]

# Names under which one parent holds linears that read the same tensor, in the order of their slices.
_ATTENTION_NAMES = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("q_proj", "kv_a_proj_with_mqa"),
)
_MLP_NAMES = (("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"))
_MAX_MISSES = 3


@dataclass(frozen=True, slots=True)
class FusionReport:
    """What was fused: groups of siblings, and linears in all of them."""

    num_groups: int
    num_linears: int


class Product(Protocol):
    """``F.linear`` with the weights, and the biases if any, of several linears on top of each other."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """``[..., in_features]`` to ``[..., sum of out_features]``."""

    def serves(self, x: Tensor, /) -> bool:
        """Whether it still stands for the parameters that it was made from, and can take ``x``."""


def concatenated_product(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Product:
    """One product over one storage, of which the parameters become views.

    Args:
        weights: ``[out, in]`` each, alike in all but ``out``. ``biases``: ``[out]`` of all of them, or empty.
    """
    return _ConcatenatedProduct(weights, biases)


def fuse_siblings(
    model: nn.Module,
    *,
    mlp: bool | None = None,
    product: Callable[[Sequence[Tensor], Sequence[Tensor]], Product] = concatenated_product,
) -> FusionReport:
    """Fuse the sibling linears of ``model`` in place; what is fused already is left alone.

    Call it after the model is on its device in its dtype. A later ``model.to(...)`` gives the parameters storage of their
    own again; each linear then computes alone, and the concatenated weights stay allocated until the model goes.

    Args:
        model: a module in eval mode, gradients off.
        mlp: also fuse gate and up; None does so on CUDA only.
        product: makes the product of a group from its weights and biases.
    """
    groups = 0
    linears = 0
    for parent in model.modules():
        for siblings in _sibling_groups(parent, mlp):
            group = _SiblingGroup(siblings, product)
            for index, linear in enumerate(siblings):
                linear.forward = partial(group.run, index)  # type: ignore[method-assign]
            groups += 1
            linears += len(siblings)
    return FusionReport(groups, linears)


def _sibling_groups(parent: nn.Module, mlp: bool | None) -> Iterator[list[nn.Linear]]:
    children = dict(parent.named_children())
    for names in _ATTENTION_NAMES + _MLP_NAMES:
        alike: dict[tuple[object, ...], list[nn.Linear]] = {}
        for name in names:
            child = children.get(name)
            if child is None or not _is_fusable(child):
                continue
            weight = child.weight
            if names in _MLP_NAMES and not (weight.is_cuda if mlp is None else mlp):
                continue
            key = (child.in_features, weight.dtype, weight.device, child.bias is None)
            alike.setdefault(key, []).append(child)
        yield from (siblings for siblings in alike.values() if len(siblings) > 1)


def _is_fusable(child: nn.Module) -> TypeGuard[nn.Linear]:
    # Exactly nn.Linear: a subclass computes something else. A replaced ``forward`` is ours (fused already) or another patch.
    return type(child) is nn.Linear and "forward" not in vars(child) and not child.weight.is_meta


class _ConcatenatedProduct:
    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self._weight = _concatenate(weights)
        self._bias = _concatenate(biases) if biases else None
        self._parameters = (*weights, *biases)
        self._addresses = self._current_addresses()

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)

    def serves(self, x: Tensor) -> bool:
        """Whether the parameters are still views of the concatenation (``model.to`` and friends give them new storage)."""
        del x
        return self._current_addresses() == self._addresses

    def _current_addresses(self) -> list[int]:
        return [p.data_ptr() for p in self._parameters]


class _SiblingGroup:
    """The product of some linears, and the slices parked for them.

    It refers to their parameters but not to the modules, which refer to it: so no reference cycle keeps weights alive.
    """

    def __init__(self, linears: Sequence[nn.Linear], product: Callable[[Sequence[Tensor], Sequence[Tensor]], Product]) -> None:
        self._weights = [linear.weight for linear in linears]
        biases: list[Tensor | None] = [linear.bias for linear in linears]
        self._biases = [bias for bias in biases if bias is not None]  # of all linears or of none
        self._sizes = [linear.out_features for linear in linears]
        self._product = product(self._weights, self._biases)
        self._parked_input: Tensor | None = None
        self._parked_version = 0
        self._parked: dict[int, Tensor] = {}
        self._misses = 0

    def run(self, index: int, x: Tensor) -> Tensor:
        """The output of sibling ``index`` for ``x [..., in_features]``: ``[..., out_features]``, a view if fused."""
        if x is self._parked_input and index in self._parked and _version(x) == self._parked_version:
            return self._take(index)
        if self._misses >= _MAX_MISSES or not self._product.serves(x):
            self._drop()
            return functional.linear(x, self._weights[index], self._biases[index] if self._biases else None)
        if self._parked:  # somebody did not come for a slice
            self._misses += 1
        self._drop()
        slices = torch.split_with_sizes(self._product(x), self._sizes, dim=-1)
        self._parked_input, self._parked_version = x, _version(x)
        self._parked = {i: piece for i, piece in enumerate(slices) if i != index}
        return slices[index]

    def _take(self, index: int) -> Tensor:
        piece = self._parked.pop(index)
        if not self._parked:
            self._misses = 0
            self._drop()
        return piece

    def _drop(self) -> None:
        self._parked_input = None
        self._parked = {}


def _concatenate(parameters: Sequence[Tensor]) -> Tensor:
    """Join along the first dimension and make each parameter a view of its rows."""
    with torch.inference_mode(False), torch.no_grad():  # parameters stay ordinary tensors, whatever mode the caller is in
        joined = torch.cat([p.detach() for p in parameters])
        pieces = torch.split_with_sizes(joined, [p.shape[0] for p in parameters])
        for parameter, rows in zip(parameters, pieces, strict=True):
            parameter.data = rows
    return joined


def _version(x: Tensor) -> int:
    """Counts in-place changes of ``x``; tensors made in inference mode do not count, and are never changed by a forward."""
    return 0 if x.is_inference() else x._version
