"""Argument checks shared by the operators: the message names argument, given and expected."""

from __future__ import annotations

import torch

__all__ = ["ShapeError", "check_device", "check_shape"]


class ShapeError(ValueError):
    """A tensor argument has a shape, dtype or device that the operator cannot take."""


def check_shape(name: str, tensor: torch.Tensor, *expected: int | None) -> None:
    """Compare a shape; None stands for any size.

    Raises:
        ShapeError: a dimension differs.
    """
    if tensor.dim() != len(expected) or any(e is not None and e != g for e, g in zip(expected, tensor.shape, strict=True)):
        wanted = "[" + ", ".join("*" if e is None else str(e) for e in expected) + "]"
        raise ShapeError(f"{name}: got shape {list(tensor.shape)}, expected {wanted}")


def check_device(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Both tensors must live on one device and share a dtype.

    Raises:
        ShapeError: they do not.
    """
    if tensor.device != other.device or tensor.dtype != other.dtype:
        raise ShapeError(
            f"{name}: got {tensor.dtype} on {tensor.device}, expected {other_name}'s {other.dtype} on {other.device}"
        )
