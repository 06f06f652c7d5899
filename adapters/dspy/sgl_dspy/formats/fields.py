"""From a signature to a ``ReplyProgram``: one step for each output field, and the text between them.

``adapters`` asks for the program of each call, ``explain`` for what has none. A reply is written as DSPy's own adapters render one
(``format_assistant_message_content``), so that they parse it, and so that a conversation's history begins like the reply that it
repeats. Two things differ from what Python would render: lists and objects are compact, without blanks behind commas and colons,
and a number keeps the zeros that the model wrote. From such a value on, a history is computed anew.

Programs are kept by what the signature says (names, annotations, constraints, tools), never by identity, and hold no demos.
"""

from __future__ import annotations

import inspect
import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, Union, get_args, get_origin

import dspy
from dspy.adapters.types import History, Tool
from dspy.adapters.types import Type as DspyType
from pydantic.fields import FieldInfo

from sgl_core.errors import InvalidArgumentError
from sgl_core.plugins import PluginHookError, get_host
from sgl_dspy.formats.field_choices import spellings
from sgl_dspy.formats.field_schemas import NOT_BLANK, arguments_schema, schema_of, tool_calls_schema
from sgl_dspy.formats.number_patterns import decimal_number, whole_number
from sgl_dspy.formats.reply_program import Choice, Forced, FreeText, JsonBy, JsonValue, Pattern, ReplyProgram, Step

__all__ = ["FieldBuilder", "ReplyField", "reply_program_for", "step_for", "unplanned_fields"]

_ENDS: Final = (
    *("[[ ##", "[##"),
    "\nRespond with the corresponding output fields",
    "\nIn adhering to this structure, your objective is",
    "\nAll interactions will be structured in the following way",
    "\n```\n```\n```",
)
"""Where a text ends: at the next header, also as small models misspell it, where a model begins to recite DSPy's prompt, and at
fences with nothing in them."""
_TOOL_NAME: Final = "next_tool_name"
_TOOL_ARGS: Final = "next_tool_args"
_TEXTS: Final = (str, dspy.Reasoning)
_UNIONS: Final = (Union, types.UnionType)
_BOUNDS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_MOST_PROGRAMS: Final = 512


@dataclass(frozen=True, slots=True)
class ReplyField:
    """An output field of a signature; what ``sgl_lower`` gets as its node.

    Args:
        name: in the signature.
        annotation: its type, without constraints.
        constraints: Pydantic's, as text; part of what a program is kept by.
        info: the whole field.
    """

    name: str
    annotation: Any
    constraints: str
    info: FieldInfo = field(compare=False, repr=False)

    @classmethod
    def of(cls, name: str, info: FieldInfo) -> ReplyField:
        """The field ``name`` of a signature."""
        return cls(name, info.annotation, repr(info.metadata), info)


@dataclass(frozen=True, slots=True)
class FieldBuilder:
    """What ``sgl_lower`` plugins build the step of a field with.

    What a step writes must be read back by DSPy: by ``parse_value`` from the text under the field's header, or, where
    ``is_json``, from a value of the JSON object that the reply is. A step brings no separator; what follows it is added.

    Args:
        name: the field.
        is_json: which of the two it is.
    """

    name: str
    is_json: bool = False

    def text(self) -> Step:
        """Any text that is not blank; a JSON string where ``is_json``."""
        if self.is_json:
            return self.json({"type": "string", "pattern": NOT_BLANK})
        return FreeText(self.name, _ENDS)

    def choice(self, texts: Sequence[str]) -> Step:
        """One of these texts, each as it stands in the reply.

        Raises:
            InvalidArgumentError: there are none, or one is empty.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise InvalidArgumentError("texts", texts, "at least one text, none of them empty")
        return Choice(self.name, tuple(texts))

    def pattern(self, regex: str) -> Step:
        """Text that matches a regular expression, as it stands in the reply."""
        return Pattern(self.name, regex)

    def json(self, schema: Mapping[str, Any]) -> Step:
        """A JSON value by a schema."""
        return JsonValue(self.name, schema)

    def like(self, annotation: Any) -> Step | None:
        """What a field of another type would get; None for a type that has no step."""
        return self.own(ReplyField.of(self.name, FieldInfo.from_annotation(annotation)))

    def own(self, node: ReplyField) -> Step | None:
        """The step that a field gets without plugins; None for a type that has none."""
        return _own_step(node, self)


def reply_program_for(
    signature: type[dspy.Signature],
    *,
    is_json: bool = False,
    tools: Mapping[str, Tool] | None = None,
    must_call: bool = False,
    shared: tuple[int, int] | None = None,
) -> ReplyProgram | None:
    """How a reply to this signature is to be written, or None if one of its fields has no step.

    Args:
        signature: its output fields, in order.
        is_json: one JSON object, indented as DSPy's JSONAdapter renders it; else the chat format.
        tools: what may be called, for ``dspy.ToolCalls`` and for the steps of ReAct; None where that is not known.
        must_call: ``dspy.ToolCalls`` hold at least one call.
        shared: see ``ReplyProgram``.

    Raises:
        PluginHookError: a plugin's ``sgl_lower`` answered with something else than a step of this field.
    """
    asked = _Asked(
        tuple(ReplyField.of(name, info) for name, info in signature.output_fields.items()),
        is_json,
        None if tools is None else json.dumps({name: arguments_schema(tool) for name, tool in tools.items()}),
        must_call,
    )
    program = _kept(asked) if _is_hashable(asked) else _program(asked)
    return program if program is None or shared is None else replace(program, shared=shared)


def unplanned_fields(signature: type[dspy.Signature], *, is_json: bool = False) -> tuple[str, ...]:
    """Names of the output fields that have no step."""
    fields = (ReplyField.of(name, info) for name, info in signature.output_fields.items())
    return tuple(field.name for field in fields if step_for(field, is_json=is_json) is None)


def step_for(
    node: ReplyField,
    *,
    is_json: bool = False,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    must_call: bool = False,
) -> Step | None:
    """The step of one field: ours, or else a plugin's; None if nobody knows its type.

    Args:
        node: the field.
        is_json: see ``FieldBuilder``.
        arguments: the schema of the arguments of each tool, for ``dspy.ToolCalls``; None if any may be called.
        must_call: at least one is.

    Raises:
        PluginHookError: a plugin answered with something else than a step of this field.
    """
    builder = FieldBuilder(node.name, is_json)
    if node.annotation is dspy.ToolCalls:
        return builder.json(tool_calls_schema(arguments or {}, must_call=must_call))
    step = _own_step(node, builder)
    if step is not None:
        return step
    lowered = get_host().lower(node, builder)
    if lowered is None or (isinstance(lowered, Step) and not isinstance(lowered, Forced) and lowered.name == node.name):
        return lowered
    raise PluginHookError(f"sgl_lower returned a {type(lowered).__name__}, expected a step of field {node.name!r}.")


# ---- one field -------------------------------------------------------------------------------------------------------
def _own_step(node: ReplyField, builder: FieldBuilder) -> Step | None:
    """The step of a type that we know."""
    annotation = node.annotation
    if _is_text(annotation, is_json=builder.is_json):
        return builder.text()
    if annotation is History or DspyType.extract_custom_type_from_annotation(annotation):
        return None  # media, citations, and types that only their authors know
    texts = spellings(annotation, is_json=builder.is_json)
    if texts is not None:
        return builder.choice(texts)
    schema = schema_of(node.info.rebuild_annotation())
    if schema is None or "enum" in schema or "const" in schema:  # a choice that DSPy would not read back
        return None
    regex = _scalar_pattern(schema, is_json=builder.is_json)
    return builder.json(schema) if regex is None else builder.pattern(regex)


def _is_text(annotation: Any, *, is_json: bool) -> bool:
    """Whether DSPy takes the text as it stands."""
    if annotation in _TEXTS or (inspect.isclass(annotation) and issubclass(annotation, dspy.Code)):
        return True
    parts = get_args(annotation)
    return not is_json and get_origin(annotation) in _UNIONS and str in parts and type(None) in parts


def _scalar_pattern(schema: Mapping[str, Any], *, is_json: bool) -> str | None:
    """A pattern of numbers and of unions with numbers, or None: they have no end of their own, which JSON would need."""
    match schema:
        case {"anyOf": [*alternatives], **rest} if not rest:
            patterns = [_scalar_pattern(one, is_json=is_json) for one in alternatives]
            return "|".join(filter(None, patterns)) if all(patterns) else None
        case {"type": "null"}:
            return "null" if is_json else "None"
        case {"type": "boolean"}:
            return "true|false" if is_json else "True|False"
        case {"type": "integer" | "number" as kind, **bounds}:
            return _number_pattern(bounds, is_whole=kind == "integer")
    return None


def _number_pattern(bounds: Mapping[str, Any], *, is_whole: bool) -> str | None:
    if bounds.keys() - _BOUNDS:
        return None
    low, is_low_open = _tighter(bounds, "minimum", "exclusiveMinimum", max)
    high, is_high_open = _tighter(bounds, "maximum", "exclusiveMaximum", min)
    if is_whole:
        least = None if low is None else math.floor(low) + 1 if is_low_open else math.ceil(low)
        most = None if high is None else math.ceil(high) - 1 if is_high_open else math.floor(high)
        return whole_number(least, most)
    if any(bound is not None and bound != int(bound) for bound in (low, high)):
        return None
    return decimal_number(
        None if low is None else int(low),
        None if high is None else int(high),
        is_low_open=is_low_open,
        is_high_open=is_high_open,
    )


def _tighter(bounds: Mapping[str, Any], closed: str, opened: str, pick: Any) -> tuple[float | None, bool]:
    """The bound that counts, and whether it is left out itself."""
    given = [bounds[name] for name in (closed, opened) if name in bounds]
    bound = pick(given) if given else None
    return bound, bound is not None and bounds.get(opened) == bound


# ---- all fields ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Asked:
    """What a program depends on; ``arguments`` are the schemas of the tools' arguments by name, as JSON."""

    fields: tuple[ReplyField, ...]
    is_json: bool
    arguments: str | None
    must_call: bool


def _is_hashable(asked: _Asked) -> bool:
    """Whether all annotations are: a Literal or Annotated may hold anything."""
    try:
        hash(asked)
    except TypeError:
        return False
    return True


@lru_cache(maxsize=_MOST_PROGRAMS)
def _kept(asked: _Asked) -> ReplyProgram | None:
    return _program(asked)


def _program(asked: _Asked) -> ReplyProgram | None:
    arguments = None if asked.arguments is None else json.loads(asked.arguments)
    steps: dict[str, Step] = {}
    for node in asked.fields:
        step = step_for(node, is_json=asked.is_json, arguments=arguments, must_call=asked.must_call)
        if step is None:
            return None
        steps[node.name] = step
    if not steps:
        return None
    if arguments is not None:
        _follow_tool(steps, arguments, is_json=asked.is_json)
    return ReplyProgram(tuple(_laid_out(steps, is_json=asked.is_json)))


def _follow_tool(steps: dict[str, Step], schemas: Mapping[str, Mapping[str, Any]], *, is_json: bool) -> None:
    """In ReAct's steps, hold the arguments to the tool that was chosen."""
    chosen = steps.get(_TOOL_NAME)
    if not (isinstance(chosen, Choice) and isinstance(steps.get(_TOOL_ARGS), JsonValue)):
        return
    names = {text: json.loads(text) if is_json else text for text in chosen.choices}
    order = list(steps)
    if set(names.values()) == schemas.keys() and order.index(_TOOL_NAME) < order.index(_TOOL_ARGS):
        steps[_TOOL_ARGS] = JsonBy(_TOOL_ARGS, _TOOL_NAME, {text: schemas[name] for text, name in names.items()})


def _laid_out(steps: Mapping[str, Step], *, is_json: bool) -> Iterator[Step]:
    """The steps with everything around them, as few forced texts as possible."""
    pending = "{\n" if is_json else ""
    endings: dict[str, str] = {}
    for index, (name, step) in enumerate(steps.items()):
        pending += f"  {json.dumps(name, ensure_ascii=False)}: " if is_json else f"[[ ## {name} ## ]]\n"
        yield Forced(pending)
        is_last = index == len(steps) - 1
        pending = "\n\n" if not is_json else "\n" if is_last else ",\n"
        if _needs_end(step):
            step, endings[name], pending = _ended(step, pending), pending, ""
        if isinstance(step, JsonBy) and step.by in endings:
            step = replace(step, schemas={text + endings[step.by]: one for text, one in step.schemas.items()})
        yield step
    yield Forced(pending + ("}" if is_json else "[[ ## completed ## ]]\n"))


def _needs_end(step: Step) -> bool:
    """Whether a value may go on where it could stop: a model then ends it better by what follows than by falling silent."""
    if isinstance(step, Choice):
        ordered = sorted(step.choices)  # those that begin with another one stand behind it
        return any(longer.startswith(shorter) for shorter, longer in pairwise(ordered))
    return isinstance(step, Pattern)


def _ended(step: Step, separator: str) -> Step:
    if isinstance(step, Choice):
        return replace(step, choices=tuple(text + separator for text in step.choices))
    assert isinstance(step, Pattern), "no other step needs an end"
    return replace(step, regex=f"(?:{step.regex}){separator}")
