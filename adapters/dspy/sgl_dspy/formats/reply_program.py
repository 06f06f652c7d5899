"""How a reply is to be written, step by step: what an adapter plans and an engine runs.

An adapter makes one of these from a signature and sends it as JSON inside a request's ``metadata``, through DSPy's cache keys,
retries, threads and history. The engine reads it there, see ``reply_runs``. The text of the reply is what DSPy's own adapters
parse: forced text and generated values, one after the other. Values only, no DSPy and no engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from sgl_core.errors import InvalidArgumentError

__all__ = [
    "PROGRAM_KEY",
    "Choice",
    "Forced",
    "FreeText",
    "JsonBy",
    "JsonValue",
    "Pattern",
    "ReplyProgram",
    "Step",
]

PROGRAM_KEY: Final = "sgl_program"
"""Under which ``metadata`` holds a program."""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Forced:
    """Text that is written as it stands; nothing is generated.

    Args:
        text: not empty.
    """

    text: str


@dataclass(frozen=True, slots=True)
class FreeText:
    """Any text, at least one character that is not white space, up to a stop or the model's own end of the turn.

    Args:
        name: the field.
        stop: where it ends at the latest; white space before a stop is no part of it.
    """

    name: str
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several texts; decoded token by token, so a temperature above zero samples.

    Args:
        name: the field.
        choices: at least one, none empty.
    """

    name: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Text that matches a regular expression.

    Args:
        name: the field.
        regex: the whole value matches it.
    """

    name: str
    regex: str


@dataclass(frozen=True, slots=True)
class JsonValue:
    """Compact JSON by a schema.

    Args:
        name: the field.
        schema: a JSON schema; not to be changed afterwards.
    """

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JsonBy:
    """Compact JSON by the schema that an earlier field's value names, such as the arguments of the tool that was chosen.

    Args:
        name: the field.
        by: an earlier ``Choice`` of the program.
        schemas: of each of its choices.
    """

    name: str
    by: str
    schemas: Mapping[str, Mapping[str, Any]]


Step = Forced | FreeText | Choice | Pattern | JsonValue | JsonBy


@dataclass(frozen=True, slots=True)
class ReplyProgram:
    """See the module.

    Args:
        steps: in order, at least one.
        shared: half-open range of the request's messages, system included, that other calls of the same predictor begin with.

    Raises:
        InvalidArgumentError: no steps, or one that refers to a choice that is not made before it.
    """

    steps: tuple[Step, ...]
    shared: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check what steps say of each other."""
        if not self.steps:
            raise InvalidArgumentError(PROGRAM_KEY, "no steps", "at least one")
        made: dict[str, Step] = {}
        for step in self.steps:
            if isinstance(step, JsonBy):
                chosen = made.get(step.by)
                if not isinstance(chosen, Choice) or set(chosen.choices) != set(step.schemas):
                    raise InvalidArgumentError(
                        f"{PROGRAM_KEY}.{step.name}",
                        f"by {step.by!r}",
                        "an earlier choice, with a schema for each of its values",
                    )
            if not isinstance(step, Forced):
                made[step.name] = step

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; equal programs give equal JSON, so that they share an entry of DSPy's answer cache."""
        plain: dict[str, Any] = {"v": _VERSION, "reply": [_plain(step) for step in self.steps]}
        return plain if self.shared is None else {**plain, "shared": list(self.shared)}

    @classmethod
    def from_json(cls, plain: object) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidArgumentError: it is something else.
        """
        try:
            match plain:
                case {"v": 1, "reply": [*steps], **rest}:
                    shared = rest.pop("shared", None)
                    if not rest:
                        return cls(tuple(map(_step, steps)), None if shared is None else _span(shared))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InvalidArgumentError):
                raise
        given = json.dumps(plain, default=lambda value: type(value).__name__)[:60]
        raise InvalidArgumentError(PROGRAM_KEY, given, "a program as an adapter of this version writes it")


def _plain(step: Step) -> dict[str, Any]:
    match step:
        case Forced(text):
            return {"text": text}
        case FreeText(name, stop):
            return {"gen": name, "stop": list(stop)}
        case Choice(name, choices):
            return {"choice": name, "choices": list(choices)}
        case Pattern(name, regex):
            return {"regex": name, "pattern": regex}
        case JsonValue(name, schema):
            return {"json": name, "schema": dict(schema)}
        case JsonBy(name, by, schemas):
            return {"json": name, "by": by, "schemas": {value: dict(schema) for value, schema in schemas.items()}}


def _step(plain: object) -> Step:
    match plain:
        case {"text": str(text), **rest} if text and not rest:
            return Forced(text)
        case {"gen": str(name), "stop": [*stop]}:
            return FreeText(name, _texts(stop))
        case {"choice": str(name), "choices": [_, *_] as choices}:
            return Choice(name, _texts(choices))
        case {"regex": str(name), "pattern": str(pattern)}:
            return Pattern(name, pattern)
        case {"json": str(name), "schema": schema}:
            return JsonValue(name, _mapping(schema))
        case {"json": str(name), "by": str(by), "schemas": {**schemas}}:
            return JsonBy(name, by, {str(value): _mapping(schema) for value, schema in schemas.items()})
    raise ValueError("no step")


def _texts(values: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) and value for value in values):
        raise ValueError("not all are texts")
    return tuple(values)


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("no mapping")
    return value


def _span(value: Any) -> tuple[int, int]:
    start, end = value
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end):
        raise ValueError("no range")
    return start, end
