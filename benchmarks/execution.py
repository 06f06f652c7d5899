"""Programs on their way: which calls are ready, what becomes ready when one has ended, and a record of it all.

A driver (the engine's, generate's, the replay's) takes ready calls, answers them in whatever order and batches it likes, and
hands the answers back; all on one thread. The execution owns the programs and numbers the events.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workloads import Call, Ids, Program

from sgl_core.testing.optimum import LoggedRequest

__all__ = ["Answered", "Execution", "Key", "Pending", "Record"]

Key = tuple[int, ...]
"""Where a call stands, whatever order calls run in: its program, then step and branch, and so on inwards."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A call that has ended. ``request`` tells its prompt, its output and when it was ready and finished."""

    key: Key
    label: str
    request: LoggedRequest


Record = tuple[Answered, ...]


@dataclass(slots=True, eq=False)
class _Task:
    program: Program
    key: Key
    parent: _Task | None
    branch: int
    steps: int = 0
    results: list[Any] = field(default_factory=list)
    missing: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A call that is ready, or being answered."""

    call: Call
    key: Key
    ready: int
    task: _Task
    branch: int


class Execution:
    """Runs programs against answers from outside.

    Args:
        programs: fresh ones; all start at once.
        one_at_a_time: give out one call of a program at a time, as if it could not fork.
    """

    def __init__(self, programs: Sequence[Program], *, one_at_a_time: bool = False) -> None:
        self._events = itertools.count()
        self._ready: list[Pending] = []
        self._answered: list[Answered] = []
        self._taken = 0
        self._busy: set[int] | None = set() if one_at_a_time else None
        for number, program in enumerate(programs):
            self._advance(_Task(program, (number,), None, 0), None)

    @property
    def is_done(self) -> bool:
        """Every program has ended."""
        return not self._ready and not self._taken

    @property
    def record(self) -> Record:
        """What has been answered, in the order of the keys."""
        return tuple(sorted(self._answered, key=lambda answered: answered.key))

    def take_ready(self) -> list[Pending]:
        """Calls that may run now and were not given out yet, in the order in which they became ready."""
        taken, kept = [], []
        for pending in self._ready:
            if self._busy is not None and pending.key[0] in self._busy:
                kept.append(pending)
                continue
            if self._busy is not None:
                self._busy.add(pending.key[0])
            taken.append(pending)
        self._ready = kept
        self._taken += len(taken)
        return taken

    def finish(self, answers: Sequence[tuple[Pending, Ids]]) -> None:
        """Take answers that came together: all of them have ended before any program goes on."""
        for pending, output in answers:
            self._taken -= 1
            if self._busy is not None:
                self._busy.discard(pending.key[0])
            logged = LoggedRequest(pending.call.prompt, output, pending.ready, next(self._events))
            self._answered.append(Answered(pending.key, pending.call.label, logged))
        for pending, output in answers:
            self._deliver(pending.task, pending.branch, output)

    def _advance(self, task: _Task, results: list[Any] | None) -> None:
        """Let a program go on to its next branches, or tell its parent that it has ended."""
        try:
            branches = next(task.program) if results is None else task.program.send(results)
        except StopIteration as end:
            if task.parent is not None:
                self._deliver(task.parent, task.branch, end.value)
            return
        step = task.steps
        task.steps += 1
        task.results, task.missing = [None] * len(branches), len(branches)
        for number, branch in enumerate(branches):
            key = (*task.key, step, number)
            if isinstance(branch, Call):
                self._ready.append(Pending(branch, key, next(self._events), task, number))
            else:
                self._advance(_Task(branch, key, task, number), None)

    def _deliver(self, task: _Task, branch: int, result: Any) -> None:
        task.results[branch] = result
        task.missing -= 1
        if not task.missing:
            self._advance(task, task.results)
