"""Tools as signatures, for models that were not trained on schemas. Pure; ``ToolSet`` calls it.

A small model reads ``book(origin: string, seats?: integer)`` far better than the JSON schema that says the same, and it is
much shorter. What a signature leaves out (bounds, patterns, formats) the grammar of a forced call sees to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

__all__ = ["signature"]

_WORD: Final = re.compile(r"[\w-]+")
_NESTING: Final = frozenset({"$ref", "properties", "items", "prefixItems", "anyOf", "oneOf", "allOf"})
"""Keywords that bring another schema into a type."""


def signature(name: str, description: str, parameters: Mapping[str, Any]) -> str:
    """One tool: ``name(parameter: type, optional?: type) - description``, and a line for each parameter that has a description.

    Args:
        name: of the tool.
        description: what it does; its line breaks are lost.
        parameters: JSON schema of its arguments, an object's. References are followed inside it; a definition that holds others
            is written out where it is met first, and named after that, so schemas that contain themselves have an end.
    """
    writer = _TypeWriter(parameters)
    head = f"{name}({', '.join(writer.members(parameters, ''))})"
    about = f"{head} - {_line(description)}" if description.strip() else head
    return "\n".join([about, *(f"  {path}: {text}" for path, text in writer.descriptions)])


class _TypeWriter:
    """Writes the types of one tool's parameters.

    Args:
        root: the schema that references are followed in.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._met = {"#"}
        self.descriptions: list[tuple[str, str]] = []

    def members(self, schema: Mapping[str, Any], path: str) -> Iterator[str]:
        """The members of an object, each with its type."""
        properties = schema.get("properties")
        required = schema.get("required")
        for name, one in properties.items() if isinstance(properties, Mapping) else ():
            at = f"{path}.{name}" if path else name
            description = one.get("description") if isinstance(one, Mapping) else None
            if isinstance(description, str) and description.strip():
                self.descriptions.append((at, _line(description)))
            is_required = isinstance(required, list | tuple) and name in required
            yield f"{name if _WORD.fullmatch(name) else _json(name)}{'' if is_required else '?'}: {self._type(one, at)}"

    def _type(self, schema: object, path: str) -> str:
        if not isinstance(schema, Mapping):
            return "any"
        if isinstance(schema.get("$ref"), str):
            return self._referred(schema["$ref"], path)
        if "const" in schema:
            return _json(schema["const"])
        if isinstance(schema.get("enum"), list | tuple):
            return " | ".join(map(_json, schema["enum"]))
        for keyword, between in (("anyOf", " | "), ("oneOf", " | "), ("allOf", " & ")):
            if isinstance(schema.get(keyword), list | tuple):
                return between.join(dict.fromkeys(self._type(one, path) for one in schema[keyword]))
        kind = schema.get("type")
        if isinstance(kind, list | tuple):
            return " | ".join(dict.fromkeys(self._plain({**schema, "type": one}, path) for one in kind))
        return self._plain(schema, path)

    def _plain(self, schema: Mapping[str, Any], path: str) -> str:
        kind = schema.get("type")
        if schema.get("properties") and kind in (None, "object"):
            return "{" + ", ".join(self.members(schema, path)) + "}"
        if kind == "array" or (kind is None and "items" in schema):
            return self._array(schema, f"{path}[]")
        return kind if isinstance(kind, str) else "any"

    def _array(self, schema: Mapping[str, Any], path: str) -> str:
        first, items = schema.get("prefixItems"), schema.get("items")
        if isinstance(first, list | tuple):
            return f"[{', '.join(self._type(one, path) for one in first)}]"
        if not isinstance(items, Mapping):
            return "array"
        element = self._type(items, path)
        return f"({element})[]" if " | " in element or " & " in element else f"{element}[]"

    def _referred(self, reference: str, path: str) -> str:
        target = _resolved(self._root, reference)
        if not isinstance(target, Mapping):
            return "any"
        if not _NESTING & target.keys():
            return self._type(target, path)
        name = unquote(reference.rpartition("/")[2]) if "/" in reference else "object"
        if reference in self._met:
            return name
        self._met.add(reference)
        return f"{name} {self._type(target, path)}"


def _resolved(root: object, reference: str) -> object:
    """What a pointer inside the schema points to; None for any other reference."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    for part in unquote(reference[2:]).split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        root = root.get(key) if isinstance(root, Mapping) else None
    return root


def _line(text: str) -> str:
    return " ".join(text.split())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
