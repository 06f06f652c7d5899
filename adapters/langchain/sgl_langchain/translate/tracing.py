"""``trace``: executes a tree of nodes in thought and writes down its steps. Called when a plan is made; pure."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sgl_langchain.translate import nodes
from sgl_langchain.translate.lower import name_of
from sgl_langchain.translate.nodes import Node
from sgl_langchain.translate.prompts import Messages, Opaque, PromptSegments, Turn, segments_of
from sgl_langchain.translate.steps import (
    ArmStep,
    AttemptStep,
    CallStep,
    ChoiceStep,
    Close,
    EachStep,
    ForkStep,
    GenStep,
    Open,
    Piece,
    Step,
    Text,
    Value,
    gens_of,
)
from sgl_langchain.translate.templates import Const, Hole, Segment
from sgl_langchain.translate.values import INPUT, ValueTable

__all__ = ["Trace", "trace"]

_ROLES: Final = {"human": "user", "ai": "assistant", "developer": "system"}
_LABELS: Final = {"system": "System", "human": "Human", "ai": "AI"}


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What a chain does.

    Args:
        steps: in order.
        value: the number of the output.
        values: what the numbers stand for.
    """

    steps: tuple[Step, ...]
    value: int
    values: ValueTable

    def gens(self) -> tuple[GenStep, ...]:
        """Every call of a model, in order."""
        return tuple(gens_of(self.steps))


def trace(root: Node) -> Trace:
    """Execute ``root`` on the input, value number 0."""
    tracer = _Tracer()
    block = _Block("")
    value = tracer.run(root, INPUT, block)
    return Trace(tuple(block.steps), value, tracer.values)


class _Block:
    """Steps under way. ``place``: where in the chain; ``key``: the key of the arm around, which names answers."""

    def __init__(self, place: str, key: str = "") -> None:
        self.steps: list[Step] = []
        self.place = place
        self.key = key

    def inner(self, place: str, key: str = "") -> _Block:
        return _Block(f"{self.place}, {place}" if self.place else place, key or self.key)


class _Tracer:
    """One execution in thought. ``_prompts`` are templates that have been formatted, by the number of the prompt made."""

    def __init__(self) -> None:
        self.values = ValueTable()
        self._prompts: dict[int, tuple[PromptSegments, tuple[Piece, ...]]] = {}
        self._names: set[str] = set()

    def run(self, node: Node, value: int, block: _Block) -> int:
        for kind, method in _METHODS.items():
            if isinstance(node, kind):
                return method(self, node, value, block)
        return self._host_code(node, value, block)

    def _sequence(self, node: nodes.Sequence, value: int, block: _Block) -> int:
        outer = block.place
        for index, step in enumerate(node.steps, start=1):
            block.place = f"{outer}, step {index}" if outer else f"step {index}"
            value = self.run(step, value, block)
        block.place = outer
        return value

    def _arm(self, label: str, node: Node, value: int, block: _Block, test: Node | None = None, key: str = "") -> ArmStep:
        inner = block.inner(label, key)
        conditions = block.inner(f"condition of {label}", key)
        tested = None if test is None else self.run(test, value, conditions)
        result = self.run(node, value, inner)
        return ArmStep(node, result, inner.place, label, tuple(inner.steps), tuple(conditions.steps), tested)

    def _parallel(self, node: nodes.Parallel, value: int, block: _Block) -> int:
        return self._fork(node, node, value, block, base=None)

    def _assign(self, node: nodes.Assign, value: int, block: _Block) -> int:
        return self._fork(node, node.mapper, value, block, base=value)

    def _fork(self, node: Node, mapper: nodes.Parallel, value: int, block: _Block, base: int | None) -> int:
        arms = tuple(self._arm(key, branch, value, block, key=key) for key, branch in mapper.branches)
        result = self.values.record({arm.label: arm.value for arm in arms}, base)
        if any(arm.body for arm in arms):
            block.steps.append(ForkStep(node, result, block.place, arms))
        return result

    def _pick(self, node: nodes.Pick, value: int, _: _Block) -> int:
        if isinstance(node.keys, str):
            return self.values.get(node.keys, value)
        return self.values.record({key: self.values.get(key, value) for key in node.keys})

    def _passthrough(self, node: nodes.Passthrough, value: int, block: _Block) -> int:
        if node.has_effect:
            block.steps.append(CallStep(node, value, block.place, value))
        return value

    def _inside(self, node: nodes.Binding, value: int, block: _Block) -> int:
        return self.run(node.bound, value, block)

    def _each(self, node: nodes.Each, value: int, block: _Block) -> int:
        element = self.values.fresh("element")
        inner = block.inner("each element")
        result = self.run(node.bound, element, inner)
        output = self.values.fresh("list")
        block.steps.append(EachStep(node, output, block.place, value, element, tuple(inner.steps), result))
        return output

    def _branch(self, node: nodes.Branch, value: int, block: _Block) -> int:
        arms = [self._arm(f"arm {i}", arm, value, block, test) for i, (test, arm) in enumerate(node.arms, start=1)]
        return self._choice(node, value, [*arms, self._arm("default", node.default, value, block)], block)

    def _router(self, node: nodes.Router, value: int, block: _Block) -> int:
        routed, key = self.values.get("input", value), self.values.get("key", value)
        return self._choice(node, key, [self._arm(name, route, routed, block) for name, route in node.routes], block)

    def _choice(self, node: Node, argument: int, arms: Sequence[ArmStep], block: _Block) -> int:
        output = self.values.fresh("choice")
        block.steps.append(ChoiceStep(node, output, block.place, tuple(arms), argument))
        return output

    def _fallbacks(self, node: nodes.Fallbacks, value: int, block: _Block) -> int:
        labels = ["first choice", *(f"fallback {i}" for i in range(1, len(node.fallbacks) + 1))]
        arms = [self._arm(label, child, value, block) for label, child in zip(labels, node.children(), strict=True)]
        return self._attempt(node, arms, block)

    def _retry(self, node: nodes.Retry, value: int, block: _Block) -> int:
        return self._attempt(node, [self._arm("retried", node.bound, value, block)], block)

    def _attempt(self, node: Node, arms: Sequence[ArmStep], block: _Block) -> int:
        output = self.values.fresh("attempt")
        block.steps.append(AttemptStep(node, output, block.place, tuple(arms)))
        return output

    # ---- models and host code ----------------------------------------------------------------------------------------
    def _model(self, node: nodes.Model, value: int, block: _Block) -> int:
        template, pieces = self._prompts.get(value, (None, (Value(value, is_messages=node.is_chat),)))
        if node.is_chat:
            pieces = (*pieces, Open("assistant"))
        elif template is not None:
            pieces = _as_string(pieces, template.is_chat)
        answer = self.values.fresh("answer")
        block.steps.append(GenStep(node, answer, block.place, node, pieces, template, self._name(block.key or "out")))
        return answer

    def _prompt(self, node: nodes.Prompt, value: int, block: _Block) -> int:
        segments = segments_of(node.runnable)
        output = self.values.pure(("format", id(node.runnable), name_of(node.runnable)), value)
        if any(isinstance(turn, Opaque) for turn in segments.turns) and len(segments.turns) == 1:
            return self._host_code(node, value, block)
        if output not in self._prompts:
            self._prompts[output] = segments, self._pieces(segments, value)
        return output

    def _pieces(self, prompt: PromptSegments, value: int) -> tuple[Piece, ...]:
        pieces: list[Piece] = []
        for turn in prompt.turns:
            if isinstance(turn, Turn):
                role = _ROLES.get(turn.role, turn.role)
                pieces += (Open(role), *(self._piece(part, prompt, value) for part in turn.parts), Close(role))
            elif isinstance(turn, Messages):
                pieces.append(Value(self._argument(turn.variable, prompt, value), turn.variable, is_messages=True))
            else:
                pieces.append(Value(self.values.fresh(turn.reason), turn.reason, is_messages=True))
        return tuple(pieces)

    def _piece(self, part: Segment, prompt: PromptSegments, value: int) -> Piece:
        if isinstance(part, Const):
            return Text(part.text)
        if isinstance(part, Hole):
            return Value(self._argument(part.variable, prompt, value), part.variable, part.format)
        return Value(self.values.fresh(part.reason), part.reason)

    def _argument(self, variable: str, prompt: PromptSegments, value: int) -> int:
        """What a template puts in for a variable: an entry of a dict, or the one value that it needs.

        The input of a chain is a dict as a rule, and what a step gives is one where the step makes one.
        """
        is_dict = self.values[value].kind in ("input", "record") or len(prompt.variables) != 1
        return self.values.get(variable, value) if is_dict else value

    def _parse(self, node: nodes.Parse, value: int, block: _Block) -> int:
        output = self.values.pure(("parse", id(node.runnable), name_of(node.runnable)), value)
        block.steps.append(CallStep(node, output, block.place, value))
        return output

    def _host_code(self, node: Node, value: int, block: _Block) -> int:
        output = self._pure_call(node, value) if isinstance(node, nodes.Call) and node.is_pure else None
        if output is not None and self.values[output].kind != "pure":
            return output  # a key of a dict: no step of its own
        output = self.values.fresh("call") if output is None else output
        block.steps.append(CallStep(node, output, block.place, value))
        return output

    def _pure_call(self, node: nodes.Call, value: int) -> int:
        function = getattr(node.runnable, "func", None)
        if isinstance(function, operator.itemgetter):
            keys = function.__reduce__()[1]
            if len(keys) == 1 and isinstance(keys[0], str):
                return self.values.get(keys[0], value)
        return self.values.pure(("call", id(node.fn or function or node.runnable), node.name), value)

    def _name(self, wanted: str) -> str:
        name, number = wanted, 2
        while name in self._names:
            name, number = f"{wanted}_{number}", number + 1
        self._names.add(name)
        return name


_METHODS: Final[dict[type[Node], Callable[..., int]]] = {
    nodes.Sequence: _Tracer._sequence,
    nodes.Parallel: _Tracer._parallel,
    nodes.Assign: _Tracer._assign,
    nodes.Pick: _Tracer._pick,
    nodes.Passthrough: _Tracer._passthrough,
    nodes.Binding: _Tracer._inside,
    nodes.Each: _Tracer._each,
    nodes.Branch: _Tracer._branch,
    nodes.Router: _Tracer._router,
    nodes.Fallbacks: _Tracer._fallbacks,
    nodes.Retry: _Tracer._retry,
    nodes.Model: _Tracer._model,
    nodes.Prompt: _Tracer._prompt,
    nodes.Parse: _Tracer._parse,
}


def _as_string(pieces: tuple[Piece, ...], is_chat: bool) -> tuple[Piece, ...]:
    """The prompt of a text model: the string, or the messages as LangChain writes them in one string."""
    text: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Open):
            label = next((_LABELS[role] for role in _LABELS if _ROLES.get(role, role) == piece.role), piece.role)
            text.append(Text(("\n" if text else "") + label + ": ") if is_chat else Text(""))
        elif not isinstance(piece, Close):
            text.append(piece)
    return _merged(text)


def _merged(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Neighbouring texts as one, without empty ones."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if isinstance(piece, Text) and isinstance(last, Text):
            merged[-1] = Text(last.text + piece.text)
        elif not isinstance(piece, Text) or piece.text:
            merged.append(piece)
    return tuple(merged)
