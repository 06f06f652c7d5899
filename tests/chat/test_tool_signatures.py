"""Tools as signatures: every kind of type, and schemas that would have no end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sgl_core.chat.tool_signatures import signature
from sgl_core.chat.tools import Tool, ToolSet, form_for
from sgl_core.errors import InvalidArgumentError
from sgl_core.language.textonly import TextOnlyCodec
from sgl_core.testing.byte_codec import ByteCodec

POINT = {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}, "required": ["x"]}
WEATHER = Tool(
    "get_weather", "Get the weather.", {"properties": {"place": {"type": "string"}}, "required": ["place"], "type": "object"}
)
CLOCK = Tool("get_time")


def written(schema: Any, **more: Any) -> str:
    """The type of one required parameter."""
    text = signature("f", "", {"type": "object", "properties": {"p": schema}, "required": ["p"], **more})
    assert text.startswith("f(p: ")
    assert text.endswith(")")
    return text.removeprefix("f(p: ")[:-1]


def test_a_tool_is_a_line_with_its_parameters_and_what_it_does() -> None:
    assert signature(WEATHER.name, WEATHER.description, WEATHER.parameters) == "get_weather(place: string) - Get the weather."


def test_a_tool_without_parameters_or_description_is_its_name() -> None:
    assert signature("get_time", " ", {}) == "get_time()"


def test_a_description_of_several_lines_becomes_one() -> None:
    assert signature("f", "Add.\n\n    Both are\tneeded.", {}) == "f() - Add. Both are needed."


def test_parameters_that_may_be_left_out_are_marked() -> None:
    parameters = {"properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a"]}
    assert signature("f", "", parameters) == "f(a: integer, b?: boolean)"


def test_a_name_that_is_no_word_is_quoted() -> None:
    assert signature("f", "", {"properties": {"my: way": {"type": "null"}}}) == 'f("my: way"?: null)'


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "minLength": 3}, "string"),
        ({}, "any"),
        (True, "any"),
        ({"enum": ["on", "øff", 3]}, '"on" | "øff" | 3'),
        ({"const": "x", "type": "string"}, '"x"'),
        ({"type": ["string", "null"]}, "string | null"),
        ({"anyOf": [{"type": "integer"}, {"type": "integer", "minimum": 1}, {"type": "null"}]}, "integer | null"),
        ({"oneOf": [{"type": "string"}, POINT]}, "string | {x: number, y?: number}"),
        ({"allOf": [{"type": "string"}]}, "string"),
        ({"type": "array"}, "array"),
        ({"type": "array", "items": {"type": "string"}}, "string[]"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, "integer[][]"),
        ({"items": {"enum": ["a", "b"]}}, '("a" | "b")[]'),
        ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]}, "[string, integer]"),
        ({"type": "object"}, "object"),
        (POINT, "{x: number, y?: number}"),
    ],
)
def test_types_are_written_short(schema: Any, text: str) -> None:
    assert written(schema) == text


def test_references_are_followed() -> None:
    more = {"$defs": {"Colour": {"enum": ["red", "blue"]}, "a/b": {"type": "integer"}}}
    assert written({"$ref": "#/$defs/Colour"}, **more) == '"red" | "blue"'
    assert written({"$ref": "#/$defs/a~1b"}, **more) == "integer"


@pytest.mark.parametrize("reference", ["https://example.org/point", "#/$defs/Nowhere", "#anchor"])
def test_a_reference_that_leads_nowhere_may_be_anything(reference: str) -> None:
    assert written({"$ref": reference}) == "any"


def test_a_definition_is_written_out_once_and_named_after_that() -> None:
    ends = {"start": {"$ref": "#/$defs/Point"}, "end": {"$ref": "#/$defs/Point"}}
    text = signature("go", "", {"properties": ends, "required": ["start", "end"], "$defs": {"Point": POINT}})
    assert text == "go(start: Point {x: number, y?: number}, end: Point)"


def test_a_schema_that_contains_itself_has_an_end() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}}}
    assert written({"$ref": "#/$defs/Tree"}, **{"$defs": {"Tree": tree}}) == "Tree {left?: Tree}"
    assert signature("f", "", {"properties": {"again": {"$ref": "#"}}}) == "f(again?: object)"
    assert written({"$ref": "#/$defs/A"}, **{"$defs": {"A": {"$ref": "#/$defs/A"}}}) == "A A"


def test_definitions_that_double_at_every_level_stay_short() -> None:
    doubling = {
        f"L{level}": {"type": "object", "properties": {side: {"$ref": f"#/$defs/L{level + 1}"} for side in "ab"}}
        for level in range(30)
    }
    assert len(written({"$ref": "#/$defs/L0"}, **{"$defs": {**doubling, "L30": {"type": "string"}}})) < 1000


def test_descriptions_of_parameters_follow_by_their_paths() -> None:
    shots = {"type": "array", "items": {"type": "object", "properties": {"at": {"type": "string", "description": "a\n time"}}}}
    parameters = {
        "properties": {"who": {"type": "string", "description": "name"}, "shots": shots},
        "required": ["who", "shots"],
    }
    lines = signature("f", "Do it.", parameters).splitlines()
    assert lines == ["f(who: string, shots: {at?: string}[]) - Do it.", "  who: name", "  shots[].at: a time"]


def test_a_system_text_of_signatures_holds_one_for_each_tool_and_an_example_call() -> None:
    text = ToolSet((WEATHER, CLOCK), form="signatures").system_text()
    assert text.splitlines()[1:3] == ["get_weather(place: string) - Get the weather.", "get_time()"]
    example = text.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0]
    assert json.loads(example) == {"name": "add", "arguments": {"x": 17, "y": 4}}


def test_the_form_changes_the_system_text_and_the_choice_does_not() -> None:
    texts = {
        form: {ToolSet((WEATHER,), choice, form=form).system_text() for choice in ("auto", "none", "any", "get_weather")}
        for form in ("hermes", "signatures")
    }
    assert [len(each) for each in texts.values()] == [1, 1]
    assert texts["hermes"] != texts["signatures"]


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="form: got 'xml', expected one of hermes, signatures"):
        ToolSet((WEATHER,), form="xml")  # type: ignore[arg-type]


def test_a_codec_whose_template_takes_tools_gets_hermes() -> None:
    class Trained(ByteCodec):
        knows_tools = True

    assert [form_for(codec) for codec in (Trained(), ByteCodec(), TextOnlyCodec())] == ["hermes", "signatures", "signatures"]


SIGNED = ToolSet((WEATHER, CLOCK), form="signatures")


def decides(call: float, pleasantry: float, name: float, *, follows_result: bool = False) -> bool:
    """What is decided when one tool's name has a score, the other's none, and all pleasantries have one."""
    texts = SIGNED.decision_texts()
    assert texts[-2:] == ("get_weather(", "get_time(")
    scores = [(call,), *[(pleasantry,)] * (len(texts) - 3), (-30.0,), (name,)]
    return SIGNED.decides_call(scores, follows_result=follows_result)


def test_a_model_that_thinks_of_a_tools_name_calls_one() -> None:
    assert decides(-9.0, -7.1, -7.6)


def test_a_model_that_thinks_of_a_pleasantry_before_a_name_answers() -> None:
    assert not decides(-8.0, -2.5, -7.6)


def test_a_name_alone_makes_no_call() -> None:
    assert not decides(-14.0, -9.6, -9.5)


def test_a_model_that_is_sure_of_the_mark_needs_no_name() -> None:
    assert decides(-0.1, -9.0, -25.0)


def test_a_name_behind_a_result_makes_no_call() -> None:
    assert not decides(-5.0, -7.0, -4.0, follows_result=True)
