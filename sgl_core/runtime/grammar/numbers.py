"""JSON numbers inside the bounds of a schema, those with the fewest digits first. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

__all__ = ["shortest_numbers"]

_MAX_DIGITS = 20
_MAX_FOUND = 16
_MAX_TRIED = 256


def shortest_numbers(schema: Mapping[str, Any], *, integer: bool) -> list[str]:
    """Decimal spellings, without exponent, of the numbers nearest to zero that ``minimum`` and its kin allow.

    Args:
        schema: a JSON schema; ``minimum``, ``maximum``, both exclusive forms and ``multipleOf`` are read.
        integer: whole numbers only.

    Returns:
        At most 16, the nearest to zero first; empty where none was found.
    """
    span = _Span(schema)
    step = _fraction(schema.get("multipleOf"))
    if step is not None and step > 0:
        return _spelled(span, step, integer)
    for digits in range(1 if integer else _MAX_DIGITS):
        found = _spelled(span, Fraction(1, 10**digits), integer)
        if found:
            return found
    return []


def _spelled(span: _Span, step: Fraction, integer: bool) -> list[str]:
    found = []
    for value in itertools.islice(span.multiples(step), _MAX_TRIED):
        if not integer or value.denominator == 1:
            found.append(_decimal(value))
            if len(found) == _MAX_FOUND:
                break
    return found


class _Span:
    """Where the numbers may lie."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._floors = [(_fraction(schema.get("minimum")), False), (_fraction(schema.get("exclusiveMinimum")), True)]
        self._tops = [(_fraction(schema.get("maximum")), False), (_fraction(schema.get("exclusiveMaximum")), True)]

    def _below(self, value: Fraction) -> bool:
        return any(floor is not None and (value < floor or (value == floor and is_open)) for floor, is_open in self._floors)

    def _above(self, value: Fraction) -> bool:
        return any(top is not None and (value > top or (value == top and is_open)) for top, is_open in self._tops)

    def multiples(self, step: Fraction) -> Iterator[Fraction]:
        """Multiples of ``step`` inside, away from zero in the direction that holds the nearest."""
        floor = max((floor for floor, _ in self._floors if floor is not None), default=Fraction(0))
        top = min((top for top, _ in self._tops if top is not None), default=Fraction(0))
        start, direction = 0, 1
        if floor > 0:
            start = math.ceil(floor / step)
        elif self._above(Fraction(0)) or self._above(step):
            start, direction = math.floor(min(top, Fraction(0)) / step), -1
        for count in itertools.count():
            value = (start + direction * count) * step
            if (direction > 0 and self._above(value)) or (direction < 0 and self._below(value)):
                return
            if not self._below(value) and not self._above(value):
                yield value


def _fraction(bound: object) -> Fraction | None:
    """A bound as the decimal number that it was written as."""
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
        return None
    return Fraction(repr(bound))


def _decimal(value: Fraction) -> str:
    whole, rest = divmod(abs(value), 1)
    digits = ""
    while rest and len(digits) < _MAX_DIGITS:
        digit, rest = divmod(rest * 10, 1)
        digits += str(digit)
    return f"{'-' if value < 0 else ''}{whole}{'.' + digits if digits else ''}"
