"""Walks through JSON schemas that a model's answer is held to. Pure; ``tool_schemas`` and the adapters call it.

Schemas are written for validators that see a finished value. A model that is writing one makes up no keys: an object takes the
members it lists. That can be said of each object alone only where no object is described in several places at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

__all__ = ["close_object", "is_composed", "refers_to_itself", "rewritten"]

_DATA: Final = frozenset({"const", "default", "enum", "examples"})
"""Keywords whose values are data, not schemas."""
_NAMED: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose values map names to schemas."""
_DEFINITIONS: Final = ("$defs", "definitions")
_ALTERNATIVES: Final = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_LATE_RULES: Final = frozenset({"dependentSchemas", "if", "not", "unevaluatedProperties"})
_OPEN: Final = frozenset({"additionalProperties", "patternProperties", "propertyNames"})


def rewritten(schema: Mapping[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A copy of a schema on which, and on all schemas inside it, ``change`` was called; inner ones first.

    Raises:
        RecursionError: it is nested too deep.
    """
    copy = {key: _rewritten_value(key, value, change) for key, value in schema.items()}
    change(copy)
    return copy


def _rewritten_value(key: str, value: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    if key in _DATA:
        return value
    if key in _NAMED and isinstance(value, Mapping):
        return {name: rewritten(one, change) if isinstance(one, Mapping) else one for name, one in value.items()}
    if isinstance(value, Mapping):
        return rewritten(value, change)
    if isinstance(value, list | tuple):
        return [rewritten(one, change) if isinstance(one, Mapping) else one for one in value]
    return value


def close_object(schema: dict[str, Any]) -> None:
    """Let an object that names its members, and is silent about others, have no others."""
    if isinstance(schema.get("properties"), dict) and not _OPEN & schema.keys():
        schema["additionalProperties"] = False


def is_composed(schema: Mapping[str, Any]) -> bool:
    """Whether an object anywhere in it must satisfy several schemas: closing one of them would shut out the others' members.

    Raises:
        RecursionError: it is nested too deep.
    """
    return any(map(_joins, _schemas(schema)))


def refers_to_itself(schema: Mapping[str, Any]) -> bool:
    """Whether following its references comes back to where one has been: such a schema cannot be written out.

    Raises:
        RecursionError: it is nested too deep.
    """
    parts: dict[str, Any] = {"#": {key: value for key, value in schema.items() if key not in _DEFINITIONS}}
    for place in _DEFINITIONS:
        parts |= {f"#/{place}/{name}": one for name, one in (schema.get(place) or {}).items()}
    references = {pointer: _references(part) for pointer, part in parts.items() if isinstance(part, Mapping)}
    finished: set[str] = set()

    def comes_back(pointer: str, path: frozenset[str]) -> bool:
        if pointer in path:
            return True
        if pointer in finished:
            return False
        found = any(comes_back(target, path | {pointer}) for target in references.get(pointer, ()))
        finished.add(pointer)
        return found

    return any(comes_back(pointer, frozenset()) for pointer in references)


def _references(schema: Mapping[str, Any]) -> list[str]:
    return [one["$ref"] for one in _schemas(schema) if isinstance(one.get("$ref"), str)]


def _joins(schema: Mapping[str, Any]) -> bool:
    parts = schema.get("allOf")
    joins = (isinstance(parts, list | tuple) and len(parts) > 1) or len(_ALTERNATIVES & schema.keys()) > 1
    return joins or bool(_LATE_RULES & schema.keys()) or ("properties" in schema and bool(_ALTERNATIVES & schema.keys()))


def _schemas(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas inside it."""
    yield schema
    for key, value in schema.items():
        if key in _DATA:
            continue
        inside = value.values() if key in _NAMED and isinstance(value, Mapping) else (value,)
        for one in inside:
            for each in one if isinstance(one, list | tuple) else (one,):
                if isinstance(each, Mapping):
                    yield from _schemas(each)
