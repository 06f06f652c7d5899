"""The engine's scheduler without a model: programs run against known answers, so a run takes a second instead of minutes.

Scheduler, tree and allocator are the production code, prompts and outputs are real ids; only the model's arithmetic is left
out. What is counted (tokens computed, hits, steps) is what an engine counts that takes no time to submit. So every ablation
and every size of pool can be tried on every workload; seconds are measured elsewhere, on engines.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from execution import Execution, Pending, Record
from workloads import Ids, Workload

from sgl_core.config import EngineConfig
from sgl_core.runtime.metrics import EngineStats
from sgl_core.runtime.plan import Finished, Sample, StepPlan, StepResult
from sgl_core.runtime.request import Kind, Request
from sgl_core.runtime.scheduler import Scheduler, SchedulerOptions
from sgl_core.types import Hints, SamplingParams

__all__ = ["Answers", "Replay", "answers_of", "replay"]

Answers = Callable[[Ids, int], Ids]
"""From a prompt and a number of tokens to those tokens."""

_CHUNK_TOKENS = 2048
"""As on a CPU engine."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay gave: every call in the order of the keys, and the scheduler's counts."""

    record: Record
    stats: EngineStats

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens run, those that had to be run again included."""
        return self.stats.prefilled_tokens + self.stats.recomputed_tokens

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that did not cost a run; what ran again counts against it."""
        return 1 - self.computed_tokens / self.stats.prompt_tokens


def answers_of(record: Record) -> Answers:
    """The answers that a model gave.

    Raises (the answers):
        KeyError: the model was not asked this.
    """
    known = {(answered.request.prompt, len(answered.request.output)): answered.request.output for answered in record}
    return lambda prompt, count: known[prompt, count]


def replay(
    workload: Workload,
    answers: Answers,
    *,
    pool_tokens: int,
    options: Mapping[str, Any] | None = None,
    fork_parallelism: bool = True,
) -> Replay:
    """Run a workload on a scheduler.

    Args:
        pool_tokens: slots of the pool.
        options: of an engine; those that reach its scheduler count.
        fork_parallelism: False gives out one call of a program at a time.
    """
    config = EngineConfig.from_options(**(options or {}))
    common = {f.name: getattr(config, f.name) for f in fields(SchedulerOptions) if f.name != "seed"}
    scheduler = Scheduler(
        pool_tokens,
        max_running=config.max_running,
        chunk_tokens=_CHUNK_TOKENS,
        policy=config.policy,
        options=SchedulerOptions(**common),
    )
    execution = Execution(workload.start(), one_at_a_time=not fork_parallelism)
    runner = _AnsweringRunner()
    running: dict[str, Pending] = {}
    clock = itertools.count()
    while not execution.is_done:
        for pending in execution.take_ready():
            request = _request(pending, str(len(running)), use_tree=config.prefix_cache)
            runner.outputs[request.id] = answers(pending.call.prompt, pending.call.new_tokens)
            running[request.id] = pending
            scheduler.add(request)
        ended = _step(scheduler, runner, float(next(clock)))
        execution.finish([(running[event.request.id], tuple(event.request.output_ids())) for event in ended])
    return Replay(execution.record, scheduler.stats())


def _step(scheduler: Scheduler, runner: _AnsweringRunner, now: float) -> list[Finished]:
    plan = scheduler.schedule(now)
    ended = scheduler.collect()
    if plan is not None:
        ended += [event for event in scheduler.update(plan, runner.run(plan), now) if isinstance(event, Finished)]
    elif not ended:
        raise RuntimeError("calls are ready, and nothing can run")
    for event in ended:
        if event.error is not None:
            raise event.error
    return ended


def _request(pending: Pending, request_id: str, *, use_tree: bool) -> Request:
    return Request(
        id=request_id,
        ids=list(pending.call.prompt),
        kind=Kind.GENERATE,
        params=SamplingParams(),
        max_new_tokens=pending.call.new_tokens,
        stop_ids=frozenset(),
        sink=_NoText(),
        submitted_at=0.0,
        use_tree=use_tree,
        hints=Hints(program_id=str(pending.key[0])),
    )


class _NoText:
    """The text of a request that nobody reads."""

    matched_stop: str | None = None

    def push(self, token_id: int) -> str:
        """Take a token."""
        del token_id
        return ""


class _AnsweringRunner:
    """Stands where the model runner stands; ``outputs`` holds what each request is to generate."""

    def __init__(self) -> None:
        self.outputs: dict[str, Ids] = {}

    def run(self, plan: StepPlan) -> StepResult:
        """One step."""
        samples = tuple(
            (Sample(self.outputs[work.request.id][work.request.num_generated]),) if work.sample else () for work in plan.works
        )
        return StepResult(samples, ((),) * len(samples), (None,) * len(samples))
