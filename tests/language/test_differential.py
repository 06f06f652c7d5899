"""Compiled programs do what interpreted ones do: 2,000 random programs by four doors, and what must not compile does not."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

import sgl_core.language as sgl
from sgl_core.language import SglFunction
from sgl_core.testing import FakeBackend
from sgl_core.testing.programs import FEATURES, Kind, Mode, Program, difference, explained, fault, generate, observe
from sgl_core.types import SamplingParams

NUM_PROGRAMS = 2000
NUM_CHUNKS = 8

DOORS = (Mode.RUN, Mode.STREAM, Mode.RUN, Mode.BATCH, Mode.ASYNC)
"""In turns; the first also is the most used."""


def check(program: Program, mode: Mode, **how: Any) -> None:
    def prepare(function: SglFunction) -> Any:
        return function.compile(**how)

    if fault(program, prepare, mode):
        pytest.fail(explained(program, prepare, mode), pytrace=False)


def legal(seeds: range) -> list[Program]:
    return [generate(seed, Kind.LEGAL) for seed in seeds]


@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
def test_a_generated_program_does_the_same_compiled(chunk: int, figure: Callable[[str, Mapping[str, int]], None]) -> None:
    kinds: Counter[str] = Counter()
    for seed in range(chunk * NUM_PROGRAMS // NUM_CHUNKS, (chunk + 1) * NUM_PROGRAMS // NUM_CHUNKS):
        program = generate(seed)
        check(program, DOORS[seed % len(DOORS)])
        kinds[f"{program.kind.value} programs"] += 1
    figure("interpreted and compiled", kinds)


def test_every_feature_is_in_a_tenth_of_these_programs() -> None:
    counts = Counter(feature for seed in range(NUM_PROGRAMS) for feature in generate(seed).features)
    shares = {feature: counts[feature] / NUM_PROGRAMS for feature in FEATURES}
    print(*(f"{share:6.1%} {feature}" for feature, share in shares.items()), sep="\n")
    assert {feature: share for feature, share in shares.items() if share < 0.1} == {}


def test_a_graph_compiled_for_a_backend_does_the_same() -> None:
    """The passes then know its tokens."""
    with FakeBackend() as backend:
        for seed in range(3000, 3100):
            check(generate(seed), DOORS[seed % len(DOORS)], backend=backend)


def test_a_program_that_looks_at_an_argument_does_the_same_when_that_is_static() -> None:
    branching = [generate(seed, Kind.BRANCHING) for seed in range(400)]
    looking = [program for program in branching if program.looks_at is not None]
    assert len(looking) > 100
    for program in looking[:100]:
        arguments = {"style": "plain", **program.argument_sets[0]}
        one = replace(program, kind=Kind.LEGAL, argument_sets=(arguments,))
        check(one, Mode.RUN, static={program.looks_at: arguments[program.looks_at]})


def test_a_program_that_falls_back_does_the_same_and_says_so() -> None:
    num_warned = 0
    for seed in range(60):
        program = generate(seed, Kind.BRANCHING)
        seen = dict(observe(program, lambda function: function.compile(fallback=True)))
        interpreted = observe(program)
        if not any(isinstance(run, str) for run in interpreted["runs"]):  # of those that fail no warning is seen
            assert sum("runs interpreted, as it cannot be compiled" in line for line in seen["warnings"]) == 1
            num_warned += 1
        seen["warnings"] = [line for line in seen["warnings"] if "runs interpreted" not in line]
        assert not difference(interpreted, seen)
    assert num_warned > 20


def test_dropping_what_nobody_reads_changes_nothing_that_is_seen() -> None:
    for program in legal(range(300)):
        if not program.may_fail:
            dropping = observe(program, lambda function: function.compile(drop_unread=True))
            assert not difference({"runs": observe(program)["runs"]}, {"runs": dropping["runs"]})


def test_moving_nothing_changes_nothing() -> None:
    """Without a group that its author declared commutative, there is nothing to move safely."""
    programs = [program for program in legal(range(200)) if "commutative" not in program.features]
    assert len(programs) > 50
    for program in programs:
        check(program, Mode.RUN, move="safe")


def test_without_its_passes_a_program_makes_the_very_same_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl_core.language.compiled.run_passes", lambda graph, context: (graph, ()))
    for program in legal(range(150)):
        if not program.may_fail:
            interpreted = observe(program, with_requests=True)
            seen = observe(program, lambda function: function.compile(), with_requests=True)
            assert not difference(interpreted, seen)


def test_a_compiled_program_is_the_same_in_its_second_run() -> None:
    """Runs share the graph and nothing else."""

    def second(function: SglFunction) -> Any:
        compiled = function.compile()
        with FakeBackend(lambda ids, params: "something else") as backend:
            for arguments in program.argument_sets:
                compiled.run_batch([dict(arguments)], backend=backend, return_errors=True, seed=1)
        return compiled

    for program in legal(range(100)):
        assert observe(program, second)["runs"] == observe(program)["runs"]


def test_a_fork_that_is_set_to_a_value_to_come_can_be_joined() -> None:
    """No request of the fork itself says when that value is there."""

    @sgl.function
    def program(s):
        s += "a"
        slow = s.copy()
        slow += sgl.gen("x")
        forks = s.fork(2)
        forks[0]["y"] = slow["x"]
        forks.join()
        s += "b" + sgl.gen("first") + "c" + sgl.gen("second")

    def reply(ids: tuple[int, ...], params: SamplingParams) -> str:
        if ord("c") in ids:  # by now the forks have done all that was asked of them
            is_second.set()
        return f"{ord('b') in ids or is_second.wait(60)}"

    is_second = threading.Event()
    with FakeBackend(reply) as backend:
        assert program.compile().run(backend=backend)["y"] == ["True", None]


@pytest.mark.parametrize("prepare", [lambda function: function, lambda function: function.compile()])
def test_a_streaming_run_tells_the_error_that_its_body_met_first(prepare: Callable[[SglFunction], Any]) -> None:
    @sgl.function
    def program(s):
        s += "a"
        sgl.call(int, "no number")
        s += sgl.gen("x")

    with FakeBackend(fail=lambda request: RuntimeError("the request fails, too")) as backend:
        state = prepare(program).run(backend=backend, stream=True)
        assert isinstance(state.error(), ValueError)
