"""Constant text of prompts moved before what changes, so that more of it is shared: ``compile_runnable(..., reorder=True)``.

It changes what the model reads, and so its answers: nobody calls this but for somebody who asked, and the diff says what was
done. Two moves are made and no others: within a message that consists of labelled blocks (paragraphs that begin with a line
``Label:``), constant blocks go before those with variables; and constant system messages go before everything that is none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from string import Formatter
from typing import Any, Final, cast

from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.prompts import (
    AIMessagePromptTemplate,
    ChatPromptTemplate,
    HumanMessagePromptTemplate,
    PromptTemplate,
    SystemMessagePromptTemplate,
)
from langchain_core.runnables import Runnable

from sgl_langchain.rewriting import rewritten

__all__ = ["reordered"]

_BLOCK_END: Final = "\n\n"
_LABEL: Final = re.compile(r"[^\s{}:][^\n{}:]{0,60}:\n")
_MESSAGES: Final = (SystemMessagePromptTemplate, HumanMessagePromptTemplate, AIMessagePromptTemplate)


def reordered(runnable: Runnable[Any, Any]) -> tuple[Runnable[Any, Any], str]:
    """A runnable with the prompts in it put into a better order.

    Returns:
        A copy of what holds a changed prompt, everything else shared with the original, and a unified diff of all changes; the
        runnable itself and an empty diff where there is nothing to move.
    """
    diffs: list[str] = []

    def replace(part: Runnable[Any, Any]) -> Runnable[Any, Any]:
        if type(part) not in (ChatPromptTemplate, PromptTemplate):
            return part
        prompt = cast("ChatPromptTemplate | PromptTemplate", part)
        new = _string(prompt) if isinstance(prompt, PromptTemplate) else _chat(prompt)
        if new is not prompt:
            before, after = _lines(prompt), _lines(new)
            diffs.extend(difflib.unified_diff(before, after, "prompt as written", "prompt reordered", n=len(before)))
        return new

    return rewritten(runnable, replace), "".join(diffs)


# ---- the two moves ---------------------------------------------------------------------------------------------------
def _string(prompt: PromptTemplate) -> PromptTemplate:
    """Constant blocks first, each kind in its order; the same object if one part is no block, or nothing would move."""
    if type(prompt) is not PromptTemplate or prompt.template_format != "f-string":
        return prompt
    blocks = prompt.template.split(_BLOCK_END)
    if not all(map(_LABEL.match, blocks)):
        return prompt
    better = sorted(blocks, key=_has_fields)
    return prompt if better == blocks else prompt.model_copy(update={"template": _BLOCK_END.join(better)})


def _chat(prompt: ChatPromptTemplate) -> ChatPromptTemplate:
    old: list[Any] = list(prompt.messages)
    new = list(map(_message, old))
    if _has_late_system(new):
        new.sort(key=lambda message: not _is_constant_system(message))
    if all(a is b for a, b in zip(new, old, strict=True)):
        return prompt
    return prompt.model_copy(update={"messages": new})


def _has_late_system(messages: Sequence[Any]) -> bool:
    """Whether a constant system message stands behind something that changes."""
    changing = next((i for i, message in enumerate(messages) if not _is_constant(message)), len(messages))
    return any(map(_is_constant_system, messages[changing:]))


def _message(message: Any) -> Any:
    if type(message) not in _MESSAGES or not isinstance(message.prompt, PromptTemplate):
        return message
    inner = _string(message.prompt)
    return message if inner is message.prompt else message.model_copy(update={"prompt": inner})


def _is_constant_system(message: Any) -> bool:
    return isinstance(message, SystemMessage | SystemMessagePromptTemplate) and _is_constant(message)


def _is_constant(message: Any) -> bool:
    if isinstance(message, BaseMessage):
        return True
    if type(message) not in _MESSAGES or type(message.prompt) is not PromptTemplate:
        return False
    return message.prompt.template_format == "f-string" and not _has_fields(message.prompt.template)


def _has_fields(template: str) -> bool:
    return any(field is not None for _, field, _, _ in Formatter().parse(template))


# ---- for people ------------------------------------------------------------------------------------------------------
def _lines(prompt: ChatPromptTemplate | PromptTemplate) -> Sequence[str]:
    if isinstance(prompt, PromptTemplate):
        return _text_lines(prompt.template)
    lines: list[str] = []
    for message in prompt.messages:
        lines += [f"[{type(message).__name__}]\n", *_text_lines(_template_of(message))]
    return lines


def _text_lines(text: str) -> Sequence[str]:
    return [f"{line}\n" for line in text.splitlines()]


def _template_of(message: Any) -> str:
    inner = getattr(message, "prompt", message)
    text: Any = getattr(inner, "template", None) or getattr(inner, "content", None) or getattr(inner, "variable_name", "")
    return text if isinstance(text, str) else _joined(text)


def _joined(blocks: Iterable[Any]) -> str:
    return "\n".join(map(str, blocks))
