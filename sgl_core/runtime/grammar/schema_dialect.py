"""A caller's JSON schema in the words that the engine knows, where these say the same or less. No torch.

Pydantic, LangChain and OpenAI's tools write schemas for validators, which pass over formats that they do not know and have a
value to look at. ``GrammarCompiler`` asks here before it compiles. Every output of what comes back is one of the schema that went
in; what cannot be said so is left alone, and the engine refuses it by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from sgl_core.runtime.grammar.schema_merge import SchemaReader
from sgl_core.runtime.grammar.shapes import TooLargeError

__all__ = ["DATE", "DATE_TIME", "DURATION", "TIME", "understood"]

_KNOWN = frozenset({"email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
"""Formats that go to the engine by name."""

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_CENTURY = "(?:0[48]|[2468][048]|[13579][26])"
_DAY = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{{2}}{_CENTURY}|{_CENTURY}00)-02-29)"
)
_HOUR = "(?:[01][0-9]|2[0-3])"
_CLOCK = rf"{_HOUR}:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_HOUR}:[0-5][0-9])"
_N = "[0-9]{1,6}"
_DAYS = f"(?:{_N}D|{_N}M(?:{_N}D)?|{_N}Y(?:{_N}M(?:{_N}D)?)?)"
_HOURS = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"

DATE = f"^{_DAY}$"
TIME = f"^{_CLOCK}$"
DATE_TIME = f"^{_DAY}T{_CLOCK}$"
DURATION = f"^P(?:{_N}W|{_DAYS}(?:{_HOURS})?|{_HOURS})$"
"""The engine's own formats know a year 0000, a second 60 and numbers without end, which ``datetime`` refuses."""

_PATTERNS = {"date": DATE, "time": TIME, "date-time": DATE_TIME, "duration": DURATION} | {
    f"uuid{version}": f"^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"
    for version in range(1, 9)
}
_UUID = "^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
_DATA = frozenset({"const", "default", "enum", "examples"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})
_ANNOTATIONS = frozenset(
    {"title", "description", "$comment", "deprecated", "readOnly", "writeOnly", *_DATA - {"const", "enum"}}
)
_MEMBERS = frozenset({"properties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"})
_LONGEST_NAME = 1_000


def understood(schema: Mapping[str, Any]) -> dict[str, Any]:
    """``schema`` with what only validators know put into plainer words.

    * Formats: dates and times become patterns of those that exist, ``uuid4`` and its kin patterns; unknown ones are annotations,
      as the standard has it, and are left out.
    * ``uniqueItems`` is left out where it asks for nothing.
    * The property that a ``discriminator`` names becomes required, so that alternatives differ also where it has a default.
    * ``propertyNames`` becomes ``properties`` or ``patternProperties``.

    Args:
        schema: checked, so nested no deeper than ``caps`` allows. It is not changed.
    """
    return _Reader(schema).schema(schema)


class _Reader:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._names = SchemaReader(root)

    def schema(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        known = dict(schema)
        self._read_format(known)
        if known.get("uniqueItems") is False or _at_most_one(known):
            known.pop("uniqueItems", None)
        self._require_discriminator(known)
        if "propertyNames" in known:
            self._read_names(known)
        return {key: self._below(key, value) for key, value in known.items()}

    def _below(self, key: str, value: Any) -> Any:
        if key in _DATA:
            return value
        if key in _NAMED and isinstance(value, Mapping):
            return {name: self._value(one) for name, one in value.items()}
        return self._value(value)

    def _value(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self.schema(value)
        return [self._value(one) for one in value] if isinstance(value, list) else value

    @staticmethod
    def _read_format(schema: dict[str, Any]) -> None:
        name = schema.get("format")
        if not isinstance(name, str) or name in _KNOWN:
            return
        del schema["format"]
        pattern = _PATTERNS.get(name)
        if pattern is None:
            return
        if "pattern" not in schema:
            schema["pattern"] = pattern
        elif isinstance(others := schema.get("allOf", []), list):
            schema["allOf"] = [*others, {"pattern": pattern}]

    @staticmethod
    def _require_discriminator(schema: dict[str, Any]) -> None:
        discriminator = schema.get("discriminator")
        name = discriminator.get("propertyName") if isinstance(discriminator, Mapping) else None
        required = schema.get("required", [])
        if isinstance(name, str) and schema.keys() & {"oneOf", "anyOf"} and isinstance(required, list) and name not in required:
            schema["required"] = [*required, name]

    def _read_names(self, schema: dict[str, Any]) -> None:
        """Say what names are allowed by naming them, or by a pattern; leave the keyword where neither can say it."""
        names = self._plain_names(schema["propertyNames"])
        if names is None or names.get("type", "string") != "string":
            return
        given = names.keys() - {"type"}
        if not given:
            del schema["propertyNames"]
            return
        if _MEMBERS & schema.keys():
            return
        value = schema.get("additionalProperties", True)
        members = [names["const"]] if given == {"const"} else names["enum"] if given == {"enum"} else None
        if isinstance(members, list):
            schema["properties"] = {member: value for member in members if isinstance(member, str)}
        else:
            pattern = _name_pattern(names, given)
            if pattern is None:
                return
            schema["patternProperties"] = {pattern: value}
        schema["additionalProperties"] = False
        del schema["propertyNames"]

    def _plain_names(self, names: Any) -> dict[str, Any] | None:
        """What a name must meet, behind references and without annotations; None where there are alternatives."""
        try:
            flat = list(itertools.islice(self._names.flat(names, frozenset()), 2))
        except (TooLargeError, RecursionError, TypeError, ValueError):  # too large, or malformed: the engine says which
            return None
        return {key: one for key, one in flat[0][0].items() if key not in _ANNOTATIONS} if len(flat) == 1 else None


def _name_pattern(names: Mapping[str, Any], given: set[str]) -> str | None:
    if given == {"pattern"} and isinstance(names["pattern"], str):
        return str(names["pattern"])
    if given == {"format"}:
        name = names["format"]
        return (_UUID if name == "uuid" else _PATTERNS.get(name)) if isinstance(name, str) else None
    bounds = [names.get("minLength", 0), *([names["maxLength"]] if "maxLength" in given else ())]
    if given <= {"minLength", "maxLength"} and all(type(bound) is int and 0 <= bound <= _LONGEST_NAME for bound in bounds):
        return f"^(?s:.){{{bounds[0]},{bounds[1] if bounds[1:] else ''}}}$"
    return None


def _at_most_one(schema: Mapping[str, Any]) -> bool:
    most = schema.get("maxItems")
    return isinstance(most, int | float) and most <= 1
