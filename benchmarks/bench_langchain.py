"""Claims: LangChain programs run several times faster on this engine than on ``ChatHuggingFace``, and compiling them costs nothing.

Seven programs (see ``langchain_workloads.py``), each run by ``ChatHuggingFace`` over a transformers pipeline, and by ``ChatSgl`` on
our engine: with the cache off, plain, and compiled. Rounds alternate; outputs are compared. Beside the times stand the prompt
tokens computed and those reported as ``cache_read``, against the best that any cache could do, from an empty cache. Without a
model: the processor time that a compiled chain takes, against the plain one.

    python benchmarks/bench_langchain.py [--programs few-shot,judges] [--no-baseline] [--quick] [--out benchmarks/results]

The baseline needs langchain-huggingface, which ``make bench-langchain`` puts into a folder of its own. Bars are judged and printed
at the end; the exit code is 1 if one is missed. Everything goes into ``langchain_float32.json`` and a picture, or, where it is a
part only (see ``is_whole``) or not done yet, into ``langchain_float32_partial.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import langchain_report as report
from bench_engine import embedded_folder
from harness import Run, machine, measure, write_json
from langchain_overhead import PLAIN, measure_overhead
from langchain_systems import (
    CACHE_OFF,
    COMPILED,
    DTYPE,
    HUGGING_FACE,
    OURS,
    Baseline,
    LangChainOutcome,
    engine_system,
    margin,
)
from langchain_workloads import UNSHARED, WORKLOADS, LangChainWorkload, build
from recording import RecordingEngine, open_engine
from rich.console import Console

LEAST_RATIO = {"few-shot": 5.0, "judges": 5.0}
"""Times faster than ``ChatHuggingFace``."""
LEAST_OF_IDEAL = {"few-shot": 0.95, "self-consistency": 0.95, "chat": 0.95, "judges": 0.95}
"""Reported ``cache_read``, of what any cache could have read."""
MOST_OVER_OPTIMUM = {"few-shot": 1.03}
"""Prompt tokens computed, over the fewest possible."""
LEAST_IDENTICAL = 0.97
MOST_ADDED_MS = 0.3
"""Processor time that compiling adds to a call."""
ROUNDS, SLOW_ROUNDS, PATIENCE_S = 3, 2, 10.0
CALLS, BATCHES = 300, 150
POOL_TOKENS = 16_384
"""Of each engine, for all programs: room for everything, and the same on every machine."""
_QUICK_PROGRAMS = "few-shot,judges,no sharing"
_QUICK_SCALE = 0.17
_LOG_COLUMNS = 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", help="names, separated by commas; all by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of the engine with its cache")
    parser.add_argument("--slow-rounds", type=int, default=SLOW_ROUNDS, help="rounds of the others")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_S, help="of no system one follows a round of so many seconds"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--baseline", action=argparse.BooleanOptionalAction, default=True, help="time ChatHuggingFace")
    parser.add_argument("--packages", type=Path, default=Path(sys.prefix) / "bench-langchain", help="has langchain-huggingface")
    parser.add_argument("--overhead", action=argparse.BooleanOptionalAction, default=True, help="time chains without a model")
    parser.add_argument("--scale", type=float, default=1.0, help="part of each program's inputs, in (0, 1]")
    parser.add_argument("--quick", action="store_true", help="a look in a minute: parts of three programs, one round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    options.calls, options.batches = CALLS, BATCHES
    if options.quick:
        options.rounds, options.slow_rounds, options.scale = 1, 1, _QUICK_SCALE
        options.calls, options.batches = CALLS // 10, BATCHES // 10
        options.programs = options.programs or _QUICK_PROGRAMS
    options.programs = (options.programs or ",".join(WORKLOADS)).split(",")
    unknown = [key for key in options.programs if key not in WORKLOADS]
    if unknown:
        parser.error(f"--programs: got {', '.join(unknown)}, expected some of {', '.join(WORKLOADS)}")
    for name in ("rounds", "slow_rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(options, name)}, expected at least 1")
    if not 0.0 < options.scale <= 1.0:
        parser.error(f"--scale: got {options.scale}, expected a number in (0, 1]")
    if options.baseline and not (options.packages / "langchain_huggingface").is_dir():
        parser.error(
            f"--packages: {options.packages} has no langchain_huggingface; use `make bench-langchain` or --no-baseline"
        )
    return options


def is_whole(options: argparse.Namespace) -> bool:
    """Whether the result may stand for all, or is a look at a part of it."""
    enough_rounds = options.rounds >= ROUNDS and options.slow_rounds >= SLOW_ROUNDS and options.patience >= PATIENCE_S
    enough_parts = options.baseline and options.overhead and set(options.programs) == set(WORKLOADS)
    return options.scale == 1.0 and enough_rounds and enough_parts and not options.quick


# ---- programs -------------------------------------------------------------------------------------------------------------
class Stage:
    """The models of a whole benchmark, loaded once. It owns them."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Load everything."""
        self._options = options
        self._opened = ExitStack()
        with ExitStack() as opened, Console(stderr=True).status("loading"):
            common = {"threads": options.threads, "cache_tokens": POOL_TOKENS, "dtype": DTYPE}
            self._engine: RecordingEngine = opened.enter_context(open_engine(**common))
            self._without_cache: RecordingEngine = opened.enter_context(open_engine(**common, prefix_cache=False))
            self._baseline: Baseline | None = None
            if options.baseline:
                self._baseline = opened.enter_context(Baseline(embedded_folder(), options.packages, options.threads))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them all."""
        self._opened.close()

    def run(self, workload: LangChainWorkload) -> dict[str, Run]:
        """Measure one program in every way; by the name of the system."""
        rounds, slow, patience_s = self._options.rounds, self._options.slow_rounds, self._options.patience
        systems = [
            engine_system(OURS, workload, self._engine, rounds),
            engine_system(COMPILED, workload, self._engine, rounds, compiled=True),
            engine_system(CACHE_OFF, workload, self._without_cache, slow, patience_s=patience_s),
        ]
        if self._baseline is not None:
            systems.append(self._baseline.system(workload, slow, patience_s=patience_s))
        runs = measure(systems, workload.num_calls, title=workload.key)
        return {run.name: run for run in runs}

    def summary(self, workload: LangChainWorkload, runs: dict[str, Run]) -> dict[str, Any]:
        """A program's part of the report."""
        slowest = runs.get(HUGGING_FACE)
        ours = _last(runs[OURS])
        return {
            "title": workload.title,
            "calls": workload.num_calls,
            "systems": {name: {**run.as_json(), **_worst(run)} for name, run in runs.items()},
            "times_as_fast": {} if slowest is None else {name: slowest.median_s / run.median_s for name, run in runs.items()},
            "identical_outputs": _identical(runs),
            "agreement": {
                name: compared(ours, _last(run), workload.num_first, self._engine) for name, run in runs.items() if name != OURS
            },
        }


def _last(run: Run) -> LangChainOutcome:
    assert isinstance(run.outcome, LangChainOutcome), "every session here gives one"
    return run.outcome


def _worst(run: Run) -> dict[str, Any]:
    """Of all rounds: the most that was computed over the optimum, and the least that was read of the ideal."""
    rounds = [outcome.details for outcome in run.outcomes if "over_optimum" in outcome.details]
    if not rounds:
        return {}
    ideal = [(details["cache_read"], details["ideal_cache_read"]) for details in rounds if details["ideal_cache_read"]]
    return {
        "over_optimum": max(details["over_optimum"] for details in rounds),
        "cache_read_of_ideal": min((read / most for read, most in ideal), default=None),
    }


def _identical(runs: dict[str, Run]) -> bool:
    """Whether all rounds of all of our ways put out the same."""
    rounds = [outcome for name, run in runs.items() if name != HUGGING_FACE for outcome in run.outcomes]
    return len({outcome.outputs for outcome in rounds if isinstance(outcome, LangChainOutcome)}) == 1


def compared(ours: LangChainOutcome, theirs: LangChainOutcome, num_first: int, engine: RecordingEngine) -> dict[str, Any]:
    """How alike the answers of two systems are, call by call, whatever order they came in.

    Args:
        num_first: calls whose prompts depend on no answer.
        engine: says how close the decisions were where answers differ.

    Returns:
        calls; comparable: asked with the same prompt ids (others follow a call that was answered differently, or quote what one
        of the systems encodes anew); same_prompts: whether all of the first calls are among them; identical: answered alike;
        margins: of the decisions where the others part, see ``margin``.
    """
    answers = {call.prompt: call.text for call in ours.calls}
    comparable = [call for call in theirs.calls if call.prompt in answers]
    different = [call for call in comparable if call.text != answers[call.prompt]]
    identical = len(comparable) - len(different)
    return {
        "calls": len(theirs.calls),
        "comparable": len(comparable),
        "same_prompts": len(comparable) >= num_first,
        "identical": identical,
        "share": identical / len(comparable) if comparable else 0.0,
        "margins": [margin(engine, call.prompt, (call.text, answers[call.prompt])) for call in different],
    }


# ---- bars -----------------------------------------------------------------------------------------------------------------
def judge(content: dict[str, Any], *, whole: bool) -> list[dict[str, Any]]:
    """Every bar that these results can be held against; speed is judged on whole programs only."""
    bars: list[dict[str, Any]] = []

    def bar(name: str, value: float, limit: float, *, at_least: bool) -> None:
        said = f"{'at least' if at_least else 'at most'} {limit:g}"
        bars.append({"name": name, "value": value, "bar": said, "passed": value >= limit if at_least else value <= limit})

    for key, result in content["programs"].items():
        for name in (OURS, COMPILED):
            system = result["systems"][name]
            if whole and key in LEAST_RATIO and result["times_as_fast"]:
                ratio = result["times_as_fast"][name]
                bar(f"{key}: {name}, times as fast as {HUGGING_FACE}", ratio, LEAST_RATIO[key], at_least=True)
            if key in MOST_OVER_OPTIMUM:
                limit = MOST_OVER_OPTIMUM[key]
                bar(f"{key}: {name}, computed over the optimum, worst round", system["over_optimum"], limit, at_least=False)
            if key in LEAST_OF_IDEAL and system["cache_read_of_ideal"] is not None:
                read = system["cache_read_of_ideal"]
                bar(f"{key}: {name}, cache_read of the ideal, worst round", read, LEAST_OF_IDEAL[key], at_least=True)
        bar(f"{key}: our outputs, cache on and off, identical", float(result["identical_outputs"]), 1.0, at_least=True)
        if HUGGING_FACE in result["agreement"]:
            same = result["agreement"][HUGGING_FACE]
            bar(f"{key}: prompts with the ids of {HUGGING_FACE}'s", float(same["same_prompts"]), 1.0, at_least=True)
            bar(f"{key}: answers identical to {HUGGING_FACE}'s", same["share"], LEAST_IDENTICAL, at_least=True)
        if key == UNSHARED:
            tokens = {name: _model_tokens(result["systems"][name]) for name in (OURS, COMPILED)}
            bar(f"{key}: model tokens, compiled over plain", tokens[COMPILED] / tokens[OURS], 1.0, at_least=False)
    for kind in ("invoke", "batch"):
        found = content.get("overhead", {}).get(kind, {"ways": {}})
        for name, way in found["ways"].items():
            if name != PLAIN:
                bar(f"{kind}: {name}, ms of processor time added to a call", way["added_ms"], MOST_ADDED_MS, at_least=False)
        if found["ways"]:
            bar(f"{kind}: plain and compiled ask and answer the same", float(found["identical"]), 1.0, at_least=True)
    return bars


def _model_tokens(system: dict[str, Any]) -> int:
    """That went through the model."""
    return int(system["computed_tokens"] + system["generated_tokens"])


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    name = f"langchain_{DTYPE}"
    content: dict[str, Any] = {
        "name": f"{name}_partial",
        "dtype": DTYPE,
        "scale": options.scale,
        "machine": {**machine(), "threads": options.threads},
        "programs": {},
    }
    so_far = options.out / f"{content['name']}.json"
    if options.overhead:  # first, as long as no thread of torch is there
        content["overhead"] = measure_overhead(options.calls, options.batches)
    with Stage(options) as stage:
        for key in options.programs:
            workload = build(key, scale=options.scale)
            content["programs"][key] = stage.summary(workload, stage.run(workload))
            content["bars"] = judge(content, whole=options.scale == 1.0)
            write_json(so_far, content)  # after each, so that an interrupted run leaves what it has
    if is_whole(options):
        content["name"] = name
        write_json(options.out / f"{name}.json", content)
        so_far.unlink()
    report.print_tables(content, Console(width=None if sys.stdout.isatty() else _LOG_COLUMNS))
    report.write_picture(content, options.out / f"{content['name']}.svg")
    return 0 if all(entry["passed"] for entry in content["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())
