"""Measuring: systems run interleaved on one workload, and what each of them did goes into a run.

Who calls it: the benchmarks. A system opens a session for each of its rounds: loading and warming up happen before the clock
starts, and every round begins with an empty cache. How busy other processes kept the machine is noted beside every time.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from execution import Record
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = [
    "Advance",
    "Agreement",
    "Outcome",
    "Run",
    "Session",
    "System",
    "agreement",
    "cpu_name",
    "machine",
    "measure",
    "write_json",
]

_DIGITS = 5
"""Decimals in what is written."""

Advance = Callable[[int], None]
"""Called with the number of calls that have just ended."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one round gave.

    Args:
        record: every call with its prompt and output.
        details: what the system counted, for the report.
    """

    record: Record
    details: dict[str, Any]


Session = Callable[[Advance], Outcome]


@dataclass(frozen=True, slots=True)
class System:
    """Something that answers a workload.

    Args:
        name: for the report.
        session: opens it, loaded and warmed up, for one run.
        rounds: how often it is measured at most.
        patience_s: it gets no further round after one that took longer.
    """

    name: str
    session: Callable[[], AbstractContextManager[Session]]
    rounds: int = 1
    patience_s: float = math.inf


@dataclass(slots=True)
class Run:
    """What one system did in all its rounds."""

    name: str
    seconds: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    """Other processes' share of one core, on average, during each round."""
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """Of the last round."""
        return self.outcomes[-1]

    @property
    def median_s(self) -> float:
        """Median wall time of a round."""
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Times, load and counts; no outputs."""
        return {
            "name": self.name,
            "rounds": len(self.seconds),
            "median_s": self.median_s,
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "others_cpu_share": list(self.load),
            **self.outcome.details,
        }


def measure(systems: Sequence[System], num_calls: int, *, title: str = "") -> list[Run]:
    """Run the systems in rounds, each once a round, while it has rounds and patience left.

    Args:
        num_calls: of the workload, for the progress bar.
        title: stands before the system's name on it.
    """
    runs = [Run(system.name) for system in systems]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for number in range(max(system.rounds for system in systems)):
            for system, run in zip(systems, runs, strict=True):
                if number >= system.rounds or max(run.seconds, default=0.0) > system.patience_s:
                    continue
                name = f"{title} {system.name}, round {number + 1}".strip()
                task = progress.add_task(f"{name}: loading", total=num_calls)
                with system.session() as session:
                    progress.update(task, description=name)
                    _measure_once(session, run, partial(progress.advance, task))
    return runs


def _measure_once(session: Session, run: Run, advance: Advance) -> None:
    busy, own = _busy_seconds(), time.process_time()
    started = time.perf_counter()
    outcome = session(advance)
    wall = time.perf_counter() - started
    others = _busy_seconds() - busy - (time.process_time() - own)
    run.outcomes.append(outcome)
    run.seconds.append(wall)
    run.load.append(max(0.0, others) / wall)


def _busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / float(os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike the outputs of two systems are.

    Args:
        calls: of the workload.
        comparable: of these, asked with the same prompt; others follow a call that was answered differently.
        identical: of the comparable ones, answered with the same ids.
        leading: mean number of leading ids that agree in a comparable call.
    """

    calls: int
    comparable: int
    identical: int
    leading: float

    @property
    def share(self) -> float:
        """Identical among comparable answers."""
        return self.identical / self.comparable


def agreement(ours: Record, theirs: Record) -> Agreement:
    """Compare call by call; the first call of every program has the same prompt whatever the system."""
    pairs = [(a.request, b.request) for a, b in zip(ours, theirs, strict=True)]
    comparable = [(a.output, b.output) for a, b in pairs if a.prompt == b.prompt]
    leading = [next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a)) for a, b in comparable]
    identical = sum(a == b for a, b in comparable)
    return Agreement(len(pairs), len(comparable), identical, statistics.mean(leading))


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    import torch
    import transformers

    from sgl_core.runtime.model_loader import default_dtype

    return {
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": "native" if default_dtype(torch.device("cpu")) == torch.bfloat16 else "emulated",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def cpu_name() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Pretty, with a final newline; figures are rounded here and nowhere before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(content), indent=2) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, _DIGITS)
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case _:
            return value
