"""Schemas that replies are decoded by: closed, in few words, with texts that are not blank."""

import dataclasses
import re
from decimal import Decimal
from typing import Annotated, Any, Literal

import dspy
import pydantic
import pytest
from typing_extensions import TypedDict

from sgl_dspy.formats.field_schemas import arguments_schema, schema_of, tool_calls_schema

TEXT = {"type": "string", "pattern": r"\S"}


class Point(pydantic.BaseModel):
    """A docstring that no decoder reads."""

    label: str = pydantic.Field(description="for readers")
    x: float = 0.0
    note: str = ""


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    title: str


class Row(TypedDict):
    name: str
    size: int


@dataclasses.dataclass
class Pair:
    left: int
    right: int


def search(query: str, limit: int = 3) -> str:
    return query * limit


def anything(query: str, **more: Any) -> str:
    return query


def test_a_model_holds_its_own_properties_and_no_others():
    assert schema_of(Point) == {
        "type": "object",
        "properties": {"label": TEXT, "x": {"type": "number"}, "note": {"type": "string"}},
        "required": ["label"],
        "additionalProperties": False,
    }


def test_a_property_called_like_a_word_of_schemas_stays():
    described = schema_of(Open)
    assert described["properties"] == {"title": TEXT}
    assert described["additionalProperties"] is True


@pytest.mark.parametrize("kind", [Row, Pair])
def test_typed_dicts_and_dataclasses_are_closed_objects(kind):
    described = schema_of(kind)
    assert described["required"] == list(described["properties"])
    assert described["additionalProperties"] is False


def test_texts_in_lists_and_alternatives_are_not_blank_and_those_in_open_objects_are_free():
    assert schema_of(list[str])["items"] == TEXT
    assert schema_of(tuple[str, int])["prefixItems"] == [TEXT, {"type": "integer"}]
    assert schema_of(str | int)["anyOf"] == [TEXT, {"type": "integer"}]
    assert list(schema_of(dict[str, str])["patternProperties"].values()) == [{"type": "string"}]


def test_keys_of_open_objects_are_not_blank():
    [pattern] = schema_of(dict[str, int])["patternProperties"]
    assert re.search(pattern, "a key")
    assert re.search(pattern, "\nline\n")
    assert not re.search(pattern, " \n")
    assert schema_of(dict[str, int])["additionalProperties"] is False


def test_keys_with_a_rule_of_their_own_keep_it():
    schema = schema_of(dict[Annotated[str, pydantic.Field(max_length=3)], int])
    assert schema["propertyNames"] == {"maxLength": 3}
    assert schema["additionalProperties"] == {"type": "integer"}


def test_a_text_with_a_pattern_of_its_own_keeps_it():
    assert schema_of(Annotated[str, pydantic.Field(pattern="^[a-z]+$")]) == {"type": "string", "pattern": "^[a-z]+$"}


def test_a_pattern_that_looks_around_is_left_out():
    adapter = {"json_schema_extra": {"pattern": "^(?!a)b"}}
    assert schema_of(Annotated[str, pydantic.Field(**adapter)]) == TEXT


def test_a_set_is_a_list():
    assert schema_of(set[int]) == {"type": "array", "items": {"type": "integer"}}


def test_a_decimal_is_a_number_and_not_any_text():
    assert schema_of(Decimal) == {"type": "number"}


def test_kinds_that_a_tag_tells_apart_are_alternatives():
    described = schema_of(Annotated[Cat | Dog, pydantic.Field(discriminator="kind")])
    assert len(described["anyOf"]) == 2
    assert "oneOf" not in described


def test_a_type_without_a_schema_has_none():
    assert schema_of(type("Unknown", (), {})) is None


def test_a_tool_takes_its_arguments_and_may_leave_out_those_with_a_default():
    assert arguments_schema(dspy.Tool(search)) == {
        "type": "object",
        "properties": {"query": TEXT, "limit": {"type": "integer"}},
        "required": ["query"],
        "additionalProperties": False,
    }


def test_a_tool_with_open_arguments_takes_any():
    described = arguments_schema(dspy.Tool(anything))
    assert list(described["properties"]) == ["query"]
    assert described["additionalProperties"] is True


def test_arguments_that_a_tool_was_given_close_it_although_its_function_is_open():
    described = arguments_schema(dspy.Tool(anything, args={"topic": {"type": "string"}}, arg_types={"topic": str}))
    assert list(described["properties"]) == ["topic"]
    assert described["additionalProperties"] is False


def test_an_argument_that_refers_elsewhere_may_be_anything():
    tool = dspy.Tool(search, args={"query": {"$ref": "#/$defs/Query"}}, arg_types={"query": Any})
    assert arguments_schema(tool)["properties"] == {"query": {}}


def test_tool_calls_pair_each_name_with_its_own_arguments():
    described = tool_calls_schema({"search": arguments_schema(dspy.Tool(search))})
    (call,) = described["properties"]["tool_calls"]["items"]["anyOf"]
    assert call["properties"]["name"] == {"const": "search"}
    assert call["properties"]["args"]["required"] == ["query"]


def test_without_known_tools_any_may_be_called():
    call = tool_calls_schema({})["properties"]["tool_calls"]["items"]
    assert call["properties"] == {"name": TEXT, "args": {"type": "object"}}


@pytest.mark.parametrize(
    ("annotation", "read", "unread"),
    [
        (dict[int, str], ("0", "-7", "12"), ("", "x", "01", "1.5")),
        (dict[Annotated[int, pydantic.Field(gt=0, le=9)], str], ("1", "9"), ("0", "10", "-1")),
        (dict[float, Any], ("0", "-2.5"), ("", "x", "1e")),
        (dict[bool, int], ("true", "false"), ("maybe",)),
    ],
)
def test_keys_that_are_read_as_numbers_are_written_so(annotation, read, unread):
    schema = schema_of(annotation)
    [pattern] = schema["patternProperties"]
    assert schema["additionalProperties"] is False
    assert all(re.search(pattern, key) for key in read)
    assert not any(re.search(pattern, key) for key in unread)
