"""A generated program as data: statements with their lines of Python, so that it can be printed, run and cut down.

The printed source is what runs: there is no second meaning of a program that could differ from what a failure shows. Made by
``generator``, run by ``observing``, cut down by ``shrinking``. Everything here is frozen.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sgl_core.language import SglFunction

__all__ = ["Function", "Kind", "Program", "Statement", "World", "function_of", "source", "statements_of"]

_HEADER: Final = "import sgl_core.language as sgl\nfrom sgl_core.testing.programs import host\n"
_INDENT: Final = "    "


class Kind(enum.StrEnum):
    """What is to be expected of a program."""

    LEGAL = "legal"
    """It can be compiled. Requests and host code may fail when it runs."""
    MISTAKEN = "mistaken"
    """Its author made a mistake, and nothing else fails."""
    BRANCHING = "branching"
    """It looks at a value that is not there before it runs: it cannot be compiled."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement.

    Args:
        code: its line, or the line that opens its block.
        body: the block; empty for a statement without one.
        features: what it exercises, by names of ``generator.FEATURES``.
    """

    code: str
    body: tuple[Statement, ...] = ()
    features: frozenset[str] = frozenset()

    @property
    def has_block(self) -> bool:
        """Whether a block belongs behind its line."""
        return self.code.endswith(":")


@dataclass(frozen=True, slots=True)
class Function:
    """One ``sgl.function``.

    Args:
        name: its name; the program's own is ``main``.
        parameters: behind the state, as they are written.
        body: at least one statement.
    """

    name: str
    parameters: tuple[str, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class World:
    """What the backend of a program does.

    Args:
        fails_every: about one in so many prompts fails; 0: none.
        misfits_every: about one in so many numbers is none; 0: every one is.
    """

    fails_every: int = 0
    misfits_every: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """A program and how it is run.

    Args:
        seed: it was generated from this.
        kind: see ``Kind``.
        functions: in order of definition; ``main`` is the last.
        argument_sets: arguments by name, at least one set.
        options: of ``run``: seed, temperature and the like.
        world: what the backend does.
        may_fail: requests, host code or numbers may fail; a legal program runs through otherwise.
        looks_at: of a BRANCHING program, the argument that it looks at; None if it is a variable.
    """

    seed: int
    kind: Kind
    functions: tuple[Function, ...]
    argument_sets: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any]
    world: World
    may_fail: bool = False
    looks_at: str | None = None

    @property
    def features(self) -> frozenset[str]:
        """What its statements exercise."""
        return frozenset().union(*(statement.features for statement in statements_of(self)))


def statements_of(program: Program) -> Iterator[Statement]:
    """Every statement of every function, blocks before what is in them."""
    for function in program.functions:
        yield from _walk(function.body)


def _walk(body: tuple[Statement, ...]) -> Iterator[Statement]:
    for statement in body:
        yield statement
        yield from _walk(statement.body)


def source(program: Program) -> str:
    """The program as Python: a module that defines ``main``."""
    return "\n\n".join([_HEADER, *(_function_source(function) for function in program.functions)]) + "\n"


def _function_source(function: Function) -> str:
    head = ["@sgl.function", f"def {function.name}({', '.join(('s', *function.parameters))}):"]
    return "\n".join([*head, *_lines(function.body, _INDENT)])


def _lines(body: tuple[Statement, ...], indent: str) -> Iterator[str]:
    if not body:
        yield indent + "pass"
    for statement in body:
        yield indent + statement.code
        if statement.has_block:
            yield from _lines(statement.body, indent + _INDENT)


def function_of(program: Program) -> SglFunction:
    """Its ``main``, made anew from its source."""
    namespace: dict[str, Any] = {"__name__": f"program_{program.seed}"}
    exec(compile(source(program), f"<program {program.seed}>", "exec"), namespace)  # noqa: S102 - our own text
    main = namespace["main"]
    assert isinstance(main, SglFunction)
    return main
