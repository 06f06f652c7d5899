"""A corpus of output constraints: 100 JSON schemas and 40 regular expressions, each with a smallest output written by hand.

Tests of the grammar room and acceptance tests run it. The outputs were written without our own search for shortest ones, which
they are there to judge: "smallest" is meant in characters, and how many tokens that takes is for the test to find out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from typing import Any

from sgl_core.runtime.grammar.vocabulary import Vocabulary

__all__ = ["CASES", "REGEXES", "SCHEMAS", "Case", "RegexCase", "SchemaCase", "fewest_tokens", "spellings_of"]


@dataclass(frozen=True, slots=True)
class SchemaCase:
    """A JSON schema and a smallest instance of it.

    Args:
        name: for reports; unique.
        schema: the schema.
        smallest: an instance; keys in the order that the output has.
    """

    name: str
    schema: dict[str, Any]
    smallest: Any

    @property
    def options(self) -> dict[str, Any]:
        """What ``SamplingParams`` takes."""
        return {"json_schema": self.schema}

    @property
    def smallest_text(self) -> str:
        """The smallest instance as compact JSON."""
        return json.dumps(self.smallest, ensure_ascii=False, separators=(",", ":"))

    def check(self, text: str) -> None:
        """Parse and validate an output.

        Raises:
            ValueError: it is no JSON. jsonschema.ValidationError: it is no instance.
        """
        import jsonschema

        jsonschema.validate(json.loads(text), self.schema)


@dataclass(frozen=True, slots=True)
class RegexCase:
    """A regular expression that Python and llguidance read alike, and a shortest text that it matches as a whole."""

    name: str
    pattern: str
    smallest: str

    @property
    def options(self) -> dict[str, Any]:
        """What ``SamplingParams`` takes."""
        return {"regex": self.pattern}

    @property
    def smallest_text(self) -> str:
        """The shortest text."""
        return self.smallest

    def check(self, text: str) -> None:
        """Match an output.

        Raises:
            ValueError: it does not match as a whole.
        """
        if not re.fullmatch(self.pattern, text):
            raise ValueError(f"{self.name}: {len(text)} characters do not match")


Case = SchemaCase | RegexCase


@cache
def spellings_of(vocabulary: Vocabulary) -> frozenset[bytes]:
    """The bytes of all tokens that spell any, for ``fewest_tokens``."""
    return frozenset(vocabulary.token_bytes(token) for token in range(vocabulary.size)) - {b""}


def fewest_tokens(text: bytes, spellings: AbstractSet[bytes]) -> int:
    """The fewest tokens of any segmentation of ``text``, by dynamic programming from the front.

    Args:
        spellings: of all tokens, the empty one left out; they can spell the text.
    """
    fewest: list[float] = [0.0]
    for end in range(1, len(text) + 1):
        fewest.append(min(fewest[start] + 1 if text[start:end] in spellings else float("inf") for start in range(end)))
    return int(fewest[-1])


_INT: dict[str, Any] = {"type": "integer"}
_NUM: dict[str, Any] = {"type": "number"}
_STR: dict[str, Any] = {"type": "string"}
_BOOL: dict[str, Any] = {"type": "boolean"}
_NULL: dict[str, Any] = {"type": "null"}
_NO_ADDRESS = ".".join("0000")
_UUID = "00000000-0000-0000-0000-000000000000"


def _obj(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """A closed object; all properties required unless said otherwise."""
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False, **more}


def _arr(items: Any, least: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **({"minItems": least} if least else {}), **more}


def _text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


def _nested(depth: int) -> tuple[dict[str, Any], Any]:
    schema: dict[str, Any] = _obj({"v": _INT})
    value: dict[str, Any] = {"v": 0}
    for _ in range(depth - 1):
        schema, value = _obj({"in": schema}), {"in": value}
    return schema, value


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return _obj({"name": {"const": name}, "arguments": arguments})


_TREE = _obj({"v": _INT, "kids": _arr({"$ref": "#/$defs/tree"})})
_LIST = _obj({"v": _INT, "next": {"anyOf": [_NULL, {"$ref": "#/$defs/list"}]}})
_EXPRESSION = {
    "anyOf": [_INT, _obj({"op": {"enum": ["add", "mul"]}, "args": _arr({"$ref": "#/$defs/expression"}, 2, maxItems=2)})]
}
_POINT = _obj({"x": _NUM, "y": _NUM})
_PERSON = _obj({"name": _STR, "age": {**_INT, "minimum": 0, "maximum": 130}})
_ADDRESS = _obj({"street": _STR, "city": _STR, "zip": _text(pattern="^[0-9]{5}$")})

_SCALARS: list[tuple[str, dict[str, Any], Any]] = [
    ("integer", _INT, 0),
    ("number", _NUM, 0),
    ("string", _STR, ""),
    ("boolean", _BOOL, True),
    ("null", _NULL, None),
    ("anything", {}, 0),
    ("enum of words", {"enum": ["red", "green", "blue"]}, "red"),
    ("enum of mixed values", {"enum": ["three", 3, None]}, 3),
    ("enum of objects", {"enum": [{"a": 1}, {"a": [1, 2]}]}, {"a": 1}),
    ("const text", {"const": "yes, indeed"}, "yes, indeed"),
    ("const object", {"const": {"k": [1, 2.5, None]}}, {"k": [1, 2.5, None]}),
    ("integer from a million", {**_INT, "minimum": 1_000_000}, 1_000_000),
    ("integer below zero", {**_INT, "minimum": -90, "maximum": -10}, -10),
    ("integer above an open bound", {**_INT, "exclusiveMinimum": 41, "exclusiveMaximum": 43}, 42),
    ("multiple of seven", {**_INT, "multipleOf": 7, "minimum": 100}, 105),
    ("number in a narrow gap", {**_NUM, "minimum": 0.001, "maximum": 0.01}, 0.001),
    ("number between halves", {**_NUM, "minimum": 0.5, "maximum": 0.75}, 0.5),
    ("text of ten", _text(minLength=10), "aaaaaaaaaa"),
    ("text of three at most", _text(maxLength=3), ""),
    ("text between bounds", _text(minLength=2, maxLength=4), "ab"),
    ("type list", {"type": ["string", "integer", "null"]}, 0),
    ("nullable text", {"anyOf": [_text(minLength=5), _NULL]}, None),
    ("long words only", {"enum": ["internationalisation", "responsibilities"]}, "responsibilities"),
]
_FORMATTED: list[tuple[str, dict[str, Any], Any]] = [
    ("date", _text(format="date"), "2000-01-01"),
    ("time", _text(format="time"), "12:00:00Z"),
    ("date-time", _text(format="date-time"), "2000-01-01T00:00:00Z"),
    ("uuid", _text(format="uuid"), _UUID),
    ("email", _text(format="email"), "a@b.co"),
    ("ipv4", _text(format="ipv4"), _NO_ADDRESS),
    ("hostname", _text(format="hostname"), "a"),
    ("duration", _text(format="duration"), "P1D"),
    ("pattern of digits", _text(pattern="^[0-9]{3}-[0-9]{4}$"), "000-0000"),
    ("pattern of hex", _text(pattern="^#[0-9a-f]{6}$"), "#000000"),
    ("pattern with words", _text(pattern="^(cat|horse) (eats|sleeps)$"), "cat eats"),
    ("pattern without anchors", _text(pattern="[A-Z]{2}"), "AA"),
    ("pattern and length", _text(pattern="^[a-z]+$", minLength=4), "aaaa"),
    ("pattern with a backslash", _text(pattern=r"^C:\\\\[a-z]+$"), "C:\\\\a"),
    ("event", _obj({"title": _STR, "day": _text(format="date")}), {"title": "", "day": "2000-01-01"}),
    ("session", _obj({"id": _text(format="uuid"), "user": _STR}), {"id": _UUID, "user": ""}),
    ("interval", _obj({"from": _text(format="time"), "to": _text(format="time")}), {"from": "12:00:00Z", "to": "12:00:00Z"}),
    (
        "host entry",
        _obj({"ip": _text(format="ipv4"), "names": _arr(_text(format="hostname"), 1)}),
        {"ip": _NO_ADDRESS, "names": ["a"]},
    ),
]
_OBJECTS: list[tuple[str, dict[str, Any], Any]] = [
    ("empty object", _obj({}), {}),
    ("free object", {"type": "object"}, {}),
    ("one field", _obj({"answer": _STR}), {"answer": ""}),
    ("person", _PERSON, {"name": "", "age": 0}),
    ("point", _POINT, {"x": 0, "y": 0}),
    ("address", _ADDRESS, {"street": "", "city": "", "zip": "00000"}),
    ("all optional", _obj({"a": _STR, "b": _INT, "c": _BOOL}, []), {}),
    ("some optional", _obj({"a": _STR, "b": _INT, "c": _BOOL}, ["b"]), {"b": 0}),
    ("last required", _obj({"first": _STR, "second": _STR, "third": _STR}, ["third"]), {"third": ""}),
    ("five fields", _obj(dict.fromkeys("abcde", _INT)), dict.fromkeys("abcde", 0)),
    (
        "ten fields",
        _obj({f"field_{index}": _STR for index in range(10)}),
        {f"field_{index}": "" for index in range(10)},
    ),
    ("map of integers", {"type": "object", "additionalProperties": _INT}, {}),
    ("map of lists", {"type": "object", "additionalProperties": _arr(_STR, 1)}, {}),
    ("map with one entry", {"type": "object", "additionalProperties": _INT, "minProperties": 1}, {"": 0}),
    ("open object with a field", {"type": "object", "properties": {"id": _INT}, "required": ["id"]}, {"id": 0}),
    ("required without a schema", {"type": "object", "required": ["token"]}, {"token": 0}),
    ("keys by pattern", {"type": "object", "patternProperties": {"^x_": _INT}, "additionalProperties": False}, {}),
    ("nested twice", *_nested(2)),
    ("nested four times", *_nested(4)),
    ("nested six times", *_nested(6)),
    ("object in object", _obj({"user": _PERSON, "at": _POINT}), {"user": {"name": "", "age": 0}, "at": {"x": 0, "y": 0}}),
    ("settings", _obj({"theme": {"enum": ["dark", "light"]}, "size": {"enum": [10, 12, 14]}}), {"theme": "dark", "size": 10}),
    ("flags", _obj({"read": _BOOL, "write": _BOOL, "run": _BOOL}), {"read": True, "write": True, "run": True}),
    ("rating", _obj({"stars": {**_INT, "minimum": 1, "maximum": 5}, "text": _STR}, ["stars"]), {"stars": 1}),
    (
        "price",
        _obj({"amount": {**_NUM, "exclusiveMinimum": 0}, "unit": {"enum": ["EUR", "USD"]}}),
        {"amount": 1, "unit": "EUR"},
    ),
    (
        "long keys",
        _obj({"responsibleDepartment": _STR, "estimatedCompletion": _INT}),
        {"responsibleDepartment": "", "estimatedCompletion": 0},
    ),
    ("keys with quotes", _obj({'say "hi"': _INT, "back\\slash": _INT}), {'say "hi"': 0, "back\\slash": 0}),
    ("keys with spaces", _obj({"first name": _STR, "last name": _STR}), {"first name": "", "last name": ""}),
]
_ARRAYS: list[tuple[str, dict[str, Any], Any]] = [
    ("array of integers", _arr(_INT), []),
    ("three integers", _arr(_INT, 3), [0, 0, 0]),
    ("eight words", _arr(_STR, 8), [""] * 8),
    ("two to four flags", _arr(_BOOL, 2, maxItems=4), [True, True]),
    ("pair", {"type": "array", "prefixItems": [_INT, _STR], "items": False, "minItems": 2}, [0, ""]),
    ("triple with rest", {"type": "array", "prefixItems": [_STR, _BOOL], "items": _INT, "minItems": 3}, ["", True, 0]),
    ("matrix", _arr(_arr(_NUM, 2), 2), [[0, 0], [0, 0]]),
    ("two people", _arr(_PERSON, 2), [{"name": "", "age": 0}] * 2),
    ("tags", _obj({"tags": _arr({"enum": ["new", "sale", "gone"]}, 2)}), {"tags": ["new", "new"]}),
    ("table", _obj({"head": _arr(_STR, 2), "rows": _arr(_arr(_STR, 2))}), {"head": ["", ""], "rows": []}),
    ("anything in a list", {"type": "array", "minItems": 2}, [0, 0]),
    ("twenty numbers", _arr(_INT, 20), [0] * 20),
]
_UNICODE: list[tuple[str, dict[str, Any], Any]] = [
    ("umlaut key", _obj({"größe": _INT}), {"größe": 0}),
    ("cyrillic keys", _obj({"имя": _STR, "возраст": _INT}), {"имя": "", "возраст": 0}),
    ("japanese enum", {"enum": ["東京", "大阪府"]}, "東京"),
    ("emoji enum", _obj({"mood": {"enum": ["🙂", "🙁"]}}), {"mood": "🙂"}),
    ("accented const", {"const": "déjà vu"}, "déjà vu"),
    ("arabic key and enum", _obj({"لون": {"enum": ["أحمر", "أزرق"]}}), {"لون": "أحمر"}),
]
_COMBINED: list[tuple[str, dict[str, Any], Any]] = [
    ("linked list", {"$ref": "#/$defs/list", "$defs": {"list": _LIST}}, {"v": 0, "next": None}),
    ("tree", {"$ref": "#/$defs/tree", "$defs": {"tree": _TREE}}, {"v": 0, "kids": []}),
    ("expression", {"$ref": "#/$defs/expression", "$defs": {"expression": _EXPRESSION}}, 0),
    (
        "expression in an object",
        {**_obj({"calc": {"$ref": "#/$defs/expression"}}), "$defs": {"expression": _EXPRESSION}},
        {"calc": 0},
    ),
    (
        "shared definition",
        {**_obj({"a": {"$ref": "#/$defs/point"}, "b": {"$ref": "#/$defs/point"}}), "$defs": {"point": _POINT}},
        {"a": {"x": 0, "y": 0}, "b": {"x": 0, "y": 0}},
    ),
    (
        "old definitions",
        {**_obj({"p": {"$ref": "#/definitions/p"}}), "definitions": {"p": {"enum": ["on", "off"]}}},
        {"p": "on"},
    ),
    (
        "shape by kind",
        {"anyOf": [_obj({"kind": {"const": "circle"}, "r": _NUM}), _obj({"kind": {"const": "box"}, "w": _NUM})]},
        {"kind": "box", "w": 0},
    ),
    ("one of two", {"oneOf": [_obj({"ok": _BOOL}), _obj({"error": _STR})]}, {"ok": True}),
    (
        "both parts",
        {
            "allOf": [
                {"type": "object", "properties": {"a": _INT}, "required": ["a"]},
                {"type": "object", "properties": {"b": _STR}, "required": ["b"]},
            ]
        },
        {"a": 0, "b": ""},
    ),
    ("search call", _call("search", _obj({"query": _STR})), {"name": "search", "arguments": {"query": ""}}),
    (
        "weather call",
        _call("get_weather", _obj({"city": _STR, "unit": {"enum": ["celsius", "fahrenheit"]}})),
        {"name": "get_weather", "arguments": {"city": "", "unit": "celsius"}},
    ),
    (
        "one of three calls",
        {"anyOf": [_call("add", _obj({"a": _NUM, "b": _NUM})), _call("now", _obj({})), _call("sleep", _obj({"s": _INT}))]},
        {"name": "now", "arguments": {}},
    ),
    (
        "list of calls",
        _obj({"calls": _arr({"anyOf": [_call("open", _obj({"path": _STR})), _call("stop", _obj({}))]}, 1)}),
        {"calls": [{"name": "stop", "arguments": {}}]},
    ),
]

SCHEMAS: tuple[SchemaCase, ...] = tuple(
    SchemaCase(*case) for case in (*_SCALARS, *_FORMATTED, *_OBJECTS, *_ARRAYS, *_UNICODE, *_COMBINED)
)
"""Every kind that llguidance supports, from a bare integer to recursive definitions and tool calls."""

REGEXES: tuple[RegexCase, ...] = tuple(
    RegexCase(*case)
    for case in (
        ("one letter", "[a-z]", "a"),
        ("a word", "[a-z]+", "a"),
        ("five letters", "[a-z]{5}", "aaaaa"),
        ("twelve letters", "[a-z]{12}", "aaaaaaaaaaaa"),
        ("long run", "[a-z ]{60}", "a" * 60),
        ("digits", "[0-9]+", "0"),
        ("phone", r"\d{3}-\d{4}", "000-0000"),
        ("year", "(19|20)[0-9]{2}", "1900"),
        ("date", "[0-9]{4}-[0-9]{2}-[0-9]{2}", "0000-00-00"),
        ("clock", "([01][0-9]|2[0-3]):[0-5][0-9]", "00:00"),
        ("signed number", r"-?[0-9]+(\.[0-9]+)?", "0"),
        ("money", r"\$[0-9]{1,3}(,[0-9]{3})*\.[0-9]{2}", "$0.00"),
        ("percentage", "(100|[1-9]?[0-9])%", "0%"),
        ("hex colour", "#([0-9a-f]{6}|[0-9a-f]{3})", "#000"),
        ("uuid", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", _UUID),
        ("yes or no", "yes|no", "no"),
        ("yes or no with reason", "(yes|no): [A-Za-z ]{3,}", "no: aaa"),
        ("quoted", '"[^"]*"', '""'),
        ("quoted, not empty", '"[^"]+"', '"a"'),
        ("list of words", r"\[[a-z]+(, [a-z]+)*\]", "[a]"),
        ("three words", "[a-z]+ [a-z]+ [a-z]+", "a a a"),
        ("capitalised sentence", r"[A-Z][a-z ]*\.", "A."),
        ("email", r"[a-z0-9]+@[a-z0-9]+\.(com|org)", "a@a.com"),
        ("url", r"https?://[a-z]+\.[a-z]{2,3}(/[a-z]*)?", "http://a.aa"),
        ("ipv4", r"([0-9]{1,3}\.){3}[0-9]{1,3}", _NO_ADDRESS),
        ("version", r"v[0-9]+\.[0-9]+\.[0-9]+(-rc[0-9]+)?", "v0.0.0"),
        ("identifier", "[A-Za-z_][A-Za-z0-9_]*", "a"),
        ("assignment", "[a-z]+ = [0-9]+;", "a = 0;"),
        ("function call", r"[a-z]+\(([0-9]+(, [0-9]+)*)?\)", "a()"),
        ("key and value lines", "([a-z]+: [a-z]+\n){3}", "a: a\n" * 3),
        ("bullet list", "(- [A-Za-z ]+\n){2,4}", "- a\n- a\n"),
        ("letters then digits", "[A-Z]{3}[0-9]{3}", "AAA000"),
        ("repeated group", "(ab|cde){4}", "abababab"),
        ("optional parts", "a?b?c?d", "d"),
        ("nested groups", "((a|bb)(c|dd)){2}", "acac"),
        ("umlauts", "(schön|schlecht)", "schön"),
        ("greek letters", "[β-ω]{2}", "ββ"),
        ("japanese answer", "(はい|いいえ)", "はい"),
        ("emoji", "(🙂|🙁){2}", "🙂🙂"),
        ("anything, then done", "(?s:.*)DONE", "DONE"),
    )
)
"""All of them end: each has a text that matches."""

CASES: tuple[Case, ...] = (*SCHEMAS, *REGEXES)
