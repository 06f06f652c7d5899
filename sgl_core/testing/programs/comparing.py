"""Is a program the same compiled as interpreted? What is wrong if it is not, and the smallest program that shows it."""

from __future__ import annotations

from typing import Any, Final

from sgl_core.language import SglFunction
from sgl_core.testing.programs.observing import Mode, Prepare, difference, itself, observe
from sgl_core.testing.programs.shrinking import report, shrunk
from sgl_core.testing.programs.tree import Kind, Program

__all__ = ["compiled", "explained", "fault"]

_ACCEPTED: Final = "it looks at a value that is not there before it runs, and was compiled all the same: "
_SENSELESS: Final = tuple(
    f"<{kind}"
    for kind in (
        *("NameError", "UnboundLocalError", "VariableNotFoundError", "StreamClosedError"),
        *("ProgramError", "TypeError", "TraceError"),
    )
)
"""Errors of a program that lost the statements which others need."""


def compiled(function: SglFunction) -> Any:
    """As most people compile."""
    return function.compile()


def fault(program: Program, prepare: Prepare = compiled, mode: Mode = Mode.RUN) -> str:
    """What is wrong with the program compiled; empty if nothing is.

    A BRANCHING program has to be refused, any other has to do what it does interpreted. A mistake shows as soon as a program
    is compiled: there is no run then whose text could be watched, or that could warn of something before.

    Args:
        program: see ``Program``.
        prepare: how it is compiled.
        mode: the door that it is run by, compiled and interpreted.
    """
    if program.kind is Kind.MISTAKEN:
        door = Mode.RUN if mode is Mode.STREAM else mode
        interpreted, got = ({"runs": observe(program, how, door)["runs"]} for how in (itself, prepare))
        return difference(interpreted, got)
    if program.kind is Kind.BRANCHING:
        runs = observe(program, prepare, mode)["runs"]
        accepted = [run for run in runs if not (isinstance(run, str) and run.startswith("<TraceError"))]
        return f"{_ACCEPTED}{accepted[0]!s:.300}" if accepted else ""
    return difference(observe(program, mode=mode), observe(program, prepare, mode))


def explained(program: Program, prepare: Prepare = compiled, mode: Mode = Mode.RUN) -> str:
    """The report of a program that has a fault, cut down as far as it keeps one."""

    def seen(candidate: Program) -> str:
        return f"{observe(candidate, mode=mode)} {observe(candidate, prepare, mode)}"

    had = {sign for sign in _SENSELESS if sign in seen(program)}

    def still_fails(candidate: Program) -> bool:
        return bool(fault(candidate, prepare, mode)) and {sign for sign in _SENSELESS if sign in seen(candidate)} <= had

    small = shrunk(program, still_fails)
    return f"run by {mode.value!r}: " + report(small, fault(small, prepare, mode))
