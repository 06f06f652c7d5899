"""Random programs: they say what they are, run the same every time, and are cut down without losing the fault."""

from __future__ import annotations

import ast
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from sgl_core.testing.programs import (
    FEATURES,
    Kind,
    Mode,
    Program,
    World,
    difference,
    generate,
    observe,
    observed_runs,
    report,
    shrunk,
    source,
)

SEEDS = range(100)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # those of the programs


def ended_in_errors(program: Program) -> list[bool]:
    return [isinstance(run, str) for run in observed_runs(program)]


def num_statements(program: Program) -> int:
    return sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(source(program))))


def test_a_seed_gives_one_program_and_another_seed_another() -> None:
    assert [generate(seed) for seed in SEEDS] == [generate(seed) for seed in SEEDS]
    assert len({source(generate(seed)) for seed in SEEDS}) == len(SEEDS)


def test_programs_are_small_and_not_trivial() -> None:
    sizes = sorted(num_statements(generate(seed)) for seed in range(400))
    assert 10 <= sizes[len(sizes) // 2] <= 25
    assert sizes[0] >= 5
    assert sizes[-1] <= 80


def test_every_feature_is_in_a_tenth_of_the_programs() -> None:
    counts = Counter(feature for seed in range(500) for feature in generate(seed).features)
    assert {feature: counts[feature] for feature in FEATURES if counts[feature] < 50} == {}


def test_a_kind_that_is_asked_for_is_what_one_gets() -> None:
    for kind in Kind:
        assert {generate(seed, kind).kind for seed in range(20)} == {kind}


def test_a_legal_program_in_which_nothing_is_to_fail_runs_through() -> None:
    programs = [program for program in map(generate, range(200)) if program.kind is Kind.LEGAL and not program.may_fail]
    assert len(programs) > 50
    assert [source(program) for program in programs if any(ended_in_errors(program))] == []


def test_a_mistake_is_an_error_in_every_run() -> None:
    for seed in range(60):
        assert all(ended_in_errors(generate(seed, Kind.MISTAKEN)))


def test_of_programs_that_may_fail_some_do_and_some_do_not() -> None:
    programs = [program for program in map(generate, range(200)) if program.kind is Kind.LEGAL and program.may_fail]
    failed = sum(any(ended_in_errors(program)) for program in programs)
    assert len(programs) // 10 < failed < len(programs) * 9 // 10


@pytest.mark.parametrize("mode", Mode)
def test_a_program_is_seen_to_do_the_same_twice(mode: Mode) -> None:
    for seed in SEEDS:
        program = generate(seed)
        found = difference(observe(program, mode=mode), observe(program, mode=mode))
        assert not found, report(program, found)


def test_a_program_does_the_same_beside_seven_others() -> None:
    programs = [generate(seed) for seed in SEEDS]
    alone = [observed_runs(program) for program in programs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(observed_runs, programs, timeout=120))
    assert together == alone


def test_awaiting_a_program_gives_what_running_it_gives() -> None:
    for seed in SEEDS:
        program = generate(seed)
        assert observed_runs(program, mode=Mode.ASYNC) == observed_runs(program)


def test_warnings_are_part_of_what_is_seen() -> None:
    seen = [line for seed in range(150) for line in observe(generate(seed))["warnings"]]
    assert any("default budget" in line for line in seen)
    assert any("control token" in line for line in seen)


def test_a_difference_shows_the_lines_that_differ_and_nothing_is_nothing() -> None:
    seen = {"runs": [{"text": "a" * 100, "variables": {"x": 1}}], "warnings": []}
    other = {"runs": [{"text": "a" * 100, "variables": {"x": 2}}], "warnings": []}
    found = difference(seen, other).splitlines()
    assert [line for line in found if line.startswith(("-", "+"))][:2] == ["--- expected", "+++ got"]
    assert any("'x': 1" in line for line in found if line.startswith("-"))
    assert any("'x': 2" in line for line in found if line.startswith("+"))
    assert difference(seen, dict(seen)) == ""


def test_a_shrunk_program_still_fails_and_every_statement_of_it_is_needed() -> None:
    def fails(program: Program) -> bool:
        return "s.fork(" in source(program) and "sgl.select" in source(program)

    program = next(program for program in map(generate, range(200)) if fails(program) and num_statements(program) > 20)
    small = shrunk(program, fails)
    assert fails(small)
    assert len(small.functions) <= 2
    assert num_statements(small) <= 7  # imports, main, fork and select, at most a block around them
    assert (small.world, set(small.options), len(small.argument_sets)) == (World(), {"seed"}, 1)


def test_shrinking_asks_no_more_than_it_may() -> None:
    asked: list[Program] = []
    program = generate(3)
    assert shrunk(program, lambda candidate: bool(asked.append(candidate)), most_tries=7) is program
    assert len(asked) == 7


def test_a_report_has_the_source_and_how_to_run_it() -> None:
    program = replace(generate(5), argument_sets=({"topic": "t"},), options={"seed": 9})
    text = report(program, "what differs")
    assert source(program) in text
    assert "main.run(topic='t', seed=9)" in text
    assert "what differs" in text
