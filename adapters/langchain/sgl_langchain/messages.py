"""LangChain's messages as a conversation of ours, and results as LangChain's messages. Pure; called by ``calls``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    InvalidToolCall,
    ToolCall,
    ToolCallChunk,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

from sgl_core.backend import TextCodec
from sgl_core.chat.conversation import Message
from sgl_core.chat.logprobs import openai_logprobs
from sgl_core.chat.replies import reply_key
from sgl_core.chat.tool_reading import ParsedReply, ReplyPiece
from sgl_core.chat.tools import CALL_CLOSING, CALL_OPENING, ToolForm, ToolResult, ToolSet, render_call, render_results
from sgl_core.errors import InvalidArgumentError
from sgl_core.types import FinishReason, GenResult, Usage

__all__ = [
    "conversation",
    "generation_info",
    "key_of",
    "token_usage",
    "tool_call_chunks",
    "tool_calls",
    "usage_metadata",
]

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "ai": "assistant",
    "assistant": "assistant",
}
_CALLS_AND_THOUGHTS: Final = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "thinking", "reasoning", "redacted_thinking"}
)
"""Blocks of an AI message that are said elsewhere (``tool_calls``) or to nobody."""


# ---- from LangChain --------------------------------------------------------------------------------------------------
def conversation(messages: Sequence[BaseMessage], tools: ToolSet | None = None, form: ToolForm = "hermes") -> list[Message]:
    """The conversation that these messages are, with the tools described in its system message.

    Results of tools come as a user's turn, several in a row as one.

    Args:
        messages: in order.
        tools: that may be called.
        form: how results of tools are written.

    Raises:
        InvalidArgumentError: there is no message, or one holds something that is no text.
    """
    if not messages:
        raise InvalidArgumentError("messages", "no messages", "at least one message")
    told = list(_told(messages, form))
    if tools is None:
        return told
    about = tools.system_text()
    if told[0].role == "system":
        return [Message("system", f"{told[0].text}\n\n{about}" if told[0].text else about), *told[1:]]
    return [Message("system", about), *told]


def _told(messages: Sequence[BaseMessage], form: ToolForm) -> Iterator[Message]:
    results: list[ToolResult] = []
    names: dict[str | None, str] = {}
    for message in messages:
        if isinstance(message, ToolMessage | FunctionMessage):
            results.append(_result(message, names))
            continue
        if results:
            yield Message("user", render_results(results, form))
            results = []
        if isinstance(message, AIMessage):
            names |= {call["id"]: call["name"] for call in message.tool_calls}
            yield _reply(message)
        else:
            yield Message(_role(message), _text(message))
    if results:
        yield Message("user", render_results(results, form))


def _reply(message: AIMessage) -> Message:
    text = _text(message)
    parts = [text] if text else []
    parts += (render_call(call["name"], call["args"]) for call in message.tool_calls)
    parts += map(_as_written, message.invalid_tool_calls)
    return Message("assistant", "\n".join(parts), key_of(text, message.tool_calls, message.invalid_tool_calls))


def _as_written(call: InvalidToolCall) -> str:
    """What was meant to be a call, as the model wrote it; a call from elsewhere may lack the marks."""
    written = call["args"] or ""
    return f"{written if written.startswith(CALL_OPENING.rstrip()) else CALL_OPENING + written}{CALL_CLOSING}"


def key_of(text: str, calls: Iterable[ToolCall], invalid: Iterable[InvalidToolCall]) -> str:
    """What a reply is remembered under."""
    broken = (("", {"args": call["args"]}) for call in invalid)
    return reply_key(text, [*((call["name"], call["args"]) for call in calls), *broken])


def _result(message: ToolMessage | FunctionMessage, names: Mapping[str | None, str]) -> ToolResult:
    if isinstance(message, FunctionMessage):
        return ToolResult(_text(message), message.name)
    name = message.name or names.get(message.tool_call_id)
    return ToolResult(_text(message), name, is_error=message.status == "error")


def _role(message: BaseMessage) -> str:
    given = message.role if isinstance(message, ChatMessage) else message.type.removesuffix("MessageChunk").lower()
    role = _ROLES.get(given)
    if role is None:
        raise InvalidArgumentError("messages", f"a message of role {given!r}", f"one of {', '.join(_ROLES)}, or a ToolMessage")
    return role


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(_block_text(block, message) for block in message.content)


def _block_text(block: str | dict[str, Any], message: BaseMessage) -> str:
    if isinstance(block, str):
        return block
    kind, text = block.get("type"), block.get("text")
    if kind in ("text", "text-plain") and isinstance(text, str):
        return text
    if isinstance(message, AIMessage) and kind in _CALLS_AND_THOUGHTS:
        return ""
    if isinstance(message, ToolMessage) and kind is None:
        return json.dumps(block, ensure_ascii=False, default=str)
    given = f"a content block of type {kind!r}"
    raise InvalidArgumentError("messages", given, 'text blocks, {"type": "text", "text": ...}', "Text is all the model reads.")


# ---- to LangChain ----------------------------------------------------------------------------------------------------
def tool_calls(reply: ParsedReply) -> dict[str, list[Any]]:
    """``tool_calls`` and ``invalid_tool_calls`` of the message that says this."""
    calls = [ToolCall(name=call.name, args=call.arguments, id=call.id, type="tool_call") for call in reply.calls]
    invalid = [
        InvalidToolCall(name=call.name, args=call.arguments, id=call.id, error=call.error, type="invalid_tool_call")
        for call in reply.invalid
    ]
    return {"tool_calls": calls, "invalid_tool_calls": invalid}


def tool_call_chunks(piece: ReplyPiece) -> list[ToolCallChunk]:
    """Pieces of calls as LangChain's chunks. What is no call has no index: LangChain will find that its text cannot be read."""
    calls = [
        ToolCallChunk(name=call.name, args=call.arguments, id=call.id, index=call.index, type="tool_call_chunk")
        for call in piece.calls
    ]
    invalid = [
        ToolCallChunk(name=call.name, args=call.arguments, id=call.id, index=None, type="tool_call_chunk")
        for call in piece.invalid
    ]
    return calls + invalid


def generation_info(result: GenResult, codec: TextCodec, *, calls_tools: bool = False) -> dict[str, Any]:
    """Why it ended, on which stop string, with which seed it was sampled, where its budget closed it, and log-probabilities."""
    ended_itself = result.finish_reason in (FinishReason.STOP, FinishReason.GRAMMAR)
    info: dict[str, Any] = {"finish_reason": "tool_calls" if calls_tools and ended_itself else _finish_reason(result)}
    if isinstance(result.matched_stop, str):
        info["stop_reason"] = result.matched_stop
    if result.seed is not None:
        info["seed"] = result.seed
    if result.grammar_cut is not None:
        info["grammar_cut"] = {
            "num_tokens": result.grammar_cut.num_tokens,
            "first_index": result.grammar_cut.first_index,
        }
    if result.logprobs is not None:
        info["logprobs"] = {"content": openai_logprobs(result.logprobs, codec)}
    return info


def _finish_reason(result: GenResult) -> str:
    """The end of a grammar is a stop like any other; ``grammar_cut`` says where the budget brought it about."""
    return "stop" if result.finish_reason is FinishReason.GRAMMAR else result.finish_reason.value


def usage_metadata(usage: Usage) -> UsageMetadata:
    """Token counts in LangChain's shape; ``cache_read`` are prompt tokens that were not computed for this request."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def token_usage(requests: Iterable[Sequence[Usage]]) -> dict[str, int]:
    """The sum of some requests, as ``llm_output`` shows it.

    Args:
        requests: of each, the usage of its answers; their prompt is one, and is counted once.
    """
    each = list(requests)
    prompt = sum(usages[0].prompt_tokens for usages in each)
    completion = sum(usage.completion_tokens for usages in each for usage in usages)
    return {
        "prompt_tokens": prompt,
        "cached_tokens": sum(usages[0].cached_tokens for usages in each),
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
