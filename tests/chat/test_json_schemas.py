"""JSON schemas that refer to themselves."""

import pytest

from sgl_core.chat.json_schemas import refers_to_itself

LEAF = {"type": "integer"}


def list_of(pointer):
    return {"type": "array", "items": {"$ref": pointer}}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"kids": list_of("#")}},
        {"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"kids": list_of("#/$defs/A")}}}},
        {"definitions": {"A": list_of("#/definitions/B"), "B": list_of("#/definitions/A")}},
        {"$defs": {"A": LEAF, "B": {"anyOf": [LEAF, list_of("#/$defs/C")]}, "C": list_of("#/$defs/B")}},
    ],
    ids=["the root", "a definition", "two definitions", "behind others"],
)
def test_a_schema_that_comes_back_to_itself_is_found(schema):
    assert refers_to_itself(schema)


@pytest.mark.parametrize(
    "schema",
    [
        LEAF,
        {"$ref": "#/$defs/A", "$defs": {"A": list_of("#/$defs/B"), "B": LEAF}},
        {"properties": {"a": {"$ref": "#/$defs/A"}, "b": {"$ref": "#/$defs/A"}}, "$defs": {"A": LEAF}},
        {"$defs": {"A": {"const": {"$ref": "#/$defs/A"}}}},
        {"properties": {"a": {"$ref": "#/$defs/missing"}}},
    ],
    ids=["none", "a chain", "twice the same", "data", "nowhere"],
)
def test_a_schema_that_can_be_written_out_is_not(schema):
    assert not refers_to_itself(schema)
