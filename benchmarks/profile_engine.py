"""Where a workload's time goes: scheduler, linears, attention, the small operators between them, sampling, and the rest.

The engine's own clocks split the wall time of an undisturbed run into scheduling, model and rest. A second run under torch's
profiler, on the engine thread, splits the model's part by operator; its shares are applied to the time of the first run, as
the profiler slows down what lies between operators.

    python benchmarks/profile_engine.py [--workload W6] [--dtype bfloat16] [--scale 0.5] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from harness import machine, write_json
from rich.console import Console
from rich.table import Table
from systems import run_on_engine
from workloads import WORKLOADS, Workload, build

from sgl_core.runtime import model_runner
from sgl_core.runtime.attention import StepContext
from sgl_core.runtime.engine import Engine

MOST_SCHEDULING = 0.02
"""Share of the wall time that tree and scheduler may take."""

_BETWEEN = "between operators (Python)"
_LINEARS = "linears"
_SMALL = "norms, rope, activations, residuals"
_RANGES = {
    "batch building": (model_runner, "build_batch"),
    "attention": (StepContext, "attend"),
    "sampling": (model_runner, "sample"),
}
"""Functions of the runner that are a part of their own, with everything that they call."""


@contextmanager
def marked_ranges() -> Iterator[None]:
    """Let the profiler see the functions above as ranges of these names."""
    originals = [(owner, name, getattr(owner, name)) for owner, name in _RANGES.values()]
    for part, (owner, name, original) in zip(_RANGES, originals, strict=True):
        setattr(owner, name, _as_range(part, original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _as_range(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(part):
            return function(*args, **kwargs)

    return marked


def part_of(event: Any) -> str:
    """The part that an operator's own time belongs to: the range around it, else by its name."""
    is_linear = False
    while event is not None:
        if event.name in _RANGES:
            return str(event.name)
        is_linear |= "linear" in event.name or event.name in ("aten::mm", "aten::addmm")
        event = event.cpu_parent
    return _LINEARS if is_linear else _SMALL


def timed_run(engine: Engine, workload: Workload) -> dict[str, float]:
    """Wall time and the engine's own clocks, in seconds."""
    engine.flush_cache()
    engine.reset_stats()
    started = time.perf_counter()
    run_on_engine(engine, workload, lambda _: None)
    wall = time.perf_counter() - started
    stats = engine.stats()
    return {"wall": wall, "scheduling": stats.scheduling_s, "model": stats.model_s}


def profiled_run(engine: Engine, workload: Workload) -> dict[str, float]:
    """Seconds of the model's time by part."""
    profiler: Any = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    with marked_ranges():
        engine._loop.call(lambda _: profiler.start())  # it records the thread that starts it
        seconds = timed_run(engine, workload)
        engine._loop.call(lambda _: profiler.stop())
    parts: defaultdict[str, float] = defaultdict(float)
    for event in profiler.events():
        parts[part_of(event)] += event.self_cpu_time_total / 1e6
    parts[_BETWEEN] = max(0.0, seconds["model"] - sum(parts.values()))
    return dict(parts)


def combine(undisturbed: dict[str, float], parts: dict[str, float]) -> list[dict[str, Any]]:
    """Rows of the report, largest first."""
    scale = undisturbed["model"] / sum(parts.values())
    seconds = {name: spent * scale for name, spent in parts.items()}
    seconds["tree and scheduler"] = undisturbed["scheduling"]
    seconds["rest (text, callbacks, programs)"] = undisturbed["wall"] - undisturbed["model"] - undisturbed["scheduling"]
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [{"part": n, "seconds": s, "share": s / undisturbed["wall"]} for n, s in ordered]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=tuple(WORKLOADS), default="W6")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the workload, in (0, 1]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    console = Console(stderr=True)
    with Engine(dtype=options.dtype, threads=options.threads) as engine:
        workload = build(options.workload, engine.codec, scale=options.scale)
        with console.status(f"{workload.title}: warming up"):
            timed_run(engine, build("W5", engine.codec, scale=0.1))
        with console.status(f"{workload.title}: undisturbed"):
            undisturbed = timed_run(engine, workload)
        with console.status(f"{workload.title}: under the profiler"):
            rows = combine(undisturbed, profiled_run(engine, workload))
    table = Table("part", "seconds", "share", title=f"{workload.key} {workload.title}: {undisturbed['wall']:.1f} s")
    for row in rows:
        table.add_row(row["part"], f"{row['seconds']:.2f}", f"{row['share']:.1%}")
    Console().print(table)
    share = undisturbed["scheduling"] / undisturbed["wall"]
    write_json(
        options.out / f"profile_{options.workload}_{options.dtype}.json",
        {
            "workload": workload.title,
            "dtype": options.dtype,
            "machine": {**machine(), "threads": options.threads},
            "wall_s": undisturbed["wall"],
            "parts": rows,
            "scheduling_share": share,
        },
    )
    print(f"tree and scheduler: {share:.2%} of the time (bar: at most {MOST_SCHEDULING:.0%})")
    return 0 if share <= MOST_SCHEDULING else 1


if __name__ == "__main__":
    sys.exit(main())
