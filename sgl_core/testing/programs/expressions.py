"""Random expressions of a program: its text, generations, choices and values, as source code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from sgl_core.testing.programs.facts import FIXED_TEXT, NUMBER, TEXT, Holds, Shape, StreamFacts

__all__ = ["Draft", "ExpressionWriter"]

_NAMES: Final = ("a", "b", "c", "d", "plan")
_WORDS: Final = ("the red fox ", "two and two is ", "list:\n", "so", " ", "42", ", and then\n\n", "é", "Judge: ", "x")
_RAW: Final = ("<|user|>", "<|end_user|>\n", "raw ", "a<|system|>b")
_SPELLING: Final = "<|end_user|>"  # of a control token; in text it is none, and a warning says so
_CHOICES: Final = ('["yes", "no"]', '["A", "B", "C"]', '["New York", "New York City"]', '[" red", "red", "red"]')
_STOPS: Final = (".", ["a", "."], "\n")
_METHODS: Final = ("token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized")
_MODELS: Final = ("qwen3", "deepseek-r1")
_HOST: Final = ("host.described", "host.shouted", "host.flattened")


@dataclass(slots=True)
class Draft:
    """A piece of source, and what running it brings about.

    Args:
        code: the source.
        features: what it exercises.
        defines: variables that it will have set.
        uses_values: it holds the text of a value that is made at run time.
    """

    code: str
    features: set[str] = field(default_factory=set)
    defines: dict[str, Shape] = field(default_factory=dict)
    uses_values: bool = False


class ExpressionWriter:
    """Writes expressions from what can be read where they stand.

    Args:
        random: where choices come from.
        has_failures: host code and numbers may fail.
    """

    def __init__(self, random: Random, *, has_failures: bool) -> None:
        """Nothing can be read yet."""
        self.random = random
        self.has_failures = has_failures
        self.streams: list[StreamFacts] = []
        self.locals: dict[str, Shape] = {}

    # ---- values ------------------------------------------------------------------------------------------------------
    def readable(self) -> Iterator[tuple[str, Shape, set[str]]]:
        """Every value that has a name here, lists also by their entries."""
        for name, shape in self.locals.items():
            yield from _with_items(name, shape, {"argument"} if shape.is_made_at_run_time else set())
        for stream in self.streams:
            tags = {"reads another stream"} if stream.code not in ("s", "f") else set()
            for name, shape in stream.variables.items():
                yield from _with_items(f'{stream.code}["{name}"]', shape, tags)

    def value(self, *wanted: Holds) -> tuple[Draft, Shape]:
        """A value of one of these kinds, or of any; a constant where nothing fits."""
        return self._chosen([entry for entry in self.readable() if not wanted or entry[1].holds in wanted])

    def uncertain_value(self) -> Draft:
        """A value of which only a running program knows whether it is text."""
        kinds = (Holds.TEXT, Holds.NUMBER, Holds.UNCERTAIN)
        entries = [entry for entry in self.readable() if entry[1].is_made_at_run_time and entry[1].holds in kinds]
        return self._chosen(entries)[0]

    def _chosen(self, found: list[tuple[str, Shape, set[str]]]) -> tuple[Draft, Shape]:
        if not found or self.random.random() < 0.1:
            return Draft(repr(self.random.choice(_WORDS))), FIXED_TEXT
        items = [entry for entry in found if "item of a joined list" in entry[2]]
        code, shape, tags = self.random.choice(items if items and self.random.random() < 0.25 else found)
        return Draft(code, {"reads a value", *tags}, uses_values=True), shape

    def host_call(self) -> Draft:
        """Host code on values; it gives text."""
        random = self.random
        values = [self.value()[0] for _ in range(random.randint(1, 2))]
        if self.has_failures and random.random() < 0.2:
            name, values = "host.picky", values[:1]
        else:
            name = random.choice(_HOST)
            values = values if name == "host.described" else values[:1]
        code = f"sgl.call({name}, {', '.join(value.code for value in values)})"
        tags = {"sgl.call", "host code fails"} if name == "host.picky" else {"sgl.call"}
        return Draft(code, tags.union(*(value.features for value in values)), uses_values=True)

    def text_value(self) -> Draft:
        """Something that is text when it is read."""
        if self.random.random() < 0.2:
            return self.host_call()
        return self.value(Holds.TEXT)[0]

    # ---- text --------------------------------------------------------------------------------------------------------
    def constant(self) -> Draft:
        """Text of the program's own."""
        words = "".join(self.random.choice(_WORDS) for _ in range(self.random.randint(1, 2)))
        if self.random.random() < 0.01:
            words += _SPELLING
        return Draft(repr(words))

    def raw(self) -> Draft:
        """A literal with control tokens."""
        return Draft(f"sgl.raw({self.random.choice(_RAW)!r})", {"raw"})

    def gen(self, name: str | None = None, *, is_greedy: bool | None = None) -> Draft:
        """A generation."""
        random = self.random
        is_named = name is not None or random.random() < 0.85
        name = name or random.choice(_NAMES)
        features = {"gen", "named gen" if is_named else "unnamed gen"}
        parts = [f'"{name}"'] if is_named else []
        if random.random() < 0.7:
            parts.append(f"max_tokens={random.choice((1, 3, 8, 24))}")
        if random.random() < 0.3:
            features.add("stop")
            parts.append(f"stop={random.choice(_STOPS)!r}")
        greedy = random.random() < 0.5 if is_greedy is None else is_greedy
        if greedy or random.random() < 0.3:
            features.add("temperature 0" if greedy else "temperature 1")
            parts.append(f"temperature={0 if greedy else 1}")
        if random.random() < 0.15:
            features.add("explicit seed")
            parts.append(f"seed={random.randint(0, 9)}")
        code, shape = f"sgl.gen({', '.join(parts)})", TEXT
        if is_named and self.has_failures and random.random() < 0.12:
            features.add("number")
            code, shape = f'sgl.gen_int("{name}", max_tokens=8)', NUMBER
        return Draft(code, features, {name: shape} if is_named else {})

    def select(self) -> Draft:
        """A choice."""
        random = self.random
        name, method = random.choice(_NAMES), random.choice(_METHODS)
        how = "" if method == _METHODS[0] else f', choices_method="{method}"'
        return Draft(f'sgl.select("{name}", {random.choice(_CHOICES)}{how})', {"select"}, {name: TEXT})

    def commutative(self) -> Draft:
        """Parts in any order."""
        parts = [self.constant() if self.random.random() < 0.7 else self.text_value() for _ in range(self.random.randint(2, 3))]
        whole = Draft(f"sgl.commutative({', '.join(part.code for part in parts)})", {"commutative"})
        whole.uses_values = any(part.uses_values for part in parts)
        return whole

    def separate_reasoning(self) -> Draft:
        """A generation in two variables."""
        gen = self.gen(self.random.choice(_NAMES))
        (name,) = gen.defines
        code = f'sgl.separate_reasoning({gen.code}, "{self.random.choice(_MODELS)}")'
        defines = {name: gen.defines[name], f"{name}_reasoning_content": TEXT}
        return Draft(code, {"separate reasoning", *gen.features}, defines)

    def _part(self) -> Draft:
        kinds = (self.constant, self.text_value, self.gen, self.select, self.raw, self.commutative, self.separate_reasoning)
        return self.random.choices(kinds, (5, 4, 5, 1.5, 0.7, 0.6, 0.6))[0]()

    def text(self, most: int = 3) -> Draft:
        """One to ``most`` parts in a row."""
        parts = [self._part() for _ in range(self.random.randint(1, most))]
        if parts[-1].features.isdisjoint({"gen", "select"}) and self.random.random() < 0.35:
            parts.append(self.gen())
        return joined(parts)

    def turns(self) -> Draft:
        """Whole turns in a row."""
        roles = self.random.choice((("user", "assistant"), ("system", "user"), ("user",), ("assistant",)))
        parts = []
        for role in roles:
            text = self.text(2)
            parts.append(Draft(f"sgl.{role}({text.code})", {"role", *text.features}, text.defines, text.uses_values))
        return joined(parts)


def joined(parts: list[Draft]) -> Draft:
    """The parts with ``+`` between them."""
    whole = Draft(" + ".join(part.code for part in parts))
    for part in parts:
        if whole.uses_values and "gen" in part.features:
            whole.features.add("gen reads a variable")
        if "gen" in whole.features and not part.defines and "gen" not in part.features:
            whole.features.add("text behind a gen")
        whole.features |= part.features
        whole.defines |= part.defines
        whole.uses_values |= part.uses_values
    return whole


def _with_items(code: str, shape: Shape, tags: set[str]) -> Iterator[tuple[str, Shape, set[str]]]:
    yield code, shape, tags
    for index, item in enumerate(shape.items):
        yield f"{code}[{index}]", item, {*tags, "item of a joined list"}
