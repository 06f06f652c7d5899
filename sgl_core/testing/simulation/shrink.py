"""From a script that fails to a short one that fails in the same way: delta debugging over its operations.

Source: Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002; ours only removes, as what is left
of a script is nearly always enough to fail, and then clears what the operations that stay do not need.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from typing import TypeAlias

from sgl_core.testing.simulation.script import Operation, Script, run_script
from sgl_core.testing.simulation.traffic import draw_script

__all__ = ["run_seed", "shrink"]

_MAX_OPERATIONS = 100_000
"""Operations to replay before it gives out what it has: about half a minute."""

Failure: TypeAlias = tuple[str, str, int | None]
"""Kind of the error, file and line."""


def run_seed(seed: int, num_steps: int) -> Counter[str]:
    """Draw the script of a seed and run it.

    Returns:
        See ``run_script``.

    Raises:
        AssertionError: it fails; says the seed and a short script that fails in the same way.
    """
    script = draw_script(seed, num_steps)
    try:
        return run_script(script)
    except Exception as error:
        short = shrink(script)
        message = f"seed {seed}, {num_steps} steps: {type(error).__name__}: {error}\nrun_script on this fails so too:\n{short}"
        raise AssertionError(message) from error


def shrink(script: Script) -> Script:
    """Leave out operations, and details of those that stay, while it fails in the same place with the same kind of error.

    Raises:
        ValueError: the script does not fail.
    """
    failure = _failure(script)
    if failure is None:
        raise ValueError("script: got one that passes, expected one that fails")
    shrinking = _Shrinking(script, failure)
    shrinking.cut_end()
    shrinking.leave_out()
    shrinking.clear_details()
    shrinking.leave_out()
    return shrinking.script


class _Shrinking:
    """The shortest script so far that fails as wanted."""

    def __init__(self, script: Script, wanted: Failure) -> None:
        self.script = script
        self._wanted = wanted
        self._left = _MAX_OPERATIONS

    def cut_end(self) -> None:
        """Drop what comes after the failure, by bisection: what fails at an operation does so whatever comes later."""
        operations = self.script.operations
        passing, failing = -1, len(operations)
        while failing - passing > 1:
            middle = (passing + failing) // 2
            if self._try(operations[:middle]):
                failing = middle
            else:
                passing = middle

    def leave_out(self) -> None:
        """Drop ever smaller runs of operations, until no single one can go."""
        size = max(1, len(self.script.operations) // 2)
        while self._left > 0:
            start, removed = 0, False
            while start < len(self.script.operations):
                operations = self.script.operations
                if self._try(operations[:start] + operations[start + size :]):
                    removed = True
                else:
                    start += size
            if size == 1 and not removed:
                return
            size = max(1, size // 2)

    def clear_details(self) -> None:
        """Put fields of operations back to their defaults."""
        for index in range(len(self.script.operations)):
            for name, default in _details(self.script.operations[index]):
                operations = list(self.script.operations)
                operations[index] = replace(operations[index], **{name: default})
                self._try(tuple(operations))

    def _try(self, operations: tuple[Operation, ...]) -> bool:
        self._left -= len(operations)
        shorter = replace(self.script, operations=operations)
        if self._left <= 0 or _failure(shorter) != self._wanted:
            return False
        self.script = shorter
        return True


def _details(operation: Operation) -> Iterator[tuple[str, object]]:
    for field in fields(operation):
        if field.default is not MISSING and getattr(operation, field.name) != field.default:
            yield field.name, field.default


def _failure(script: Script) -> Failure | None:
    """What went wrong and where in the code; None if nothing did."""
    try:
        run_script(script)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return type(error).__name__, frame.filename, frame.lineno
    return None
