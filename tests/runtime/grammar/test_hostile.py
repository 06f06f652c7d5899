"""Constraints written to hurt: each is refused with a typed error, or compiles and takes random steps within its limits."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgl_core.errors import GrammarError, InvalidArgumentError
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.grammar.compiler import GrammarCompiler
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.types import SamplingParams

STEPS = 40
LIMIT_S = 2.0
GUARD = 10
"""Seconds are printed; a test fails only where they are out of all proportion, as machines are shared."""
EOS = 2


def properties(count: int, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(count)}, **more}


def nested(depth: int, key: str = "items") -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = (
            {"type": "array", "items": schema}
            if key == "items"
            else {"type": "object", "properties": {"a": schema}, "required": ["a"]}
        )
    return schema


def itself() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


def laughs(levels: int, key: str) -> dict[str, Any]:
    """Each level refers to the next one twice."""

    def level(i: int) -> dict[str, Any]:
        refs = [{"$ref": f"#/$defs/d{i + 1}"}] * 2
        return (
            {key: refs}
            if key != "properties"
            else {"type": "object", key: {"x": refs[0], "y": refs[1]}, "required": ["x", "y"]}
        )

    return {"$ref": "#/$defs/d0", "$defs": {**{f"d{i}": level(i) for i in range(levels)}, f"d{levels}": {"type": "integer"}}}


def cross_product(factors: int, members: int) -> dict[str, Any]:
    def member(i: int, j: int) -> dict[str, Any]:
        return {"type": "object", "properties": {f"k{i}_{j}": {"type": "string", "minLength": j}}}

    return {"allOf": [{"anyOf": [member(i, j) for j in range(members)]} for i in range(factors)]}


REGEXES = {
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
SCHEMAS: dict[str, Any] = {
    "deep arrays": nested(300),
    "deep objects": nested(300, "properties"),
    "thirty levels": nested(30, "properties"),
    "very deep text": '{"items":' * 5000 + "{}" + "}" * 5000,
    "itself": itself(),
    "reference cycle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "reference to itself": {"$ref": "#"},
    "dangling reference": {"$ref": "#/nowhere"},
    "remote reference": {"$ref": "https://127.0.0.1:9/x.json"},
    "file reference": {"$ref": "file:///etc/passwd"},
    "required recursion": {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]},
    "required recursion in arrays": {"type": "array", "minItems": 2, "items": {"$ref": "#"}},
    "laughs": laughs(40, "properties"),
    "laughs in allOf": laughs(20, "allOf"),
    "laughs in anyOf": laughs(20, "anyOf"),
    "ten thousand properties": properties(10_000),
    "thousand properties": properties(1000, additionalProperties=False),
    "thousand required": properties(1000, required=[f"p{i}" for i in range(1000)]),
    "large enum": {"enum": [f"value {i}" for i in range(4000)]},
    "enum of integers": {"enum": list(range(9_000))},
    "too large enum": {"enum": list(range(20_000))},
    "empty enum": {"enum": []},
    "cross product": cross_product(4, 6),
    "larger cross product": cross_product(8, 8),
    "alternatives": {"anyOf": [properties(15) for _ in range(60)]},
    "alternatives that differ late": {"anyOf": [{"const": "a" * 150 + str(i)} for i in range(300)]},
    "unsatisfiable bounds": {"type": "integer", "minimum": 5, "maximum": 3},
    "unsatisfiable length": {"type": "string", "minLength": 5, "maxLength": 3},
    "false property": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "huge bounds": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
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
GRAMMARS = {
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
    "schema inside": "start: %json " + json.dumps(properties(4000)),
    "cycle inside": 'start: %json {"$ref": "#"}',
    "raw grammar": json.dumps({"grammars": [{"json_schema": properties(3000)}]}),
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
CHOICES: dict[str, Any] = {
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
STOPS = {
    **{name: REGEXES[name] for name in REGEXES},
    "empty match": "a*",
    "everything": "(?s:.)",
    "growing window": "a.*b",
    "group that is closed early": "a)|(b",
    "long count": "a{999}b",
}
CASES = [
    (argument, name, value)
    for argument, values in (
        ("regex", REGEXES),
        ("json_schema", SCHEMAS),
        ("grammar", GRAMMARS),
        ("choices", CHOICES),
        ("stop_regex", STOPS),
    )
    for name, value in values.items()
]


@pytest.fixture(scope="module")
def vocabulary(embedded_folder: Path) -> Vocabulary:
    """A real one: masks over few tokens would hide what is slow."""
    codec = LocalCodec.from_folder(embedded_folder)
    vocabulary = Vocabulary(codec.serialised, codec.vocab_size, [EOS])
    assert vocabulary.tokenizer.vocab_size > 40_000
    return vocabulary


@pytest.fixture(scope="module")
def compiler(vocabulary: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocabulary)


@pytest.fixture(scope="module")
def outcomes(figure: Callable[[str, Mapping[str, int]], None]) -> Iterator[list[tuple[str, float, float]]]:
    """(outcome, seconds to compile or refuse, seconds of the worst step) of each constraint."""
    seen: list[tuple[str, float, float]] = []
    yield seen
    if seen:
        kinds, compiles, steps = zip(*seen, strict=True)
        figure(
            "R14 grammar guard",
            {
                **{kind: kinds.count(kind) for kind in sorted(set(kinds))},
                "ms for the worst compilation": round(1000 * max(compiles)),
                "ms for the worst step": round(1000 * max(steps)),
            },
        )


def follow_text(compiler: GrammarCompiler, pattern: str, rng: random.Random) -> float:
    """Feed a stop pattern text that it likes; returns the seconds of the worst character."""
    matcher = compiler.stop_regex(pattern).matcher()
    worst = 0.0
    for _ in range(30 * STEPS):
        began = time.perf_counter()
        ended = matcher.feed(rng.choice("aaaabx w1\n"))
        worst = max(worst, time.perf_counter() - began)
        if ended:
            assert 0 < len(matcher.stop) <= 1024
            break
        assert matcher.matched <= 1024
    return worst


def take_steps(compiler: GrammarCompiler, params: SamplingParams, rng: random.Random) -> float:
    """Sample at random within a budget that is hardly enough; returns the seconds of the worst step."""
    compiled = compiler.compile(params)
    assert compiled is not None
    remaining = len(compiled.shortest) + STEPS
    matcher = compiled.matcher()
    worst = 0.0
    for _ in range(STEPS):
        began = time.perf_counter()
        bits = np.unpackbits(matcher.mask(), count=compiled.vocabulary.size, bitorder="little")
        verdict = matcher.propose(int(rng.choice(np.flatnonzero(bits))), remaining)
        matcher.commit(verdict)
        worst = max(worst, time.perf_counter() - began)
        remaining -= len(verdict.tokens)
        assert remaining >= 0
        if verdict.ended:
            break
    return worst


@pytest.mark.parametrize(("argument", "name", "value"), CASES, ids=[f"{argument}: {name}" for argument, name, _ in CASES])
def test_a_hostile_constraint_is_refused_or_survives_random_steps(
    argument: str, name: str, value: Any, compiler: GrammarCompiler, outcomes: list[tuple[str, float, float]]
) -> None:
    rng = random.Random(name)
    worst = 0.0
    refusal: InvalidArgumentError | None = None
    began = time.perf_counter()
    try:
        params = SamplingParams(**{argument: value})
        if argument == "stop_regex":
            compiler.stop_regex(value)
        else:
            compiler.compile(params)
    except InvalidArgumentError as error:
        outcome, refusal = "refused", error
    took = time.perf_counter() - began
    if refusal is None:
        outcome = "compiled"
        try:
            worst = follow_text(compiler, value, rng) if argument == "stop_regex" else take_steps(compiler, params, rng)
        except GrammarError as error:  # this request ends, and only this one
            outcome, refusal = "ended by a limit", error
    outcomes.append((outcome, took, worst))
    assert refusal is None or (refusal.argument == argument and len(str(refusal)) < 400)
    assert max(took, worst) < GUARD * LIMIT_S, f"{took:.1f} s to compile, {worst:.1f} s for the worst step"


def test_there_are_enough_hostile_constraints() -> None:
    assert len(CASES) >= 60
