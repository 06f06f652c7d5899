"""One request's grammar: verdicts, budgets, jumps and healing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from sgl_core.errors import GrammarError
from sgl_core.runtime.constraint import Verdict
from sgl_core.runtime.grammar.compiled import CompiledGrammar
from sgl_core.runtime.grammar.compiler import GrammarCompiler
from sgl_core.runtime.grammar.matcher import GrammarMatcher
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.types import SamplingParams

EOS = 2
PAIR = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vocabulary(embedded_folder: Path) -> Vocabulary:
    return Vocabulary((embedded_folder / "tokenizer.json").read_text(), 49_152, [EOS, 0])


@pytest.fixture(scope="module")
def compiler(vocabulary: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocabulary)


def compiled(compiler: GrammarCompiler, heal: str = "", **constraint: object) -> CompiledGrammar:
    grammar = compiler.compile(SamplingParams(**constraint), heal=heal)  # type: ignore[arg-type]
    assert grammar is not None
    return grammar


def only(vocabulary: Vocabulary, text: str) -> int:
    """The one token that spells ``text``."""
    tokens = vocabulary.shortest_spelling(text.encode())
    assert tokens is not None
    assert len(tokens) == 1
    return tokens[0]


def allowed(matcher: GrammarMatcher) -> list[int]:
    return np.flatnonzero(np.unpackbits(matcher.mask(), bitorder="little")).tolist()


def step(matcher: GrammarMatcher, token: int, remaining: int) -> Verdict:
    verdict = matcher.propose(token, remaining)
    matcher.commit(verdict)
    return verdict


def test_the_mask_has_a_bit_for_every_row_of_the_vocabulary(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    matcher = compiled(compiler, regex="yes|no").matcher()
    assert matcher.mask().dtype == np.uint8
    assert matcher.mask().shape == (vocabulary.mask_bytes,)
    assert {vocabulary.token_bytes(token) for token in allowed(matcher)} == {b"y", b"ye", b"yes", b"n", b"no"}


def test_the_mask_is_computed_once_for_each_state(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    matcher = compiled(compiler, regex="[a-z]{3}").matcher()
    before = matcher.mask()
    assert matcher.mask() is before
    step(matcher, only(vocabulary, "a"), 9)
    assert matcher.mask() is not before


def test_a_proposal_changes_nothing_until_it_is_committed(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    matcher = compiled(compiler, json_schema=PAIR).matcher()
    before, certificate = allowed(matcher), matcher.certificate
    verdict = matcher.propose(only(vocabulary, "{"), 60)
    assert matcher.propose(only(vocabulary, "{"), 60).tokens == verdict.tokens
    assert (allowed(matcher), matcher.certificate) == (before, certificate)
    matcher.commit(verdict)
    assert allowed(matcher) != before


def test_requests_of_one_grammar_do_not_touch_each_other(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    grammar = compiled(compiler, regex="[a-z]{3}")
    one, other = grammar.matcher(), grammar.matcher()
    step(one, only(vocabulary, "abc"), 9)
    assert only(vocabulary, "abc") in allowed(other)


def test_forced_tokens_come_with_the_sampled_one(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    verdict = compiled(compiler, json_schema=PAIR).matcher().propose(only(vocabulary, "{"), 60)
    assert len(verdict.tokens) > 1
    assert vocabulary.text_bytes(verdict.tokens).startswith(b'{"name')
    assert not verdict.overruled


def test_a_forced_run_stays_within_the_budget_and_is_never_long(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    words = " ".join(["alpha"] * 60)
    matcher = compiled(compiler, regex=f"(x|y) {words}").matcher()
    verdict = step(matcher, only(vocabulary, "x"), 100)
    assert 1 < len(verdict.tokens) <= 32
    assert len(matcher.certificate) <= 100 - len(verdict.tokens)


def test_an_output_that_ends_by_itself_ends_without_end_of_text(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    verdict = compiled(compiler, regex="yes|no").matcher().propose(only(vocabulary, "yes"), 5)
    assert (verdict.tokens, verdict.ended, verdict.overruled) == ((only(vocabulary, "yes"),), True, False)


@pytest.mark.parametrize("end", [EOS, 0])
def test_any_end_of_text_ends_a_complete_output(end: int, compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    matcher = compiled(compiler, regex="a+").matcher()
    step(matcher, only(vocabulary, "a"), 5)
    assert end in allowed(matcher)
    verdict = matcher.propose(end, 4)
    assert (verdict.tokens, verdict.ended, verdict.overruled) == ((end,), True, False)


def test_end_of_text_is_not_allowed_before(compiler: GrammarCompiler) -> None:
    assert EOS not in allowed(compiled(compiler, regex="a+").matcher())


def test_a_token_that_could_not_be_completed_in_time_is_overruled(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    grammar = compiled(compiler, json_schema=PAIR)
    matcher = grammar.matcher()
    tokens: list[int] = []
    budget = len(grammar.shortest)
    verdict = step(matcher, only(vocabulary, "{"), budget)  # `{"` alone is shorter
    assert verdict.overruled
    assert verdict.tokens[0] == grammar.shortest[0]
    tokens += verdict.tokens
    while not verdict.ended:
        verdict = step(matcher, matcher.certificate[0], budget - len(tokens))
        tokens += verdict.tokens
    assert len(tokens) == budget


def test_an_output_that_is_complete_stops_before_a_token_that_would_open_it_again(
    compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    matcher = compiled(compiler, regex="a(-[0-9]{4}-[0-9]{4})*").matcher()
    step(matcher, only(vocabulary, "a"), 4)
    verdict = matcher.propose(only(vocabulary, "-"), 3)
    assert (verdict.tokens, verdict.ended, verdict.overruled) == ((), True, True)


def test_a_token_with_enough_room_behind_it_is_taken(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    matcher = compiled(compiler, regex="a(-[0-9]{4}-[0-9]{4})*").matcher()
    step(matcher, only(vocabulary, "a"), 40)
    verdict = step(matcher, only(vocabulary, "-"), 39)
    assert (verdict.tokens, verdict.ended, verdict.overruled) == ((only(vocabulary, "-"),), False, False)
    assert 0 < len(matcher.certificate) <= 38


@pytest.mark.parametrize("slack", range(12))
def test_the_certificate_always_fits_what_is_left(slack: int, compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    grammar = compiled(compiler, json_schema=PAIR)
    for seed in range(3):
        matcher, rng, left = grammar.matcher(), random.Random(f"{slack} {seed}"), len(grammar.shortest) + slack
        ended = False
        while left and not ended:
            verdict = step(matcher, rng.choice(allowed(matcher)), left)
            left, ended = left - len(verdict.tokens), verdict.ended
            assert ended or len(matcher.certificate) <= left
        assert ended or not matcher.certificate


def test_a_token_that_the_grammar_does_not_allow_is_overruled(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    verdict = compiled(compiler, regex="yes|no").matcher().propose(only(vocabulary, "maybe"), 9)
    assert verdict.overruled
    assert vocabulary.text_bytes(verdict.tokens) in (b"yes", b"no")


def test_a_grammar_in_error_names_its_argument_and_never_looks_complete(
    compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    grammar = compiled(compiler, regex="(yes|no) please")
    broken = grammar.matcher()
    verdict = broken.propose(only(vocabulary, "yes"), 9)
    verdict.state.matcher.consume_token(only(vocabulary, "maybe"))  # type: ignore[attr-defined]
    verdict.state.tokens += (only(vocabulary, "maybe"),)  # type: ignore[attr-defined]
    broken.commit(verdict)
    for ask in (broken.mask, lambda: broken.propose(EOS, 5)):
        with pytest.raises(GrammarError, match="regex: the grammar allows no token") as caught:
            ask()
        assert caught.value.argument == "regex"


def test_healing_alone_repeats_the_text_and_then_lets_go(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    matcher = compiled(compiler, heal=" ").matcher()
    assert all(vocabulary.token_bytes(token).startswith(b" ") for token in allowed(matcher))
    verdict = matcher.propose(only(vocabulary, " Paris"), 1)
    assert verdict == Verdict((only(vocabulary, " Paris"),), released=True, state=verdict.state)


def test_a_token_of_healed_text_alone_belongs_to_the_prompt(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    verdict = compiled(compiler, heal=" ").matcher().propose(only(vocabulary, " "), 9)
    assert (verdict.num_healed, verdict.released) == (1, True)


def test_healed_text_of_several_tokens_is_counted_off(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    matcher = compiled(compiler, heal="http").matcher()
    first = step(matcher, only(vocabulary, "h"), 9)
    assert (first.num_healed, first.released) == (len(first.tokens), False)
    rest = "http"[len(vocabulary.text_bytes(first.tokens)) :]
    last = step(matcher, only(vocabulary, rest), 8)
    assert (last.num_healed, last.released) == (1, True)


def test_healed_text_before_a_grammar_is_healed_and_then_constrained(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    grammar = compiled(compiler, heal=" ", choices=("Paris", "Rome"))
    whole = grammar.matcher().propose(only(vocabulary, " Paris"), 5)
    assert (whole.num_healed, whole.released, whole.ended) == (0, False, True)
    apart = grammar.matcher()
    verdict = step(apart, only(vocabulary, " "), 5)
    assert (verdict.num_healed, verdict.released, verdict.ended) == (1, False, False)
    assert {vocabulary.token_bytes(token)[:1] for token in allowed(apart)} == {b"P", b"R"}


@pytest.mark.parametrize("heal", [" ", "   ", "\t", "http", ' {"'])
@pytest.mark.parametrize("constraint", [{"regex": "[0-9]{4}"}, {"regex": "(Sun|Mon)day"}, {"json_schema": PAIR}])
def test_healed_tokens_take_nothing_of_the_budget(
    heal: str, constraint: dict[str, object], compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    grammar = compiled(compiler, heal, **constraint)
    least = next(budget for budget in range(1, 99) if grammar.fits(budget))
    assert least <= len(compiled(compiler, **constraint).shortest)
    for seed in range(30):
        rng, matcher, left, ended, text = random.Random(seed), grammar.matcher(), least + seed % 3, False, b""
        while not ended:
            assert left > 0
            ids = allowed(matcher)
            verdict = step(matcher, rng.choice(ids), left)
            left -= len(verdict.tokens) - verdict.num_healed
            left += sum(token == EOS for token in verdict.tokens)
            text += b"".join(vocabulary.token_bytes(token) for token in verdict.tokens if token != EOS)
            ended = verdict.ended or (left == 0 and matcher.certificate == ())
        assert left >= 0
        assert text.startswith(heal.encode())
        check = compiled(compiler, heal, **constraint).prototype.deep_copy()
        assert check.consume_tokens(vocabulary.shortest_spelling(text))
        assert check.is_accepting()


def test_a_matcher_whose_shared_automaton_is_worn_out_goes_on_with_a_fresh_one(vocabulary: Vocabulary) -> None:
    compiled = GrammarCompiler(vocabulary).compile(SamplingParams(regex="[a-z]{4}-[0-9]{4}"))
    assert compiled is not None
    matcher = compiled.matcher()
    token = int(np.flatnonzero(np.unpackbits(matcher.mask(), bitorder="little"))[0])
    matcher.commit(matcher.propose(token, 20))
    expected = matcher.mask().copy()
    matcher._mask = None
    assert not matcher._at.matcher.consume_token(vocabulary.eos_ids[0]), (
        "an end is not allowed here, so this breaks it for good"
    )
    assert matcher._at.matcher.is_error()
    assert (matcher.mask() == expected).all()
