"""Parsers of structured answers: LangChain's own, and they say why an answer is not what was asked for.

``with_structured_output`` puts them behind the model. A constrained answer is always whole; one that a stop string or an abort
cut off is not, and neither is a free answer of a model that did not call its tool.
"""

from __future__ import annotations

import json
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, JsonOutputToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from typing_extensions import override

__all__ = ["JsonCallParser", "JsonReplyParser", "PydanticCallParser", "PydanticReplyParser"]


class JsonReplyParser(JsonOutputParser):
    """The JSON value that an answer is; None for an answer that calls tools instead."""

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse an answer.

        LangChain's parser completes what was cut off, which is right while an answer comes and wrong when it has ended.

        Raises:
            OutputParserException: it is no whole JSON value of the kind that was asked for; says why.
        """
        message = _message(result)
        if message is not None:
            if message.tool_calls:
                return None
            cut = _cut(message)
            if cut is not None and not _is_json(result[0].text):
                raise OutputParserException(f"The answer is not whole. {cut}", llm_output=result[0].text)
        return super().parse_result(result, partial=partial)


class PydanticReplyParser(JsonReplyParser, PydanticOutputParser[Any]):
    """Likewise, as an object of a Pydantic class."""


class _CallParser(JsonOutputToolsParser):
    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse an answer.

        Raises:
            OutputParserException: it does not call the tool, or does not call it properly; says why.
        """
        parsed = super().parse_result(result, partial=partial)
        message = _message(result)
        if message is None or (partial and not _has_ended(message)):
            return parsed
        if parsed is None or _is_torn(message):
            raise OutputParserException(
                f"The answer has no call that can be used: {_uncalled(message)}", llm_output=message.text
            )
        return parsed


class JsonCallParser(_CallParser, JsonOutputKeyToolsParser):
    """The arguments of the first call of one tool."""


class PydanticCallParser(_CallParser, PydanticToolsParser):
    """Likewise, as an object of a Pydantic class."""


def _message(result: list[Generation]) -> AIMessage | None:
    message = result[0].message if isinstance(result[0], ChatGeneration) else None
    return message if isinstance(message, AIMessage) else None


def _uncalled(message: AIMessage) -> str:
    if message.invalid_tool_calls:
        call = message.invalid_tool_calls[0]
        reason = f"the call of {call.get('name') or 'a tool'} cannot be read ({call.get('error') or 'it is no valid JSON'})."
    elif _is_torn(message):
        reason = f"the call of {message.tool_calls[0]['name']} cannot be read (it is cut off)."
    elif message.tool_calls:
        reason = f"it calls {', '.join(call['name'] for call in message.tool_calls)}."
    else:
        reason = "it is text."
    return f"{reason} {_cut(message) or ''}".rstrip()


def _has_ended(message: AIMessage) -> bool:
    """Whether all of a stream has come: its metadata come last."""
    return "finish_reason" in message.response_metadata


def _is_torn(message: AIMessage) -> bool:
    """Whether the first call of a stream that has ended has not: LangChain completes its arguments all the same."""
    if not isinstance(message, AIMessageChunk) or not message.tool_call_chunks or not message.tool_calls:
        return False
    return not _is_json(message.tool_call_chunks[0]["args"] or "")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _cut(message: AIMessage) -> str | None:
    """What ended an answer before its own end, and the cure; None where it ended by itself or has not ended yet."""
    metadata = message.response_metadata
    if metadata.get("finish_reason") == "length":
        return "It reached the limit of its tokens. Raise max_tokens."
    if metadata.get("finish_reason") == "abort":
        return "It was aborted."
    if metadata.get("stop_reason"):
        return "A stop string cut it. Leave stop out of calls that ask for structured output."
    return None
