"""Random scripts from a seed: a few families of prompts, so that sharing, splits and forks happen, and all kinds of trouble.

Nothing here looks at a scheduler: what it draws is data, the same for the same seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from sgl_core.config import POLICIES
from sgl_core.runtime.request import Kind
from sgl_core.runtime.scheduler import SchedulerOptions
from sgl_core.testing.simulation.driver import VOCAB
from sgl_core.testing.simulation.script import (
    Abort,
    Advance,
    Flush,
    Operation,
    Pieces,
    Pin,
    Retract,
    Script,
    Setup,
    Step,
    Submit,
    Unpin,
)
from sgl_core.types import Hints

__all__ = ["draw_script"]

_NAMESPACES = (None, None, None, "a", "b")
_FAMILIES = 4
_RECENT = 8
"""Requests back that trouble looks for its victims: the older ones have mostly ended, which is a case too."""


def draw_script(seed: int, num_steps: int) -> Script:
    """A script of ``num_steps`` steps and whatever comes between them; the same for the same arguments."""
    rng = random.Random(seed)  # noqa: S311 - test data
    setup = _draw_setup(rng)
    return Script(setup, tuple(_Traffic(rng, setup).draw(num_steps)))


def _draw_setup(rng: random.Random) -> Setup:
    num_slots = rng.choice((24, 40, 64, 100, 180))
    return Setup(
        num_slots=num_slots,
        max_running=rng.choice((1, 2, 4, 8, 16)),
        chunk_tokens=rng.choice((1, 3, 8, 16, 64, 500)),
        policy=rng.choice(POLICIES),
        options=SchedulerOptions(
            in_flight_sharing=rng.random() < 0.85,
            cascade=rng.random() < 0.85,
            cache_levels=rng.choice((None, None, None, None, 1, 2)),
            namespace_quota_tokens=rng.choice((None, None, num_slots // 4)),
            seed=rng.randrange(100),
        ),
    )


@dataclass
class _Traffic:
    """What was drawn so far."""

    rng: random.Random
    setup: Setup
    names: list[str] = field(default_factory=list)
    num_pins: int = 0
    operations: list[Operation] = field(default_factory=list)

    def draw(self, num_steps: int) -> list[Operation]:
        trouble: tuple[tuple[float, Callable[[], None]], ...] = (
            (0.08, self.abort),
            (0.04, self.retract),
            (0.02, self.pin),
            (0.01, self.unpin),
            (0.01, self.flush),
            (0.01, self.jump),
        )
        load = self.rng.uniform(0.3, 1.0)  # work that comes per step, against what a step can do
        backlog = 0.0
        for _ in range(num_steps):
            while backlog <= 0.0:
                backlog += self.submit_some()
            backlog -= load
            for chance, happen in trouble:
                if self.rng.random() < chance:
                    happen()
            self.operations.append(self.step())
        return self.operations

    # ---- requests ----------------------------------------------------------------------------------------------------
    def submit_some(self) -> float:
        """One request, or a fork's children at once; returns the steps of work that they bring."""
        choice = self.rng.random()
        if choice < 0.15:
            return self.fork()
        if choice < 0.25:
            return self.score()
        kind = Kind.PREFETCH if choice < 0.35 else Kind.GENERATE
        pieces = self.prompt()
        after = self.victim() if kind is Kind.GENERATE and self.names and self.rng.random() < 0.2 else None
        return self.submit(pieces, kind=kind, after=after)

    def fork(self) -> float:
        trunk, namespace, count = self.prompt(), self.rng.choice(_NAMESPACES), self.rng.randint(2, 5)
        shared, program = sum(length for _, length in trunk), f"p{len(self.names)}"
        brought = 0.0
        for child in range(count):
            hints = Hints(program, siblings=count - 1 - child, shared_len=shared, last_use=self.rng.random() < 0.2)
            brought += self.submit((*trunk, (200 + child, self.rng.randint(0, 3))), namespace=namespace, hints=hints)
        return brought

    def score(self) -> float:
        count = self.rng.randint(1, 4)
        continuations = tuple(((300 + self.rng.randrange(3), self.rng.randint(1, 5)),) for _ in range(count))
        return self.submit(self.prompt(), kind=Kind.SCORE, continuations=continuations)

    def submit(self, pieces: Pieces, *, kind: Kind = Kind.GENERATE, **options: object) -> float:
        rng = self.rng
        new = rng.choice((1, 2, 5, 10, 20)) if kind is Kind.GENERATE else 0
        fields: dict[str, object] = {"namespace": rng.choice(_NAMESPACES), "kind": kind, **options}
        fields["priority"] = rng.choice((0, 0, 0, 0, 1, -1))
        fields["use_tree"] = kind is Kind.SCORE or rng.random() < 0.93
        fields.setdefault("hints", Hints(last_use=rng.random() < 0.2))
        fields["timeout"] = rng.choice((1.0, 10.0, 60.0)) if rng.random() < 0.08 else None
        fields["poisoned"] = rng.random() < 0.02
        fields["when_idle"] = kind is Kind.PREFETCH and rng.random() < 0.7
        if kind is Kind.GENERATE:
            fields["stop"] = rng.randrange(VOCAB) if rng.random() < 0.2 else None
            fields["stop_text"] = rng.randrange(VOCAB) if rng.random() < 0.2 else None
            fields["n"] = rng.randint(2, 6) if rng.random() < 0.1 else 1
            fields["run"] = rng.randint(1, 5) if rng.random() < 0.1 else 0
            fields["scores"] = rng.random() < 0.1
            fields["sink_fails_at"] = rng.randint(1, 6) if rng.random() < 0.03 else None
        name = f"r{len(self.names)}"
        self.names.append(name)
        self.operations.append(Submit(name, pieces, new, **fields))  # type: ignore[arg-type]
        prompt_len = sum(length for _, length in pieces)
        return prompt_len / self.setup.chunk_tokens / 2 + new / self.setup.max_running

    def prompt(self) -> Pieces:
        """A leading part of a family's text, sometimes another's behind it, and an end of its own."""
        rng, longest = self.rng, max(2, self.setup.num_slots // 3)
        pieces = [(rng.randrange(_FAMILIES), rng.randint(1, longest))]
        if rng.random() < 0.3:
            pieces.append((100 + rng.randrange(_FAMILIES), rng.randint(1, 8)))
        if rng.random() < 0.6:
            pieces.append((1_000 + len(self.names), rng.randint(1, 4)))
        return tuple(pieces)

    def victim(self) -> str:
        recent = self.names[-_RECENT:] if self.rng.random() < 0.9 else self.names
        return self.rng.choice(recent)

    # ---- trouble -----------------------------------------------------------------------------------------------------
    def step(self) -> Step:
        choice = self.rng.random()
        if choice < 0.02:
            return Step(raising=True)
        if choice < 0.04:
            return Step(bad_rows=tuple(self.rng.randrange(16) for _ in range(self.rng.randint(1, 2))))
        return Step()

    def abort(self) -> None:
        if not self.names or self.rng.random() < 0.05:
            self.operations.append(Abort("nobody"))
            return
        name = self.victim()
        self.operations += [Abort(name)] * self.rng.choice((1, 1, 1, 2))

    def retract(self) -> None:
        if self.names:
            self.operations.append(Retract(self.victim()))

    def pin(self) -> None:
        """Mostly of a text that somebody brought lately, as nothing else is likely to be cached."""
        name, self.num_pins = f"pin{self.num_pins}", self.num_pins + 1
        recent = [operation for operation in self.operations[-_RECENT:] if isinstance(operation, Submit)]
        pieces, namespace = self.prompt(), self.rng.choice(_NAMESPACES)
        if recent and self.rng.random() < 0.8:
            brought = self.rng.choice(recent)
            family, length = brought.pieces[0]
            pieces, namespace = ((family, self.rng.randint(1, length)),), brought.namespace
        self.operations.append(Pin(name, pieces, self.rng.uniform(1.0, 40.0), namespace))

    def unpin(self) -> None:
        self.operations.append(Unpin(f"pin{self.rng.randrange(self.num_pins + 1)}"))

    def flush(self) -> None:
        self.operations.append(Flush())

    def jump(self) -> None:
        self.operations.append(Advance(self.rng.choice((0.5, 3.0, 30.0))))
