"""Host code that generated programs call on values: pure, total unless it says otherwise, and the same on every machine."""

from __future__ import annotations

import hashlib
from typing import Any

__all__ = ["described", "flattened", "picky", "shouted", "tag"]


def tag(text: object) -> int:
    """A number that depends on the text and on nothing else."""
    return int.from_bytes(hashlib.blake2b(str(text).encode(), digest_size=4).digest(), "big")


def described(*values: Any) -> str:
    """What kind of things they are: text and numbers as they stand, errors by their kind."""
    return ";".join(_described(value) for value in values)


def _described(value: Any) -> str:
    if isinstance(value, str | int | float | bool) or value is None:
        return f"{value}"
    if isinstance(value, list | tuple):
        return "[" + described(*value) + "]"
    return type(value).__name__


def flattened(values: Any, separator: str = ", ") -> str:
    """A list as one text."""
    items = values if isinstance(values, list | tuple) else [values]
    return separator.join(_described(value) for value in items)


def shouted(value: Any) -> str:
    """Capitals."""
    return _described(value).upper()


def picky(value: Any) -> str:
    """The first word of one text in three, turned around.

    Raises:
        ValueError: any other text; the number of it is in the message.
    """
    number = tag(_described(value))
    if number % 3:
        raise ValueError(f"host code refuses text number {number}")
    return _described(value)[:8][::-1]
