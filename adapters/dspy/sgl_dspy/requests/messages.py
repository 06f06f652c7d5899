"""Messages of a ``dspy.lm15.Request`` as a conversation of ours, tools and their results included. Pure; ``calls`` calls it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dspy import lm15

from sgl_core.backend import TextCodec
from sgl_core.chat.conversation import Message, render
from sgl_core.chat.replies import reply_key
from sgl_core.chat.tools import ToolForm, ToolResult, ToolSet, render_call, render_results
from sgl_dspy.requests.failures import unsupported

__all__ = ["Conversation", "common_prefix", "conversation", "key_of"]

_ROLES: Final = {"developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a prompt says.

    Args:
        messages: in order; several results of tools in a row are one.
        ends: for each message of the request, how many of these it takes to say everything up to its end.
        follows_result: the last one is what a tool gave.
    """

    messages: tuple[Message, ...]
    ends: tuple[int, ...]
    follows_result: bool

    def beginning(self, count: int, codec: TextCodec) -> tuple[int, ...]:
        """The ids that every prompt begins with whose first ``count`` messages are these.

        Raises:
            TemplateError: the model's template refuses them.
        """
        told = self.messages[:count]
        if told and told[-1].role == "user":  # an answer follows, and a prompt is made for that
            return render(codec, told).start_ids
        one, other = (render(codec, (*told, Message("user", text))).start_ids for text in ("a", "b"))
        return common_prefix(one, other)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """The ids that both begin with."""
    size = next((index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return tuple(one[: min(len(one), len(other)) if size is None else size])


def conversation(request: lm15.Request, offered: ToolSet | None = None, form: ToolForm = "hermes") -> Conversation:
    """The conversation of a request, with the tools described in its system message; developer messages are system turns.

    Args:
        request: DSPy's.
        offered: tools that the model is told of.
        form: how results of tools are written.

    Raises:
        dspy.lm15.UnsupportedFeatureError: a part that is no text.
        InvalidArgumentError: JSON cannot hold the arguments of a call.
    """
    told = list(_system(request, offered))
    ends: list[int] = []
    results: list[ToolResult] = []
    names: dict[str, str] = {}
    for index, message in enumerate(request.messages):
        where = f"messages[{index}]"
        if message.role == "tool":
            results += (_result(f"{where}.parts[{at}]", part, names) for at, part in enumerate(message.parts))
            ends.append(len(told) + 1)
            continue
        if results:
            told.append(Message("user", render_results(results, form)))
            results = []
        told.append(_told(where, message, names))
        ends.append(len(told))
    if results:
        told.append(Message("user", render_results(results, form)))
    return Conversation(tuple(told), tuple(ends), follows_result=bool(results))


def key_of(text: str, calls: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """What a reply is remembered under. White space around it is none of it: DSPy renders a history in its own."""
    return reply_key(text.strip(), calls)


def _system(request: lm15.Request, offered: ToolSet | None) -> Iterator[Message]:
    given = request.system
    text = given if isinstance(given, str) else None if given is None else _text("system", given)
    about = None if offered is None else offered.system_text()
    parts = [part for part in (text, about) if part]
    if parts or text is not None:
        yield Message("system", "\n\n".join(parts))


def _told(where: str, message: lm15.Message, names: dict[str, str]) -> Message:
    if message.role != "assistant":
        return Message(_ROLES[message.role], _text(where, message.parts))
    calls = [part for part in message.parts if isinstance(part, lm15.ToolCallPart)]
    names |= {call.id: call.name for call in calls}
    text = "".join(
        _part_text(f"{where}.parts[{at}]", part)
        for at, part in enumerate(message.parts)
        if not isinstance(part, lm15.ToolCallPart)
    )
    written = [text] if text else []
    written += (render_call(call.name, call.input) for call in calls)
    return Message("assistant", "\n".join(written), key_of(text, [(call.name, call.input) for call in calls]))


def _result(where: str, part: Any, names: Mapping[str, str]) -> ToolResult:
    return ToolResult(_text(where, part.content, "content"), part.name or names.get(part.id), is_error=part.is_error)


def _text(where: str, parts: Sequence[Any], name: str = "parts") -> str:
    return "".join(_part_text(f"{where}.{name}[{index}]", part) for index, part in enumerate(parts))


def _part_text(where: str, part: Any) -> str:
    if isinstance(part, lm15.TextPart):
        return str(part.text)
    if isinstance(part, lm15.DataPart):
        return json.dumps(part.value, ensure_ascii=False)
    raise unsupported(where, f"a part of type {part.type!r}")
