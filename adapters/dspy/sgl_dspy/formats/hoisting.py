"""How prompts inside a compiled module are laid out: shared inputs first, and inputs in an order that repeats longest.

DSPy writes a predictor's task before its inputs, so predictors that read the same document have nothing in common. A layout puts
the document first and each task behind it. It rides in DSPy's settings, which cross threads and tasks; ``compile_module`` puts it
there, and our adapters ask ``arranged`` for every prompt. The text differs from DSPy's, so the messages, which are in the key of
DSPy's answer cache, do too. Owns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import dspy

__all__ = ["LAYOUT_KEY", "Input", "Layout", "arranged", "current_layout", "hoisted_names", "input_of"]

LAYOUT_KEY: Final = "_sgl"
"""Under which DSPy's settings hold the layout."""

_SYSTEM: Final = "You are given inputs first, and then a task that says what to make of them. Keep to the format of the task."
_AT_THE_BEGINNING: Final = "The value of {names} for this request is the one that this conversation begins with."

Message = dict[str, Any]
Input = tuple[str, str]
"""Name and annotation of an input; predictors share it where both are the same."""
Render = Callable[[Any, list[Any], dict[str, Any]], list[Message]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where inputs stand in a prompt.

    Args:
        hoisted: inputs that come before everything else that differs from predictor to predictor, in this order.
        first: names of inputs that come before a predictor's other inputs, in this order.
    """

    hoisted: tuple[Input, ...] = ()
    first: tuple[str, ...] = ()

    def inside(self, outer: Layout | None) -> Layout:
        """The layout of a compiled module that runs inside another one: the outer one's wishes come first."""
        if outer is None:
            return self
        return Layout(tuple(dict.fromkeys(outer.hoisted + self.hoisted)), tuple(dict.fromkeys(outer.first + self.first)))

    def shared_of(self, signature: Any) -> tuple[str, ...]:
        """Names of the inputs of a signature that are hoisted, in their order."""
        fields = signature.input_fields
        return tuple(given[0] for given in self.hoisted if given[0] in fields and input_of(signature, given[0]) == given)

    def reordered(self, signature: Any) -> Any:
        """The signature with its inputs in this layout's order; itself if they are."""
        names = list(signature.input_fields)
        order = [name for name in self.first if name in names]
        order += [name for name in names if name not in order]
        return signature if order == names else _with_inputs(signature, tuple(order))


def input_of(signature: Any, name: str) -> Input:
    """What predictors must agree on to share an input."""
    return name, repr(signature.input_fields[name].annotation)


def current_layout() -> Layout | None:
    """The layout of the compiled module that is running here, if one is."""
    layout = dspy.settings.get(LAYOUT_KEY)
    return layout if isinstance(layout, Layout) else None


def hoisted_names(signature: Any, inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the inputs of a call that stand before its task here, in their order."""
    layout = current_layout()
    return () if layout is None else tuple(name for name in layout.shared_of(signature) if name in inputs)


def arranged(adapter: Any, render: Render, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> list[Message]:
    """The messages of a prompt, laid out as the compiled module around it asks; without one, as ``render`` makes them.

    Args:
        adapter: formats values: its ``format_user_message_content`` is used for the shared inputs.
        render: ``format`` of DSPy's adapter, bound.
        signature, demos, inputs: as ``format`` gets them; not changed.
    """
    layout = current_layout()
    if layout is None:
        return render(signature, demos, inputs)
    signature = layout.reordered(signature)
    shared = {name: inputs[name] for name in hoisted_names(signature, inputs)}
    if not shared:
        return render(signature, demos, inputs)
    rest = {name: value for name, value in inputs.items() if name not in shared}
    head = adapter.format_user_message_content(_with_inputs(signature, tuple(shared)), shared)
    return _hoisted(head, list(shared), render(signature, demos, rest))


def _hoisted(head: str, names: Sequence[str], messages: list[Message]) -> list[Message]:
    """The constant system message, the shared inputs, and behind them everything that ``messages`` say."""
    system, *turns = messages
    opening = f"{head}\n\n{system['content']}"
    if len(turns) > 1:  # demos or a history stand in between, with values of their own
        listed = " and ".join(f"`{name}`" for name in names)
        turns[-1] = _preceded(turns[-1], _AT_THE_BEGINNING.format(names=listed))
    if turns and turns[0]["role"] == "user":
        turns[0] = _preceded(turns[0], opening)
    else:
        turns.insert(0, {"role": "user", "content": opening})
    return [{"role": "system", "content": _SYSTEM}, *turns]


def _preceded(message: Message, text: str) -> Message:
    """The message with text before what it says; its content is text, or parts if there are pictures in it."""
    content = message["content"]
    if isinstance(content, list):
        return {**message, "content": [{"type": "text", "text": f"{text}\n\n"}, *content]}
    return {**message, "content": f"{text}\n\n{content}" if content else text}


@lru_cache(maxsize=256)
def _with_inputs(signature: Any, names: tuple[str, ...]) -> Any:
    """The same signature with these inputs only, in this order."""
    inputs: Mapping[str, Any] = signature.input_fields
    fields = {name: inputs[name] for name in names} | dict(signature.output_fields)
    typed = {name: (field.annotation, field) for name, field in fields.items()}
    return dspy.Signature(typed, signature.instructions)
