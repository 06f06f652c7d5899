"""Shortest outputs of schemas and patterns, before any search."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sgl_core.runtime.grammar.instance import lark_literals, minimal_choice_texts, minimal_regex_texts, minimal_texts
from sgl_core.runtime.grammar.vocabulary import Vocabulary

INT = {"type": "integer"}
STR = {"type": "string"}


def first(schema: Any, vocabulary: Vocabulary) -> Any:
    return json.loads(next(minimal_texts(schema, vocabulary)))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({**INT, "minimum": 7}, 7),
        ({**INT, "maximum": -7}, -7),
        ({**INT, "minimum": -3, "maximum": 3}, 0),
        ({**INT, "exclusiveMinimum": 7, "maximum": 8}, 8),
        ({**INT, "minimum": 6.5, "maximum": 7.5}, 7),
        ({**INT, "minimum": 1, "maximum": 9, "multipleOf": 5}, 5),
        ({"type": "number", "minimum": 0.25, "maximum": 0.3}, 0.3),
        ({"type": "number", "exclusiveMinimum": 0.5, "maximum": 0.6}, 0.6),
        ({"type": "number", "multipleOf": 0.25, "minimum": 0.3, "maximum": 0.6}, 0.5),
        ({"type": "number", "minimum": -0.02, "exclusiveMaximum": -0.01}, -0.02),
    ],
)
def test_a_number_is_the_nearest_to_zero_inside_its_bounds(
    schema: dict[str, Any], value: float, vocabulary: Vocabulary
) -> None:
    assert first(schema, vocabulary) == value


def test_bounds_that_exclude_each_other_have_no_instance(vocabulary: Vocabulary) -> None:
    assert list(minimal_texts({**INT, "minimum": 5, "maximum": 4}, vocabulary)) == []


def test_only_required_properties_are_there_in_the_order_of_their_definition(vocabulary: Vocabulary) -> None:
    schema = {"type": "object", "properties": {"a": STR, "b": STR, "c": STR}, "required": ["extra", "c", "a"]}
    assert list(first(schema, vocabulary)) == ["a", "c", "extra"]


def test_least_counts_are_met_with_the_least_of_members(vocabulary: Vocabulary) -> None:
    assert first({"type": "object", "properties": {"a": INT}, "minProperties": 2}, vocabulary).keys() == {"a", ""}
    assert first({"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 3}, vocabulary) == [
        1,
        2,
        2,
    ]


def test_an_enum_is_settled_by_tokens_and_not_by_characters(vocabulary: Vocabulary) -> None:
    short_to_write, short_to_spell = "zqxj", "international"
    assert next(minimal_texts({"enum": [short_to_write, short_to_spell]}, vocabulary)) == b'"international"'
    assert next(minimal_choice_texts([short_to_write, short_to_spell], vocabulary)) == b"international"


def test_members_of_an_enum_that_other_keywords_exclude_are_left_out(vocabulary: Vocabulary) -> None:
    assert first({"enum": ["a", 1234, None], "type": ["integer", "boolean"]}, vocabulary) == 1234
    assert first({"enum": ["a", "abc"], "minLength": 2}, vocabulary) == "abc"
    assert first({"enum": [1, 500], "minimum": 2}, vocabulary) == 500


def test_a_definition_that_holds_itself_takes_the_way_out(vocabulary: Vocabulary) -> None:
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
        "required": ["next"],
    }
    assert first({"$ref": "#/$defs/n", "$defs": {"n": node}}, vocabulary) == {"next": None}


def test_a_definition_that_must_hold_itself_has_no_instance(vocabulary: Vocabulary) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    assert list(minimal_texts(node, vocabulary)) == []


def test_references_are_found_by_path_by_anchor_and_with_escapes(vocabulary: Vocabulary) -> None:
    definitions = {"a/b": {"const": 1}, "c": {"$anchor": "here", "const": 2}}
    assert first({"$ref": "#/$defs/a~1b", "$defs": definitions}, vocabulary) == 1
    assert first({"$ref": "#here", "$defs": definitions}, vocabulary) == 2
    assert list(minimal_texts({"$ref": "#/$defs/none", "$defs": definitions}, vocabulary)) == []


def test_all_of_joins_properties_and_tightens_bounds(vocabulary: Vocabulary) -> None:
    parts = [
        {"type": "object", "properties": {"a": {**INT, "minimum": 2}}, "required": ["a"]},
        {"properties": {"a": {"minimum": 4}, "b": STR}, "required": ["b"]},
    ]
    assert first({"allOf": parts}, vocabulary) == {"a": 4, "b": ""}


def test_keys_next_to_alternatives_hold_for_all_of_them(vocabulary: Vocabulary) -> None:
    schema = {
        "type": "object",
        "properties": {"k": INT},
        "required": ["k"],
        "anyOf": [{"required": ["other"]}, {"minProperties": 9}],
    }
    assert first(schema, vocabulary).keys() >= {"k", "other"}


@pytest.mark.parametrize("length", [1, 8, 9, 100, 3000])
def test_a_text_is_as_long_as_it_must_be(length: int, vocabulary: Vocabulary) -> None:
    assert len(first({"type": "string", "minLength": length}, vocabulary)) == length
    assert len(first({"type": "string", "pattern": "^ab*$", "minLength": length}, vocabulary)) == length


def test_a_pattern_inside_json_escapes_what_json_escapes(vocabulary: Vocabulary) -> None:
    assert first({"type": "string", "pattern": r'^\\"\n$'}, vocabulary) == '\\"\n'


def test_the_prefix_stands_before_and_may_share_a_token(vocabulary: Vocabulary) -> None:
    assert next(minimal_texts({"const": 7}, vocabulary, b" ")) == b" 7"


def test_a_schema_too_large_for_a_shortest_instance_yields_nothing(vocabulary: Vocabulary) -> None:
    levels = {str(i): {"type": "array", "minItems": 9, "items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(9)}
    levels["9"] = {"type": "array", "minItems": 10_000, "items": INT}
    assert list(minimal_texts({"$ref": "#/$defs/0", "$defs": levels}, vocabulary)) == []


@pytest.mark.parametrize(
    "pattern",
    [
        "a|bc|",
        "(?:ab){3}",
        "(?P<name>x+)y?",
        "(?<name>x+)y*?",
        r"[\w.-]+@[^\s@]+",
        r"[\]\-x]{2}",
        "[]a]b",
        "[^]a]",
        r"\x41\u0042",
        r"a{2,}b{,3}c{0}",
        r"^(a|b)$",
        "x{a}",
        r"\.\*\+",
        "[äö]+é",
        "(?i:abc)",
        r"\D\S\W",
    ],
)
def test_the_shortest_text_of_a_pattern_matches_it(pattern: str, vocabulary: Vocabulary) -> None:
    text = next(minimal_regex_texts(pattern, vocabulary)).decode()
    python = pattern.replace("(?<name>", "(?P<name>").replace("b{,3}", "b{0,3}")
    assert re.fullmatch(python, text)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bword",
        r"(a)\1",
        "(?=a)b",
        "(?!a)",
        "(?<=a)b",
        r"\p{L}",
        "[[:alpha:]]",
        "[a&&b]",
        "(a",
        "a)",
        "[a",
        "*a",
        "a{99999}",
        "\\",
    ],
)
def test_syntax_that_is_not_known_yields_nothing(pattern: str, vocabulary: Vocabulary) -> None:
    assert list(minimal_regex_texts(pattern, vocabulary)) == []


def test_deep_nesting_yields_nothing_instead_of_exhausting_the_stack(vocabulary: Vocabulary) -> None:
    assert list(minimal_regex_texts("(" * 5000 + "a" + ")" * 5000, vocabulary)) == []


def test_letters_of_a_class_are_chosen_so_that_they_are_one_token(vocabulary: Vocabulary) -> None:
    text = next(minimal_regex_texts("[a-z]{5}", vocabulary))
    spelled = vocabulary.shortest_spelling(text)
    assert spelled is not None
    assert len(spelled) == 1


def test_quoted_strings_of_a_grammar_are_read_with_their_escapes() -> None:
    grammar = 'start: "a\\n" NAME | "say \\"x\\""  // "unclosed\nNAME: /[a-z]+/ "ä"'
    assert list(lark_literals(grammar)) == [b"a\n", b'say "x"', "ä".encode()]


def test_of_very_many_alternatives_the_shortest_are_looked_at(vocabulary: Vocabulary) -> None:
    members = [f"member number {index} of very many" for index in range(9_999)] + ["x"]
    assert first({"enum": members}, vocabulary) == "x"
    assert next(minimal_choice_texts(members, vocabulary)) == b"x"


def test_alternatives_of_alternatives_of_alternatives_end_quietly(vocabulary: Vocabulary) -> None:
    levels = {str(i): {"anyOf": [{"$ref": f"#/$defs/{i + 1}"}] * 9} for i in range(9)} | {"9": INT}
    assert list(minimal_texts({"$ref": "#/$defs/0", "$defs": levels}, vocabulary)) == []


def test_a_prefix_beyond_all_measure_yields_nothing(vocabulary: Vocabulary) -> None:
    assert list(minimal_texts(INT, vocabulary, b" " * 40_000)) == []
