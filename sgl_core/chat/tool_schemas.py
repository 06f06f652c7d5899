"""The JSON schema that the text of a forced tool call must meet. Pure; ``ToolSet`` calls it, the engine compiles the result.

Schemas of tools are written for validators that see a finished value. Two things are said here for a model that is writing one:
objects take the members they list and no others, and a required text is not empty. The caller's schemas are never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

__all__ = ["call_schema"]

_DATA: Final = frozenset({"const", "default", "enum", "examples"})
"""Keywords whose values are data, not schemas."""
_NAMED: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose values map names to schemas."""
_COMBINING: Final = frozenset({"$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"})
_STANDARD_FORMATS: Final = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"}
)
_OPEN: Final = frozenset({"additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"})
_SETTLES_TEXT: Final = frozenset({"minLength", "enum", "const", "pattern", "format"})


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
    copier = _Copier(f"#/$defs/{name}", closes=not _combines(parameters), knows_standard_only=in_grammar)
    copied = copier.schema({"type": "object", **parameters})
    if "properties" not in copied and not (_COMBINING | _OPEN) & copied.keys():
        copied["additionalProperties"] = False  # no parameters: nothing but {} will do
    return copied


class _Copier:
    """Copies one tool's schema.

    Args:
        root: pointer to where the copy will stand.
        closes: whether objects that list members take no others.
        knows_standard_only: whether other formats are left out.
    """

    def __init__(self, root: str, *, closes: bool, knows_standard_only: bool) -> None:
        self._root = root
        self._closes = closes
        self._knows_standard_only = knows_standard_only

    def schema(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        # Without its own base, references inside it are led from the root of the whole.
        copied = {key: self._below(key, value) for key, value in schema.items() if key != "$id"}
        if self._knows_standard_only and copied.get("format") not in _STANDARD_FORMATS:
            copied.pop("format", None)
        reference = copied.get("$ref")
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            copied["$ref"] = self._root + reference[1:]
        properties = copied.get("properties")
        if isinstance(properties, dict):
            _fill_required_texts(properties, copied.get("required"))
            if self._closes and not _OPEN & copied.keys():
                copied["additionalProperties"] = False
        return copied

    def _below(self, key: str, value: Any) -> Any:
        if key in _DATA:
            return value
        if key in _NAMED and isinstance(value, Mapping):
            return {name: self._value(one) for name, one in value.items()}
        return self._value(value)

    def _value(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self.schema(value)
        return [self._value(one) for one in value] if isinstance(value, list | tuple) else value


def _fill_required_texts(properties: dict[str, Any], required: object) -> None:
    """A model that does not know what to say would say nothing: ask for a character where the author leaves it open."""
    for name in required if isinstance(required, list) else ():
        schema = properties.get(name)
        if not isinstance(schema, dict) or schema.get("type") != "string":
            continue
        if not _SETTLES_TEXT & schema.keys() and schema.get("maxLength") != 0:
            properties[name] = {**schema, "minLength": 1}


def _combines(schema: object) -> bool:
    """Whether an object anywhere is described in several places at once: closing one of them would shut out the others."""
    return any(
        ("properties" in one and bool(_COMBINING & one.keys()))
        or _has_several(one.get("allOf"))
        or bool({"if", "not"} & one.keys())
        for one in _schemas(schema)
    )


def _has_several(parts: object) -> bool:
    return isinstance(parts, list) and len(parts) > 1


def _schemas(schema: object) -> Iterator[Mapping[str, Any]]:
    """Every schema inside, itself included."""
    if isinstance(schema, Mapping):
        yield schema
        for key, value in schema.items():
            if key in _NAMED and isinstance(value, Mapping):
                for one in value.values():
                    yield from _schemas(one)
            elif key not in _DATA:
                yield from _schemas(value)
    elif isinstance(schema, list | tuple):
        for one in schema:
            yield from _schemas(one)
