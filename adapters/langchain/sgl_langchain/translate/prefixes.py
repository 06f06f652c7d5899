"""The constant beginning of a model's prompt, in token ids. Called by plans that warm, lock or explain.

It is found by probing: the holes of a template are filled with texts that have nothing in common, the model makes its own ids
of each, and what all of them begin with is constant, whatever a chat template trims, adds or leaves out. The end is then cut to
where no further text could change the ids. No code of a user's runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import get_buffer_string

from sgl_core.backend import TextCodec
from sgl_core.errors import SglError
from sgl_langchain.chat import ChatSgl
from sgl_langchain.translate import nodes
from sgl_langchain.translate.engines import call_options, engine_of
from sgl_langchain.translate.prompts import Messages, Opaque, PromptSegments, Turn
from sgl_langchain.translate.templates import Const

__all__ = ["common_prefix", "constant_prefix"]

_HOLES: Final = ("\ue000", " \uf8ff\n", "")  # one with white space at its edges, which templates trim, and none at all
_HISTORIES: Final[tuple[Callable[[str], list[BaseMessage]], ...]] = (
    lambda _: [],
    lambda text: [HumanMessage(text)],
    lambda text: [AIMessage(text), HumanMessage(text)],
    lambda text: [SystemMessage(text), HumanMessage(text)],
)
_CLASSES: Final[dict[str, type[BaseMessage]]] = {"human": HumanMessage, "ai": AIMessage, "system": SystemMessage}


def constant_prefix(model: nodes.Model, prompt: PromptSegments | None) -> tuple[int, ...]:
    """The ids that every prompt of this model begins with, if its input comes from this template.

    Args:
        model: the model's node.
        prompt: the template; None if the prompt comes from elsewhere, and only what stands before any prompt is constant.
    """
    codec = engine_of(model).codec
    if codec is None:
        return ()
    if prompt is None and not model.is_chat:
        return codec.begin()
    turns: Sequence[Turn | Messages | Opaque] = (Messages("prompt"),) if prompt is None else prompt.turns
    is_chat = prompt is None or prompt.is_chat
    probes = _probes(model, turns, is_chat)
    if not probes or (len(probes) == 1 and not _is_constant(turns)):
        return ()
    if _is_constant(turns):
        return probes[0]
    return _cut(codec, probes)


def common_prefix(many: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all of them begin with."""
    return tuple(many[0][: _common_len(many)]) if many else ()


def _common_len(many: Sequence[Sequence[object]]) -> int:
    shortest = min(map(len, many))
    return next((i for i in range(shortest) if any(one[i] != many[0][i] for one in many)), shortest)


def _probes(model: nodes.Model, turns: Sequence[Turn | Messages | Opaque], is_chat: bool) -> list[tuple[int, ...]]:
    """The ids of the prompt for all fillings; those that the model refuses are left out, as it will refuse the real ones."""
    found: list[tuple[int, ...]] = []
    histories = _HISTORIES[:1] if all(isinstance(turn, Turn) for turn in turns) else _HISTORIES
    for hole in _HOLES:
        for history in histories:
            messages = _filled(turns, hole, history)
            if messages:
                try:
                    found.append(_ids(model, messages, is_chat))
                except (SglError, ValueError):
                    continue
    return list(dict.fromkeys(found))


def _filled(
    turns: Sequence[Turn | Messages | Opaque], hole: str, history: Callable[[str], list[BaseMessage]]
) -> list[BaseMessage]:
    """The messages of a template, as far as it is known."""
    messages: list[BaseMessage] = []
    for turn in turns:
        if isinstance(turn, Turn):
            messages.append(turn.message or _message(turn, hole))
        else:
            messages += history(hole)
    return messages


def _message(turn: Turn, hole: str) -> BaseMessage:
    text = "".join(part.text if isinstance(part, Const) else hole for part in turn.parts)
    kind = _CLASSES.get(turn.role)
    return ChatMessage(content=text, role=turn.role) if kind is None else kind(content=text)


def _ids(model: nodes.Model, messages: list[BaseMessage], is_chat: bool) -> tuple[int, ...]:
    if isinstance(model.runnable, ChatSgl):
        return model.runnable._prepare(messages, model.options.get("stop"), call_options(model)).prompt.ids
    text = get_buffer_string(messages) if is_chat else str(messages[0].text)
    codec = engine_of(model).codec
    return () if codec is None else codec.begin() + codec.encode(text)


def _is_constant(turns: Sequence[Turn | Messages | Opaque]) -> bool:
    return all(isinstance(turn, Turn) and all(isinstance(part, Const) for part in turn.parts) for turn in turns)


def _cut(codec: TextCodec, probes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Common ids up to the last control id, and behind it those that no continuation of the common text can change."""
    common = common_prefix(probes)
    start = max((i + 1 for i, token in enumerate(common) if not codec.decode((token,))), default=0)
    texts = [_text_from(codec, ids, start) for ids in probes]
    text = texts[0][: _common_len(texts)]
    ids = codec.encode(text)[: codec.stable_len(text)] if text else ()
    candidate = (*common[:start], *ids)
    return candidate if common[: len(candidate)] == candidate else tuple(common[:start])


def _text_from(codec: TextCodec, ids: tuple[int, ...], start: int) -> str:
    end = next((i for i in range(start, len(ids)) if not codec.decode((ids[i],))), len(ids))
    return codec.decode(ids[start:end])
