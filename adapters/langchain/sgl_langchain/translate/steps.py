"""What a chain does, step by step, with numbered values: the nodes executed in thought.

``trace`` makes it for a plan; ``explain``, the listing and the prefixes read it. A step knows the number of the value that it
takes and of the one that it gives. A model's step has the whole prompt as pieces, so prompts can be compared: two pieces are
equal when they are the same text in every run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sgl_langchain.translate import nodes
from sgl_langchain.translate.nodes import Node
from sgl_langchain.translate.prompts import PromptSegments

__all__ = [
    "ArmStep",
    "AttemptStep",
    "CallStep",
    "ChoiceStep",
    "Close",
    "EachStep",
    "ForkStep",
    "GenStep",
    "Open",
    "Piece",
    "Step",
    "Text",
    "Value",
    "common_pieces",
    "gens_of",
    "pieces_behind",
    "shared_pieces",
    "walk",
]


# ---- pieces of a prompt ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Open:
    """A turn begins."""

    role: str


@dataclass(frozen=True, slots=True)
class Close:
    """A turn ends."""

    role: str


@dataclass(frozen=True, slots=True)
class Text:
    """Constant text."""

    text: str


@dataclass(frozen=True, slots=True)
class Value:
    """A value as text.

    Args:
        number: its value number.
        name: what the template calls it; no part of what it is.
        format: what the template makes of it.
        is_messages: it is a list of messages, or a whole prompt.
    """

    number: int
    name: str = ""
    format: str = ""
    is_messages: bool = False

    def same_as(self, other: Piece) -> bool:
        """Whether both give the same text in every run."""
        return isinstance(other, Value) and (self.number, self.format, self.is_messages) == (
            other.number,
            other.format,
            other.is_messages,
        )


Piece = Open | Close | Text | Value


def common_pieces(one: tuple[Piece, ...], other: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """What both begin with; text is cut behind its last common word."""
    common: list[Piece] = []
    for a, b in zip(one, other, strict=False):
        if a == b or (isinstance(a, Value) and a.same_as(b)):
            common.append(a)
            continue
        if isinstance(a, Text) and isinstance(b, Text):
            shared = _common_words(a.text, b.text)
            common += [Text(shared)] if shared else []
        break
    return tuple(common)


def shared_pieces(prompts: Sequence[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """What all of some prompts begin with."""
    return functools.reduce(common_pieces, prompts) if prompts else ()


def pieces_behind(written: tuple[Piece, ...], prompt: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """What is left of a prompt behind its beginning ``written``, the last text of which may be cut; nothing if it is shorter."""
    if not written:
        return prompt
    last, place = written[-1], len(written) - 1
    if len(prompt) <= place:
        return ()
    if isinstance(last, Text) and isinstance(cut := prompt[place], Text) and len(cut.text) > len(last.text):
        return (Text(cut.text[len(last.text) :]), *prompt[place + 1 :])
    return prompt[place + 1 :]


def _common_words(one: str, other: str) -> str:
    size = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    head = one[:size]
    if size in (len(one), len(other)):
        longer = one if len(one) > size else other
        if len(longer) == size or longer[size].isspace() or (head and head[-1].isspace()):
            return head
    return head[: max((i + 1 for i, char in enumerate(head) if char.isspace()), default=0)]


# ---- steps -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step. ``value``: the number of what it gives. ``place``: where it stands in the chain, for people."""

    node: Node
    value: int
    place: str

    def bodies(self) -> tuple[tuple[Step, ...], ...]:
        """The steps inside it, in parts."""
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class GenStep(Step):
    """A model answers.

    Args:
        prompt: what it is asked, up to where the answer begins.
        template: where that comes from; None if it is no template that is known.
        name: a name for the answer, the only one of its kind in a trace.
    """

    model: nodes.Model
    prompt: tuple[Piece, ...]
    template: PromptSegments | None
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class CallStep(Step):
    """Host code runs: a function, a parser, an opaque runnable. ``argument``: the number of what it takes."""

    argument: int


@dataclass(frozen=True, slots=True, eq=False)
class ArmStep(Step):
    """One of several ways.

    Args:
        label: a key, or "if", "else".
        test: steps of its condition; ``tested`` is the number of what they give, None where there is no condition.
        body: its steps.
    """

    label: str
    body: tuple[Step, ...]
    test: tuple[Step, ...] = ()
    tested: int | None = None

    def bodies(self) -> tuple[tuple[Step, ...], ...]:
        """Condition and body."""
        return (self.test, self.body)


@dataclass(frozen=True, slots=True, eq=False)
class ForkStep(Step):
    """All arms, side by side."""

    arms: tuple[ArmStep, ...]

    def bodies(self) -> tuple[tuple[Step, ...], ...]:
        """Its arms."""
        return tuple((arm,) for arm in self.arms)


@dataclass(frozen=True, slots=True, eq=False)
class EachStep(Step):
    """The body for every element.

    Args:
        over: the number of the list; ``element`` that of the element at hand.
        result: the number of what the body gives.
    """

    over: int
    element: int
    body: tuple[Step, ...]
    result: int

    def bodies(self) -> tuple[tuple[Step, ...], ...]:
        """Its body."""
        return (self.body,)


@dataclass(frozen=True, slots=True, eq=False)
class ChoiceStep(Step):
    """One arm of several, known at run time. ``argument``: the number of what decides."""

    arms: tuple[ArmStep, ...]
    argument: int

    def bodies(self) -> tuple[tuple[Step, ...], ...]:
        """Its arms."""
        return tuple((arm,) for arm in self.arms)


@dataclass(frozen=True, slots=True, eq=False)
class AttemptStep(Step):
    """The first arm, and each further one only if the one before failed: fallbacks, or one arm that is tried again."""

    arms: tuple[ArmStep, ...]

    def bodies(self) -> tuple[tuple[Step, ...], ...]:
        """Its arms."""
        return tuple((arm,) for arm in self.arms)


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """Some steps and all that are inside them, in order."""
    for step in steps:
        yield step
        for body in step.bodies():
            yield from walk(body)


def gens_of(steps: Iterable[Step]) -> Iterator[GenStep]:
    """Every call of a model in some steps, in order, those inside other steps included."""
    return (step for step in walk(steps) if isinstance(step, GenStep))
