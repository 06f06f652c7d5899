"""Measuring: systems run interleaved on one workload, outputs are compared, medians and ratios go to JSON and a picture.

Who runs it: one ``bench_<claim>.py`` a claim. A system is a function from token ids to token ids; it is warmed up on a small
part of the workload before the clock starts, and every round begins with an empty cache.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["Ids", "Run", "System", "agreement", "machine", "measure", "print_table", "write_json", "write_picture"]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class System:
    """Something that generates.

    Args:
        name: for the report.
        generate: prompts' ids in, new ids out, calling ``advance(n)`` when n more prompts are done.
        rounds: how often it is measured.
        describe: what it computed in its last round, for the report.
    """

    name: str
    generate: Callable[[Sequence[Ids], Callable[[int], None]], list[Ids]]
    rounds: int
    describe: Callable[[], dict[str, Any]] = dict


@dataclass(slots=True)
class Run:
    """What one system did."""

    name: str
    seconds: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    """Other processes' share of one core, on average, during each round."""
    outputs: list[Ids] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median_s(self) -> float:
        """Median wall time of a round."""
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Without the outputs."""
        return {
            "name": self.name,
            "rounds": len(self.seconds),
            "median_s": round(self.median_s, 3),
            "min_s": round(min(self.seconds), 3),
            "max_s": round(max(self.seconds), 3),
            "others_cpu_share": [round(x, 3) for x in self.load],
            **self.details,
        }


def measure(systems: Sequence[System], prompts: Sequence[Ids]) -> list[Run]:
    """Warm every system up on two prompts, then measure in rounds: each system once a round, while it has rounds left."""
    runs = [Run(system.name) for system in systems]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for system in systems:
            system.generate(prompts[:2], lambda _: None)
        for number in range(max(system.rounds for system in systems)):
            for system, run in zip(systems, runs, strict=True):
                if number < system.rounds:
                    task = progress.add_task(f"{system.name}, round {number + 1} of {system.rounds}", total=len(prompts))
                    _measure_once(system, run, prompts, partial(progress.advance, task))
    return runs


def _measure_once(system: System, run: Run, prompts: Sequence[Ids], advance: Callable[[int], None]) -> None:
    busy, own = _busy_seconds(), time.process_time()
    started = time.perf_counter()
    run.outputs = system.generate(prompts, advance)
    wall = time.perf_counter() - started
    others = _busy_seconds() - busy - (time.process_time() - own)
    run.seconds.append(wall)
    run.load.append(max(0.0, others) / wall)
    run.details = system.describe()


def _busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / float(os.sysconf("SC_CLK_TCK"))


def agreement(ours: Sequence[Ids], theirs: Sequence[Ids]) -> dict[str, float]:
    """How alike two lists of outputs are: identical ones, and the mean number of leading tokens that agree."""

    def leading(a: Ids, b: Ids) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    equal = [leading(a, b) for a, b in zip(ours, theirs, strict=True)]
    return {
        "identical": sum(a == b for a, b in zip(ours, theirs, strict=True)),
        "of": len(equal),
        "mean_leading_tokens_equal": round(statistics.mean(equal), 2),
    }


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    import torch
    import transformers

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu
        )
    return {
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def print_table(runs: Sequence[Run]) -> None:
    """Medians, and how many times slower than the first each is."""
    table = Table("system", "median s", "min .. max s", "rounds", "times ours", title="wall time")
    for run in runs:
        spread = f"{min(run.seconds):.2f} .. {max(run.seconds):.2f}"
        table.add_row(run.name, f"{run.median_s:.2f}", spread, str(len(run.seconds)), f"{run.median_s / runs[0].median_s:.1f}")
    Console().print(table)


def write_picture(runs: Sequence[Run], title: str, path: Path) -> None:
    """Horizontal bars of the medians, as SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "sgl"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.6 * len(runs) + 1.4))
    names = [run.name for run in runs]
    medians = [run.median_s for run in runs]
    bars = axes.barh(names, medians, color=["#2a7f62"] + ["#9aa5b1"] * (len(runs) - 1))
    axes.bar_label(bars, [f" {m:.1f} s   ({m / medians[0]:.1f}x)" for m in medians])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(medians))
    axes.set_xlabel("seconds, median; less is better")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Pretty, with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
