"""The systems that are measured: our engine, and ``transformers.generate`` as the baseline.

Both answer the same workload with the same ids in and the same number of ids out. A system is opened for a round and closed
behind it, so one model is in memory at a time, no round sees another's cache, and the threads that torch started for one
system are gone while the other runs.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from execution import Execution, Pending, Record
from harness import Advance, Outcome, Session, System
from workloads import Call, Ids, Workload, all_at_once

from sgl_core.backend import Handle
from sgl_core.config import EngineConfig
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.model_loader import quiet_transformers
from sgl_core.types import GenRequest, GenResult, Hints, SamplingParams

__all__ = ["BASELINE_BATCH", "engine_system", "generate_system", "run_on_engine"]

BASELINE_BATCH = 16
_WARM_UP = all_at_once(
    "warm-up", "a full batch of short calls", [Call(tuple(range(100 + n, 148 + n)), 8, "") for n in range(BASELINE_BATCH)]
)
"""Wide enough for what is set up at first use: threads, packed weights, buffers of a full batch."""


# ---- our engine ---------------------------------------------------------------------------------------------------------
def engine_system(
    name: str,
    workload: Workload,
    options: Mapping[str, object],
    rounds: int,
    *,
    patience_s: float = math.inf,
    fork_parallelism: bool = True,
) -> System:
    """An engine with these options.

    Args:
        rounds, patience_s: see ``System``.
        fork_parallelism: False gives out one call of a program at a time.
    """

    @contextmanager
    def session() -> Iterator[Session]:
        with Engine.from_config(EngineConfig.from_options(**options)) as engine:
            run_on_engine(engine, _WARM_UP, lambda _: None)
            engine.flush_cache()
            engine.reset_stats()

            def run(advance: Advance) -> Outcome:
                record = run_on_engine(engine, workload, advance, fork_parallelism=fork_parallelism)
                return Outcome(record, {"dtype": engine.facts.dtype, **_counts(engine)})

            yield run

    return System(name, session, rounds, patience_s)


def _counts(engine: Engine) -> dict[str, Any]:
    stats = engine.stats()
    return {
        "prompt_tokens": stats.prompt_tokens,
        "prefilled_tokens": stats.prefilled_tokens,
        "recomputed_tokens": stats.recomputed_tokens,
        "evicted_tokens": stats.evicted_tokens,
        "generated_tokens": stats.generated_tokens,
        "hit_rate": 1 - (stats.prefilled_tokens + stats.recomputed_tokens) / stats.prompt_tokens,
        "steps": stats.num_steps,
    }


def run_on_engine(engine: Engine, workload: Workload, advance: Advance, *, fork_parallelism: bool = True) -> Record:
    """Submit every call when it is ready; the caller's thread sleeps until one has ended."""
    execution = Execution(workload.start(), one_at_a_time=not fork_parallelism)
    ended: queue.SimpleQueue[tuple[Pending, Handle[GenResult]]] = queue.SimpleQueue()
    while not execution.is_done:
        for pending in execution.take_ready():
            params = SamplingParams(max_new_tokens=pending.call.new_tokens, ignore_eos=True)
            hints = Hints(program_id=str(pending.key[0]))  # as the language says it
            handle = engine.submit(GenRequest(pending.call.prompt, params, hints=hints))
            handle.add_done_callback(partial(ended.put, (pending, handle)))
        together = [ended.get()]
        while not ended.empty():
            together.append(ended.get())
        execution.finish([(pending, handle.result().token_ids) for pending, handle in together])
        advance(len(together))
    return execution.record


# ---- transformers.generate ------------------------------------------------------------------------------------------------
def generate_system(
    workload: Workload, folder: Path, dtype: str, threads: int | None, rounds: int, *, patience_s: float = math.inf
) -> System:
    """``transformers.generate`` as a user would run it: sdpa attention, its default cache, greedy, left-padded batches.

    A batch is filled with calls that are ready and want as many tokens as the one that waits longest, shortest prompts first,
    so that there is little padding.

    Args:
        folder: the same weights that the engine runs.
        dtype: "float32" or "bfloat16".
        threads: of torch; None leaves its choice.
        rounds, patience_s: see ``System``.
    """

    @contextmanager
    def session() -> Iterator[Session]:
        with ThreadPoolExecutor(1) as thread:  # its team of torch threads ends with it
            if threads is not None:
                thread.submit(torch.set_num_threads, threads).result()  # OpenMP keeps the number per thread
            model = thread.submit(_load, folder, dtype).result()
            thread.submit(_run_on_generate, model, _WARM_UP, lambda _: None).result()

            def run(advance: Advance) -> Outcome:
                record = thread.submit(_run_on_generate, model, workload, advance).result()
                prompt_tokens = sum(len(answered.request.prompt) for answered in record)
                details = {"dtype": dtype, "batch": BASELINE_BATCH, "prompt_tokens": prompt_tokens}
                return Outcome(record, {**details, "prefilled_tokens": prompt_tokens, "hit_rate": 0.0})

            yield run

    return System(f"transformers.generate, {dtype}", session, rounds, patience_s)


def _load(folder: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():  # its progress bar would break into ours
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
        ).eval()
    model.generation_config.eos_token_id = None
    return model


def _run_on_generate(model: Any, workload: Workload, advance: Advance) -> Record:
    execution = Execution(workload.start())
    waiting: list[Pending] = []
    while not execution.is_done:
        waiting += execution.take_ready()
        batch = _next_batch(waiting)
        waiting = [pending for pending in waiting if pending not in batch]
        outputs = _generate(model, [pending.call.prompt for pending in batch], batch[0].call.new_tokens)
        execution.finish(list(zip(batch, outputs, strict=True)))
        advance(len(batch))
    return execution.record


def _next_batch(waiting: Sequence[Pending]) -> list[Pending]:
    alike = [pending for pending in waiting if pending.call.new_tokens == waiting[0].call.new_tokens]
    return sorted(alike, key=lambda pending: len(pending.call.prompt))[:BASELINE_BATCH]


@torch.inference_mode()
def _generate(model: Any, prompts: Sequence[Ids], count: int) -> list[Ids]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(ids, attention_mask=mask, do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0)
    return [tuple(row) for row in out[:, width:].tolist()]
