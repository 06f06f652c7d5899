"""From a script that fails to a short one that fails in the same way: delta debugging over its operations.

Source: Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002; ours only removes, as what is left
of a script is nearly always enough to fail, and then clears what the operations that stay do not need.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, replace
from typing import TypeAlias

from sgl_core.testing.simulation.driver import Simulation
from sgl_core.testing.simulation.script import Operation, Script, run_script
from sgl_core.testing.simulation.traffic import draw_script

__all__ = ["run_seed", "shrink"]

_MAX_STEPS = 250_000
"""Operations and steps of draining to replay before it gives out what it has: about a minute."""

_DRAIN_LIMIT = 2_000
"""Steps after which a replay counts as one that does not drain: scripts of some hundred operations take 100, seldom 1,000."""

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
    with _named_if_given_up(f"seed {seed}, {num_steps} steps", script):
        try:
            return run_script(script)
        except Exception as error:
            short = shrink(script)
            reason = f"seed {seed}, {num_steps} steps: {type(error).__name__}: {error}"
            raise AssertionError(f"{reason}\nrun_script on this fails so too:\n{short}") from error


@contextmanager
def _named_if_given_up(title: str, script: Script) -> Iterator[None]:
    """Print the script if it is left by a guard against hanging or by hand, as nothing is known then that could be shrunk."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        sys.stderr.write(f"{title}: given up while it ran or was shrunk. Its script:\n{script}\n")
        raise


def shrink(script: Script) -> Script:
    """Leave out operations, and details of those that stay, while it fails in the same place with the same kind of error.

    Raises:
        ValueError: the script does not fail.
    """
    failure, _ = _replayed(script)
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
        self._left = _MAX_STEPS

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
        if self._left <= 0:
            return False
        shorter = replace(self.script, operations=operations)
        failure, steps = _replayed(shorter)
        self._left -= steps
        if failure != self._wanted:
            return False
        self.script = shorter
        return True


def _details(operation: Operation) -> Iterator[tuple[str, object]]:
    for field in fields(operation):
        if field.default is not MISSING and getattr(operation, field.name) != field.default:
            yield field.name, field.default


def _replayed(script: Script) -> tuple[Failure | None, int]:
    """What went wrong and where in the code, None if nothing did; and the operations and steps it took, at most."""
    try:
        seen = run_script(script, drain_limit=_DRAIN_LIMIT)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        failure = type(error).__name__, frames[-1].filename, frames[-1].lineno
        drained = any(frame.name == Simulation.drain.__name__ for frame in frames)
        return failure, len(script.operations) + (_DRAIN_LIMIT if drained else 0)
    return None, len(script.operations) + seen["drained"]
