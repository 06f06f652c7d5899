"""The JSON schema that the text of a forced tool call must meet. Pure; ``ToolSet`` calls it, the engine compiles the result.

Schemas of tools are written for validators that see a finished value. Two things are said here for a model that is writing one:
objects take the members they list and no others, and a required text says something. The caller's schemas are never changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sgl_core.chat.json_schemas import close_object, is_composed, rewritten

__all__ = ["call_schema"]

_STANDARD_FORMATS: Final = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"}
)
_SETTLES_MEMBERS: Final = frozenset(
    {"$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"}
    | {"additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"}
)
_SETTLES_TEXT: Final = frozenset({"minLength", "enum", "const", "pattern", "format"})
_NOT_BLANK: Final = r"\S"


def call_schema(tools: Sequence[tuple[str, Mapping[str, Any]]], *, in_grammar: bool = False) -> dict[str, Any]:
    """What one call looks like: an object of ``name`` and ``arguments``, in this order, for any of the tools.

    Args:
        tools: name and parameters of each, at least one. Names are plain words, so they can stand in a JSON pointer.
        in_grammar: it will stand inside a grammar, where formats of strings that no standard knows are refused and not passed
            over; they are left out.
    """
    calls = [_call(name) for name, _ in tools]
    definitions = {name: _parameters(name, parameters, in_grammar) for name, parameters in tools}
    # Each tool keeps its definitions inside its own: two tools may call different things by one name.
    return {"$defs": definitions, **(calls[0] if len(calls) == 1 else {"anyOf": calls})}


def _call(name: str) -> dict[str, Any]:
    members = {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{name}"}}
    return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


def _parameters(name: str, parameters: Mapping[str, Any], in_grammar: bool) -> dict[str, Any]:
    """A deep copy that demands an object, with its references led to where the copy will stand."""
    root = f"#/$defs/{name}"
    closes = not is_composed(parameters)

    def change(schema: dict[str, Any]) -> None:
        schema.pop("$id", None)  # without a base of its own, references inside it are led from the root of the whole
        if in_grammar and schema.get("format") not in _STANDARD_FORMATS:
            schema.pop("format", None)
        reference = schema.get("$ref")
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            schema["$ref"] = root + reference[1:]
        _fill_required_texts(schema)
        if closes:
            close_object(schema)

    copied = rewritten({"type": "object", **parameters}, change)
    if "properties" not in copied and not _SETTLES_MEMBERS & copied.keys():
        copied["additionalProperties"] = False  # no parameters: nothing but {} will do
    return copied


def _fill_required_texts(schema: dict[str, Any]) -> None:
    """A model that does not know what to say would say nothing, or a space: ask for more where the author leaves it open."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list | tuple):
        return
    for name in required:
        text = properties.get(name)
        if not isinstance(text, dict) or text.get("type") != "string":
            continue
        if not _SETTLES_TEXT & text.keys() and text.get("maxLength") != 0:
            properties[name] = {**text, "pattern": _NOT_BLANK}
