"""Expressions: what programs add to a stream, as frozen nodes.

The primitives build them, the interpreter's ``StreamExecutor`` runs them one after another, and any other executor (a
tracer, a compiled graph) may walk the same nodes. A node says what is to be done and holds no state of doing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sgl_core.errors import InvalidArgumentError

__all__ = [
    "ConstantText",
    "Expr",
    "ExprList",
    "Fork",
    "Gen",
    "Heal",
    "RawText",
    "RoleBegin",
    "RoleEnd",
    "ScopeBegin",
    "ScopeEnd",
    "Select",
    "Variable",
    "as_nodes",
]

Heal = Literal["space", "token", False]


class Expr:
    """Anything that ``s += ...`` takes besides str; ``+`` puts two of them (or text) one after the other."""

    __slots__ = ()

    def nodes(self) -> tuple[Expr, ...]:
        """The nodes in order, lists flattened."""
        return (self,)

    def __add__(self, other: Expr | str) -> ExprList:
        """This, then ``other``."""
        return ExprList(self.nodes() + as_nodes(other, "+"))

    def __radd__(self, other: Expr | str) -> ExprList:
        """``other``, then this."""
        return ExprList(as_nodes(other, "+") + self.nodes())


@dataclass(frozen=True, slots=True)
class ExprList(Expr):
    """Several nodes in order. ``items`` holds no further lists."""

    items: tuple[Expr, ...] = ()

    def nodes(self) -> tuple[Expr, ...]:
        """Its items."""
        return self.items


@dataclass(frozen=True, slots=True)
class ConstantText(Expr):
    """Text; it never yields a control token."""

    text: str


@dataclass(frozen=True, slots=True)
class RawText(Expr):
    """An author's literal, in which spellings of control tokens become those tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class Gen(Expr):
    """Generate text and define a variable.

    Args:
        name: the variable; None is given a unique name by the executor.
        options: the ``SamplingParams`` fields that the author set; everything else is the program's default.
        dtype: type of the variable's value: str, int, float or bool.
        heal: which last token of the prompt the model spells anew; see ``sgl_core.language.healing``.
    """

    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: type = str
    heal: Heal = "space"


@dataclass(frozen=True, slots=True)
class Select(Expr):
    """Append the likeliest of several texts and define a variable with it.

    Args:
        name: the variable; None is given a unique name by the executor.
        choices: the texts, at least one and none empty; duplicates are allowed.
        choices_method: how to compare them; see ``sgl_core.language.choices``.
    """

    name: str | None
    choices: tuple[str, ...]
    choices_method: str


@dataclass(frozen=True, slots=True)
class RoleBegin(Expr):
    """Open a turn."""

    role: str


@dataclass(frozen=True, slots=True)
class RoleEnd(Expr):
    """Close the open turn, which must be of this role."""

    role: str


@dataclass(frozen=True, slots=True)
class Variable(Expr):
    """The text of a variable of the same stream, without waiting for it where the program is written."""

    name: str


@dataclass(frozen=True, slots=True)
class ScopeBegin(Expr):
    """Start to capture text into variable ``name``."""

    name: str


@dataclass(frozen=True, slots=True)
class ScopeEnd(Expr):
    """End the innermost capture into ``name`` and define the variable."""

    name: str


@dataclass(frozen=True, slots=True)
class Fork(Expr):
    """Start ``number`` streams from here."""

    number: int


def as_nodes(value: object, argument: str = "s += ...") -> tuple[Expr, ...]:
    """The nodes of text or an expression.

    Args:
        value: a str or an expression.
        argument: how the caller wrote it, for the error.

    Raises:
        InvalidArgumentError: it is neither; nothing is converted in silence.
    """
    if isinstance(value, str):
        return (ConstantText(value),)
    if isinstance(value, Expr):
        return value.nodes()
    raise InvalidArgumentError(
        argument, type(value).__name__, "text or an expression such as gen(...)", "Convert a value with str(...) first."
    )
