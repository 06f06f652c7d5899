"""A JSON schema without references and combinations: each alternative as one flat schema. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from sgl_core.runtime.grammar.shapes import TooLargeError

__all__ = ["SchemaReader"]

_LARGEST_OF = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLEST_OF = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_MAX_LOOKED_AT = 4_096
_COMBINING = ("$ref", "allOf", "anyOf", "oneOf")
Flat = tuple[dict[str, Any], frozenset[str]]

_MAX_ALTERNATIVES = 10_000
"""Looked at in one schema; references can double them at every level. Those beyond are as if they were not there."""


class SchemaReader:
    """Resolves references inside one schema; owns the count of what was looked at.

    Args:
        root: the whole schema, which local references point into.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._looked_at = 0
        self._anchors: dict[str, Any] | None = None
        self._alternatives_left = _MAX_ALTERNATIVES

    def flat(self, schema: Any, entered: frozenset[str]) -> Iterator[Flat]:
        """Every alternative of ``schema``, with the references that were followed on the way to it.

        A reference that was entered before, or that points nowhere, is no alternative.

        Raises:
            TooLargeError: more alternatives were looked at, all calls together, than a shortest instance needs.
        """
        self._looked_at += 1
        if self._looked_at > _MAX_LOOKED_AT:
            raise TooLargeError
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            return
        plain = {key: value for key, value in schema.items() if key not in _COMBINING}
        alternatives: list[Flat] = [(plain, entered)]
        if "$ref" in schema:
            alternatives = list(self._with_reference(schema["$ref"], alternatives))
        for part in schema.get("allOf", ()):
            alternatives = [both for one in alternatives for both in self._with(one, part)]
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                alternatives = [both for one in alternatives for part in schema[keyword] for both in self._with(one, part)]
        yield from alternatives

    def _with(self, one: Flat, part: Any) -> Iterator[Flat]:
        if self._alternatives_left <= 0:
            return
        for other, entered in self.flat(part, one[1]):
            self._alternatives_left -= 1
            yield _merged(one[0], other), entered

    def _with_reference(self, reference: Any, alternatives: list[Flat]) -> Iterator[Flat]:
        for one, entered in alternatives:
            if isinstance(reference, str) and reference not in entered:
                yield from self._with((one, entered | {reference}), self._target(reference))

    def _target(self, reference: str) -> Any:
        """What a local reference points to; False, which nothing meets, if that is nowhere."""
        if not reference.startswith("#"):
            return False
        if reference[1:2] not in ("", "/"):
            if self._anchors is None:
                self._anchors = dict(_anchors(self._root))
            return self._anchors.get(reference[1:], False)
        node = self._root
        for step in reference[1:].split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                return False
        return node


def _anchors(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        if isinstance(node.get("$anchor"), str):
            yield node["$anchor"], node
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from _anchors(one)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both schemas at once, as far as shortest instances need it; properties of the first stand first."""
    merged = {**first, **second}
    for key in first.keys() & second.keys():
        merged[key] = _both(key, first[key], second[key])
    return merged


def _both(key: str, one: Any, other: Any) -> Any:
    if key in _LARGEST_OF:
        return max(one, other)
    if key in _SMALLEST_OF:
        return min(one, other)
    match key:
        case "properties":
            shared = {name: {"allOf": [one[name], other[name]]} for name in one.keys() & other.keys()}
            return {name: shared.get(name, value) for name, value in {**one, **other}.items()}
        case "required":
            return [*one, *other]
        case "enum":
            return [member for member in one if member in other]
        case "type":
            return _common_types(one, other)
        case "items" | "additionalProperties":
            return {"allOf": [one, other]}
        case _:
            return other


def _common_types(one: Any, other: Any) -> list[str]:
    first = [one] if isinstance(one, str) else list(one)
    second = [other] if isinstance(other, str) else list(other)
    common = [name for name in first if name in second]
    if {"integer", "number"} <= {*first, *second} and "integer" not in common:
        common.append("integer")
    return common
