"""Sizes of constraints are checked before anything is compiled."""

import json
from typing import Any

import pytest

from sgl_core.errors import GrammarError
from sgl_core.runtime.grammar import caps


def refused(argument: str, pattern: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as caught:
        caps.check_regex(argument, pattern)
    assert caught.value.argument == argument


def schema_refused(schema: Any, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as caught:
        caps.parse_schema(caps.schema_text(schema))
    assert caught.value.argument == "json_schema"


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "a{1000}",
        "(a{100}){100}",
        "a{1000}b{1000}c{1000}",
        r"\{9999\}",
        "[{9999}]",
        r"[\]{9999}]",
        "[]{9999}]",
        "[^]{9999}]",
        "[[:alpha:]{9999}]",
        "[a[{9999}]]",
        r"\p{L}{1000}",
        r"\x{41}{1000}",
        "a{,}",
        "a{x}",
        "(a{1000})(b{1000}){10}",
        "(?i)x(?:y){3}",
        "(?P<x>a)",
        "(" * 63 + ")" * 63,
        "a)b",
        "[",
        "é" * 8_000,
    ],
)
def test_ordinary_patterns_pass(pattern: str) -> None:
    caps.check_regex("regex", pattern)


@pytest.mark.parametrize(
    "pattern", ["a{1001}", "a{1,1001}", "a{1001,}", "a{ 5 , 1001 }", "[ab]{2000}", r"\d{2000}", "a{" + "9" * 5000 + "}"]
)
def test_a_large_count_is_refused(pattern: str) -> None:
    refused("regex", pattern, "larger than 1,000")


@pytest.mark.parametrize(
    "pattern",
    [
        "(a{101}){100}",
        "((a{30}){30}){30}",
        "a{101}{100}",
        "(a{1000}b)*{11}",
        "(x|(y|a{1000})){1,11}",
        "([)]a{1000}){11}",
        r"(\)a{1000}){11}",
        "(?:(?P<n>a{1000})?){11}",
        r"(\p{L}{1000}){11}",
    ],
)
def test_counts_inside_counts_are_multiplied(pattern: str) -> None:
    refused("stop_regex", pattern, "multiply to more than 10,000")


def test_deep_groups_are_refused() -> None:
    refused("regex", "(" * 64 + ")" * 64, "64 deep")


def test_the_flag_that_would_hide_brackets_in_comments_is_refused() -> None:
    refused("regex", "(?x)(a{1000} # )\n){1000}", "x flag")
    refused("regex", "(?ix:a b)", "x flag")


def test_a_pattern_that_ends_inside_an_escape_is_refused() -> None:
    refused("regex", "ab\\", "inside an escape")


def test_long_texts_and_halves_of_surrogate_pairs_are_refused() -> None:
    refused("regex", "a" * 65_537, "65,537 bytes")
    refused("regex", "é" * 40_000, "80,000 bytes")
    refused("regex", "a\ud800", "surrogate")


def test_choices_are_counted_and_measured() -> None:
    caps.check_choices(["x"] * 1000)
    with pytest.raises(GrammarError, match="choices: there are 1,001"):
        caps.check_choices(["x"] * 1001)
    with pytest.raises(GrammarError, match="choices: it has 70,000 bytes"):
        caps.check_choices(["x" * 700] * 100)


def test_schemas_come_as_dict_text_or_class() -> None:
    schema = {"type": "object", "properties": {"b": {"enum": ["ü", None, 1, 2.5, True]}, "a": {}}}

    class Model:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return schema

    text = caps.schema_text(schema)
    assert text == '{"type":"object","properties":{"b":{"enum":["ü",null,1,2.5,true]},"a":{}}}'
    assert caps.schema_text(Model) == caps.schema_text(text) == text
    assert caps.parse_schema(text) == schema


def test_a_class_that_cannot_be_described_is_refused() -> None:
    class Model:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            raise RuntimeError("secret")

    schema_refused(Model, "cannot be described")


@pytest.mark.parametrize("schema", [True, False, [], 3, "[]", "true", '"x"', "null", object()])
def test_a_schema_is_an_object(schema: object) -> None:
    schema_refused(schema, "not an object")


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", '{"a": 1,}', "[" * 20_000, '{"a": 1' + "0" * 5000 + "}"])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    schema_refused(text, "not valid JSON")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "NaN", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused(number: float | str) -> None:
    schema_refused(
        f'{{"minimum": {number}}}' if isinstance(number, str) else {"minLength": number}, "NaN or an infinite|multiply"
    )


@pytest.mark.parametrize("value", [b"x", {1, 2}, object(), 1j])
def test_values_that_json_does_not_have_are_refused(value: object) -> None:
    schema_refused({"properties": {"a": {"const": value}}}, "which JSON cannot")


@pytest.mark.parametrize("schema", [{1: {}}, {"properties": {1: {}}}, {"const": {None: 1}}])
def test_keys_are_strings(schema: dict[Any, Any]) -> None:
    schema_refused(schema, "a key is not a string")


def test_a_dict_that_contains_itself_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    schema_refused(schema, "contains itself")


def test_a_dict_that_repeats_itself_exponentially_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(50):
        schema = {"anyOf": [schema, schema]}
    schema_refused(schema, "nested more than 64|more than 50,000 values")


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(65):
        schema = {"items": schema}
    schema_refused(schema, "nested more than 64")


def test_properties_are_counted_over_the_whole_schema() -> None:
    half = {"properties": {f"p{i}": {} for i in range(500)}}
    caps.parse_schema(caps.schema_text({"anyOf": [half, half]}))
    schema_refused({"anyOf": [half, half], "properties": {"one": {}}}, "1,000 properties")


def test_data_is_not_read_as_schema() -> None:
    data = {"$ref": "http://x", "pattern": "a{9999}", "minItems": 10**9}
    schema = {
        "enum": [data],
        "const": data,
        "default": data,
        "properties": {"pattern": {}, "$ref": {}, "enum": {"const": data}},
    }
    assert caps.parse_schema(caps.schema_text(schema)) == schema


@pytest.mark.parametrize(
    "schema", [{"pattern": "a{9999}"}, {"items": {"anyOf": [{"pattern": "a{9999}"}]}}, {"patternProperties": {"a{9999}": {}}}]
)
def test_patterns_inside_schemas_are_checked(schema: dict[str, Any]) -> None:
    schema_refused(schema, "larger than 1,000")


@pytest.mark.parametrize("target", ["http://x/y", "other.json", "file:///etc/passwd", "//x"])
def test_references_point_into_the_schema(target: str) -> None:
    schema_refused({"properties": {"a": {"$ref": target}}}, "nothing is ever fetched")


def test_least_lengths_are_multiplied() -> None:
    nested = {"minItems": 100, "items": {"minItems": 100, "items": {"type": "string", "minLength": 1}}}
    assert caps.parse_schema(caps.schema_text(nested)) == nested
    schema_refused({"minItems": 2, "items": nested}, "multiply to more than 10,000")
    schema_refused({"minLength": 10**400}, "multiply to more than 10,000")


def test_enums_have_an_end() -> None:
    schema_refused({"enum": list(range(10_001))}, "more than 10,000 members")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("start: /(a{101}){100}/", "multiply"),
        ('start: "a"{5000}', "larger than 1,000"),
        ("start: a ~ 2..5000", "larger than 1,000"),
        ("start: a ~ 5000", "larger than 1,000"),
        ('start: "/" /a{5000}/', "larger than 1,000"),
        ("start: %json " + json.dumps({"properties": {f"p{i}": {} for i in range(1001)}}), "1,000 properties"),
        ("start: %json {", "not valid JSON"),
        ("start: %json []", "not an object"),
        ("a" * 70_000, "70,000 bytes"),
    ],
)
def test_grammars_are_searched_for_large_parts(text: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as caught:
        caps.check_lark(text)
    assert caught.value.argument == "grammar"


@pytest.mark.parametrize(
    "text", ['start: "a{5000}" // b{5000}\n', r'start: "\"/a{5000}/"', 'start: %json {"const": "a{5000}"} "x"{3}', ""]
)
def test_strings_comments_and_data_inside_grammars_are_left_alone(text: str) -> None:
    caps.check_lark(text)


@pytest.mark.parametrize("schema", [{"const": 10**19}, {"enum": [1, 1e300]}, {"type": "integer", "minimum": 2**63}])
def test_a_number_that_would_be_cut_to_64_bits_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(GrammarError, match="above 10 to the 18"):
        caps.check_schema("json_schema", schema)
    caps.check_schema("json_schema", {"type": "integer", "maximum": 2**63, "minimum": -(10**18)})


def test_several_members_of_free_names_are_refused_as_one_name_could_come_twice() -> None:
    for schema in ({"minProperties": 2}, {"minProperties": 3, "required": ["a", "b"], "properties": {"a": {}, "b": {}}}):
        with pytest.raises(GrammarError, match="names are free"):
            caps.check_schema("json_schema", {"type": "object", **schema})
    for schema in (
        {"minProperties": 1},
        {"minProperties": 2, "required": ["a", "b"]},
        {"minProperties": 2, "properties": {"a": {}, "b": {}, "c": {}}, "additionalProperties": False},
    ):
        caps.check_schema("json_schema", {"type": "object", **schema})
