"""Claims: nothing is computed twice, and that makes programs faster than ``transformers.generate``, by how much and why.

Six workloads (see ``workloads.py``) on the embedded model, each answered by the engine and by ``transformers.generate`` in
left-padded batches of 16, in rounds that alternate; then by the engine with one part switched off. Beside each time stand the
prompt tokens computed and the fewest that any cache could have computed. What needs no clock (every ablation in every pool,
hit rates in a pool of a quarter) is counted in replays of the same answers, without the model.

    python benchmarks/bench_engine.py [--workloads W1,W6] [--dtype bfloat16] [--quick] [--out benchmarks/results]

Bars are judged and printed at the end; the exit code is 1 if one is missed. Parts of a workload (``--scale``) are judged by
what they compute, not by their speed. Everything goes into ``engine_<dtype>.json`` and three pictures, or, where it is a part
only (see ``is_whole``) or not done yet, into ``engine_<dtype>_partial.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import report
from ablations import counted, log_of, small_pools, timed
from harness import Outcome, Run, agreement, machine, measure, write_json
from rich.console import Console
from systems import engine_system, generate_system
from workloads import WORKLOADS, build

from sgl_core.config import Environment
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.gguf_model import convert_gguf
from sgl_core.runtime.model_source import resolve_model
from sgl_core.testing.optimum import distinct_tokens, optimal_prefill_tokens

LEAST_RATIO = {"W1": 10.0, "W2": 2.2, "W3": 1.6, "W6": 1.1}
"""Times faster than ``transformers.generate``."""
MOST_OVER_OPTIMUM = 1.02
LEAST_OF_OPTIMUM = 0.98
LEAST_IDENTICAL = 0.97
ROUNDS, SLOW_ROUNDS, PATIENCE_S = 3, 2, 60.0
WHOLE = {"float32": (frozenset(WORKLOADS), ROUNDS, True), "bfloat16": (frozenset(LEAST_RATIO), 2, False)}
"""What makes a result whole, by dtype: the workloads, the engine's rounds, and whether ablations are timed. They differ little
between dtypes, and take long where bfloat16 is emulated."""
_QUICK_WORKLOADS = "W1,W2,W3,W6"
_QUICK_SCALE = 0.1
_LOG_COLUMNS = 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", help="names, separated by commas; all by default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of engine and baseline")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of the engine")
    parser.add_argument("--slow-rounds", type=int, default=SLOW_ROUNDS, help="rounds of the baseline and of the ablations")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_S, help="of these, none follows one that took so many seconds"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--baseline", action=argparse.BooleanOptionalAction, default=True, help="time transformers.generate")
    parser.add_argument("--ablations", action=argparse.BooleanOptionalAction, default=True, help="time the ablations")
    parser.add_argument("--scale", type=float, default=1.0, help="part of each workload, in (0, 1]")
    parser.add_argument("--quick", action="store_true", help="a look in two minutes: parts of four workloads, one round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.slow_rounds, options.ablations, options.scale = 1, 1, False, _QUICK_SCALE
        options.workloads = options.workloads or _QUICK_WORKLOADS
    options.workloads = (options.workloads or ",".join(WORKLOADS)).split(",")
    unknown = [key for key in options.workloads if key not in WORKLOADS]
    if unknown:
        parser.error(f"--workloads: got {', '.join(unknown)}, expected some of {', '.join(WORKLOADS)}")
    for name in ("rounds", "slow_rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(options, name)}, expected at least 1")
    if not 0.0 < options.scale <= 1.0:
        parser.error(f"--scale: got {options.scale}, expected a number in (0, 1]")
    return options


def is_whole(options: argparse.Namespace) -> bool:
    """Whether the result may stand for all, or is a look at a part of it."""
    workloads, rounds, ablations = WHOLE[options.dtype]
    enough_rounds = options.rounds >= rounds and options.slow_rounds >= SLOW_ROUNDS and options.patience >= PATIENCE_S
    enough_systems = options.baseline and (options.ablations or not ablations)
    return options.scale == 1.0 and workloads <= set(options.workloads) and enough_rounds and enough_systems


def embedded_folder() -> Path:
    """The embedded model as safetensors, converted on first use."""
    environment = Environment.read()
    source = resolve_model(None, environment)
    return (convert_gguf(source, environment) if source.kind == "gguf" else source).path


def run_workload(key: str, folder: Path, codec: LocalCodec, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one workload in every way; returns its part of the report."""
    workload = build(key, codec, scale=options.scale)
    engine_options = {"dtype": options.dtype, "threads": options.threads}
    systems = [engine_system("sgl-core", workload, engine_options, options.rounds)]
    if options.baseline:
        systems.append(
            generate_system(workload, folder, options.dtype, options.threads, options.slow_rounds, patience_s=options.patience)
        )
    runs = measure(systems, workload.num_calls, title=key)
    rounds = [_counts(outcome) for outcome in runs[0].outcomes]
    worst = max(range(len(rounds)), key=lambda number: rounds[number]["over_optimum"])
    record = runs[0].outcomes[worst].record
    log = log_of(record)
    result = {
        "title": workload.title,
        "calls": workload.num_calls,
        "prompt_tokens": sum(len(request.prompt) for request in log),
        "new_tokens": sum(len(request.output) for request in log),
        "distinct_tokens": distinct_tokens(log),
        **rounds[worst],
        "over_optimum_by_round": [counts["over_optimum"] for counts in rounds],
        "systems": [run.as_json() for run in runs],
        "times_ours": {run.name: run.median_s / runs[0].median_s for run in runs[1:]},
        "agreement": {run.name: _compared(runs[0], run) for run in runs[1:]},
        "small_pools": small_pools(workload, record),
        "counted": counted(workload, record),
    }
    if options.ablations:
        result["timed"] = timed(
            key, codec, engine_options, scale=options.scale, rounds=options.slow_rounds, patience_s=options.patience
        )
    return result


def _counts(outcome: Outcome) -> dict[str, Any]:
    """What a round of the engine computed, and the least that its own order of calls could have needed."""
    optimum = optimal_prefill_tokens(log_of(outcome.record))
    computed = outcome.details["prefilled_tokens"] + outcome.details["recomputed_tokens"]
    return {"computed_tokens": computed, "optimal_prefill_tokens": optimum, "over_optimum": computed / optimum}


def _compared(ours: Run, theirs: Run) -> dict[str, Any]:
    same = agreement(ours.outcome.record, theirs.outcome.record)
    return {**asdict(same), "share": same.share}


def judge(workloads: dict[str, Any], *, dtype: str, whole: bool) -> list[dict[str, Any]]:
    """Every bar that these results can be held against."""
    bars: list[dict[str, Any]] = []

    def bar(name: str, value: float, limit: float, *, at_least: bool) -> None:
        passed = value >= limit if at_least else value <= limit
        bars.append({"name": name, "value": value, "bar": ("at least " if at_least else "at most ") + f"{limit:g}"})
        bars[-1]["passed"] = passed

    for key, result in workloads.items():
        for name, ratio in result["times_ours"].items():
            if whole and key in LEAST_RATIO:
                bar(f"{key}: times faster than {name} (ours too)", ratio, LEAST_RATIO[key], at_least=True)
        bar(
            f"{key}: prompt tokens computed, of the optimum, worst round",
            result["over_optimum"],
            MOST_OVER_OPTIMUM,
            at_least=False,
        )
        if dtype == "float32":
            for name, same in result["agreement"].items():
                bar(f"{key}: outputs identical to {name}", same["share"], LEAST_IDENTICAL, at_least=True)
        for row in result["small_pools"]:
            rates = row["hit_rate"]
            if row["held_to"] == "optimum" and rates["optimum"]:
                reached = rates["ours"] / rates["optimum"]
                bar(f"{row['name']}: quarter pool, hit rate of the optimum", reached, LEAST_OF_OPTIMUM, at_least=True)
            elif row["held_to"] == "fcfs":
                bar(f"{row['name']}: quarter pool, hit rate not below FCFS", rates["ours"], rates["fcfs"], at_least=True)
    return bars


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    folder = embedded_folder()
    codec = LocalCodec.from_folder(folder)
    workloads: dict[str, Any] = {}
    name = f"engine_{options.dtype}"
    content: dict[str, Any] = {
        "name": f"{name}_partial",
        "dtype": options.dtype,
        "scale": options.scale,
        "machine": {**machine(), "threads": options.threads},
        "workloads": workloads,
    }
    so_far = options.out / f"{content['name']}.json"
    for key in options.workloads:
        workloads[key] = run_workload(key, folder, codec, options)
        content["bars"] = judge(workloads, dtype=options.dtype, whole=options.scale == 1.0)
        write_json(so_far, content)  # after each, so that an interrupted run leaves what it has
    if is_whole(options):
        content["name"] = name
        write_json(options.out / f"{name}.json", content)
        so_far.unlink()
    report.print_tables(content, Console(width=None if sys.stdout.isatty() else _LOG_COLUMNS))
    report.write_pictures(content, options.out)
    return 0 if all(entry["passed"] for entry in content["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())
