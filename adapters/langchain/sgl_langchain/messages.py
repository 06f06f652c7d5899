"""LangChain's messages as token ids, and results as LangChain's messages. Pure; called by ``ChatSgl``.

A conversation is rendered through the codec's turns, as the language renders a program's, so both find each other's
prefixes in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, FunctionMessage, ToolMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

from sgl_core.backend import TextCodec
from sgl_core.errors import InvalidArgumentError, NotYetAvailableError, TemplateError
from sgl_core.types import GenResult, TurnState, Usage

__all__ = ["answer", "closing_chunk", "generation_info", "prompt_ids", "token_usage", "usage_metadata"]

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "ai": "assistant",
    "assistant": "assistant",
}
_NO_TOOLS: Final = "describe the tool and its result in an ordinary message"


def prompt_ids(codec: TextCodec, messages: Sequence[BaseMessage]) -> tuple[int, ...]:
    """The ids of a conversation, up to where the model's answer begins.

    A system message that the model's template refuses at its place is given as a user's.

    Raises:
        InvalidArgumentError: there is no message, or one holds something that is no text.
        NotYetAvailableError: a message calls a tool or answers a call.
        TemplateError: the model has no chat template, or it refuses this order of roles.
    """
    if not messages:
        raise InvalidArgumentError("messages", "no messages", "at least one message")
    pieces: list[int | str] = []
    turns = TurnState()
    for message in messages:
        role, opening = _opening(codec, _role(message), turns)
        turns = TurnState((*turns.roles, role), is_open=True)
        pieces += (*opening, _text(message), *codec.close_turn(role, turns))
        turns = TurnState(turns.roles)
    return _encoded(codec, [*pieces, *codec.open_turn("assistant", turns)])


def _opening(codec: TextCodec, role: str, turns: TurnState) -> tuple[str, tuple[int | str, ...]]:
    try:
        return role, codec.open_turn(role, turns)
    except TemplateError:
        if role != "system":
            raise
        return "user", codec.open_turn("user", turns)


def _encoded(codec: TextCodec, pieces: Iterable[int | str]) -> tuple[int, ...]:
    """All text between two control ids is encoded as one string."""
    ids: list[int] = []
    tail = ""
    for piece in pieces:
        if isinstance(piece, str):
            tail += piece
            continue
        ids += codec.encode(tail) if tail else ()
        ids.append(piece)
        tail = ""
    return (*ids, *codec.encode(tail)) if tail else tuple(ids)


def _role(message: BaseMessage) -> str:
    if isinstance(message, ToolMessage | FunctionMessage):
        raise NotYetAvailableError(f"messages: a {type(message).__name__} is not available yet; {_NO_TOOLS}")
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        raise NotYetAvailableError(f"messages: an AIMessage with tool calls is not available yet; {_NO_TOOLS}")
    given = message.role if isinstance(message, ChatMessage) else message.type.removesuffix("MessageChunk").lower()
    role = _ROLES.get(given)
    if role is None:
        raise InvalidArgumentError("messages", f"a message of role {given!r}", f"one of {', '.join(_ROLES)}")
    return role


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(_block_text(block) for block in message.content)


def _block_text(block: str | dict[str, Any]) -> str:
    if isinstance(block, str):
        return block
    text = block.get("text")
    if block.get("type") != "text" or not isinstance(text, str):
        given = f"a content block of type {block.get('type')!r}"
        raise InvalidArgumentError(
            "messages", given, 'text blocks, {"type": "text", "text": ...}', "Text is all the model reads."
        )
    return text


def answer(result: GenResult, model_name: str) -> AIMessage:
    """A finished generation as a message."""
    return AIMessage(
        content=result.text,
        usage_metadata=usage_metadata(result.usage),
        response_metadata={"model_name": model_name, **generation_info(result)},
    )


def closing_chunk(result: GenResult, model_name: str) -> AIMessageChunk:
    """The last chunk of a stream, the only one with usage and metadata: chunks are added up, strings included."""
    return AIMessageChunk(
        content="",
        usage_metadata=usage_metadata(result.usage),
        response_metadata={"model_name": model_name, **generation_info(result)},
        chunk_position="last",
    )


def generation_info(result: GenResult) -> dict[str, Any]:
    """Why it ended, on which stop string, and with which seed it was sampled."""
    info: dict[str, Any] = {"finish_reason": result.finish_reason.value}
    if isinstance(result.matched_stop, str):
        info["stop_reason"] = result.matched_stop
    if result.seed is not None:
        info["seed"] = result.seed
    return info


def usage_metadata(usage: Usage) -> UsageMetadata:
    """Token counts in LangChain's shape; ``cache_read`` are prompt tokens that were not computed for this request."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def token_usage(usages: Iterable[Usage]) -> dict[str, int]:
    """The sum of some requests, as ``llm_output`` shows it."""
    each = list(usages)
    prompt, completion = sum(u.prompt_tokens for u in each), sum(u.completion_tokens for u in each)
    return {
        "prompt_tokens": prompt,
        "cached_tokens": sum(u.cached_tokens for u in each),
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
