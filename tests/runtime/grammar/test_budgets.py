"""Outputs close within every budget, whatever tokens a model prefers: the corpus, with random tokens instead of a model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from sgl_core.runtime.grammar.compiled import CompiledGrammar
from sgl_core.runtime.grammar.compiler import GrammarCompiler
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.testing.grammars import CASES, REGEXES, SCHEMAS, Case, fewest_tokens, spellings_of
from sgl_core.types import SamplingParams

Driver = Callable[[NDArray[np.uint8], random.Random], int]

BUDGETS = (20, 60, 100)
DRIVERS = ("uniform", "lengthening")
NAMES = [f"{type(case).__name__[:-4].lower()}: {case.name}" for case in CASES]


@pytest.fixture(scope="module")
def compiled(vocabulary: Vocabulary) -> Callable[[Case], CompiledGrammar]:
    compiler = GrammarCompiler(vocabulary)

    def compile_case(case: Case) -> CompiledGrammar:
        grammar = compiler.compile(SamplingParams(**case.options))
        assert grammar is not None
        return grammar

    return compile_case


@pytest.fixture(scope="module")
def drivers(vocabulary: Vocabulary) -> dict[str, Driver]:
    """One takes any allowed token; the other likes long tokens and those that open something, and avoids those that close."""
    spelled = [vocabulary.token_bytes(token) for token in range(vocabulary.size)]
    opened = [sum(spelling.count(byte) for byte in b"{[,:") for spelling in spelled]
    closed = [sum(spelling.count(byte) for byte in b'}]"') for spelling in spelled]
    liking = np.array([len(s) + 6 * o - 8 * c for s, o, c in zip(spelled, opened, closed, strict=True)])
    liking[2] = -1000

    def allowed(mask: NDArray[np.uint8]) -> NDArray[np.intp]:
        return np.flatnonzero(np.unpackbits(mask, count=vocabulary.size, bitorder="little"))

    def uniform(mask: NDArray[np.uint8], rng: random.Random) -> int:
        tokens = allowed(mask)
        return int(tokens[rng.randrange(len(tokens))])

    def lengthening(mask: NDArray[np.uint8], rng: random.Random) -> int:
        tokens = allowed(mask)
        best = tokens[np.argpartition(-liking[tokens], min(20, len(tokens) - 1))[:20]]
        return int(best[rng.randrange(len(best))])

    return {"uniform": uniform, "lengthening": lengthening}


def generate(grammar: CompiledGrammar, vocabulary: Vocabulary, driver: Driver, budget: int, seed: object) -> tuple[str, int]:
    """Text and overruled tokens of one run; the certificate always fits what is left."""
    matcher, rng = grammar.matcher(), random.Random(str(seed))
    tokens: list[int] = []
    overruled = 0
    ended = False
    while not ended and len(tokens) < budget:
        verdict = matcher.propose(driver(matcher.mask(), rng), budget - len(tokens))
        matcher.commit(verdict)
        tokens += verdict.tokens
        ended, overruled = verdict.ended, overruled + verdict.overruled
        assert len(tokens) <= budget
        assert ended or len(matcher.certificate) <= budget - len(tokens)
    return vocabulary.text_bytes(tokens).decode(), overruled


def sweep(
    case: Case,
    grammar: CompiledGrammar,
    vocabulary: Vocabulary,
    drivers: Mapping[str, Driver],
    names: Mapping[int, tuple[str, ...]],
    seed: int,
) -> dict[str, int]:
    counts = {"runs": 0, "overruled tokens": 0}
    for budget in BUDGETS:
        if not grammar.fits(budget):
            continue
        for name in names[budget]:
            text, overruled = generate(grammar, vocabulary, drivers[name], budget, (seed, case.name, budget, name))
            case.check(text)
            counts["runs"] += 1
            counts["overruled tokens"] += overruled
    return counts


def test_the_corpus_is_whole_and_its_smallest_outputs_are_outputs() -> None:
    assert (len(SCHEMAS), len(REGEXES)) == (100, 40)
    assert len(set(NAMES)) == 140
    for case in CASES:
        case.check(case.smallest_text)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_every_output_is_complete_at_every_budget(
    case: Case,
    compiled: Callable[[Case], CompiledGrammar],
    vocabulary: Vocabulary,
    drivers: dict[str, Driver],
    figure: Callable[[str, Mapping[str, int]], None],
) -> None:
    """The drivers take turns, so each budget sees both and the whole sweep stays short; all pairs are in the soak."""
    turn = CASES.index(case)
    names = {budget: (DRIVERS[(turn + place) % 2],) for place, budget in enumerate(BUDGETS)}
    figure("grammars: closed within the budget", sweep(case, compiled(case), vocabulary, drivers, names, seed=0))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 11))
def test_every_output_is_complete_at_every_budget_with_all_drivers(
    seed: int,
    compiled: Callable[[Case], CompiledGrammar],
    vocabulary: Vocabulary,
    drivers: dict[str, Driver],
    figure: Callable[[str, Mapping[str, int]], None],
) -> None:
    names = dict.fromkeys(BUDGETS, DRIVERS)
    for case in CASES:
        figure("grammars: closed within the budget", sweep(case, compiled(case), vocabulary, drivers, names, seed))


def test_only_what_cannot_fit_is_refused(
    compiled: Callable[[Case], CompiledGrammar],
    vocabulary: Vocabulary,
    figure: Callable[[str, Mapping[str, int]], None],
) -> None:
    refused: dict[int, list[str]] = {budget: [] for budget in BUDGETS}
    for case in CASES:
        fewest = fewest_tokens(case.smallest_text.encode(), spellings_of(vocabulary))
        grammar = compiled(case)
        assert len(grammar.shortest) <= fewest, case.name
        for budget in BUDGETS:
            if not grammar.fits(budget):
                refused[budget].append(case.name)
                figure(f"grammars: refused at {budget} tokens, with the tokens needed", {case.name: fewest})
    assert len(refused[100]) <= 5
    assert "ten fields" in refused[20], "the budgets are not tight enough to show anything"


@pytest.mark.parametrize("name", ["person", "tree", "date-time", "matrix", "one of three calls", "keys with quotes"])
@pytest.mark.parametrize("slack", range(9))
def test_the_smallest_budgets_suffice(
    name: str,
    slack: int,
    compiled: Callable[[Case], CompiledGrammar],
    vocabulary: Vocabulary,
    drivers: dict[str, Driver],
) -> None:
    case = next(case for case in SCHEMAS if case.name == name)
    grammar = compiled(case)
    text, _ = generate(grammar, vocabulary, drivers[DRIVERS[slack % 2]], len(grammar.shortest) + slack, slack)
    case.check(text)


def test_the_smallest_budget_leaves_no_choice_but_the_tokens_stay_allowed_ones(
    compiled: Callable[[Case], CompiledGrammar], vocabulary: Vocabulary, drivers: dict[str, Driver]
) -> None:
    grammar = compiled(next(case for case in SCHEMAS if case.name == "ten fields"))
    text, overruled = generate(grammar, vocabulary, drivers["lengthening"], len(grammar.shortest), 0)
    assert overruled > 0
    assert json.loads(text) == {f"field_{index}": "" for index in range(10)}
