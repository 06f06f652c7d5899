"""A run as data: what users and bad luck do to a scheduler, so that it can be drawn, replayed, cut down and kept.

Every operation makes sense at any time (what is not there any more cannot be aborted, continued or retracted, and then
nothing happens), so a script with some of its operations left out is a script too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import groupby
from typing import TypeAlias

from sgl_core.runtime.request import Kind
from sgl_core.runtime.scheduler import SchedulerOptions
from sgl_core.testing.simulation.driver import VOCAB, Simulation, TextSink, tokens
from sgl_core.testing.simulation.oracle import Forcing
from sgl_core.types import Hints, SamplingParams

__all__ = [
    "Abort",
    "Advance",
    "Flush",
    "Operation",
    "Pin",
    "Retract",
    "Script",
    "Setup",
    "Step",
    "Submit",
    "Unpin",
    "run_script",
]

Pieces: TypeAlias = tuple[tuple[int, int], ...]
"""Ids as (sequence, length) pairs, joined: prompts that name a sequence share its leading tokens. See ``tokens``."""


class _Brief:
    """A repr that can be pasted as code and leaves out what is the default."""

    def __repr__(self) -> str:
        shown = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={_code(value)}' for name, value in shown)})"


def _code(value: object) -> str:
    return str(value) if isinstance(value, Enum) else repr(value)


@dataclass(frozen=True, repr=False)
class Setup(_Brief):
    """The scheduler's arguments."""

    num_slots: int = 400
    max_running: int = 8
    chunk_tokens: int = 64
    policy: str = "lpm"
    options: SchedulerOptions = field(default=SchedulerOptions())


@dataclass(frozen=True, repr=False)
class Operation(_Brief):
    """Something that happens."""


@dataclass(frozen=True, repr=False)
class Submit(Operation):
    """A request comes.

    Args:
        name: its id; a scoring of several continuations adds ``-0``, ``-1`` and so on.
        pieces: its prompt. ``after``: the request whose ids so far come before them, as a conversation goes on.
        new: its budget.
        kind: what it is for. ``when_idle``: PREFETCH: see ``Request``. ``continuations``: SCORE: what is scored.
        timeout: seconds until its deadline. ``stop``: a stop token. ``stop_text``: a token whose text is a stop string.
        sink_fails_at: its sink raises at this token. ``poisoned``: every forward pass with it raises.
        n: completions of the one prompt. ``run``: tokens that a grammar forces behind each sampled one. ``scores``:
            log-probabilities of prompt and output are wanted.
        others: see ``Request``.
    """

    name: str
    pieces: Pieces
    new: int = 4
    after: str | None = None
    kind: Kind = Kind.GENERATE
    when_idle: bool = False
    continuations: tuple[Pieces, ...] = ()
    namespace: str | None = None
    use_tree: bool = True
    priority: int = 0
    timeout: float | None = None
    stop: int | None = None
    stop_text: int | None = None
    sink_fails_at: int | None = None
    poisoned: bool = False
    n: int = 1
    run: int = 0
    scores: bool = False
    hints: Hints = field(default=Hints())


@dataclass(frozen=True, repr=False)
class Step(Operation):
    """The engine's loop turns; see ``Simulation.step``."""

    raising: bool = False
    bad_rows: tuple[int, ...] = ()


@dataclass(frozen=True, repr=False)
class Abort(Operation):
    """Somebody aborts an id that runs, waits, has ended or never was."""

    name: str


@dataclass(frozen=True, repr=False)
class Retract(Operation):
    """A running request is sent back to the queue."""

    name: str


@dataclass(frozen=True, repr=False)
class Pin(Operation):
    """A prefix is pinned for some time; ``Unpin`` of the same name ends it early."""

    name: str
    pieces: Pieces
    seconds: float = 20.0
    namespace: str | None = None


@dataclass(frozen=True, repr=False)
class Unpin(Operation):
    """A pin ends."""

    name: str


@dataclass(frozen=True, repr=False)
class Flush(Operation):
    """The cache is emptied of what nobody uses."""


@dataclass(frozen=True, repr=False)
class Advance(Operation):
    """The clock jumps forward."""

    seconds: float


@dataclass(frozen=True)
class Script:
    """One run."""

    setup: Setup
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        """Code that builds it, a line for each run of equal operations."""
        runs = ((repr(operation), len(list(same))) for operation, same in groupby(self.operations))
        lines = "".join(f"        {code},\n" if n == 1 else f"        *({code},) * {n},\n" for code, n in runs)
        return f"Script(\n    {self.setup!r},\n    (\n{lines}    ),\n)"


def run_script(script: Script, *, drain_limit: int = 50_000) -> Counter[str]:
    """Replay a script, drain what is left, and check everything after each operation and at the end.

    Args:
        drain_limit: steps that draining may take.

    Returns:
        How often the interesting things happened.

    Raises:
        AssertionError: something that must hold does not. Any other exception is the scheduler's own, and as bad.
    """
    setup = script.setup
    sim = Simulation(
        setup.num_slots,
        max_running=setup.max_running,
        chunk_tokens=setup.chunk_tokens,
        policy=setup.policy,
        options=setup.options,
    )
    pins: dict[str, int | None] = {}
    for operation in script.operations:
        _apply(sim, pins, operation)
    sim.now += 1_000.0  # pins and deadlines do not outlast the users
    sim.step()
    steps = sim.drain(limit=drain_limit)
    sim.assert_all_ended_well()
    stats = sim.scheduler.stats()
    requests = sim.requests.values()
    return sim.seen + Counter(
        {
            "requests": len(requests),
            "steps": stats.num_steps,
            "drained": steps,
            "hits": sum(0 < r.cached_len < r.prompt_len for r in requests),
            "retractions": stats.num_retractions,
            "recomputed": stats.recomputed_tokens,
            "evicted": stats.evicted_tokens,
            "prefetches used": stats.prefetch_useful,
            "prefetches late": stats.prefetch_late,
            "prefetches dropped": stats.prefetch_dropped,
            "tokens": sim.oracle.computed_tokens,
        }
    )


def _apply(sim: Simulation, pins: dict[str, int | None], operation: Operation) -> None:
    match operation:
        case Submit():
            _submit(sim, operation)
        case Step(raising, bad_rows):
            sim.step(raising=raising, bad_rows=bad_rows)
        case Abort(name):
            sim.abort(name)
        case Retract(name):
            sim.retract(name)
        case Pin(name, pieces, seconds, namespace):
            pins[name] = sim.pin(_ids(pieces), seconds, namespace=namespace)
        case Unpin(name):
            number = pins.get(name)
            if number is not None:
                sim.unpin(number)
        case Flush():
            sim.flush()
        case Advance(seconds):
            sim.now += seconds


def _ids(pieces: Pieces) -> list[int]:
    return [token for sequence, length in pieces for token in tokens(length, seed=sequence)]


def _submit(sim: Simulation, wanted: Submit) -> None:
    """Submit what fits the pool on its own, as an engine would."""
    prompt = _ids(wanted.pieces)
    if wanted.after is not None:
        earlier = sim.requests.get(wanted.after)
        if earlier is None:
            return
        prompt = [*earlier.ids, *prompt]
    common = {
        "namespace": wanted.namespace,
        "use_tree": wanted.use_tree,
        "priority": wanted.priority,
        "deadline": None if wanted.timeout is None else sim.now + wanted.timeout,
        "hints": wanted.hints,
        "kind": wanted.kind,
    }
    room = sim.scheduler.stats().pool_tokens + 1  # the last token of a generation needs no slot, nor that of a scoring
    if wanted.kind is Kind.SCORE:
        choices = [_ids(pieces) for pieces in wanted.continuations]
        choices = [choice for choice in choices if len(prompt) + len(choice) <= room]
        sim.score(prompt, choices, max_nodes=room - 1 - len(prompt), name=wanted.name, **common)
    elif wanted.kind is Kind.PREFETCH:
        if len(prompt) < room:
            sim.submit(prompt, 0, name=wanted.name, sink=None, when_idle=wanted.when_idle, **common)
    elif len(prompt) + wanted.new <= room:
        stops = frozenset() if wanted.stop is None else frozenset({wanted.stop})
        sink = TextSink(wanted.stop_text, wanted.sink_fails_at)
        params = SamplingParams(prompt_logprobs=True, logprobs=0) if wanted.scores else SamplingParams()
        options = {"sink": sink, "stop_ids": stops, "params": params, **common}
        for request in sim.submit_many(prompt, wanted.new, n=wanted.n, name=wanted.name, **options):
            if wanted.run:
                request.constraint = Forcing(request.ids, wanted.run, VOCAB, namespace=wanted.namespace)
    if wanted.poisoned:
        sim.poisoned.add(wanted.name)
