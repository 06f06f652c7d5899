"""Numbers inside bounds as regular expressions with a bounded number of digits. Called by ``fields``; pure functions.

A model that may only write digits sometimes writes them for ever, so every pattern here ends by itself: 18 digits of a whole
number, 12 before and 6 behind the point of another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["decimal_number", "whole_number"]

_WHOLE_DIGITS: Final = 18
_DECIMAL_DIGITS: Final = 12
_FRACTION: Final = r"(?:\.[0-9]{1,6})?"
_SOME_FRACTION: Final = r"\.(?:" + "|".join("0" * zeros + f"[1-9][0-9]{{0,{5 - zeros}}}" for zeros in range(6)) + ")"
_NO_FRACTION: Final = r"(?:\.0{1,6})?"


def whole_number(low: int | None, high: int | None) -> str | None:
    """A pattern of the integers from ``low`` to ``high``, both included, without leading zeros; None if there are none."""
    return _joined(_signed_whole(low, high))


def decimal_number(low: int | None, high: int | None, *, is_low_open: bool = False, is_high_open: bool = False) -> str | None:
    """A pattern of the decimal numbers between two integers, whole ones included; None if there are none.

    Args:
        low, high: the bounds; None is no bound.
        is_low_open, is_high_open: the bound itself is left out.
    """
    parts: list[str] = []
    if high is None or high >= 0:
        is_open = is_low_open and low is not None and low >= 0
        parts += _decimals(max(low or 0, 0), high, is_open, is_high_open)
    if low is None or low < 0:
        starts_at_zero = high is None or high >= 0  # and -0 is left to the other half
        least = 0 if high is None or high >= 0 else -high
        below = _decimals(least, None if low is None else -low, starts_at_zero or is_high_open, is_low_open)
        parts += [f"-{part}" for part in below]
    return _joined(parts)


def _signed_whole(low: int | None, high: int | None) -> Iterator[str]:
    if high is None or high >= 0:
        yield from _whole(max(low or 0, 0), high, _WHOLE_DIGITS)
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        yield from (f"-{part}" for part in _whole(least, None if low is None else -low, _WHOLE_DIGITS))


def _decimals(low: int, high: int | None, is_low_open: bool, is_high_open: bool) -> list[str]:
    """The numbers of a range that begins at zero or above."""
    parts: list[str] = []
    last_unit = None if high is None else high - 1
    if is_low_open and (high is None or low < high):
        parts.append(f"{low}{_SOME_FRACTION}")
    units = _joined(_whole(low + is_low_open, last_unit, _DECIMAL_DIGITS))
    if units is not None:
        parts.append(f"{units}{_FRACTION}")
    if high is not None and not is_high_open and (low < high or (low == high and not is_low_open)):
        parts.append(f"{high}{_NO_FRACTION}")
    return parts


def _whole(low: int, high: int | None, most_digits: int) -> Iterator[str]:
    """The integers from ``low``, which is not negative, to ``high`` or up to ``most_digits``."""
    top = 10**most_digits - 1
    last = top if high is None else min(high, top)
    for size in range(len(str(low)), most_digits + 1):
        first = 0 if size == 1 else 10 ** (size - 1)
        if last == top and low <= first > 0:  # all numbers of this many digits and more
            yield f"[1-9][0-9]{{{size - 1},{most_digits - 1}}}"
            return
        start, end = max(low, first), min(last, 10**size - 1)
        if start <= end:
            yield from _between(str(start), str(end))


def _between(low: str, high: str) -> Iterator[str]:
    """Digits from ``low`` to ``high``, which are equally long."""
    size = len(low) - 1
    first, last = int(low[0]), int(high[0])
    if not size:
        yield _digit(first, last)
        return
    if first == last:
        yield from (f"{first}{rest}" for rest in _between(low[1:], high[1:]))
        return
    if low[1:] != "0" * size:
        yield from (f"{first}{rest}" for rest in _between(low[1:], "9" * size))
        first += 1
    has_rest = high[1:] != "9" * size
    if first <= last - has_rest:
        yield f"{_digit(first, last - has_rest)}[0-9]{{{size}}}"
    if has_rest:
        yield from (f"{last}{rest}" for rest in _between("0" * size, high[1:]))


def _digit(first: int, last: int) -> str:
    return str(first) if first == last else f"[{first}-{last}]"


def _joined(parts: Iterator[str] | list[str]) -> str | None:
    alternatives = "|".join(parts)
    return f"(?:{alternatives})" if alternatives else None
