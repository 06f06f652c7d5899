"""Cut a program that shows a fault down to the statements that matter, and print what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from sgl_core.testing.programs.tree import Function, Program, Statement, World, source

__all__ = ["report", "shrunk"]

_MOST_TRIES: Final = 400


def shrunk(program: Program, still_fails: Callable[[Program], bool], most_tries: int = _MOST_TRIES) -> Program:
    """The smallest program found that still fails.

    Args:
        program: one that fails.
        still_fails: whether another one fails in the same way; it is asked about programs that make no sense, too, such as
            those that use a name which nobody defines any more.
        most_tries: how often it is asked at most.
    """
    left = most_tries
    progress = True
    while progress:
        progress = False
        for candidate in _smaller(program):
            if not left:
                return program
            left -= 1
            if still_fails(candidate):
                program, progress = candidate, True
                break
    return program


def report(program: Program, difference: str) -> str:
    """A failure for people: how to run it, the program, and what differed."""
    runs = "\n".join(f"main.run({_keywords({**arguments, **program.options})})" for arguments in program.argument_sets)
    head = f"program {program.seed} ({program.kind.value}, {program.world}):"
    return "\n".join([head, "", source(program), runs, "", difference])


def _keywords(values: dict[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _smaller(program: Program) -> Iterator[Program]:
    """Programs with a little less, the largest cuts first."""
    if len(program.argument_sets) > 1:
        for arguments in program.argument_sets:
            yield replace(program, argument_sets=(arguments,))
    for index, function in enumerate(program.functions):
        if function.name != "main":
            yield replace(program, functions=(*program.functions[:index], *program.functions[index + 1 :]))
    for index, function in reversed(list(enumerate(program.functions))):
        for body in _smaller_bodies(function.body):
            cut = Function(function.name, function.parameters, body)
            yield replace(program, functions=(*program.functions[:index], cut, *program.functions[index + 1 :]))
    if program.world != World():
        yield replace(program, world=World())
    for name in program.options:
        if name != "seed":
            yield replace(program, options={key: value for key, value in program.options.items() if key != name})


def _smaller_bodies(body: tuple[Statement, ...]) -> Iterator[tuple[Statement, ...]]:
    for index in reversed(range(len(body))):
        yield body[:index] + body[index + 1 :]
    for index, statement in enumerate(body):
        if statement.body:
            yield body[:index] + statement.body + body[index + 1 :]
            for inner in _smaller_bodies(statement.body):
                yield body[:index] + (replace(statement, body=inner),) + body[index + 1 :]
