"""Size checks on constraints, before anything is compiled.

A compiler with limits can still be slow on its way to them: 10,000 properties take it 8 s. So everything that callers size is
bounded here first, in one pass over the text, whatever room it comes from; the compiler's own limits are the second line.
Called by ``GrammarCompiler`` on the caller's thread. Every refusal is a ``GrammarError`` that names the argument and holds
nothing of its text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from sgl_core.errors import GrammarError

__all__ = ["check_choices", "check_lark", "check_regex", "check_schema", "check_text", "parse_schema", "schema_text"]

MAX_TEXT_BYTES = 64 * 1024
MAX_PATTERN_BYTES = 16 * 1024
"""Of a regex: a longer one keeps other threads waiting while it is compiled."""
MAX_DEPTH = 64
MAX_PROPERTIES = 1000
MAX_CHOICES = 1000
MAX_ENUM = 10_000
MAX_VALUES = 50_000
MAX_REPEAT = 1000
MAX_REPEAT_PRODUCT = 10_000
LEAST_NUMBER = -(10**18)
"""In a schema. The compiler's range of integers overflows at 64 bits: from there on it calls itself without end, which no limit
stops and which takes the whole process down."""

GREATEST_NUMBER = 10**18
"""That a schema may demand: the compiler cuts larger integers to 64 bits."""

_LITERALS = frozenset({"const", "default", "enum", "examples"})
"""Keywords whose values are data, not schemas."""
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose values map names to schemas; the names are not keywords."""
_MINIMA = ("minItems", "minLength", "minProperties")
_COUNT = re.compile(r"\{\s*(\d+)?\s*(,?)\s*(\d+)?\s*\}")
_FLAGS = re.compile(r"\?[a-zA-Z]*x[a-zA-Z]*(?:-[a-zA-Z]*)?[:)]")
_LARK = re.compile(
    r'(?P<comment>//[^\n]*)|(?P<string>"(?:[^"\\]|\\.)*")|/(?P<regex>(?:[^/\\]|\\.)+)/|(?P<json>%json\s*)'
    r"|(?P<braces>\{\s*\d*\s*,?\s*\d*\s*\})|~\s*(?P<low>\d+)(?:\s*\.\.\s*(?P<high>\d+))?",
    re.DOTALL,
)


def check_text(argument: str, text: str, most_bytes: int = MAX_TEXT_BYTES) -> None:
    """Refuse what is too long, or no text at all.

    Raises:
        GrammarError: more than ``most_bytes`` of UTF-8, or half a surrogate pair.
    """
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise GrammarError(argument, "it holds half a surrogate pair", "Decode bytes with errors='replace'.") from None
    if size > most_bytes:
        _refuse(argument, f"it has {size:,} bytes, and the limit is {most_bytes:,}", "Make it shorter.")


def check_choices(choices: Sequence[str]) -> None:
    """Refuse too many choices, or too long ones.

    Raises:
        GrammarError: more than 1,000 of them, or more than 64 kB in all.
    """
    if len(choices) > MAX_CHOICES:
        _refuse("choices", f"there are {len(choices):,} of them, and the limit is {MAX_CHOICES:,}", "Choose in two steps.")
    check_text("choices", "".join(choices))


def check_regex(argument: str, pattern: str) -> None:
    """Refuse a pattern whose repetitions would blow an automaton up.

    Args:
        argument: what the caller calls it.
        pattern: in the syntax of Rust's ``regex`` crate. Only its outline is read: escapes, classes, groups, counts.

    Raises:
        GrammarError: too long, nested too deeply, a count above 1,000, or counts inside counts above 10,000 in all.
    """
    check_text(argument, pattern, MAX_PATTERN_BYTES)
    products = [1]  # per open group: the largest product of counts inside it
    last = 1  # of the piece that a count behind it would repeat
    at = 0
    while at < len(pattern):
        char = pattern[at]
        count = _COUNT.match(pattern, at) if char == "{" else None
        if count is not None and (count[1] or count[3]):
            last *= _repeats(argument, count[1], count[3])
            if last > MAX_REPEAT_PRODUCT:
                reason = f"counted repetitions inside each other multiply to more than {MAX_REPEAT_PRODUCT:,}"
                _refuse(argument, reason, "Use + or *, or smaller counts.")
            at = count.end()
        elif char == "(":
            if _FLAGS.match(pattern, at + 1):
                _refuse(argument, "the x flag is not supported", "Write the pattern without comments and extra white space.")
            products.append(1)
            last, at = 1, at + 1
            if len(products) > MAX_DEPTH:
                _refuse(argument, f"groups are nested more than {MAX_DEPTH} deep", "Make it flatter.")
        elif char == ")" and len(products) > 1:
            last, at = products.pop(), at + 1
        elif char in "*+?":
            at += 1
        else:
            last, at = 1, _behind_atom(argument, pattern, at)
        products[-1] = max(products[-1], last)


def _repeats(argument: str, low: str | None, high: str | None) -> int:
    # The length first: Python refuses to read endless digits with an error of its own.
    if any(len(digits) > 9 or int(digits) > MAX_REPEAT for digits in (low, high) if digits):
        _refuse(argument, f"a counted repetition is larger than {MAX_REPEAT:,}", "Use + or *, or a smaller count.")
    return max(int(low or 0), int(high or 0), 1)


def _behind_atom(argument: str, pattern: str, at: int) -> int:
    """Where the escape, class or single character at ``at`` ends."""
    if pattern[at] == "\\":
        if at + 1 == len(pattern):
            _refuse(argument, "it ends inside an escape", "Write a backslash as two.")
        brace = pattern.find("}", at) if pattern[at + 1] in "pPxuU" and pattern[at + 2 : at + 3] == "{" else -1
        return brace + 1 if brace > 0 else at + 2
    if pattern[at] != "[":
        return at + 1
    depth = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 2
            continue
        depth += (pattern[at] == "[") - (pattern[at] == "]")
        at += 1
        if depth == 0:
            return at
        if pattern[at - 1] == "[":  # a bracket that closes is literal at the beginning of a class
            at += pattern[at : at + 1] == "^"
            at += pattern[at : at + 1] == "]"
    return at


def check_lark(text: str) -> None:
    """Refuse a Lark grammar with too large patterns, schemas or counts inside.

    Raises:
        GrammarError: too long, or a part of it is what ``check_regex`` or ``parse_schema`` would refuse.
    """
    check_text("grammar", text)
    at = 0
    while (found := _LARK.search(text, at)) is not None:
        at = found.end()
        kind = found.lastgroup
        if kind == "regex":
            check_regex("grammar", found["regex"])
        elif kind == "braces":
            check_regex("grammar", "." + found["braces"])
        elif kind in ("low", "high"):
            _repeats("grammar", found["low"], found["high"])
        elif kind == "json":
            try:
                schema, at = json.JSONDecoder().raw_decode(text, at)
            except (ValueError, RecursionError):
                _refuse("grammar", "what follows %json is not valid JSON")
            check_schema("grammar", schema)


def schema_text(schema: object) -> str:
    """A schema as compact JSON text in the caller's order of keys, which is the order of the output's.

    Args:
        schema: a dict, JSON text, or a class with ``model_json_schema`` (Pydantic's).

    Raises:
        GrammarError: something else, or it holds what JSON cannot, or it is too large.
    """
    describe = getattr(schema, "model_json_schema", None)
    if callable(describe):
        try:
            schema = describe()
        except Exception as error:  # the class is the caller's, and so is what it raises
            raise GrammarError("json_schema", "the class cannot be described as a JSON schema") from error
    if isinstance(schema, str):
        check_text("json_schema", schema)
        return schema
    check_schema("json_schema", schema)
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError):
        _refuse("json_schema", "it holds a value that JSON cannot")


def parse_schema(text: str) -> dict[str, Any]:
    """The schema that ``schema_text`` wrote or passed on, checked.

    Raises:
        GrammarError: not JSON, no object, or too large in some way.
    """
    check_text("json_schema", text)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        _refuse("json_schema", "the text is not valid JSON")
    check_schema("json_schema", schema)
    assert isinstance(schema, dict), "checked above"
    return schema


def check_schema(argument: str, schema: object) -> None:
    """Refuse what is no schema, or too large in some way.

    Raises:
        GrammarError: no object, not JSON, too deep, too many properties, or a part that ``check_regex`` would refuse.
    """
    if not isinstance(schema, dict):
        what = {dict: "an object", list: "an array", bool: "a boolean"}.get(
            type(schema), f"a value of type {type(schema).__name__}"
        )
        _refuse(argument, f"the schema is {what}, not an object", "Give a dict, JSON text of an object, or a Pydantic class.")
    _SchemaWalk(argument).walk(schema)


class _SchemaWalk:
    """One pass over a schema, without recursion: the caller's object may contain itself."""

    def __init__(self, argument: str) -> None:
        self._argument = argument
        self._properties = 0

    def walk(self, schema: dict[Any, Any]) -> None:
        """Check every value. ``is_schema`` is False in data and in maps of names; ``repeats``: how often it must stand there."""
        pending: list[tuple[object, int, bool, int]] = [(schema, 1, True, 1)]
        values = 0
        while pending:
            value, depth, is_schema, repeats = pending.pop()
            values += 1
            if values > MAX_VALUES:
                self._refuse(f"it has more than {MAX_VALUES:,} values", "Make it smaller.")
            if depth > MAX_DEPTH:
                self._refuse(f"it is nested more than {MAX_DEPTH} levels deep, or contains itself", "Use $defs and $ref.")
            if isinstance(value, dict):
                if not all(isinstance(key, str) for key in value):
                    self._refuse("a key is not a string")
                if is_schema:
                    repeats = self._check_keywords(value, repeats)
                pending += [(child, depth + 1, below, repeats) for child, below in self._children(value, is_schema)]
            elif isinstance(value, list | tuple):
                pending += [(child, depth + 1, is_schema, repeats) for child in value]
            elif isinstance(value, int | float):
                if isinstance(value, float) and not math.isfinite(value):
                    self._refuse("it holds NaN or an infinite number")
                if value < LEAST_NUMBER:
                    self._refuse("it holds a number below minus 10 to the 18", "Leave the bound out, or take a nearer one.")
            elif not (value is None or isinstance(value, str)):
                self._refuse(f"it holds a value of type {type(value).__name__}, which JSON cannot", "Use JSON values.")

    def _children(self, value: dict[str, object], is_schema: bool) -> Iterator[tuple[object, bool]]:
        """Members, and whether they are schemas. The members of a map of names are handed out in its place."""
        for key, child in value.items():
            if is_schema and key in _NAMED and isinstance(child, dict):
                yield from ((inner, True) for inner in child.values())
            else:
                yield child, is_schema and key not in _LITERALS

    def _check_promises(self, schema: dict[str, object]) -> None:
        """Refuse what the compiler takes and does not keep."""
        values = [schema.get(key) for key in ("const", "minimum", "exclusiveMinimum")]
        members = schema.get("enum")
        values += members if isinstance(members, list) else []
        if any(isinstance(value, int | float) and GREATEST_NUMBER < value < math.inf for value in values):
            self._refuse("it demands a number above 10 to the 18", "Take a nearer one.")
        least, required = schema.get("minProperties"), schema.get("required")
        named = len(set(map(str, required))) if isinstance(required, list) else 0
        is_open = schema.get("additionalProperties") is not False or bool(schema.get("patternProperties"))
        if isinstance(least, int) and least > max(1, named) and is_open:
            self._refuse(
                "it demands several members whose names are free, and nothing keeps a model from writing one name twice",
                "Name them in properties and required, or leave minProperties out.",
            )

    def _check_keywords(self, schema: dict[str, object], repeats: int) -> int:
        self._check_promises(schema)
        for key in _NAMED & schema.keys():
            names = schema[key]
            if not isinstance(names, dict):
                continue
            if not all(isinstance(name, str) for name in names):
                self._refuse("a key is not a string")
            self._properties += len(names)
            if key == "patternProperties":
                for name in names:
                    check_regex(self._argument, name)
        if self._properties > MAX_PROPERTIES:
            self._refuse(f"it has more than {MAX_PROPERTIES:,} properties in all", "Split it.")
        members = schema.get("enum")
        if isinstance(members, list | tuple) and len(members) > MAX_ENUM:
            self._refuse(f"an enum has more than {MAX_ENUM:,} members", "Choose in two steps.")
        pattern = schema.get("pattern")
        if isinstance(pattern, str):
            check_regex(self._argument, pattern)
        target = schema.get("$ref")
        if isinstance(target, str) and not target.startswith("#"):
            self._refuse("a $ref points outside the schema, and nothing is ever fetched", "Put the definition under $defs.")
        return self._check_minima(schema, repeats)

    def _check_minima(self, schema: dict[str, object], repeats: int) -> int:
        """What the smallest instance must repeat, with everything around it; returns the factor for what lies inside."""
        minima = [value for key in _MINIMA if isinstance(value := schema.get(key), int | float)]
        product = repeats * max([1, *(value for value in minima if value > 1)])  # so compared, NaN is left out
        if product > MAX_REPEAT_PRODUCT:
            self._refuse(f"least lengths inside each other multiply to more than {MAX_REPEAT_PRODUCT:,}", "Make them smaller.")
        return int(product)

    def _refuse(self, reason: str, cure: str = "") -> NoReturn:
        _refuse(self._argument, reason, cure)


def _refuse(argument: str, reason: str, cure: str = "") -> NoReturn:
    raise GrammarError(argument, reason, cure) from None
