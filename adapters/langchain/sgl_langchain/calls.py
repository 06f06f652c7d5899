"""One call of ``ChatSgl`` made ready: its prompt, its parameters, and how its results become LangChain's.

Whoever runs calls, the model itself or a program made of a chain, prepares them here, so every road asks the engine for the
same. With tools to choose from, a call is undecided first: how likely the model is to begin with a call is scored, and that
settles whether the answer is a call, held to the tools' schemas, or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from sgl_core.backend import Backend, TextCodec
from sgl_core.chat.conversation import Prompt
from sgl_core.chat.replies import Reply, memory_of
from sgl_core.chat.tool_reading import ParsedReply, ReplyPiece, ReplyReader, read_reply
from sgl_core.chat.tools import CALL_CLOSING, ToolSet
from sgl_core.errors import InvalidArgumentError
from sgl_core.types import GenRequest, GenResult, SamplingParams, ScoreRequest, ScoreResult, Usage
from sgl_langchain.messages import generation_info, key_of, token_usage, tool_call_chunks, tool_calls, usage_metadata

__all__ = ["PreparedCall", "codec_of"]


def codec_of(engine: Backend) -> TextCodec:
    """The engine's codec.

    Raises:
        InvalidArgumentError: it has none.
    """
    if engine.codec is None:
        raise InvalidArgumentError("engine", type(engine).__name__, "an engine that takes token ids", "Use sgl.Engine().")
    return engine.codec


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A call that is ready to run.

    Args:
        engine: where it runs.
        model_name: for metadata.
        prompt: the conversation; with an opening where the answer has to be a call.
        params: of an answer in text.
        namespace, timeout_s: of its requests.
        tools: that it may or must call.
        answers: with text, with a call, or whichever the score says.
        follows_result: the last message is what a tool gave.
        scored: what the score's request cost, once the call is decided by one.
    """

    engine: Backend
    model_name: str
    prompt: Prompt
    params: SamplingParams
    namespace: str | None = None
    timeout_s: float | None = None
    tools: ToolSet | None = None
    answers: Literal["text", "call", "either"] = "text"
    follows_result: bool = False
    scored: Usage | None = field(default=None, compare=False)

    @property
    def is_decided(self) -> bool:
        """Whether it is known what kind of answer it asks for; the request is made then."""
        return self.answers != "either"

    @property
    def request(self) -> GenRequest:
        """What the engine is asked for."""
        return GenRequest(self.prompt.ids, self.params, namespace=self.namespace, timeout_s=self.timeout_s)

    @property
    def codec(self) -> TextCodec:
        """Of its engine."""
        return codec_of(self.engine)

    # ---- the decision ------------------------------------------------------------------------------------------------
    @property
    def decision(self) -> ScoreRequest:
        """What is scored before an undecided call."""
        assert self.tools is not None, "only tools leave a choice"
        spans = tuple(self.codec.encode(text) for text in self.tools.decision_texts())
        return ScoreRequest(self.prompt.ids, spans, namespace=self.namespace, timeout_s=self.timeout_s)

    def decided(self, result: ScoreResult) -> PreparedCall:
        """The call with its decision made."""
        assert self.tools is not None, "only tools leave a choice"
        call = replace(self, answers="text", scored=result.usage)
        is_call = self.tools.decides_call(result.token_logprobs, follows_result=self.follows_result)
        return call.as_tool_call() if is_call else call

    def as_tool_call(self) -> PreparedCall:
        """The call with a tool call as its answer: what stops is for text, and a schema says where arguments end."""
        assert self.tools is not None, "a tool is called"
        opening = self.tools.opening
        params = replace(
            self.params,
            stop=(),
            stop_token_ids=(),
            stop_regex=None,
            min_new_tokens=0,
            **{"regex": None, "choices": None, "grammar": None, "json_schema": None, **self.tools.constraint()},
        )
        prompt = replace(self.prompt, opening=opening, opening_ids=self.codec.encode(opening))
        return replace(self, answers="call", prompt=prompt, params=params)

    # ---- results -----------------------------------------------------------------------------------------------------
    def chat_result(self, results: Sequence[GenResult]) -> ChatResult:
        """One generation for each result."""
        usages = [self._usage(result) for result in results]
        generations = [
            ChatGeneration(message=self._answer(result, usage)) for result, usage in zip(results, usages, strict=True)
        ]
        return ChatResult(
            generations=generations, llm_output={"model_name": self.model_name, "token_usage": token_usage([usages])}
        )

    def _answer(self, result: GenResult, usage: Usage) -> AIMessage:
        reply = self._read(result)
        message = AIMessage(
            content=reply.text,
            usage_metadata=usage_metadata(usage),
            response_metadata=self._metadata(result, reply),
            **tool_calls(reply),
        )
        self._remember(result, message)
        return message

    def _read(self, result: GenResult) -> ParsedReply:
        if self.tools is None:
            return ParsedReply(result.text, (), ())
        return read_reply(result.text, is_call=self.answers == "call")

    def _metadata(self, result: GenResult, reply: ParsedReply) -> dict[str, Any]:
        info = generation_info(result, self.codec, calls_tools=bool(reply.calls or reply.invalid))
        return {"model_name": self.model_name, **info}

    def _usage(self, result: GenResult) -> Usage:
        """As the caller sees it: the opening is a part of the answer, and a score before it a part of the call."""
        opening = len(self.prompt.opening_ids)
        cached = result.usage.cached_tokens if self.scored is None else self.scored.cached_tokens
        prompt_tokens = result.usage.prompt_tokens - opening
        return Usage(prompt_tokens, min(cached, prompt_tokens), result.usage.completion_tokens + opening)

    def _remember(self, result: GenResult, message: AIMessage) -> None:
        """Keep the ids of the reply: in the history of another call they stand for its text."""
        text, behind = self.prompt.opening + result.text, result.text_behind_ids
        if self.answers == "call" and not text.endswith(CALL_CLOSING):
            text, behind = text + CALL_CLOSING, behind + CALL_CLOSING
        key = key_of(message.text, message.tool_calls, message.invalid_tool_calls)
        reply = Reply(self.prompt.opening_ids + result.token_ids, text, behind)
        memory_of(self.engine).remember(self.prompt.start_ids, key, reply)

    # ---- streams -----------------------------------------------------------------------------------------------------
    def stream_reader(self) -> StreamReader:
        """Makes chunks of what comes."""
        return StreamReader(self)


class StreamReader:
    """The pieces of one stream as LangChain's chunks.

    Args:
        call: what was asked.
    """

    def __init__(self, call: PreparedCall) -> None:
        """Nothing has come yet."""
        self._call = call
        self._reader = None if call.tools is None else ReplyReader(is_call=call.answers == "call")

    def chunks(self, piece: str | GenResult) -> Sequence[ChatGenerationChunk]:
        """What a piece of the stream adds: text, parts of tool calls, or the end."""
        if isinstance(piece, GenResult):
            return self._closing(piece)
        if self._reader is None:
            return (ChatGenerationChunk(message=AIMessageChunk(content=piece)),)
        return _chunks(self._reader.feed(piece))

    def _closing(self, result: GenResult) -> Sequence[ChatGenerationChunk]:
        """What was held back, then the only chunk with usage and metadata: chunks are added up, strings included."""
        call = self._call
        held_back = () if self._reader is None else _chunks(self._reader.finish())
        message = call.chat_result([result]).generations[0].message
        assert isinstance(message, AIMessage), "a result is an answer"
        last = AIMessageChunk(
            content="",
            usage_metadata=message.usage_metadata,
            response_metadata=message.response_metadata,
            chunk_position="last",
        )
        return (*held_back, ChatGenerationChunk(message=last))


def _chunks(piece: ReplyPiece) -> Sequence[ChatGenerationChunk]:
    calls = tool_call_chunks(piece)
    if not piece.text and not calls:
        return ()
    message = AIMessageChunk(content=piece.text, tool_call_chunks=calls)
    return (ChatGenerationChunk(message=message),)
