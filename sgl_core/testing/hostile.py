"""Constraints written to hurt: malformed, huge, endless, impossible, exponential. What guards them is tested against these.

``HOSTILE`` has (field of ``SamplingParams``, what is wrong with it, value). Each must be refused with a typed error, or compile and run
within its limits.
"""

from __future__ import annotations

import json
from typing import Any

__all__ = ["HOSTILE"]


def _properties(count: int, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(count)}, **more}


def _nested(depth: int, key: str = "items") -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = (
            {"type": "array", "items": schema}
            if key == "items"
            else {"type": "object", "properties": {"a": schema}, "required": ["a"]}
        )
    return schema


def _itself() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


def _laughs(levels: int, key: str) -> dict[str, Any]:
    """Each level refers to the next one twice."""

    def level(i: int) -> dict[str, Any]:
        refs = [{"$ref": f"#/$defs/d{i + 1}"}] * 2
        return (
            {key: refs}
            if key != "properties"
            else {"type": "object", key: {"x": refs[0], "y": refs[1]}, "required": ["x", "y"]}
        )

    return {"$ref": "#/$defs/d0", "$defs": {**{f"d{i}": level(i) for i in range(levels)}, f"d{levels}": {"type": "integer"}}}


def _cross_product(factors: int, members: int) -> dict[str, Any]:
    def member(i: int, j: int) -> dict[str, Any]:
        return {"type": "object", "properties": {f"k{i}_{j}": {"type": "string", "minLength": j}}}

    return {"allOf": [{"anyOf": [member(i, j) for j in range(members)]} for i in range(factors)]}


_REGEXES = {
    "evil plus": "(a+)+$",
    "evil star": "((a*)*)*b",
    "evil alternatives": "(a|a|a|aa)+b",
    "exponential states": ".*a.{20}",
    "exponential states thrice": "(.*a.{18}){3}",
    "exponential choice": "(x+x+)+y",
    "optional then required": "(a?){1000}a{1000}",
    "endless count": "a{100000}",
    "endless digits": "a{" + "9" * 1000 + "}",
    "million": "(a{1000}){1000}",
    "million in threes": "((a{100}){100}){100}",
    "ten thousand": "(a{100}){100}",
    "ten thousand of anything": "(.{100}){100}",
    "ten thousand letters": r"(\p{L}{100}){100}",
    "unicode runs": r"(\p{L}{1,1000}|\p{N}{1,1000}){10}",
    "words": r"(\w{1,10} ){1,1000}",
    "many counts": "a{1,1000}" * 50,
    "many counted dots": r"(.|\n){1,1000}" * 10,
    "counted gap": "(.{1,1000}b){1,10}",
    "stacked counts": "a{100}{100}{100}",
    "deep groups": "(" * 5000 + "a" + ")" * 5000,
    "sixty groups": "(" * 60 + "a" + ")*" * 60,
    "deep classes": "[" * 5000 + "a" + "]" * 5000,
    "unbalanced": "(" * 60,
    "ten thousand words": "(" + "|".join(f"w{i}" for i in range(9000)) + ")",
    "growing words": "|".join("a" * i for i in range(1, 350)),
    "long literal": "a" * 64_000,
    "megabyte": "a" * 1_000_000,
    "folded case": "(?i)" + "k" * 5000,
    "empty class": r"[^\x00-\U0010FFFF]",
    "empty class of any": r"[^\s\S]+",
    "byte without a token": "\x04+",
    "invalid utf-8": r"(?-u:\xff)+",
    "nul": "\0+x",
    "half a surrogate": "a\ud800",
    "look-behind": "(?<=a)b",
    "back-reference": r"(a)\1",
    "comment that hides a bracket": "(?x)(a{1000} # )\n){1000}",
    "slash and rule": 'a/\nstart: "x"\n//',
    "escape at the end": "a\\",
    "every script": r"[\p{L}\p{M}\p{N}\p{P}\p{S}\p{Z}]{500}",
}
_SCHEMAS: dict[str, Any] = {
    "deep arrays": _nested(300),
    "deep objects": _nested(300, "properties"),
    "thirty levels": _nested(30, "properties"),
    "very deep text": '{"items":' * 5000 + "{}" + "}" * 5000,
    "itself": _itself(),
    "reference cycle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "reference to itself": {"$ref": "#"},
    "dangling reference": {"$ref": "#/nowhere"},
    "remote reference": {"$ref": "https://127.0.0.1:9/x.json"},
    "file reference": {"$ref": "file:///etc/passwd"},
    "required recursion": {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]},
    "required recursion in arrays": {"type": "array", "minItems": 2, "items": {"$ref": "#"}},
    "laughs": _laughs(40, "properties"),
    "laughs in allOf": _laughs(20, "allOf"),
    "laughs in anyOf": _laughs(20, "anyOf"),
    "ten thousand properties": _properties(10_000),
    "thousand properties": _properties(1000, additionalProperties=False),
    "thousand required": _properties(1000, required=[f"p{i}" for i in range(1000)]),
    "large enum": {"enum": [f"value {i}" for i in range(4000)]},
    "enum of integers": {"enum": list(range(9_000))},
    "too large enum": {"enum": list(range(20_000))},
    "empty enum": {"enum": []},
    "cross product": _cross_product(4, 6),
    "larger cross product": _cross_product(8, 8),
    "alternatives": {"anyOf": [_properties(15) for _ in range(60)]},
    "alternatives that differ late": {"anyOf": [{"const": "a" * 150 + str(i)} for i in range(300)]},
    "unsatisfiable bounds": {"type": "integer", "minimum": 5, "maximum": 3},
    "unsatisfiable length": {"type": "string", "minLength": 5, "maxLength": 3},
    "false property": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "huge bounds": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
    "integer that overflows": {"type": "integer", "const": -1e300},
    "bounds that overflow": {"type": "integer", "minimum": -(2**63), "maximum": -(2**63) + 5},
    "narrow floats": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e-300},
    "tiny steps": {"type": "number", "multipleOf": 1e-30},
    "large steps": {"type": "integer", "multipleOf": 9_999_999_999},
    "many items": {"type": "array", "minItems": 10_000, "items": {"type": "string"}},
    "too many items": {"type": "array", "minItems": 10**12},
    "items of items": {"type": "array", "minItems": 100, "items": {"type": "array", "minItems": 1000}},
    "many characters": {"type": "string", "minLength": 10_000},
    "long strings": {"type": "object", "properties": {f"p{i}": {"type": "string", "minLength": 1000, "maxLength": 9000} for i in range(100)}},
    "length and pattern": {"type": "string", "minLength": 1000, "pattern": ".*a.*"},
    "evil pattern": {"type": "string", "pattern": "^((a+)+)+$"},
    "counted pattern": {"type": "string", "pattern": "((a{100}){100}){100}"},
    "overlapping pattern properties": {"type": "object", "patternProperties": {f"{i}.*{i}": {} for i in range(30)}},
    "many prefix items": {"type": "array", "prefixItems": [{"type": "integer"}] * 1000},
    "unknown keywords": {"not": {}, "uniqueItems": True, "if": {}},
    "nul keys": {"type": "object", "properties": {"\0": {"const": "\0"}}, "required": ["\0"]},
    "half a surrogate": {"const": "\ud800"},
    "NaN": {"type": "number", "minimum": float("nan")},
    "bytes": {"const": b"x"},
    "a list": [],
    "a boolean": True,
    "megabyte": {"const": "x" * 1_000_000},
    "engine options": {"x-guidance": {"lenient": True, "whitespace_pattern": "(a+)+"}, "type": "object"},
}  # fmt: skip
_GRAMMARS = {
    "start is itself": "start: start",
    "cycle": "start: a\na: b\nb: a",
    "terminal cycle": "start: A\nA: B\nB: A",
    "required recursion": 'start: "a" start',
    "ambiguous": 's: s s | "a" |\nstart: s',
    "more ambiguous": 'start: s\ns: s s s | "a" | "aa" | "aaa"',
    "endless count": 'start: "a"{100000}',
    "counts in rules": 'start: a{1000}\na: b{1000}\nb: c{1000}\nc: "x" | "y"',
    "doubling rules": "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(60)) + '\na60: "x"',
    "doubling terminals": "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(40)) + '\nA40: "x"',
    "many rules": "start: " + " | ".join(f"r{i}" for i in range(1500)) + "\n" + "\n".join(f'r{i}: "x{i}" r{i * 7 % 1500}?' for i in range(1500)),
    "many terminals": "start: " + " | ".join(f"T{i}" for i in range(1000)) + "\n" + "\n".join(f"T{i}: /[a-z]+{i}/" for i in range(1000)),
    "intersection": "start: A\nA: " + " & ".join(f"/.*{char}.*/" for char in "abcdefghijklmnop"),
    "complement": "start: A\nA: ~/(.*a.{18}){3}/",
    "evil terminal": "start: A\nA: /(a+)+b/",
    "schema inside": "start: %json " + json.dumps(_properties(4000)),
    "cycle inside": 'start: %json {"$ref": "#"}',
    "raw grammar": json.dumps({"grammars": [{"json_schema": _properties(3000)}]}),
    "unknown import": "%import os.system\nstart: system",
    "other grammar": "start: @other",
    "control token": "start: <|im_start|>",
    "unknown control token": "start: <|nothing|>",
    "token number": "start: <[999999]>",
    "no start": 'begin: "x"',
    "unclosed string": 'start: "x',
    "nothing": "",
    "nul": "start: \0",
    "half a surrogate": 'start: "\ud800"',
    "megabyte": "start: " + '"a" ' * 250_000,
    "deep brackets": "start: " + "(" * 5000 + '"a"' + ")" * 5000,
    "recursion to the right": 'start: "a" | "a" start | "aa" start',
}  # fmt: skip
_CHOICES: dict[str, Any] = {
    "too many": [str(i) for i in range(1001)],
    "too long": ["x" * 70_000],
    "growing": ["a" * i for i in range(1, 300)],
    "all the same": ["same"] * 1000,
    "long and alike": ["a" * 60 + str(i) for i in range(1000)],
    "half a surrogate": ["a\ud800"],
    "quotes and controls": ['"', "\\", "\n", "\0", "\x7f", "\u2028", '" | "x'],
    "byte without a token": ["\x04"],
    "empty": [""],
    "none": [],
}
_STOPS = {
    **{name: _REGEXES[name] for name in _REGEXES},
    "empty match": "a*",
    "everything": "(?s:.)",
    "growing window": "a.*b",
    "group that is closed early": "a)|(b",
    "long count": "a{999}b",
}
HOSTILE: tuple[tuple[str, str, Any], ...] = tuple(
    (argument, name, value)
    for argument, values in (
        ("regex", _REGEXES),
        ("json_schema", _SCHEMAS),
        ("grammar", _GRAMMARS),
        ("choices", _CHOICES),
        ("stop_regex", _STOPS),
    )
    for name, value in values.items()
)
