"""Value numbers: equal numbers are equal values in one run, whatever way they were come by.

``steps`` numbers the values that flow through a chain. The input is number 0. What is read from a value, or computed from it by
a pure function, has a number of its own, the same each time; what a model, a lambda or a retriever gives is fresh at every
call. So an essay that three judges read has one number, and two calls of one retriever have two.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["INPUT", "Definition", "ValueTable"]

INPUT: Final = 0
"""The number of the input."""


@dataclass(frozen=True, slots=True)
class Definition:
    """Where a value comes from.

    Args:
        kind: "input", "get" (a key of a dict), "record" (a dict), "pure" (a function of ``operands``) or "fresh".
        what: the key, the keys in order, the function's identity, or a label.
        operands: numbers of the values that it is made of. A record's are its values in the order of its keys, and behind
            them the dict that it adds to, if there is one.
    """

    kind: str
    what: Hashable = None
    operands: tuple[int, ...] = ()


class ValueTable:
    """Gives numbers, and knows what they stand for. One per trace; not thread-safe."""

    def __init__(self) -> None:
        """Know the input alone."""
        self._definitions = [Definition("input")]
        self._numbers: dict[Definition, int] = {}

    def __getitem__(self, number: int) -> Definition:
        """Where a value comes from."""
        return self._definitions[number]

    def fresh(self, label: str) -> int:
        """A value that only a run knows."""
        self._definitions.append(Definition("fresh", label))
        return len(self._definitions) - 1

    def get(self, key: Hashable, value: int) -> int:
        """``value[key]``; looked up where the dict is known."""
        definition = self._definitions[value]
        if definition.kind != "record":
            return self._number(Definition("get", key, (value,)))
        keys = self._keys(definition)
        if key in keys:
            return definition.operands[keys.index(key)]
        if len(definition.operands) > len(keys):
            return self.get(key, definition.operands[-1])
        return self._number(Definition("get", key, (value,)))

    def record(self, fields: Mapping[str, int], base: int | None = None) -> int:
        """A dict of ``fields``, behind those of ``base``."""
        operands = (*fields.values(), *(() if base is None else (base,)))
        return self._number(Definition("record", tuple(fields), operands))

    def pure(self, function: Hashable, *operands: int) -> int:
        """A pure function of values."""
        return self._number(Definition("pure", function, operands))

    def _number(self, definition: Definition) -> int:
        if definition not in self._numbers:
            self._numbers[definition] = len(self._definitions)
            self._definitions.append(definition)
        return self._numbers[definition]

    @staticmethod
    def _keys(record: Definition) -> tuple[Hashable, ...]:
        return record.what if isinstance(record.what, tuple) else ()
