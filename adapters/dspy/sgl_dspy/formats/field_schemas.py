"""JSON schemas that replies are decoded by: of annotations, of tools' arguments, of tool calls. Called by ``fields``.

Pydantic describes what a validator accepts; a model that is held to a schema needs it narrower where a validator would pass over
things, and wider where a decoder knows less. What comes back here is read by DSPy's ``parse_value`` as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import pydantic
from dspy.adapters.types import Tool
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core.core_schema import DecimalSchema, DictSchema

from sgl_dspy.formats.number_patterns import decimal_number, whole_number

__all__ = ["NOT_BLANK", "arguments_schema", "schema_of", "tool_calls_schema"]

NOT_BLANK: Final = r"\S"
"""What a string matches that holds something to see."""

_NAMED: Final = frozenset({"$defs", "patternProperties", "properties"})
_LISTED: Final = frozenset({"allOf", "anyOf", "prefixItems"})
_NESTED: Final = frozenset({"additionalProperties", "items"})
_PLAIN: Final = frozenset(
    {
        *("$ref", "const", "discriminator", "enum", "format", "pattern", "propertyNames", "required", "type"),
        *("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"),
        *("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"),
    }
)
_FREE: Final = frozenset({"type"})
_PLAIN_TEXT: Final = frozenset({"type", "metadata", "ref", "serialization"})
_LOOKAROUND: Final = ("(?=", "(?!", "(?<")


class _Schemas(GenerateJsonSchema):
    def decimal_schema(self, schema: DecimalSchema) -> dict[str, Any]:
        """A number: not every text is one, as Pydantic says here."""
        described = super().decimal_schema(schema)
        alternatives = described.get("anyOf", [described])
        return next((one for one in alternatives if one.get("type") == "number"), described)

    def dict_schema(self, schema: DictSchema) -> dict[str, Any]:
        """An object whose keys can be read as what they stand for: of numbers Pydantic says nothing, and texts may be blank."""
        described = super().dict_schema(schema)
        pattern = _key_pattern(schema.get("keys_schema", {}))
        if pattern is None:
            return described
        values = described.pop("additionalProperties")
        return {
            **described,
            "patternProperties": {f"^{pattern}$": {} if values is True else values},
            "additionalProperties": False,
        }


def _key_pattern(keys: Mapping[str, Any]) -> str | None:
    """What the keys of an object match where they are read as numbers or truth values, or are texts: these are not blank.

    None for others, which have a schema of their own.
    """
    match keys.get("type"):
        case "int":
            least = max((bound for bound in (keys.get("ge"), _next(keys.get("gt"), 1)) if bound is not None), default=None)
            most = min((bound for bound in (keys.get("le"), _next(keys.get("lt"), -1)) if bound is not None), default=None)
            return whole_number(least, most)
        case "float":
            return decimal_number(None, None)
        case "bool":
            return "(?:true|false)"
        case "str" if keys.keys() <= _PLAIN_TEXT:
            return rf"(?s:.*){NOT_BLANK}(?s:.*)"
    return None


def _next(bound: int | None, step: int) -> int | None:
    return None if bound is None else bound + step


def schema_of(annotation: Any) -> dict[str, Any] | None:
    """The schema of a type's values, or None if it has none.

    * Objects hold the properties that their class names and no others, unless it asks for more.
    * Strings that must be there, alone, in a property or in a list, are not blank.
    * Sets are lists: what is written twice is read once.
    * Words for readers (titles, descriptions, examples) are left out, and so are patterns that look around, which automata cannot.
    """
    try:
        described = pydantic.TypeAdapter(annotation).json_schema(schema_generator=_Schemas)
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, pydantic.PydanticUserError, TypeError):
        return None
    return _narrowed(described, is_needed=True)


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The object of a tool's arguments; those with a default may be left out."""
    free = _free_arguments(tool)
    arguments = {name: schema for name, schema in (tool.args or {}).items() if name not in free}
    required = [name for name, schema in arguments.items() if "default" not in schema]
    return {
        "type": "object",
        "properties": {name: _argument(schema, name in required) for name, schema in arguments.items()},
        "required": required,
        "additionalProperties": bool(free),
    }


def tool_calls_schema(arguments: Mapping[str, Mapping[str, Any]], *, must_call: bool = False) -> dict[str, Any]:
    """``dspy.ToolCalls`` as text: a list of calls, each with the arguments of its own tool.

    Args:
        arguments: the schema of each tool's arguments by its name; of no tools if any may be called.
        must_call: at least one is.
    """
    calls = [_call({"const": name}, schema) for name, schema in arguments.items()]
    one = {"anyOf": calls} if calls else _call({"type": "string", "pattern": NOT_BLANK}, {"type": "object"})
    least = {"minItems": 1} if must_call else {}
    return _closed({"tool_calls": {"type": "array", "items": one, **least}})


def _call(name: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    return _closed({"name": name, "args": arguments})


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _free_arguments(tool: Tool) -> frozenset[str]:
    """``*args`` and ``**kwargs``, which DSPy lists among the arguments of a function that it has read itself."""
    func = tool.func if inspect.isroutine(tool.func) else tool.func.__call__
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in variadic) & (tool.args or {}).keys()


def _argument(schema: Mapping[str, Any], is_needed: bool) -> dict[str, Any]:
    """An argument's schema; any value where it refers to what stands elsewhere."""
    return {} if "$ref" in str(schema) else _narrowed(schema, is_needed=is_needed)


def _narrowed(schema: Mapping[str, Any], *, is_needed: bool) -> dict[str, Any]:
    """A schema in fewer words; ``is_needed`` says that its value cannot be left out."""
    narrow: dict[str, Any] = {}
    for key, value in _plain_alternatives(schema).items():
        if key in _NAMED and isinstance(value, Mapping):
            needed = schema.get("required", ()) if key == "properties" else ()
            narrow[key] = {name: _below(one, is_needed=name in needed) for name, one in value.items()}
        elif key in _LISTED:
            narrow[key] = [_below(one, is_needed=is_needed or key == "prefixItems") for one in value]
        elif key in _NESTED:
            narrow[key] = _below(value, is_needed=key == "items")
        elif key in _PLAIN:
            narrow[key] = value
    if "properties" in narrow:
        narrow.setdefault("additionalProperties", False)
    if isinstance(narrow.get("pattern"), str) and any(sign in narrow["pattern"] for sign in _LOOKAROUND):
        del narrow["pattern"]
    if is_needed and narrow.get("type") == "string" and narrow.keys() == _FREE:
        narrow["pattern"] = NOT_BLANK
    return narrow


def _below(schema: Any, *, is_needed: bool) -> Any:
    return _narrowed(schema, is_needed=is_needed) if isinstance(schema, Mapping) else schema


def _plain_alternatives(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Alternatives without those that an automaton cannot check, if others are left; a choice of exactly one is one of any."""
    alternatives = schema.get("oneOf", schema.get("anyOf"))
    if not isinstance(alternatives, list):
        return schema
    plain = [one for one in alternatives if not any(sign in str(one.get("pattern", "")) for sign in _LOOKAROUND)]
    rest = {key: value for key, value in schema.items() if key != "oneOf"}
    return {**rest, "anyOf": plain or alternatives}
