"""Constraints written to hurt: each is refused with a typed error, or compiles and takes random steps within its limits."""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from sgl_core.errors import GrammarError, InvalidArgumentError
from sgl_core.runtime.grammar.compiler import GrammarCompiler
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.testing.hostile import HOSTILE
from sgl_core.types import SamplingParams

STEPS = 40
LIMIT_S = 2.0
GUARD = 10
"""Seconds are printed; a test fails only where they are out of all proportion, as machines are shared."""
EOS = 2


@pytest.fixture(scope="module")
def compiler(vocabulary: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocabulary)


@pytest.fixture(scope="module")
def outcomes(figure: Callable[[str, Mapping[str, int]], None]) -> Iterator[list[tuple[str, float, float]]]:
    """(outcome, seconds to compile or refuse, seconds of the worst step) of each constraint."""
    seen: list[tuple[str, float, float]] = []
    yield seen
    if seen:
        kinds, compiles, steps = zip(*seen, strict=True)
        figure(
            "R14 grammar guard",
            {
                **{kind: kinds.count(kind) for kind in sorted(set(kinds))},
                "ms for the worst compilation": round(1000 * max(compiles)),
                "ms for the worst step": round(1000 * max(steps)),
            },
        )


def follow_text(compiler: GrammarCompiler, pattern: str, rng: random.Random) -> float:
    """Feed a stop pattern text that it likes; returns the seconds of the worst character."""
    matcher = compiler.stop_regex(pattern).matcher()
    worst = 0.0
    for _ in range(30 * STEPS):
        began = time.perf_counter()
        ended = matcher.feed(rng.choice("aaaabx w1\n"))
        worst = max(worst, time.perf_counter() - began)
        if ended:
            assert 0 < len(matcher.stop) <= 1024
            break
        assert matcher.matched <= 1024
    return worst


def take_steps(compiler: GrammarCompiler, params: SamplingParams, rng: random.Random) -> float:
    """Sample at random within a budget that is hardly enough; returns the seconds of the worst step."""
    compiled = compiler.compile(params)
    assert compiled is not None
    remaining = len(compiled.shortest) + STEPS
    matcher = compiled.matcher()
    worst = 0.0
    for _ in range(STEPS):
        began = time.perf_counter()
        bits = np.unpackbits(matcher.mask(), count=compiled.vocabulary.size, bitorder="little")
        verdict = matcher.propose(int(rng.choice(np.flatnonzero(bits))), remaining)
        matcher.commit(verdict)
        worst = max(worst, time.perf_counter() - began)
        remaining -= len(verdict.tokens)
        assert remaining >= 0
        if verdict.ended:
            break
    return worst


@pytest.mark.parametrize(("argument", "name", "value"), HOSTILE, ids=[f"{argument}: {name}" for argument, name, _ in HOSTILE])
def test_a_hostile_constraint_is_refused_or_survives_random_steps(
    argument: str, name: str, value: Any, compiler: GrammarCompiler, outcomes: list[tuple[str, float, float]]
) -> None:
    rng = random.Random(name)
    worst = 0.0
    refusal: InvalidArgumentError | None = None
    began = time.perf_counter()
    try:
        params = SamplingParams(**{argument: value})
        if argument == "stop_regex":
            compiler.stop_regex(value)
        else:
            compiler.compile(params)
    except InvalidArgumentError as error:
        outcome, refusal = "refused", error
    took = time.perf_counter() - began
    if refusal is None:
        outcome = "compiled"
        try:
            worst = follow_text(compiler, value, rng) if argument == "stop_regex" else take_steps(compiler, params, rng)
        except GrammarError as error:  # this request ends, and only this one
            outcome, refusal = "ended by a limit", error
    outcomes.append((outcome, took, worst))
    assert refusal is None or (refusal.argument == argument and len(str(refusal)) < 400)
    assert max(took, worst) < GUARD * LIMIT_S, f"{took:.1f} s to compile, {worst:.1f} s for the worst step"


def test_there_are_enough_hostile_constraints() -> None:
    assert len(HOSTILE) >= 60
