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
    "AdaptiveGen",
    "Argument",
    "ArgumentValue",
    "CommutativeMark",
    "ConstantText",
    "Expr",
    "ExprList",
    "Fork",
    "Gen",
    "Heal",
    "Image",
    "JoinedValue",
    "NodeValue",
    "Prefetch",
    "RawText",
    "RoleBegin",
    "RoleEnd",
    "ScopeBegin",
    "ScopeEnd",
    "Select",
    "TokenIds",
    "Value",
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
class TokenIds(Expr):
    """Text whose ids are known, such as a reply that was generated in an earlier run: they are appended and never encoded.

    Args:
        ids: the tokens.
        text: as ``state.text()`` shows it.
        text_behind_ids: the end of ``text`` that ``ids`` do not spell, as in ``GenResult``.
    """

    ids: tuple[int, ...]
    text: str
    text_behind_ids: str = ""


@dataclass(frozen=True, slots=True)
class Gen(Expr):
    """Generate text and define a variable.

    Args:
        name: the variable; None is given a unique name by the executor.
        options: the ``SamplingParams`` fields that the author set; everything else is the program's default.
        dtype: type of the variable's value: str, int, float or bool.
        heal: which last token of the prompt the model spells anew; see ``sgl_core.language.healing``.
        reasoning: the kind of model whose reasoning is kept apart from its answer; see ``sgl_core.language.reasoning``.
    """

    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: type = str
    heal: Heal = "space"
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class AdaptiveGen(Gen):
    """A generation that depends on what stands before it in its stream; for adapters, which know a whole reply beforehand.

    Args:
        max_len: tokens of the stream, prompt included, at which it ends at the latest. So several generations, and the text
            between them, share one budget.
        by: an earlier variable of the stream. ``cases``: further options, by the text of that variable.
    """

    max_len: int | None = None
    by: str | None = None
    cases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


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
class ArgumentValue:
    """The value that a traced argument will have."""

    name: str


@dataclass(frozen=True, slots=True)
class NodeValue:
    """The value of a variable that a graph's node defines, or of a ``Call``.

    Args:
        node: id of the node.
        name: the variable; empty for a ``Call``.
    """

    node: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class JoinedValue:
    """What one fork contributes to a variable at a join that keeps errors: its value, its error, or None.

    Args:
        node: id of the ``Join``.
        name: the variable.
        index: which fork.
    """

    node: int
    name: str
    index: int


Value = ArgumentValue | NodeValue | JoinedValue


@dataclass(frozen=True, slots=True)
class Argument(Expr):
    """The text of an argument."""

    name: str


@dataclass(frozen=True, slots=True)
class Variable(Expr):
    """The text of a value that is made elsewhere, or earlier; waits for it where it is run, not where it is written."""

    source: Value


@dataclass(frozen=True, slots=True)
class Image(Expr):
    """A picture.

    Args:
        source: a path or URL as given, or the bytes of the file.
    """

    source: str | bytes


@dataclass(frozen=True, slots=True)
class CommutativeMark(Expr):
    """Bounds parts that their author allows in any order: "begin" before the first, "next" between two, "end".

    Does nothing when it is run.
    """

    place: Literal["begin", "next", "end"]


@dataclass(frozen=True, slots=True)
class Prefetch(Expr):
    """Tell the backend to compute the text so far while it has nothing better to do. Changes no result.

    Args:
        min_tokens: not worth it for fewer tokens than these behind the last request of the stream.
    """

    min_tokens: int = 64


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
    if isinstance(value, Expr):  # first: a traced value lets nobody ask whether it is a str
        return value.nodes()
    if isinstance(value, str):
        return (ConstantText(value),)
    raise InvalidArgumentError(
        argument, type(value).__name__, "text or an expression such as gen(...)", "Convert a value with str(...) first."
    )
