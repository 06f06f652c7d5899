"""Values, prompts and generations as the text of a native program. Called by ``listing``; owns the names of values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.output_parsers import StrOutputParser

from sgl_langchain.translate import nodes
from sgl_langchain.translate.lower import name_of
from sgl_langchain.translate.nodes import Node
from sgl_langchain.translate.steps import Close, GenStep, Open, Piece, Text
from sgl_langchain.translate.values import INPUT, ValueTable

__all__ = ["Expressions", "gen_text", "prompt_text", "quoted", "tool_name"]

_SHOWN: Final = 48  # characters of a text in full; of a longer one, its beginning and its end
_TAIL: Final = 12
_OPTIONS: Final = (
    *("temperature", "max_tokens", "min_tokens", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty"),
    *("repetition_penalty", "stop", "stop_token_ids", "ignore_eos", "seed", "n", "logprobs", "regex", "choices", "grammar"),
    *("ebnf", "json_schema", "response_format", "tools", "tool_choice"),
)
_NATIVE_ROLES: Final = ("system", "user", "assistant")


class Expressions:
    """How values are written.

    Args:
        values: what their numbers stand for.
    """

    def __init__(self, values: ValueTable) -> None:
        """Know the input alone."""
        self._values = values
        self._names = {INPUT: "input"}

    def name(self, value: int, expression: str) -> None:
        """From here on, ``value`` is written so."""
        self._names[value] = expression

    def is_known(self, value: int) -> bool:
        """Whether a value can be written with what has been named so far, without calling anything."""
        if value in self._names:
            return True
        definition = self._values[value]
        return definition.kind in ("get", "record") and all(map(self.is_known, definition.operands))

    def of(self, value: int) -> str:
        """A value as an expression."""
        if value in self._names:
            return self._names[value]
        definition = self._values[value]
        if definition.kind == "get":
            return f"{self.of(definition.operands[0])}[{quoted(str(definition.what))}]"
        if definition.kind == "record":
            return "{" + ", ".join(self._fields(value)) + "}"
        if definition.kind == "pure" and isinstance(definition.what, tuple):
            return f"call({definition.what[-1]})({', '.join(map(self.of, definition.operands))})"
        return f"known_later({quoted(str(definition.what))})"

    def call(self, node: Node, argument: int) -> str:
        """A step of host code as an expression."""
        if self.is_inline(node):
            return self.of(argument)
        return f"call({_name_of(node)})({self.of(argument)})"

    @staticmethod
    def is_inline(node: Node) -> bool:
        """The text of an answer is the answer here."""
        return isinstance(node, nodes.Parse) and type(node.runnable) is StrOutputParser

    def _fields(self, value: int) -> list[str]:
        definition = self._values[value]
        if definition.kind != "record" or value in self._names or not isinstance(definition.what, tuple):
            return [f"**{self.of(value)}"]
        keys = definition.what
        base = [field for operand in definition.operands[len(keys) :] for field in self._fields(operand)]
        return base + [f"{quoted(str(key))}: {self.of(v)}" for key, v in zip(keys, definition.operands, strict=False)]


def prompt_text(pieces: Sequence[Piece], expressions: Expressions, answer: str = "") -> str:
    """Pieces of a prompt as what is added to a stream, with the answer in the turn that they end with."""
    terms: list[str] = []
    turn: str | None = None  # the role of a turn that begins among the pieces
    inner: list[str] = []
    for piece in pieces:
        if isinstance(piece, Open):
            turn, inner = piece.role, []
        elif isinstance(piece, Close):
            terms += [_turn(turn, inner)] if turn is not None else [*inner, _turn_end(piece.role)]
            turn, inner = None, []
        else:
            inner.append(quoted(piece.text) if isinstance(piece, Text) else _value(piece, expressions))
            if turn is None:
                terms, inner = [*terms, *inner], []
    if turn is None:
        return " + ".join([*terms, answer] if answer else terms)
    if answer:
        return " + ".join([*terms, _turn(turn, [*inner, answer])])
    return " + ".join([*terms, _turn_begin(turn), *inner])


def gen_text(step: GenStep) -> str:
    """The generation of a model, with the options that it has."""
    model = step.model
    given = {name: model.options.get(name, getattr(model.runnable, name, None)) for name in _OPTIONS}
    options = [
        f"{name}={_option(name, value)}"
        for name, value in given.items()
        if value is not None and value is not False and value != []
    ]
    return f"sgl.gen({', '.join([quoted(step.name), *options])})"


def quoted(text: str) -> str:
    """A text as a literal; a long one with its middle left out."""
    if len(text) > _SHOWN + _TAIL:
        text = f"{text[:_SHOWN].rstrip()} ... {text[-_TAIL:].lstrip()}"
    return json.dumps(text, ensure_ascii=False)


def _turn(role: str, terms: Sequence[str]) -> str:
    text = " + ".join(terms) or '""'
    return f"sgl.{role}({text})" if role in _NATIVE_ROLES else f"turn({quoted(role)}, {text})"


def _turn_begin(role: str) -> str:
    return f"sgl.{role}_begin()" if role in _NATIVE_ROLES else f"turn_begin({quoted(role)})"


def _turn_end(role: str) -> str:
    return f"sgl.{role}_end()" if role in _NATIVE_ROLES else f"turn_end({quoted(role)})"


def _value(piece: Any, expressions: Expressions) -> str:
    expression = expressions.of(piece.number)
    if piece.is_messages:
        return f"messages({expression})"
    return f'f"{{{expression}{piece.format}}}"' if piece.format else expression


def _option(name: str, value: Any) -> str:
    if name == "tools":
        return "[" + ", ".join(map(tool_name, value)) + "]"
    if isinstance(value, bool | int | float):
        return str(value) if isinstance(value, bool) else f"{value:g}"
    if isinstance(value, type):
        return value.__name__
    return "{...}" if isinstance(value, Mapping) else json.dumps(value, ensure_ascii=False, default=repr)


def tool_name(tool: Any) -> str:
    """What a tool is called, in whatever form it is bound."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name") or getattr(tool, "name", type(tool).__name__))


def _name_of(node: Node) -> str:
    if isinstance(node, nodes.Call):
        return node.name
    function = getattr(node.runnable, "func", None) if isinstance(node, nodes.Passthrough) else None
    return str(getattr(function, "__name__", name_of(node.runnable)))
