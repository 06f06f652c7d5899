"""Schemas as people hand them to a model, as JSON schemas, and what an answer is held to. Pure.

``structured`` and ``tools`` call it. A schema is a Pydantic class of either version, a ``TypedDict``, a JSON schema, or the
description of a function as OpenAI or Anthropic write it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel
from typing_extensions import is_typeddict

from sgl_core.chat.json_schemas import close_object, is_composed, refers_to_itself, rewritten
from sgl_core.errors import InvalidArgumentError

__all__ = ["NamedSchema", "all_required", "as_openai_tool", "constraint_text", "json_text", "read_schema", "shown_keys"]

_EXPECTED: Final = "a Pydantic class, a TypedDict, a JSON schema, or a function as OpenAI describes it"
_SAYS_SOMETHING: Final = frozenset(
    {"type", "properties", "items", "prefixItems", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "title"}
)


@dataclass(frozen=True, slots=True)
class NamedSchema:
    """A JSON schema with a name.

    Args:
        name: of the class or function, or the title; None for a JSON schema without one.
        schema: as LangChain's own conversion has it for functions; otherwise as it was given.
        strict: what the description of a function or a response format says of itself.
    """

    name: str | None
    schema: Mapping[str, Any]
    strict: bool | None = None

    def as_tool(self, description: str = "") -> dict[str, Any]:
        """The same as a tool in OpenAI's form.

        Args:
            description: where the schema has none.
        """
        described = self.schema.get("description") or description
        parameters = {key: value for key, value in self.schema.items() if key not in {"title", "description"}}
        function = {"name": self.name, "description": described, "parameters": parameters}
        return {"type": "function", "function": function | ({} if self.strict is None else {"strict": self.strict})}


def read_schema(argument: str, given: object) -> NamedSchema:
    """The JSON schema that ``given`` stands for.

    Args:
        argument: what the caller called it, for errors.
        given: a schema in any of the forms above.

    Raises:
        InvalidArgumentError: it is none of them, or cannot be described as JSON schema.
    """
    try:
        if isinstance(given, Mapping):
            return _read_mapping(argument, given)
        if isinstance(given, type) and is_basemodel_subclass(given):
            described: Any = given  # of version 1 or 2
            schema = described.model_json_schema() if issubclass(given, BaseModel) else described.schema()
            return NamedSchema(str(schema.get("title") or given.__name__), schema)
        if is_typeddict(given):
            schema = convert_to_json_schema(given)  # type: ignore[arg-type]  # takes them, and does not say so
            return NamedSchema(str(schema["title"]), schema)
    except InvalidArgumentError:
        raise
    except Exception as error:  # the class is the caller's, and so is what it raises
        shown = getattr(given, "__name__", type(given).__name__)
        cure = "Put keys that may be missing into a TypedDict with total=False." if is_typeddict(given) else str(error)
        raise InvalidArgumentError(argument, shown, "something that JSON schema can describe", cure) from error
    raise InvalidArgumentError(argument, getattr(given, "__name__", type(given).__name__), _EXPECTED)


def as_openai_tool(tool: Any) -> dict[str, Any]:
    """A tool in OpenAI's form, as LangChain converts it; it writes references out, which a class that refers to itself forbids."""
    described = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    if isinstance(described, type) and is_basemodel_subclass(described):
        read = read_schema("tool", described)
        if refers_to_itself(read.schema):
            name, description = (tool.name, tool.description) if isinstance(tool, BaseTool) else (read.name, described.__doc__)
            return NamedSchema(name, read.schema).as_tool(description or "")
    converted: dict[str, Any] = convert_to_openai_tool(tool)
    return converted


def _read_mapping(argument: str, given: Mapping[str, Any]) -> NamedSchema:
    if given.get("type") == "function" and isinstance(given.get("function"), Mapping):
        return _read_mapping(argument, given["function"])
    name = given.get("name")
    if isinstance(name, str) and name:
        strict = given.get("strict")
        if isinstance(given.get("schema"), Mapping):
            return NamedSchema(name, given["schema"], strict)
        function = {"parameters": {"type": "object", "properties": {}}, **{k: v for k, v in given.items() if k != "strict"}}
        return NamedSchema(name, convert_to_json_schema(function), strict)
    if not _SAYS_SOMETHING & given.keys():
        raise InvalidArgumentError(argument, f"a dict with {shown_keys(given)}", _EXPECTED)
    title = (
        given.get("title") or str(given.get("$ref", "")).rpartition("/")[2]
    )  # what refers to itself is all in its definitions
    return NamedSchema(title if isinstance(title, str) and title else None, given)


def shown_keys(given: Mapping[str, Any]) -> str:
    """The keys of a dict, for an error that must not show its values."""
    return f"the keys {', '.join(map(repr, given))}" if given else "no keys"


def json_text(argument: str, value: object) -> str:
    """JSON in the author's order of keys, which is the order of the answer's.

    Raises:
        InvalidArgumentError: it holds what JSON cannot.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(argument, type(value).__name__, "nothing but what JSON can hold", str(error)) from None


def constraint_text(argument: str, schema: Mapping[str, Any], *, strict: bool = False) -> str:
    """What an answer is held to, as the text of a JSON schema; every output of it is one of ``schema``.

    An object that names its properties and is silent about others has no others: a model makes up no keys. Where schemas are
    put together (several ``allOf``, ``properties`` beside ``anyOf``), objects stay as open as they were written.

    Args:
        argument: what the caller called the schema, for errors.
        schema: not changed.
        strict: every property that is named is required.

    Raises:
        InvalidArgumentError: it holds what JSON cannot, or is nested too deep to be read.
    """
    return _constraint_text(json_text(argument, schema), strict)


@lru_cache(maxsize=256)
def _constraint_text(text: str, strict: bool) -> str:
    schema = json.loads(text)
    closed = _rewritten(schema, close_object)  # this is also what finds a schema nested too deep
    if not is_composed(schema):
        schema = closed
    return json_text("schema", all_required(schema) if strict else schema)


def all_required(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which every property that is named is required, as OpenAI's ``strict`` has it.

    Raises:
        InvalidArgumentError: it is nested too deep to be read.
    """
    return _rewritten(schema, _required)


def _required(schema: dict[str, Any]) -> None:
    if isinstance(schema.get("properties"), dict) and schema["properties"]:
        schema["required"] = list(schema["properties"])


def _rewritten(schema: Mapping[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    try:
        return rewritten(schema, change)
    except RecursionError:
        raise InvalidArgumentError("schema", "one that is nested too deep", "a schema that can be read to its end") from None
