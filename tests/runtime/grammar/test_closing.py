"""Completions: sound, within the limit, and found where candidates are of no use."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from llguidance import LLMatcher

from sgl_core.runtime.grammar.closing import closing, completes, shortest_completion
from sgl_core.runtime.grammar.instance import lark_literals
from sgl_core.runtime.grammar.json_scan import Scan
from sgl_core.runtime.grammar.vocabulary import Vocabulary

EOS = 2
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "age": {"type": "integer"},
    },
    "required": ["name", "tags", "age"],
    "additionalProperties": False,
}


def lark(vocabulary: Vocabulary, grammar: str) -> LLMatcher:
    return LLMatcher(vocabulary.tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)


def person(vocabulary: Vocabulary) -> LLMatcher:
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(PERSON), overrides={"whitespace_flexible": False})
    return LLMatcher(vocabulary.tokenizer, grammar, log_level=0)


def after(matcher: LLMatcher, text: str, vocabulary: Vocabulary) -> LLMatcher:
    tokens = vocabulary.canonical(text.encode())
    assert tokens is not None
    copy = matcher.deep_copy()
    assert copy.consume_tokens(tokens)
    return copy


@pytest.mark.parametrize(
    ("grammar", "shortest"),
    [
        ('start: "if " NAME ":" | "while " NAME "do" NAME\nNAME: /[a-z]+/', "if a:"),
        ('start: "(" start ")" | "()"', "()"),
        ('start: item+ "."\nitem: "a" | "b" item "c"', "a."),
        ('start: "x" ("," "y"){3}', "x,y,y,y"),
    ],
)
def test_without_candidates_the_search_finds_the_shortest(grammar: str, shortest: str, vocabulary: Vocabulary) -> None:
    prototype = lark(vocabulary, grammar)
    found = shortest_completion(prototype, vocabulary, ())
    assert found is not None
    assert completes(prototype, found, EOS)
    spelled = vocabulary.shortest_spelling(shortest.encode())
    assert spelled is not None
    assert len(found) <= len(spelled)


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "SELECT " COL ("," COL)* " FROM " COL (" WHERE " COL "=" NUM)? ";"\nCOL: /[a-z_]{3,}/\nNUM: /[0-9]+/',
        'start: /(.|\\n)*/ "END"',
        'start: line{3}\nline: /[A-Z][a-z]+/ ": " /[0-9]{2}/ "\\n"',
    ],
)
def test_quoted_strings_of_a_grammar_lead_the_search_to_its_end(grammar: str, vocabulary: Vocabulary) -> None:
    found = shortest_completion(lark(vocabulary, grammar), vocabulary, lark_literals(grammar))
    assert found is not None
    assert completes(lark(vocabulary, grammar), found, EOS)


def test_a_candidate_that_is_no_output_is_passed_over(vocabulary: Vocabulary) -> None:
    prototype = lark(vocabulary, 'start: "right"')
    found = shortest_completion(prototype, vocabulary, [b"wrong", b"\xff", b"right"])
    assert found is not None
    assert vocabulary.text_bytes(found) == b"right"


def test_of_several_candidates_the_fewest_tokens_win(vocabulary: Vocabulary) -> None:
    found = shortest_completion(lark(vocabulary, "start: /[a-z]+/"), vocabulary, [b"zqxj", b"international"])
    assert found is not None
    assert vocabulary.text_bytes(found) == b"international"


def test_a_grammar_that_accepts_nothing_more_needs_no_tokens(vocabulary: Vocabulary) -> None:
    assert shortest_completion(lark(vocabulary, "start: /a*/"), vocabulary, [b""]) == ()


def test_required_recursion_has_no_completion(vocabulary: Vocabulary) -> None:
    assert shortest_completion(lark(vocabulary, 'start: "a" start'), vocabulary, ()) is None


def test_the_search_leaves_the_matcher_where_it_was(vocabulary: Vocabulary) -> None:
    matcher = after(person(vocabulary), '{"name":"Jo', vocabulary)
    mask = matcher.compute_bitmask()
    assert closing(matcher, vocabulary, Scan().after(b'{"name":"Jo'), 40) is not None
    assert matcher.compute_bitmask() == mask


@pytest.mark.parametrize(
    "text", ["", '{"', '{"name":"', '{"name":"Jo\\"', '{"name":"","tags":["', '{"name":"","tags":["a","b"],"age":-']
)
def test_a_running_output_is_closed(text: str, vocabulary: Vocabulary) -> None:
    matcher = after(person(vocabulary), text, vocabulary)
    found = closing(matcher, vocabulary, Scan().after(text.encode()), 40)
    assert found is not None
    assert completes(matcher, found, EOS)
    assert json.loads(text.encode() + vocabulary.text_bytes(found)).keys() == {"name", "tags", "age"}


def test_no_completion_is_longer_than_the_limit(vocabulary: Vocabulary) -> None:
    matcher = after(person(vocabulary), '{"name":"', vocabulary)
    scan = Scan().after(b'{"name":"')
    lengths = {limit: closing(matcher, vocabulary, scan, limit) for limit in range(20)}
    assert lengths[0] is None
    assert lengths[1] is None
    assert lengths[19] is not None
    assert all(found is None or len(found) <= limit for limit, found in lengths.items())


def test_a_complete_output_needs_no_tokens_whatever_the_limit(vocabulary: Vocabulary) -> None:
    matcher = after(lark(vocabulary, "start: /a+/"), "aa", vocabulary)
    assert closing(matcher, vocabulary, Scan(), 0) == ()


def test_the_end_of_the_spoiled_completion_is_used_again(vocabulary: Vocabulary) -> None:
    prototype = person(vocabulary)
    spoiled = vocabulary.shortest_spelling(b'{"name":"","tags":[],"age":1234}')
    assert spoiled is not None
    matcher = after(prototype, '{"name":"Jo', vocabulary)
    found = closing(matcher, vocabulary, Scan().after(b'{"name":"Jo'), 40, tuple(spoiled))
    assert found is not None
    assert vocabulary.text_bytes(found) == b'","tags":[],"age":1234}'


def test_closings_along_random_outputs_are_always_complete(vocabulary: Vocabulary) -> None:
    rng, prototype = random.Random(5), person(vocabulary)
    closed = 0
    for _ in range(6):
        matcher, text = prototype.deep_copy(), b""
        for _ in range(12):
            allowed = np.flatnonzero(np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little"))
            token = int(allowed[rng.randrange(len(allowed))])
            if matcher.is_stopped() or token == EOS:
                break
            matcher.consume_token(token)
            text += vocabulary.token_bytes(token)
            found = closing(matcher, vocabulary, Scan().after(text), 60)
            assert found is not None
            assert completes(matcher, found, EOS)
            closed += 1
    assert closed > 20
