"""What the generator knows about a program while it writes it: which streams there are, and what their variables hold."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ABSENT", "FIXED_TEXT", "NUMBER", "TEXT", "UNCERTAIN", "Holds", "Shape", "StreamFacts", "gathered"]


class Holds(enum.Enum):
    """The kind of a value."""

    TEXT = enum.auto()
    NUMBER = enum.auto()
    ABSENT = enum.auto()
    UNCERTAIN = enum.auto()
    """A value, an error or None: what a join that keeps errors may give."""
    LIST = enum.auto()


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known about a value.

    Args:
        holds: its kind.
        is_made_at_run_time: nobody can know it before the program runs.
        items: of a LIST.
    """

    holds: Holds
    is_made_at_run_time: bool = False
    items: tuple[Shape, ...] = ()


TEXT = Shape(Holds.TEXT, True)
FIXED_TEXT = Shape(Holds.TEXT)
NUMBER = Shape(Holds.NUMBER, True)
ABSENT = Shape(Holds.ABSENT)
UNCERTAIN = Shape(Holds.UNCERTAIN, True)


@dataclass(slots=True, eq=False)
class StreamFacts:
    """A stream, under the name that the program has for it.

    Args:
        code: that name.
        open_role: the turn that is open.
        is_held: ``with`` closes that turn; nobody else may.
        variables: all that can be read.
        defined: those of them that it set itself.
        reads_values: its prompt holds values of variables.
        is_writable: it was neither joined nor left.
    """

    code: str
    open_role: str | None = None
    is_held: bool = False
    variables: dict[str, Shape] = field(default_factory=dict)
    defined: dict[str, Shape] = field(default_factory=dict)
    reads_values: bool = False
    is_writable: bool = True

    def define(self, name: str, shape: Shape) -> None:
        """It sets a variable."""
        self.variables[name] = shape
        self.defined[name] = shape

    def child(self, code: str) -> StreamFacts:
        """A fork of it."""
        return StreamFacts(code, self.open_role, False, dict(self.variables), {}, self.reads_values)

    def same_as(self, code: str) -> StreamFacts:
        """Another stream in which the same was done."""
        return StreamFacts(
            code, self.open_role, self.is_held, dict(self.variables), dict(self.defined), self.reads_values, self.is_writable
        )


def gathered(children: list[StreamFacts], *, keeps_errors: bool) -> Mapping[str, Shape]:
    """What a join defines in the parent."""
    names = dict.fromkeys(name for child in children for name in child.defined)
    found: dict[str, Shape] = {}
    for name in names:
        items = [child.defined.get(name, ABSENT) for child in children]
        if keeps_errors:
            items = [UNCERTAIN] * len(items)
        found[name] = Shape(Holds.LIST, False, tuple(items))
    return found
