"""Claim: on few-shot prompts the engine is at least four times faster than ``transformers.generate``.

The workload is one prefix of about 1,000 tokens and 64 questions behind it, all submitted at once, 32 new tokens each. The
same ids go into every system, on the embedded model, and every round starts with an empty cache.

The baseline is fixed: ``transformers.generate``, left-padded batches of 16, bfloat16, inference mode, the same number of
threads, greedy, exactly 32 new tokens on both sides (no end-of-text token ends a text). Where the processor emulates
bfloat16 the engine picks float32, and then the baseline runs in float32 as well: that row is the fair comparison, the
bfloat16 row only what a user of bfloat16 gets.

    python benchmarks/bench_few_shot.py [--rounds 3] [--slow-rounds 1] [--out benchmarks/results]

The systems that compute the prefix for every question take minutes a round, hence the two counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Ids, Run, System, agreement, machine, measure, print_table, write_json, write_picture
from workloads import Workload, few_shot

from sgl_core.runtime.engine import Engine
from sgl_core.types import SamplingParams

BASELINE_BATCH = 16
LEAST_RATIO = 4.0


def engine_system(name: str, engine: Engine, workload: Workload, rounds: int) -> System:
    params = SamplingParams(max_new_tokens=workload.new_tokens, ignore_eos=True)

    def generate(prompts: Sequence[Ids], advance: Callable[[int], None]) -> list[Ids]:
        engine.flush_cache()
        engine.reset_stats()
        handles = [engine.submit(prompt, params) for prompt in prompts]
        for handle in handles:
            handle.add_done_callback(lambda: advance(1))
        return [handle.result().token_ids for handle in handles]

    def describe() -> dict[str, Any]:
        stats = engine.stats()
        counts = {"prompt_tokens": stats.prompt_tokens, "prefilled_tokens": stats.prefilled_tokens, "steps": stats.num_steps}
        return {"dtype": engine.facts.dtype, **counts}

    return System(name, generate, rounds, describe)


def baseline_system(folder: Path, dtype: torch.dtype, workload: Workload, rounds: int) -> System:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    model.generation_config.eos_token_id = None
    name = str(dtype).removeprefix("torch.")

    @torch.inference_mode()
    def generate(prompts: Sequence[Ids], advance: Callable[[int], None]) -> list[Ids]:
        outputs: list[Ids] = []
        for start in range(0, len(prompts), BASELINE_BATCH):
            batch = prompts[start : start + BASELINE_BATCH]
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in batch])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
            count = workload.new_tokens
            out = model.generate(
                ids, attention_mask=mask, do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0
            )
            outputs += [tuple(row) for row in out[:, width:].tolist()]
            advance(len(batch))
        return outputs

    return System(f"transformers.generate, {name}", generate, rounds, lambda: {"dtype": name, "batch": BASELINE_BATCH})


def compare(runs: Sequence[Run], workload: Workload, dtype: str) -> dict[str, Any]:
    """Check the outputs against ours: lengths always, ids where the same dtype makes them comparable."""
    ours = runs[0]
    for run in runs:
        if any(len(ids) != workload.new_tokens for ids in run.outputs):
            raise SystemExit(f"{run.name}: an output has not {workload.new_tokens} tokens")
    compared = {run.name: agreement(ours.outputs, run.outputs) for run in runs[1:]}
    for run in runs[1:]:
        same = compared[run.name]
        if run.details["dtype"] == dtype == "float32" and same["identical"] < 0.97 * same["of"]:
            raise SystemExit(f"{run.name}: only {same['identical']} of {same['of']} outputs equal ours")
    return compared


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the engine with its cache")
    parser.add_argument("--slow-rounds", type=int, default=1, help="rounds of every other system")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    workload = few_shot(questions=options.questions)
    with Engine() as engine, Engine(prefix_cache=False) as uncached:
        dtype = engine.facts.dtype
        prompts = [engine.codec.encode(prompt) for prompt in workload.prompts]
        prefix = len(engine.codec.encode(workload.prompts[0].rsplit("Question:", 1)[0]))
        systems = [
            engine_system("sgl-core", engine, workload, options.rounds),
            engine_system("sgl-core, cache off", uncached, workload, options.slow_rounds),
        ]
        if dtype != "bfloat16":
            systems.append(baseline_system(engine.facts.folder, getattr(torch, dtype), workload, options.slow_rounds))
        systems.append(baseline_system(engine.facts.folder, torch.bfloat16, workload, options.slow_rounds))
        runs = measure(systems, prompts)
    compared = compare(runs, workload, dtype)
    ratios = {run.name: round(run.median_s / runs[0].median_s, 2) for run in runs[1:]}
    write_json(
        options.out / "few_shot.json",
        {
            "workload": {"prefix_tokens": prefix, "questions": len(prompts), "new_tokens": workload.new_tokens},
            "machine": machine(),
            "systems": [run.as_json() for run in runs],
            "times_ours": ratios,
            "outputs_against_ours": compared,
        },
    )
    title = f"few-shot: {prefix}-token prefix, {len(prompts)} questions, {workload.new_tokens} new tokens"
    write_picture(runs, title, options.out / "few_shot.svg")
    print_table(runs)
    least = min(ratios[run.name] for run in runs[2:])
    print(f"at least {least:.1f} times faster than transformers.generate (bar: {LEAST_RATIO:.0f})")
    return 0 if least >= LEAST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
