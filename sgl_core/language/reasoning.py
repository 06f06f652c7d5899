"""Reasoning apart from the answer: what models write between markers before they answer.

``separate_reasoning`` marks a gen with the kind of model. When its output is there, the stream splits it here, defines the
answer and ``name_reasoning_content``, and goes on from the answer as if the model had written nothing else: that is how the
makers of these models want a conversation to be continued.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.healing import GenPrompt, continued
from sgl_core.language.position import Position
from sgl_core.types import GenResult

if TYPE_CHECKING:
    from sgl_core.backend import TextCodec

__all__ = [
    "MODEL_TYPES",
    "Markers",
    "ReasoningFormat",
    "check_model_type",
    "continued_answer",
    "reasoning_name",
    "split_reasoning",
]

_LINE_ENDS: Final = "\r\n"
_IDS_LOOKED_AT: Final = 12
"""A half character can make decoded text longer by less than three characters, of at most four bytes and so ids each."""


@dataclass(frozen=True, slots=True)
class Markers:
    """One spelling of what stands around the reasoning.

    Args:
        start: before the reasoning. ``end``: between reasoning and answer.
        answer: before an answer without reasoning; empty where nothing stands there.
    """

    start: str
    end: str
    answer: str = ""


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a kind of model sets its reasoning apart.

    Args:
        spellings: of the markers; the first that the output has counts.
        begins_inside: the prompt has opened the reasoning, or the model leaves the start marker out: an output without any
            marker is reasoning that was cut short.
    """

    spellings: tuple[Markers, ...]
    begins_inside: bool = False


_THINK: Final = (Markers("<think>", "</think>"),)
_CHANNELS: Final = (
    Markers(
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
    ),
    Markers("analysis", "assistantfinal", "final"),  # all that stays of them where control tokens are left out of the text
)

MODEL_TYPES: Final[Mapping[str, ReasoningFormat]] = MappingProxyType(
    {
        "deepseek-r1": ReasoningFormat(_THINK, begins_inside=True),
        "deepseek-v3": ReasoningFormat(_THINK),
        "glm45": ReasoningFormat(_THINK),
        "gpt-oss": ReasoningFormat(_CHANNELS),
        "kimi": ReasoningFormat((Markers("\u25c1think\u25b7", "\u25c1/think\u25b7"),)),
        "kimi_k2": ReasoningFormat(_THINK),
        "minimax": ReasoningFormat(_THINK, begins_inside=True),
        "nano_v3": ReasoningFormat(_THINK, begins_inside=True),
        "qwen3": ReasoningFormat(_THINK),
        "qwen3-thinking": ReasoningFormat(_THINK, begins_inside=True),
        "step3": ReasoningFormat(_THINK, begins_inside=True),
    }
)
"""By the kind of model, named as SGLang names it."""


def check_model_type(model_type: object) -> None:
    """Refuse what is no kind of model.

    Raises:
        InvalidArgumentError: it is not in ``MODEL_TYPES``.
    """
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise InvalidArgumentError("model_type", model_type, f"one of {', '.join(MODEL_TYPES)}")


def reasoning_name(name: str) -> str:
    """The variable that gets the reasoning of the gen ``name``."""
    return f"{name}_reasoning_content"


def split_reasoning(text: str, model_type: str) -> tuple[str, str]:
    """The reasoning and the answer in the output of a model.

    - A start marker counts at the beginning only, white space aside; repeated ones count as one.
    - The first end marker ends the reasoning, with a start marker or without (the prompt had opened it then). Later ones
      are part of the answer. One that is a mere word counts only behind its start marker.
    - Begun and not ended, everything is reasoning that was cut short, and the answer is empty.
    - Without any marker everything is the answer, or where ``begins_inside`` says so the reasoning, and stays as it is.
    - Line ends next to a marker belong to the marker.

    Args:
        text: the whole output.
        model_type: a key of ``MODEL_TYPES``.

    Raises:
        InvalidArgumentError: an unknown kind of model.
    """
    check_model_type(model_type)
    model_format = MODEL_TYPES[model_type]
    for markers in model_format.spellings:
        inside, is_begun = _behind_start(text, markers.start)
        reasoning, has_ended, answer = inside.partition(markers.end)
        if has_ended and (is_begun or not markers.end.isalpha()):
            return reasoning.strip(_LINE_ENDS) if is_begun else reasoning.rstrip(_LINE_ENDS), answer.lstrip(_LINE_ENDS)
        if is_begun:
            return inside.lstrip(_LINE_ENDS), ""
        if markers.answer and text.startswith(markers.answer):
            return "", text[len(markers.answer) :].lstrip(_LINE_ENDS)
    return (text, "") if model_format.begins_inside else ("", text)


def continued_answer(position: Position, codec: TextCodec, prompt: GenPrompt, result: GenResult, answer: str) -> Position:
    """Where a stream stands after ``result``, of which only ``answer`` is to stay: the prompt as written, then the answer.

    The answer keeps the ids that were generated for it where some of the last ones spell it exactly. Otherwise (the answer
    begins inside a token, or a stop string cut its end off) it is text behind the prompt, to be encoded once with whatever
    follows.

    Args:
        position: before the gen.
        prompt: what the request continued.
        answer: the end of ``result.text``, or all of it.
    """
    if answer == result.text:
        return continued(position, codec, prompt, result)
    ids = position.settled(codec).ids if prompt.heal else prompt.ids  # the output that spelled what was healed is gone
    behind = result.text_behind_ids
    if answer and answer.endswith(behind):
        spelled = _last_ids_of(answer.removesuffix(behind), result.token_ids, codec)
        if spelled is not None:
            return position.add_generated(ids, spelled, answer, behind)
    return position.add_generated(ids, (), answer, answer)


def _behind_start(text: str, start: str) -> tuple[str, bool]:
    """The text behind its start markers, and whether there are any."""
    inside, is_begun = text, False
    while inside.lstrip().startswith(start):
        inside, is_begun = inside.lstrip().removeprefix(start), True
    return inside, is_begun


def _last_ids_of(text: str, ids: tuple[int, ...], codec: TextCodec) -> tuple[int, ...] | None:
    """The fewest of the last ids that spell ``text`` and nothing else, or None.

    Decoding every end of a long output would take a second; the longer the end, the longer its text, so it is searched by
    halves, and what lies around the place is looked at one by one.
    """
    if not text:
        return ()
    low, high = 0, len(ids)  # ids[low:] is long enough, ids[high:] is not
    while high - low > 1:
        middle = (low + high) // 2
        if len(codec.decode(ids[middle:])) >= len(text):
            low = middle
        else:
            high = middle
    for start in range(low, max(-1, low - _IDS_LOOKED_AT), -1):
        if codec.decode(ids[start:]) == text:
            return ids[start:]
    return None
