"""One request of DSPy made ready: its prompt, its parameters, and how its result becomes DSPy's.

Both engines prepare their requests here, so every road asks the backend for the same. With tools to choose from, a call is undecided
first: how likely the model is to begin with a call is scored, and that settles whether the answer is a call, held to the tools'
schemas, or text.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from dspy import lm15

from sgl_core.backend import Backend, Handle, TextCodec
from sgl_core.chat.conversation import Prompt, render
from sgl_core.chat.replies import Reply, memory_of
from sgl_core.chat.tool_reading import ParsedReply, ReplyReader, read_reply
from sgl_core.chat.tools import CALL_CLOSING, ToolSet, form_for
from sgl_core.errors import InvalidArgumentError
from sgl_core.ids import new_id
from sgl_core.types import (
    GenDelta,
    GenRequest,
    GenResult,
    Hints,
    SamplingParams,
    ScoreRequest,
    ScoreResult,
    TokenLogprob,
    Usage,
)
from sgl_dspy.formats.reply_program import ReplyProgram
from sgl_dspy.requests.failures import unsupported
from sgl_dspy.requests.lower import Lowered, lowered, room_behind
from sgl_dspy.requests.messages import Conversation, common_prefix, conversation, key_of
from sgl_dspy.requests.responses import finish_reason, lm15_deltas, lm15_logprobs, lm15_usage, reply_parts
from sgl_dspy.requests.tools import request_tools
from sgl_dspy.running.prefix_pins import KeptPrefix, PrefixPins
from sgl_dspy.running.reply_runs import submit_reply

__all__ = ["EventReader", "PreparedCall", "beginning_of", "codec_of", "prepare"]

_PRIVATE: Final = "sgl-dspy-uncached-"
"""Namespaces that begin so are used by one call and never again."""


def codec_of(backend: Backend) -> TextCodec:
    """The backend's codec.

    Raises:
        dspy.lm15.UnsupportedFeatureError: it has none.
    """
    if backend.codec is None:
        raise unsupported("messages", f"a {type(backend).__name__}, which takes no token ids,")
    return backend.codec


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A request that is ready to run.

    Args:
        backend: where it runs.
        prompt: the conversation; with an opening where the answer has to be a call.
        params: of the reply.
        namespace, timeout_s: of its requests.
        program: how an answer in text is to be written; None leaves it to the model.
        tools: that it may or must call.
        answers: with text, with a call, or whichever the score says.
        follows_result: the last message is what a tool gave.
        keeps: the beginning of its prompt that is to be pinned before it runs.
        found: what the first request on this prompt reported, if it was not the generation.
        adaptations: what the caller asked for and did not get.
    """

    backend: Backend
    prompt: Prompt
    params: SamplingParams
    namespace: str | None = None
    timeout_s: float | None = None
    program: ReplyProgram | None = None
    tools: ToolSet | None = None
    answers: Literal["text", "call", "either"] = "text"
    follows_result: bool = False
    keeps: tuple[int, ...] = ()
    found: Usage | None = field(default=None, compare=False)
    adaptations: tuple[lm15.Adaptation, ...] = ()

    @property
    def codec(self) -> TextCodec:
        """Of its backend."""
        return codec_of(self.backend)

    # ---- candidates --------------------------------------------------------------------------------------------------
    @property
    def seed(self) -> int | None:
        """What the caller wants candidates to be reproducible by."""
        return self.params.seed

    @property
    def prompt_len(self) -> int:
        """Tokens that all candidates begin with."""
        return len(self.prompt.ids)

    def flight_key(self, seed: int | None) -> Hashable | None:
        """Equal for requests that have equal results with this seed; None where chance decides."""
        if seed is None and self.params.temperature > 0:
            return None
        namespace = _PRIVATE if self._is_private else self.namespace
        return self.prompt.ids, repr(replace(self.params, seed=seed)), namespace, self.timeout_s, repr(self.program)

    def start(self, seed: int | None, hints: Hints) -> Handle[GenResult]:
        """Submit it; never waits."""
        params = replace(self.params, seed=seed)
        if self.program is not None:
            return submit_reply(
                self.program,
                self.prompt.ids,
                replace(params, logprobs=None),  # see ``scoring``
                self.backend,
                namespace=self.namespace,
                timeout_s=self.timeout_s,
            )
        if self._is_private:
            hints = replace(hints, last_use=True, keep_len=0)
        request = GenRequest(self.prompt.ids, params, namespace=self.namespace, timeout_s=self.timeout_s, hints=hints)
        return self.backend.submit(request)

    @property
    def _is_private(self) -> bool:
        return self.namespace is not None and self.namespace.startswith(_PRIVATE)

    # ---- the decision ------------------------------------------------------------------------------------------------
    @property
    def is_decided(self) -> bool:
        """Whether it is known what kind of answer it asks for; it is started then."""
        return self.answers != "either"

    @property
    def decision(self) -> ScoreRequest:
        """What is scored before an undecided call."""
        assert self.tools is not None, "only tools leave a choice"
        return self._score(tuple(self.codec.encode(text) for text in self.tools.decision_texts()))

    def decided(self, result: ScoreResult) -> PreparedCall:
        """The call with its decision made."""
        assert self.tools is not None, "only tools leave a choice"
        call = replace(self, answers="text", found=self.found or result.usage)
        is_call = self.tools.decides_call(result.token_logprobs, follows_result=self.follows_result)
        return call.as_tool_call() if is_call else call

    def as_tool_call(self) -> PreparedCall:
        """The call with a tool call as its answer: what stops is for text, and a schema says where arguments end."""
        assert self.tools is not None, "a tool is called"
        opening = self.tools.opening
        prompt = replace(self.prompt, opening=opening, opening_ids=self.codec.encode(opening))
        room = room_behind(len(prompt.ids), self.backend.capabilities.context_tokens)
        assert self.params.max_new_tokens is not None, "every call has a budget"
        params = replace(
            self.params,
            max_new_tokens=min(self.params.max_new_tokens, room),
            stop=(),
            stop_token_ids=(),
            stop_regex=None,
            min_new_tokens=0,
            **{"regex": None, "choices": None, "grammar": None, "json_schema": None, **self.tools.constraint()},
        )
        return replace(self, answers="call", prompt=prompt, params=params, program=None)

    # ---- scores of a forced reply ------------------------------------------------------------------------------------
    def scoring(self, result: GenResult) -> ScoreRequest | None:
        """What is to be scored behind a reply that a program wrote, where the caller wants log-probabilities.

        Forced tokens were not sampled, so nobody has looked at them yet; in one piece with the rest they are scored as the model
        would have read them.
        """
        if self.program is None or self.params.logprobs is None or not result.token_ids:
            return None
        return self._score((result.token_ids,))

    def scored(self, result: GenResult, scores: ScoreResult) -> GenResult:
        """The reply with its log-probabilities."""
        (row,) = scores.token_logprobs
        return replace(result, logprobs=tuple(map(TokenLogprob, result.token_ids, row)))

    def _score(self, continuations: tuple[tuple[int, ...], ...]) -> ScoreRequest:
        return ScoreRequest(self.prompt.ids, continuations, namespace=self.namespace, timeout_s=self.timeout_s)

    # ---- a prefix to keep --------------------------------------------------------------------------------------------
    def kept(self, prefix: KeptPrefix, *, is_new: bool) -> PreparedCall:
        """The call with the beginning of its prompt pinned."""
        was_cached = prefix.found.cached_tokens >= len(prefix.ids)
        return self if was_cached or not is_new else replace(self, found=prefix.found)

    def without(self, feature: str, asked: str, reason: str) -> PreparedCall:
        """The call without something that the caller would have liked; its answer says so."""
        adaptation = lm15.Adaptation(feature, "dropped", reason, asked=asked)
        return replace(self, adaptations=(*self.adaptations, adaptation))

    # ---- results -----------------------------------------------------------------------------------------------------
    def response(self, request: lm15.Request, request_id: str, result: GenResult) -> lm15.Response:
        """What DSPy gets for a finished generation, which is remembered.

        Raises:
            RequestAborted: it was aborted.
        """
        reply = self._read(result)
        reason = finish_reason(result, calls_tools=bool(reply.calls))
        self.remember(result)
        return lm15.Response(
            id=request_id,
            model=request.model,
            message=lm15.Message("assistant", reply_parts(reply)),
            finish_reason=reason,
            usage=self.usage(result),
            logprobs=lm15_logprobs(result.logprobs, self.codec),
            adaptations=self.adaptations,
        )

    def usage(self, result: GenResult) -> lm15.Usage:
        """As the caller sees it: an opening is a part of the answer, and whatever ran before found what was cached."""
        opening = len(self.prompt.opening_ids)
        cached = result.usage.cached_tokens if self.found is None else self.found.cached_tokens
        prompt_tokens = result.usage.prompt_tokens - opening
        ours = Usage(prompt_tokens, min(cached, prompt_tokens), result.usage.completion_tokens + opening)
        return lm15_usage(ours, counts_cached=self.backend.capabilities.cached_tokens)

    def remember(self, result: GenResult) -> None:
        """Keep the ids of the reply: in the history of another call they stand for its text."""
        reply = self._read(result)
        text, behind = self.prompt.opening + result.text, result.text_behind_ids
        if self.answers == "call" and not text.endswith(CALL_CLOSING):
            text, behind = text + CALL_CLOSING, behind + CALL_CLOSING
        parts = reply_parts(reply)
        said = "".join(part.text for part in parts if isinstance(part, lm15.TextPart))
        key = key_of(said, [(call.name, call.arguments) for call in reply.calls])
        known = Reply(self.prompt.opening_ids + result.token_ids, text, behind)
        memory_of(self.backend).remember(self.prompt.start_ids, key, known)

    def events(self) -> EventReader:
        """Makes the events of a stream."""
        return EventReader(self)

    def _read(self, result: GenResult) -> ParsedReply:
        if self.tools is None:
            return ParsedReply(result.text, (), ())
        return read_reply(result.text, is_call=self.answers == "call")


class EventReader:
    """The pieces of one stream as ``dspy.lm15``'s events. One owner.

    Args:
        call: what was asked.
    """

    def __init__(self, call: PreparedCall) -> None:
        """Nothing has come yet."""
        self._call = call
        self._reader = None if call.tools is None else ReplyReader(is_call=call.answers == "call")
        self._calls_tools = False

    def start(self, request: lm15.Request, request_id: str) -> lm15.StreamStartEvent:
        """The first event."""
        return lm15.StreamStartEvent(id=request_id, model=request.model, adaptations=self._call.adaptations)

    def deltas(self, delta: GenDelta) -> list[lm15.StreamDeltaEvent]:
        """What a piece of the stream adds: text, or parts of tool calls."""
        if not delta.text:
            return []
        if self._reader is None:
            return [lm15.StreamDeltaEvent(lm15.TextDelta(delta.text))]
        return self._events(lm15_deltas(self._reader.feed(delta.text)))

    def end(self, result: GenResult) -> list[lm15.StreamDeltaEvent | lm15.StreamEndEvent]:
        """What was held back, log-probabilities of everything, and the last event. The reply is remembered.

        Raises:
            RequestAborted: it was aborted.
        """
        events: list[lm15.StreamDeltaEvent | lm15.StreamEndEvent] = []
        if self._reader is not None:
            events += self._events(lm15_deltas(self._reader.finish()))
        logprobs = lm15_logprobs(result.logprobs, self._call.codec)
        if logprobs:
            events.append(lm15.StreamDeltaEvent(lm15.TextDelta("", logprobs=logprobs)))
        reason = finish_reason(result, calls_tools=self._calls_tools)
        self._call.remember(result)
        return [*events, lm15.StreamEndEvent(finish_reason=reason, usage=self._call.usage(result))]

    def _events(self, deltas: Iterable[lm15.TextDelta | lm15.ToolCallDelta]) -> list[lm15.StreamDeltaEvent]:
        listed = list(deltas)
        self._calls_tools = self._calls_tools or any(isinstance(delta, lm15.ToolCallDelta) for delta in listed)
        return [lm15.StreamDeltaEvent(delta) for delta in listed]


# ---- making one ready ------------------------------------------------------------------------------------------------
def prepare(request: lm15.Request, backend: Backend, pins: PrefixPins | None = None) -> PreparedCall:
    """The request ready to run, its budget clipped to the context.

    Args:
        request: DSPy's.
        backend: where it will run.
        pins: prefixes that are kept on it.

    Raises:
        dspy.lm15.UnsupportedFeatureError: it asks for something that we lack.
        TemplateError: the model's chat template refuses the conversation.
        ContextLengthError: the prompt alone does not fit.
        InvalidArgumentError: an option cannot be used.
    """
    wanted = lowered(request)
    codec = codec_of(backend)
    form = form_for(codec)
    tools = request_tools(request, form)
    told = conversation(request, None if tools is None else tools.offered, form)
    prompt = render(codec, told.messages, replies=memory_of(backend))
    allowed = None if tools is None else tools.allowed
    call = PreparedCall(
        backend=backend,
        prompt=prompt,
        params=wanted.params(room_behind(len(prompt.ids), backend.capabilities.context_tokens)),
        namespace=wanted.namespace,
        timeout_s=wanted.timeout_s,
        program=wanted.program,
        tools=allowed,
        answers="either" if allowed is not None and allowed.choice == "auto" else "text",
        follows_result=told.follows_result,
    )
    if request.config.cache is not None:
        call = _with_cache(call, request.config.cache, told, wanted, pins)
    return call.as_tool_call() if allowed is not None and allowed.forces_call else call


def beginning_of(request: lm15.Request, backend: Backend) -> tuple[tuple[int, ...], str | None]:
    """The ids that every prompt begins with that differs from this one in its last message only, and their namespace.

    Raises:
        dspy.lm15.UnsupportedFeatureError, TemplateError, InvalidArgumentError: as ``prepare``.
    """
    wanted = lowered(request)
    codec = codec_of(backend)
    form = form_for(codec)
    tools = request_tools(request, form)
    told = conversation(request, None if tools is None else tools.offered, form)
    ids = told.beginning(len(told.messages) - 1, codec)
    room_behind(len(ids), backend.capabilities.context_tokens)
    return ids, wanted.namespace


def _with_cache(
    call: PreparedCall, cache: lm15.CacheConfig, told: Conversation, wanted: Lowered, pins: PrefixPins | None
) -> PreparedCall:
    """What a caller says about the cache. Every prefix is cached and shared by itself, so most wishes are granted already."""
    end = _last_kept(cache, told, wanted)
    if cache.mode == "off":
        if wanted.namespace is not None:
            raise InvalidArgumentError("prompt_cache.mode", "off", "no namespace beside it", "Nothing is shared there.")
        return replace(call, namespace=_PRIVATE + new_id())
    if cache.resource is not None:
        kept = (PrefixPins() if pins is None else pins).find(cache.resource)
        if call.prompt.ids[: len(kept.ids)] != kept.ids:
            raise InvalidArgumentError("prompt_cache.resource", cache.resource, "a prefix that this prompt begins with")
        if call.namespace not in (None, kept.namespace):
            raise InvalidArgumentError("prompt_cache.key", call.namespace, "none beside a resource, which has its own")
        call = replace(call, namespace=kept.namespace)
    if cache.retention == "long":
        if not hasattr(call.backend, "pin"):
            raise unsupported("config.cache.retention", f"'long' with a {type(call.backend).__name__}, which cannot pin,")
        beginning = told.beginning(end, call.codec)
        call = replace(call, keeps=common_prefix(beginning, call.prompt.ids))
    return call


def _last_kept(cache: lm15.CacheConfig, told: Conversation, wanted: Lowered) -> int:
    """How many messages of the conversation the caller expects again: system and tools, unless more is said."""
    if cache.prefix_until_index is not None:
        if cache.prefix_until_index >= len(told.ends):
            expected = f"below {len(told.ends)}, the number of messages"
            raise InvalidArgumentError("prompt_cache.prefix_until_index", cache.prefix_until_index, expected)
        end: int = told.ends[cache.prefix_until_index]
        return end
    if cache.prefix == "history":
        return len(told.messages)
    if wanted.program is not None and wanted.program.shared is not None:
        return min(wanted.program.shared[1], len(told.messages))
    has_system: bool = told.messages[0].role == "system"
    return int(has_system)
