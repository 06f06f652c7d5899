"""The shortest outputs of a JSON schema, a regular expression or a list of choices, before any search. No torch.

``GrammarCompiler`` asks once per grammar; what comes back are candidates, which ``closing.shortest_completion`` validates. So a
keyword that is not understood here costs quality, never soundness.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sgl_core.runtime.grammar.numbers import shortest_numbers
from sgl_core.runtime.grammar.regex_shapes import chars, regex_shape, repeated
from sgl_core.runtime.grammar.schema_dialect import DATE, DATE_TIME, DURATION, TIME
from sgl_core.runtime.grammar.schema_merge import SchemaReader
from sgl_core.runtime.grammar.shapes import (
    EMPTY,
    Literal,
    Shape,
    TooLargeError,
    any_of,
    fewest_tokens,
    narrowed,
    representative,
    sequence,
)
from sgl_core.runtime.grammar.token_tables import TokenTables
from sgl_core.runtime.grammar.vocabulary import Vocabulary

__all__ = ["lark_literals", "minimal_choice_texts", "minimal_regex_texts", "minimal_texts"]

_TYPES = ("integer", "string", "array", "object", "null", "boolean", "number")
_MAX_PARTS = 5_000
_MAX_ITEMS = 4_096
_MAX_ALTERNATIVE_BYTES = 8_192
_DATE = r"20\d\d-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])"
_TIME = r"1\d:[0-5]\d:[0-5]\dZ"
_ORDINARY = {DATE: _DATE, TIME: _TIME, DATE_TIME: f"{_DATE}T{_TIME}", DURATION: "P[1-9][DWMY]"}
"""Values that nobody wonders at: shorter in tokens may be the second of January of the year 7."""
_FORMATS = {
    "email": r"[a-z]@[a-z]\.[a-z]{2}",
    "hostname": "[a-z]",
    "ipv4": r"\d\.\d\.\d\.\d",
    "ipv6": "::",
    "uri": "[a-z]:",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}


def minimal_texts(schema: Any, vocabulary: Vocabulary, prefix: bytes = b"") -> Iterator[bytes]:
    """Compact JSON of the shortest instances of ``schema``, the one of the fewest tokens first; behind ``prefix``.

    Required properties only, in the order that llguidance keeps; shortest enum members; numbers nearest to zero; empty strings
    and arrays, or as long as they must be.

    Args:
        schema: a checked JSON schema.
        vocabulary: what the tokens are counted in.
        prefix: bytes that the output begins with.
    """
    try:
        shape = _Builder(schema).shape(schema)
    except (TooLargeError, RecursionError):
        return
    if shape is not None:
        yield from _texts(shape, vocabulary, prefix)


def minimal_regex_texts(pattern: str, vocabulary: Vocabulary, prefix: bytes = b"") -> Iterator[bytes]:
    """Shortest texts that match ``pattern``, the one of the fewest tokens first; none where its syntax is not known here."""
    shape = regex_shape(pattern, str.encode)
    if shape is not None:
        yield from _texts(shape, vocabulary, prefix)


def minimal_choice_texts(choices: Iterable[str], vocabulary: Vocabulary, prefix: bytes = b"") -> Iterator[bytes]:
    """The choice of the fewest tokens, then the one of the fewest bytes."""
    shape = any_of(_shortest(choice.encode() for choice in choices))
    if shape is not None:
        yield from _texts(shape, vocabulary, prefix)


def lark_literals(grammar: str) -> Iterator[bytes]:
    """The quoted strings of a Lark grammar: no outputs, but what outputs are made of, for the search."""
    at = grammar.find('"')
    while at >= 0:
        end = at + 1
        while end < len(grammar) and grammar[end] not in '"\n':
            end += 2 if grammar[end] == "\\" else 1
        with contextlib.suppress(ValueError):
            yield str(json.loads(grammar[at : end + 1])).encode("utf-8", "replace")
        at = grammar.find('"', end + 1)


def _texts(shape: Shape, vocabulary: Vocabulary, prefix: bytes) -> Iterator[bytes]:
    try:
        whole = sequence([Literal(prefix), shape])
    except TooLargeError:
        return
    tables = TokenTables.of(vocabulary)
    fewest = fewest_tokens(whole, tables)
    if fewest is None:
        fewest = fewest_tokens(narrowed(whole), tables)
    plain = representative(whole)
    yield from dict.fromkeys(text for text in (fewest, plain) if text is not None)


class _Builder:
    """Turns one schema into a shape, bottom-up. A schema that can only be met by containing itself has none."""

    def __init__(self, root: Any) -> None:
        self._reader = SchemaReader(root)
        self._parts = 0

    def shape(self, schema: Any, entered: frozenset[str] = frozenset()) -> Shape | None:
        """The shortest instances; None where no finite one was found.

        Args:
            entered: references on the way here; a shortest instance never needs one of them inside itself.
        """
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise TooLargeError
        flat = self._reader.flat(schema, entered)
        return any_of(shape for one, inside in flat for shape in self._of_types(one, inside))

    def _of_types(self, schema: Mapping[str, Any], entered: frozenset[str]) -> Iterator[Shape]:
        if "enum" in schema or "const" in schema:
            members = [schema["const"]] if "const" in schema else schema["enum"]
            yield from _shortest(_json(member) for member in members if _admits(schema, member))
            return
        given = schema.get("type", _TYPES)
        for name in [given] if isinstance(given, str) else given:
            shape = self._of_type(name, schema, entered)
            if shape is not None:
                yield shape

    def _of_type(self, name: str, schema: Mapping[str, Any], entered: frozenset[str]) -> Shape | None:
        match name:
            case "null":
                return Literal(b"null")
            case "boolean":
                return any_of([Literal(b"true"), Literal(b"false")])
            case "integer" | "number":
                numbers = shortest_numbers(schema, integer=name == "integer")
                return any_of(Literal(number.encode()) for number in numbers)
            case "string":
                return _string(schema)
            case "array":
                return self._array(schema, entered)
            case "object":
                return self._object(schema, entered)
            case _:
                return None

    def _array(self, schema: Mapping[str, Any], entered: frozenset[str]) -> Shape | None:
        items = schema.get("items", True)
        first = schema.get("prefixItems", items if isinstance(items, list) else [])
        if isinstance(items, list):
            items = schema.get("additionalItems", True)
        count = int(schema.get("minItems", 0))
        if count > _MAX_ITEMS:
            raise TooLargeError
        shapes = [self.shape(one, entered) for one in first[:count]]
        if count > len(shapes):
            shapes += [self.shape(items, entered)] * (count - len(shapes))
        known = [shape for shape in shapes if shape is not None]
        return _enclosed(b"[", known, b"]") if len(known) == len(shapes) else None

    def _object(self, schema: Mapping[str, Any], entered: frozenset[str]) -> Shape | None:
        properties = schema.get("properties", {})
        required = set(schema.get("required", ()))
        others = [key for key in dict.fromkeys(schema.get("required", ())) if key not in properties]
        rest = schema.get("additionalProperties", True)
        missing = int(schema.get("minProperties", 0)) - len(required)
        members: dict[str, Shape | None] = {}
        for key, value in properties.items():
            if key in required:
                members[key] = self.shape(value, entered)
            elif missing > 0 and (optional := self.shape(value, entered)) is not None:
                members[key] = optional
                missing -= 1
        for key in others:
            members[key] = self.shape(rest, entered)
        if missing > 0:
            free = self._free_keys(schema, missing, entered)
            if free is None:
                return None
            members |= free
        shapes = [sequence([Literal(_json(key) + b":"), value]) for key, value in members.items() if value is not None]
        return _enclosed(b"{", shapes, b"}") if len(shapes) == len(members) else None

    def _free_keys(self, schema: Mapping[str, Any], count: int, entered: frozenset[str]) -> dict[str, Shape | None] | None:
        """Members that no ``properties`` names, to reach ``minProperties``."""
        if count > _MAX_ITEMS:
            raise TooLargeError
        value = self.shape(schema.get("additionalProperties", True), entered)
        taken = {*schema.get("properties", ()), *schema.get("required", ())}
        keys = (key for key in ["", *map(chr, range(97, 123)), *map(str, range(count))] if key not in taken)
        return None if value is None else dict.fromkeys(itertools.islice(keys, count), value)


def _shortest(texts: Iterable[bytes]) -> Iterator[Literal]:
    """The shortest of many alternatives, as many as a shape may hold; of few all."""
    room = _MAX_ALTERNATIVE_BYTES
    for text in sorted(texts, key=len):
        yield Literal(text)
        room -= len(text)
        if room < 0:
            return


def _enclosed(opening: bytes, members: list[Shape], closing: bytes) -> Shape:
    parts: list[Shape] = [Literal(opening)]
    for index, member in enumerate(members):
        parts += [Literal(b","), member] if index else [member]
    return sequence([*parts, Literal(closing)])


def _string(schema: Mapping[str, Any]) -> Shape | None:
    length = int(schema.get("minLength", 0))
    pattern = schema.get("pattern")
    if not isinstance(pattern, str):
        pattern = _FORMATS.get(schema.get("format", ""))
    pattern = _ORDINARY.get(pattern or "", pattern)
    inner = repeated(_free(), length) if pattern is None else _matching(pattern, length)
    return None if inner is None else sequence([Literal(b'"'), inner, Literal(b'"')])


def _matching(pattern: str, length: int) -> Shape | None:
    """Matches of at least ``length`` characters: longer repetitions first, then characters behind an open end."""
    shape = regex_shape(pattern, _spell)
    missing = 0 if shape is None else length - _length(shape)
    if missing <= 0:
        return shape
    shape = regex_shape(pattern, _spell, missing)
    missing = 0 if shape is None else length - _length(shape)
    return shape if shape is None or missing <= 0 else sequence([shape, repeated(_free(), missing)])


def _length(shape: Shape) -> int:
    text = representative(shape).decode(errors="replace")
    return len(json.loads(f'"{text}"', strict=False))


def _free() -> Shape:
    """Characters for a string that must be longer than it need say."""
    return chars(f"{string.ascii_letters}{string.digits} ", _spell) or EMPTY


def _spell(char: str) -> bytes:
    return _json(char)[1:-1]


def _json(value: Any) -> bytes:
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """Whole floats as integers, which is how llguidance spells them."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def _admits(schema: Mapping[str, Any], member: Any) -> bool:
    """Whether an enum's member has a type and a length that the schema's other keywords allow."""
    given = schema.get("type", _TYPES)
    names = (given,) if isinstance(given, str) else given
    if "const" in schema and "enum" in schema and member not in schema["enum"]:
        return False
    if isinstance(member, str):
        return "string" in names and schema.get("minLength", 0) <= len(member) <= schema.get("maxLength", len(member))
    if isinstance(member, bool) or member is None:
        return ("null" if member is None else "boolean") in names
    if isinstance(member, int | float):
        whole = "integer" in names and float(member).is_integer()
        inside = schema.get("minimum", member) <= member <= schema.get("maximum", member)
        return inside and (whole or "number" in names)
    return ("array" if isinstance(member, list) else "object") in names
