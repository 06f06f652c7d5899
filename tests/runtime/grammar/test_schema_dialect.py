"""Schemas as Pydantic, LangChain and OpenAI's tools write them, in the words of the engine."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sgl_core.errors import GrammarError
from sgl_core.runtime.grammar.compiled import CompiledGrammar
from sgl_core.runtime.grammar.compiler import GrammarCompiler
from sgl_core.runtime.grammar.schema_dialect import understood
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.types import SamplingParams

INT = {"type": "integer"}
STR = {"type": "string"}


@pytest.fixture(scope="module")
def compiler(embedded_folder: Path) -> GrammarCompiler:
    return GrammarCompiler(Vocabulary((embedded_folder / "tokenizer.json").read_text(), 49_152, [2]))


def compiled(compiler: GrammarCompiler, schema: dict[str, Any]) -> CompiledGrammar:
    grammar = compiler.compile(SamplingParams(json_schema=schema))
    assert grammar is not None
    return grammar


def allows(compiler: GrammarCompiler, schema: dict[str, Any], value: Any) -> bool:
    grammar = compiled(compiler, schema)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    tokens = grammar.vocabulary.canonical(text)
    assert tokens is not None
    return bool(grammar.prototype.validate_tokens([*tokens, 2]) == len(tokens) + 1)


def smallest(compiler: GrammarCompiler, schema: dict[str, Any]) -> Any:
    grammar = compiled(compiler, schema)
    return json.loads(grammar.vocabulary.text_bytes(grammar.shortest))


@pytest.mark.parametrize("name", ["binary", "password", "path", "ipv4network", "ipvanyaddress", "base64", "regex", "phone"])
def test_a_format_that_is_not_known_is_an_annotation(name: str, compiler: GrammarCompiler) -> None:
    assert allows(compiler, {**STR, "format": name}, "anything at all")


@pytest.mark.parametrize(
    ("name", "real", "unreal"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31", "0001-01-01"], ["2023-02-29", "1900-02-29", "0000-01-01", "2023-04-31"]),
        ("time", ["23:59:59Z", "00:00:00.25+05:30"], ["00:00:60Z", "24:00:00Z", "12:00:00"]),
        ("date-time", ["2024-02-29T10:00:00Z", "1999-12-31T23:59:59-11:00"], ["2023-02-29T10:00:00Z", "2024-01-01T00:00:60Z"]),
    ],
)  # fmt: skip
def test_dates_and_times_are_those_that_exist(name: str, real: list[str], unreal: list[str], compiler: GrammarCompiler) -> None:
    schema = {**STR, "format": name}
    readers: dict[str, Callable[[str], object]] = {
        "date": datetime.date.fromisoformat,
        "time": datetime.time.fromisoformat,
        "date-time": datetime.datetime.fromisoformat,
    }
    for text in real:
        readers[name](text)
        assert allows(compiler, schema, text), text
    assert not [text for text in unreal if allows(compiler, schema, text)]


def test_days_of_two_centuries_are_dates_leap_days_included(compiler: GrammarCompiler) -> None:
    grammar = compiled(compiler, {**STR, "format": "date"})
    day = datetime.date(1899, 1, 1)
    while day.year < 2101:
        text = f"{day.year:04}-{day.month:02}-{day.day:02}"
        tokens = grammar.vocabulary.canonical(f'"{text}"'.encode()) or []
        assert grammar.prototype.validate_tokens([*tokens, 2]) == len(tokens) + 1, text
        day += datetime.timedelta(days=1 if day.month == 2 and day.day > 26 else 9)


def test_durations_are_read_as_the_standard_has_them_and_stay_small(compiler: GrammarCompiler) -> None:
    schema = {**STR, "format": "duration"}
    assert all(allows(compiler, schema, text) for text in ("P3D", "P1W", "PT4H", "P1Y2M3DT4H5M6S", "PT5M6S"))
    assert not any(allows(compiler, schema, text) for text in ("P", "PT", "P1Y2D", "P1DT", f"PT{'9' * 20}S"))


def test_the_shortest_date_is_an_ordinary_one(compiler: GrammarCompiler) -> None:
    assert smallest(compiler, {**STR, "format": "date"}).startswith("20")
    assert smallest(compiler, {**STR, "format": "date-time"}).startswith("20")


def test_a_date_with_a_pattern_of_its_own_meets_both(compiler: GrammarCompiler) -> None:
    schema = {**STR, "format": "date", "pattern": "^1"}
    assert allows(compiler, schema, "1999-01-01")
    assert not allows(compiler, schema, "2001-01-01")
    assert not allows(compiler, schema, "1999-02-29")


def test_a_version_of_uuid_is_one_of_that_version(compiler: GrammarCompiler) -> None:
    schema = {**STR, "format": "uuid4"}
    assert allows(compiler, schema, "00000000-0000-4000-8000-000000000000")
    assert not allows(compiler, schema, "00000000-0000-1000-8000-000000000000")


@pytest.mark.parametrize("keyword", [{"uniqueItems": False}, {"uniqueItems": True, "maxItems": 1}])
def test_unique_items_that_ask_for_nothing_are_no_reason_to_refuse(keyword: dict[str, Any], compiler: GrammarCompiler) -> None:
    assert smallest(compiler, {"type": "array", "items": INT, **keyword}) == []


def alternative(kind: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"const": kind, "default": kind}, "x": INT}, "required": ["x"]}


def test_a_discriminator_with_defaults_tells_alternatives_apart(compiler: GrammarCompiler) -> None:
    schema = {
        "$defs": {"cat": alternative("cat"), "dog": alternative("dog")},
        "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/cat", "dog": "#/$defs/dog"}},
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
    }
    assert smallest(compiler, schema) in ({"kind": "cat", "x": 0}, {"kind": "dog", "x": 0})
    assert allows(compiler, schema, {"kind": "dog", "x": 1})
    assert not allows(compiler, schema, {"x": 1})


def test_a_property_that_is_called_discriminator_or_format_is_a_property(compiler: GrammarCompiler) -> None:
    properties = {"discriminator": STR, "format": STR, "propertyNames": INT, "uniqueItems": INT}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    assert smallest(compiler, schema) == {"discriminator": "", "format": "", "propertyNames": 0, "uniqueItems": 0}


@pytest.mark.parametrize(
    ("names", "good", "bad"),
    [
        ({"enum": ["x", "y"]}, "y", "z"),
        ({"$ref": "#/$defs/Colour"}, "red", "blue"),
        ({"const": "only"}, "only", "other"),
        ({"minLength": 1, "maxLength": 3}, "öäü", "long"),
        ({"minLength": 2}, "ab", "a"),
        ({"pattern": "^[a-z]+$"}, "abc", "ABC"),
        ({"format": "date"}, "2024-02-29", "2023-02-29"),
        ({"format": "uuid4"}, "00000000-0000-4000-8000-000000000000", "x"),
        ({"format": "uuid"}, "00000000-0000-1000-8000-000000000000", "x"),
    ],
)
def test_names_of_properties_are_constrained(names: dict[str, Any], good: str, bad: str, compiler: GrammarCompiler) -> None:
    colour = {"enum": ["red", "green"], "title": "Colour", "type": "string"}
    schema = {"type": "object", "additionalProperties": INT, "propertyNames": names, "$defs": {"Colour": colour}}
    assert smallest(compiler, schema) == {}
    assert allows(compiler, schema, {good: 1})
    assert not allows(compiler, schema, {bad: 1})
    jsonschema.validate({good: 1}, schema)


def test_names_beside_named_properties_are_left_to_the_engine_to_refuse(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"a": INT}, "propertyNames": {"enum": ["a", "b"]}}
    with pytest.raises(GrammarError, match="propertyNames"):
        compiled(compiler, schema)


def test_names_that_many_maps_share_count_as_properties_of_each(compiler: GrammarCompiler) -> None:
    names = {"enum": [f"n{index}" for index in range(400)]}
    one = {"type": "object", "additionalProperties": INT, "propertyNames": {"$ref": "#/$defs/names"}}
    schema = {"type": "array", "prefixItems": [one] * 3, "$defs": {"names": names}}
    with pytest.raises(GrammarError, match="more than 1,000 properties"):
        compiled(compiler, schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"propertyNames": {"allOf": 5}},
        {"propertyNames": {"enum": 5}},
        {"propertyNames": {"format": []}},
        {"propertyNames": {"minLength": True, "maxLength": {}}},
        {"format": "date", "pattern": "x", "allOf": 5},
        {"discriminator": {"propertyName": "a"}, "required": [{}], "oneOf": [{}]},
        {"discriminator": 5, "oneOf": 5},
    ],
)
def test_what_is_malformed_is_refused_with_the_field_named(schema: dict[str, Any], compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarError) as refused:
        compiled(compiler, schema)
    assert refused.value.argument == "json_schema"


def test_data_is_not_read_as_a_schema_and_the_schema_is_not_changed() -> None:
    data = {"format": "date", "uniqueItems": False}
    schema = {"properties": {"a": {"const": data, "default": data, "examples": [data]}, "b": {**STR, "format": "date"}}}
    before = copy.deepcopy(schema)
    assert understood(schema)["properties"]["a"] == schema["properties"]["a"]
    assert schema == before


@pytest.mark.parametrize(
    "keywords", [{"const": -1e300}, {"enum": [0, -(10**400)]}, {"minimum": -(10**19), "maximum": -(10**19) + 3}]
)
def test_integers_that_would_overflow_the_engine_are_refused(keywords: dict[str, Any], compiler: GrammarCompiler) -> None:
    """The engine would call itself until the process dies."""
    with pytest.raises(GrammarError, match="below minus 10"):
        compiled(compiler, {**INT, **keywords})
