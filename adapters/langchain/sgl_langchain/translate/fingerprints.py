"""The state of prompt templates, cheap enough to look at before every call: LangChain's templates may be changed in place.

Strings are kept, not copied, so comparing two fingerprints of an unchanged template is a matter of identities.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from langchain_core.messages import BaseMessage
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

__all__ = ["Fingerprint", "fingerprint_of"]

Fingerprint = tuple[Any, ...]
"""Equal for equal states of the same templates."""


def fingerprint_of(prompts: Iterable[Any]) -> Fingerprint:
    """The state of some templates."""
    return tuple(map(_state, prompts))


def _state(template: Any) -> Any:
    kind: type = type(template)
    return _reader(kind)(template)


@functools.cache
def _reader(kind: type) -> Callable[[Any], Any]:
    """What reads templates of a class; by class, as asking whether an object is one of LangChain's kinds is slow."""
    return next((reader for base, reader in _READERS if issubclass(kind, base)), id)


def _string(template: Any) -> Any:
    return (template.template, template.template_format, _values(template.partial_variables))


def _message(message: Any) -> Any:
    return message.content if isinstance(message.content, str) else repr(message.content)


def _placeholder(template: Any) -> Any:
    return (template.variable_name, template.n_messages)


def _few_shot(template: Any) -> Any:
    frame = (_state(template.prefix), template.example_separator, _state(template.suffix))
    return (*frame, _values(template.partial_variables), *_shots(template))


def _chat(template: Any) -> Any:
    return (_values(template.partial_variables), *map(_state, template.messages))


def _of_message(template: Any) -> Any:
    inner = template.prompt  # a string's template, or a list of them
    return tuple(map(_state, inner)) if isinstance(inner, list) else _state(inner)


def _of_role(template: Any) -> Any:
    return (template.role, _state(template.prompt))


def _shots(template: Any) -> Any:
    examples = template.examples
    shown = id(template.example_selector) if examples is None else tuple(map(_values, examples))
    return (shown, _state(template.example_prompt))


_READERS: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str),
    (PromptTemplate, _string),
    (ChatMessagePromptTemplate, _of_role),
    (HumanMessagePromptTemplate, _of_message),
    (AIMessagePromptTemplate, _of_message),
    (SystemMessagePromptTemplate, _of_message),
    (BaseMessage, _message),
    (MessagesPlaceholder, _placeholder),
    (FewShotPromptTemplate, _few_shot),
    (FewShotPromptWithTemplates, _few_shot),
    (FewShotChatMessagePromptTemplate, _shots),
    (ChatPromptTemplate, _chat),
)


def _values(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Texts and numbers as they are, lists by their elements, everything else by identity."""
    if not values:
        return ()
    return tuple([(name, value if isinstance(value, str) else _value(value)) for name, value in values.items()])


def _value(value: Any) -> Any:
    if isinstance(value, int | float):
        return value
    return tuple(map(_state, value)) if isinstance(value, list) else id(value)
