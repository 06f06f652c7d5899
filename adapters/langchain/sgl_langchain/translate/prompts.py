"""Prompt templates as segments: which of their text is constant, and which is filled in at every call.

``segments_of`` reads LangChain's templates by their fields. It errs on the safe side: what it cannot be sure of is ``Opaque``,
and so is everything that would have to run a user's code. Its constants are what LangChain's own formatting gives, as long as
the input does not override a partial variable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.messages import BaseMessage, ChatMessage, convert_to_messages
from langchain_core.prompts import (
    AIMessagePromptTemplate,
    ChatMessagePromptTemplate,
    ChatPromptTemplate,
    FewShotChatMessagePromptTemplate,
    FewShotPromptTemplate,
    FewShotPromptWithTemplates,
    HumanMessagePromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
    SystemMessagePromptTemplate,
)
from langchain_core.prompts.structured import StructuredPrompt

from sgl_langchain.translate.templates import Const, Hole, Opaque, Segment, joined, template_segments

__all__ = ["Const", "Hole", "Messages", "Opaque", "PromptSegments", "Segment", "Turn", "segments_of"]

_ROLES: Final[dict[type, str]] = {
    HumanMessagePromptTemplate: "human",
    AIMessagePromptTemplate: "ai",
    SystemMessagePromptTemplate: "system",
}
_SELECTED: Final = Opaque("examples are selected at every call")
_UNREADABLE: Final = Opaque("examples that only a call can format")


@dataclass(frozen=True, slots=True)
class Messages:
    """Messages that a variable brings, perhaps none."""

    variable: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    Args:
        role: LangChain's type of it: "human", "ai", "system", or the role of a ``ChatMessage``.
        parts: its text.
        message: the message itself, where all of it is constant.
    """

    role: str
    parts: tuple[Segment, ...]
    message: BaseMessage | None = None


@dataclass(frozen=True, slots=True)
class PromptSegments:
    """A prompt.

    Args:
        turns: its messages in order. A string prompt is one human message; behind an ``Opaque`` anything may stand.
        is_chat: messages; otherwise one string.
        variables: that the template insists on.
    """

    turns: tuple[Turn | Messages | Opaque, ...]
    is_chat: bool
    variables: tuple[str, ...] = ()


def segments_of(prompt: Any) -> PromptSegments:
    """The segments of a prompt template; all of it is opaque if its kind is unknown."""
    variables = tuple(getattr(prompt, "input_variables", ()))
    text = _text_of(prompt, {})
    if text is not None:
        return PromptSegments((Turn("human", text),), False, variables)
    return PromptSegments(_turns_of(prompt, {}), True, variables)


# ---- strings ---------------------------------------------------------------------------------------------------------
def _text_of(prompt: Any, partials: Mapping[str, Any]) -> tuple[Segment, ...] | None:
    """The text of a string template; None if it is no string template that is known.

    Args:
        prompt: the template.
        partials: values from the templates around it, which come before its own.
    """
    kind = type(prompt)
    if kind is PromptTemplate:
        return template_segments(prompt.template, prompt.template_format, {**prompt.partial_variables, **partials})
    if kind is FewShotPromptTemplate:
        return _few_shot(prompt, {**prompt.partial_variables, **partials})
    if kind is FewShotPromptWithTemplates:
        return _few_shot_with_templates(prompt, {**prompt.partial_variables, **partials})
    return None


def _few_shot(prompt: FewShotPromptTemplate, partials: Mapping[str, Any]) -> tuple[Segment, ...]:
    """LangChain makes one template of prefix, examples and suffix, and formats that: examples are templates as well."""
    if prompt.examples is None:
        return (*template_segments(prompt.prefix, prompt.template_format, partials), _SELECTED)
    examples = _example_texts(prompt)
    if examples is None:
        return (_UNREADABLE,)
    pieces = [prompt.prefix, *examples, prompt.suffix]
    template = prompt.example_separator.join(piece for piece in pieces if piece)
    return template_segments(template, prompt.template_format, partials)


def _few_shot_with_templates(prompt: FewShotPromptWithTemplates, partials: Mapping[str, Any]) -> tuple[Segment, ...]:
    """LangChain formats the pieces, and then what they make once more: only text without a brace comes through as it is."""
    prefix = () if prompt.prefix is None else _text_of(prompt.prefix, partials)
    suffix = _text_of(prompt.suffix, partials)
    if prefix is None or suffix is None:
        return (_UNREADABLE,)
    if prompt.examples is None:
        return (*_plain(prefix), _SELECTED)
    examples = _example_texts(prompt)
    if examples is None:
        return (*_plain(prefix), _UNREADABLE)
    segments: list[Segment] = []
    for piece in (prefix, *((Const(text),) for text in examples), suffix):
        if not any(isinstance(part, Const) and part.text for part in piece):
            if piece:  # an empty piece gets no separator, and whether this one is empty depends on the call
                segments.append(Opaque("a piece of the prompt that may be empty"))
            continue
        segments += (Const(prompt.example_separator), *piece) if segments else piece
    return _plain(joined(segments))


def _plain(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """As they are up to the first constant with a brace in it."""
    for index, segment in enumerate(segments):
        if isinstance(segment, Const) and ("{" in segment.text or "}" in segment.text):
            return (*segments[:index], Opaque("text with braces that is formatted twice"))
    return segments


def _example_texts(prompt: FewShotPromptTemplate | FewShotPromptWithTemplates) -> list[str] | None:
    """Constant examples as text, by LangChain's own formatting; None if that would run foreign code or fails."""
    if type(prompt.example_prompt) is not PromptTemplate or _has_computed(prompt.example_prompt.partial_variables):
        return None
    names = prompt.example_prompt.input_variables
    try:
        return [prompt.example_prompt.format(**{name: example[name] for name in names}) for example in prompt.examples or ()]
    except Exception:  # whatever it is, the call will raise it, too
        return None


# ---- messages --------------------------------------------------------------------------------------------------------
def _turns_of(prompt: Any, partials: Mapping[str, Any]) -> tuple[Turn | Messages | Opaque, ...]:
    kind = type(prompt)
    if kind is FewShotChatMessagePromptTemplate:
        return _example_turns(prompt)
    if kind not in (ChatPromptTemplate, StructuredPrompt):
        return (Opaque(f"{kind.__name__} is no template that is known here"),)
    values = {**prompt.partial_variables, **partials}
    turns: list[Turn | Messages | Opaque] = []
    for item in prompt.messages:
        turns += _item_turns(item, values)
    return tuple(turns)


def _item_turns(item: Any, partials: Mapping[str, Any]) -> tuple[Turn | Messages | Opaque, ...]:
    kind = type(item)
    if isinstance(item, BaseMessage):
        return (_constant(item),)
    if kind is MessagesPlaceholder:
        return _placeholder(item, partials)
    if kind is ChatMessagePromptTemplate:
        return (Turn(item.role, _message_text(item.prompt, partials)),)
    if kind in _ROLES:
        return (Turn(_ROLES[kind], _message_text(item.prompt, partials)),)
    return _turns_of(item, partials)


def _message_text(prompt: Any, partials: Mapping[str, Any]) -> tuple[Segment, ...]:
    if not isinstance(prompt, list):
        text = _text_of(prompt, partials)
        return (_unknown(prompt),) if text is None else text
    segments: list[Segment] = []
    for block in prompt:
        # A list's templates get their own variables only, partial ones of the templates around included.
        inner = {name: value for name, value in partials.items() if name in getattr(block, "input_variables", ())}
        text = _text_of(block, inner)
        segments += (_unknown(block),) if text is None else text
    return joined(segments)


def _placeholder(item: MessagesPlaceholder, partials: Mapping[str, Any]) -> tuple[Turn | Messages | Opaque, ...]:
    name = item.variable_name
    value = partials.get(name)
    if callable(value):
        return (Opaque(f"{{{name}}} is computed at every call"),)
    if not isinstance(value, list) or not value:  # LangChain gives every optional placeholder the partial value []
        return (Messages(name),)
    try:
        messages = convert_to_messages(value)
    except Exception:  # the call raises it, too
        return (Opaque(f"{{{name}}} holds something that is no message"),)
    return tuple(_constant(message) for message in (messages[-item.n_messages :] if item.n_messages else messages))


def _example_turns(prompt: FewShotChatMessagePromptTemplate) -> tuple[Turn | Messages | Opaque, ...]:
    if prompt.examples is None:
        return (_SELECTED,)
    shots = prompt.example_prompt
    if any(not isinstance(turn, Turn) or _is_opaque(turn) for turn in _item_turns(shots, {})):
        return (_UNREADABLE,)
    try:
        formatted = [shots.format_messages(**{name: e[name] for name in shots.input_variables}) for e in prompt.examples]
    except Exception:  # the call raises it, too
        return (_UNREADABLE,)
    return tuple(_constant(message) for messages in formatted for message in messages)


def _constant(message: BaseMessage) -> Turn:
    role = message.role if isinstance(message, ChatMessage) else message.type
    return Turn(role, (Const(str(message.text)),), message)


def _is_opaque(turn: Turn) -> bool:
    return any(isinstance(part, Opaque) for part in turn.parts)


def _has_computed(partials: Mapping[str, Any]) -> bool:
    return any(callable(value) for value in partials.values())


def _unknown(prompt: Any) -> Opaque:
    return Opaque(f"{type(prompt).__name__} is no text template that is known here")
