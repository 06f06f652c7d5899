"""What each part of the engine gives: the engine with one part switched off, timed on engines and counted in replays."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from execution import Record
from harness import Run, agreement, measure
from replay import Answers, Replay, answers_of, replay
from systems import engine_system
from workloads import Call, Workload, all_at_once, build

from sgl_core.backend import TextCodec
from sgl_core.testing.optimum import (
    LoggedRequest,
    belady_hit_tokens,
    distinct_tokens,
    lru_hit_tokens,
    optimal_prefill_tokens,
)

__all__ = ["TIMED", "TIMED_IN_QUARTER_POOL", "counted", "log_of", "quarter_pool", "small_pools", "timed"]


@dataclass(frozen=True, slots=True)
class Variant:
    """The engine with one part switched off.

    Args:
        options: those of the engine that differ.
        fork_parallelism: False gives out one call of a program at a time.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fork_parallelism: bool = True


FULL = Variant("full")
_VARIANTS = (
    FULL,
    Variant("no cache", {"prefix_cache": False}),
    Variant("one-level cache", {"cache_levels": 1}),
    Variant("FCFS", {"policy": "fcfs"}),
    Variant("random order", {"policy": "random"}),
    Variant("no in-flight sharing", {"in_flight_sharing": False}),
    Variant("no cascade", {"cascade": False}),
    Variant("no fork parallelism", fork_parallelism=False),
)

TIMED: dict[str, tuple[float, tuple[str, ...]]] = {
    "W1": (0.25, ("no cache", "no in-flight sharing", "no cascade")),
    "W2": (0.25, ("no cache", "one-level cache", "no in-flight sharing", "no cascade", "no fork parallelism")),
    "W3": (0.5, ("no cache", "one-level cache")),
    "W4": (0.25, ("no cascade", "no fork parallelism")),
}
"""Where a variant is timed: on a part of the workload, as the slow ones are slow. Counts are taken of all, on the whole."""

TIMED_IN_QUARTER_POOL: dict[str, tuple[str, ...]] = {"W4": ("FCFS", "random order")}
"""Orders of admission, which make no difference where everything fits."""


def log_of(record: Record) -> list[LoggedRequest]:
    """Its requests in the order in which they became ready."""
    return sorted((answered.request for answered in record), key=lambda request: request.ready)


def timed(
    key: str, codec: TextCodec, options: Mapping[str, Any], *, scale: float, rounds: int, patience_s: float
) -> list[dict[str, Any]]:
    """Seconds and counts of the full engine and of variants, interleaved; a group for each size of pool."""
    if key not in TIMED:
        return []
    part_scale, names = TIMED[key]
    part = build(key, codec, scale=part_scale * scale)
    runs = _measure(part, names, options, rounds, patience_s)
    groups = [_group(part.title, part, runs, None)]
    if key in TIMED_IN_QUARTER_POOL:
        pool = quarter_pool(log_of(runs[0].outcome.record))
        runs = _measure(part, TIMED_IN_QUARTER_POOL[key], {**options, "cache_tokens": pool}, rounds, patience_s)
        groups.append(_group(f"{part.title}; {pool} slots", part, runs, pool))
    return groups


def _measure(workload: Workload, names: Sequence[str], options: Mapping[str, Any], rounds: int, patience_s: float) -> list[Run]:
    systems = [
        engine_system(
            v.name,
            workload,
            {**options, **v.options},
            rounds,
            patience_s=patience_s,
            fork_parallelism=v.fork_parallelism,
        )
        for v in _VARIANTS
        if v is FULL or v.name in names
    ]
    return measure(systems, workload.num_calls, title=workload.key)


def _group(title: str, workload: Workload, runs: Sequence[Run], pool_tokens: int | None) -> dict[str, Any]:
    rows = [_timed_row(run, runs[0]) for run in runs]
    return {"title": title, "calls": workload.num_calls, "pool_tokens": pool_tokens, "variants": rows}


def _timed_row(run: Run, full: Run) -> dict[str, Any]:
    same = agreement(full.outcome.record, run.outcome.record)
    optimum = optimal_prefill_tokens(log_of(run.outcome.record))
    computed = run.outcome.details["prefilled_tokens"] + run.outcome.details["recomputed_tokens"]
    return {
        **run.as_json(),
        "times_full": run.median_s / full.median_s,
        "optimal_prefill_tokens": optimum,
        "over_optimum": computed / optimum,
        "identical_to_full": same.share,
    }


def counted(workload: Workload, record: Record) -> list[dict[str, Any]]:
    """Counts of all variants on the whole workload, in a pool that holds everything and in one of a quarter of that."""
    answers = answers_of(record)
    log = log_of(record)
    rows = []
    for pool, pool_tokens in (("whole", 2 * sum(len(r.computed) for r in log)), ("quarter", quarter_pool(log))):
        for variant in _VARIANTS:
            if "cascade" in variant.options:
                continue  # it changes how attention is computed, not what
            done = _replay(workload, answers, pool_tokens, variant)
            optimum = optimal_prefill_tokens(log_of(done.record))  # of its own order: a variant may make calls ready otherwise
            rows.append(
                {
                    "name": variant.name,
                    "pool": pool,
                    "pool_tokens": pool_tokens,
                    "prefilled_tokens": done.stats.prefilled_tokens,
                    "recomputed_tokens": done.stats.recomputed_tokens,
                    "evicted_tokens": done.stats.evicted_tokens,
                    "hit_rate": done.hit_rate,
                    "steps": done.stats.num_steps,
                    "optimal_prefill_tokens": optimum,
                    "over_optimum": done.computed_tokens / optimum,
                }
            )
    return rows


def _replay(workload: Workload, answers: Answers, pool_tokens: int, variant: Variant, **options: Any) -> Replay:
    return replay(
        workload,
        answers,
        pool_tokens=pool_tokens,
        options={**variant.options, **options},
        fork_parallelism=variant.fork_parallelism,
    )


def quarter_pool(log: Sequence[LoggedRequest]) -> int:
    """A quarter of the slots that would hold all KV of the log, but no fewer than one request needs."""
    return max(-(-distinct_tokens(log) // 4), max(len(request.computed) for request in log))


# ---- small pools ----------------------------------------------------------------------------------------------------------
def small_pools(workload: Workload, record: Record) -> list[dict[str, Any]]:
    """Hit rates in a quarter pool: the engine's, FCFS's, and what LRU and Belady reach in the order of the queue.

    Workloads whose calls are independent, and those of one level of W2 and W4, are also given whole: all at once, shuffled;
    first with as many running at once as hold at most half the pool, then with as many as fit.
    """
    levels = {"W1": "question", "W2": "fork", "W4": "thought 3"}
    answers = answers_of(record)
    rows = []
    if workload.key in levels:
        label = levels[workload.key]
        calls = [Call(a.request.prompt, len(a.request.output), label) for a in record if a.label == label]
        random.Random(0).shuffle(calls)
        level = all_at_once(workload.key, f"{workload.key}, every {label} at once", calls)
        log = [answered.request for answered in record if answered.label == label]
        half = max(1, quarter_pool(log) // 2 // max(len(request.computed) for request in log))
        rows.append(_pool_row(level, answers, quarter_pool(log), max_running=half, held_to="optimum"))
        rows.append(_pool_row(level, answers, quarter_pool(log), held_to=None))
    if workload.key in ("W2", "W3", "W4"):
        whole = replace(workload, title=f"{workload.key}, as its programs go on")
        rows.append(_pool_row(whole, answers, quarter_pool(log_of(record)), held_to="fcfs"))
    return rows


def _pool_row(
    workload: Workload, answers: Answers, pool: int, *, held_to: str | None, max_running: int | None = None
) -> dict[str, Any]:
    """One line of the comparison; its name says where one request alone takes most of the pool.

    Args:
        held_to: which of the rates ours is judged by, if any.
        max_running: requests at once; None is the engine's default.
    """
    options = {} if max_running is None else {"max_running": max_running}
    ours = _replay(workload, answers, pool, FULL, **options)
    fcfs = _replay(workload, answers, pool, FULL, policy="fcfs", **options)
    log = log_of(ours.record)
    prompt_tokens = sum(len(request.prompt) for request in log)
    rates = {
        "optimum": 1 - optimal_prefill_tokens(log) / prompt_tokens,
        "ours": ours.hit_rate,
        "fcfs": fcfs.hit_rate,
        "lru_in_order": lru_hit_tokens(log, pool) / prompt_tokens,
        "belady_in_order": belady_hit_tokens(log, pool) / prompt_tokens,
    }
    largest = max(len(request.computed) for request in log) / pool
    return {
        "name": workload.title + (f" (one request fills {largest:.0%} of the pool)" if largest > 0.5 else ""),
        "held_to": held_to,
        "pool_tokens": pool,
        "max_running": max_running,
        "recomputed_tokens": ours.stats.recomputed_tokens,
        "evicted_tokens": ours.stats.evicted_tokens,
        "retractions": ours.stats.num_retractions,
        "hit_rate": rates,
    }
