"""A ``dspy.lm15.Request`` as our ``GenRequest``, and our result as ``Response``, usage and stream events.

What this version cannot do is refused by name, never dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from dspy import lm15

from sgl_core.backend import Backend
from sgl_core.chat.conversation import Message, render
from sgl_core.errors import ContextLengthError, InvalidArgumentError, RequestAborted
from sgl_core.types import FinishReason, GenDelta, GenRequest, GenResult, SamplingParams

__all__ = ["SUPPORTED_PARAMS", "delta_event", "end_event", "gen_request", "start_event", "to_response"]

SUPPORTED_PARAMS: Final = frozenset(
    {"temperature", "max_tokens", "top_p", "top_k", "stop", "seed", "frequency_penalty", "presence_penalty", "logit_bias"}
)
"""Options that reach the sampler, by their OpenAI names."""

_SAMPLING: Final = ("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")
_ROLES: Final = {"developer": "system", "user": "user", "assistant": "assistant"}
_FINISH: Final = {FinishReason.STOP: "stop", FinishReason.GRAMMAR: "stop", FinishReason.LENGTH: "length"}


def gen_request(request: lm15.Request, backend: Backend) -> GenRequest:
    """The request as the backend wants it, its budget clipped to the context.

    Raises:
        dspy.lm15.UnsupportedFeatureError: it asks for something that this version does not have.
        TemplateError: the model's chat template refuses the conversation.
        ContextLengthError: the prompt alone does not fit.
        InvalidArgumentError: an option is out of range.
    """
    _refuse_unsupported(request)
    if backend.codec is None:
        raise _unsupported("messages", f"a {type(backend).__name__}, which takes no token ids,")
    ids = render(backend.codec, _messages(request)).ids
    config = request.config
    options = {name: getattr(config, name) for name in _SAMPLING if getattr(config, name) is not None}
    params = SamplingParams(
        max_new_tokens=_budget(len(ids), config.max_tokens, backend.capabilities.context_tokens),
        stop=config.stop,
        logit_bias=_logit_bias((config.extensions or {}).get("logit_bias")),
        **options,
    )
    return GenRequest(ids, params, namespace=None if config.cache is None else config.cache.key)


def to_response(request: lm15.Request, request_id: str, result: GenResult, backend: Backend) -> lm15.Response:
    """What DSPy gets for a finished generation.

    Raises:
        RequestAborted: it was aborted.
    """
    return lm15.Response(
        id=request_id,
        model=request.model,
        message=lm15.Message.assistant(result.text),
        finish_reason=_finish_reason(result),
        usage=_usage(result, backend),
    )


def start_event(request: lm15.Request, request_id: str) -> lm15.StreamStartEvent:
    """The first event of a stream."""
    return lm15.StreamStartEvent(id=request_id, model=request.model)


def delta_event(delta: GenDelta) -> lm15.StreamDeltaEvent:
    """New text."""
    return lm15.StreamDeltaEvent(lm15.TextDelta(delta.text))


def end_event(result: GenResult, backend: Backend) -> lm15.StreamEndEvent:
    """The last event of a stream.

    Raises:
        RequestAborted: it was aborted.
    """
    return lm15.StreamEndEvent(finish_reason=_finish_reason(result), usage=_usage(result, backend))


# ---- from DSPy -------------------------------------------------------------------------------------------------------
def _messages(request: lm15.Request) -> Iterator[Message]:
    """The conversation; developer messages are system turns."""
    if isinstance(request.system, str):
        yield Message("system", request.system)
    elif request.system is not None:
        yield Message("system", _text("system", request.system))
    for index, message in enumerate(request.messages):
        where = f"messages[{index}]"
        if message.role not in _ROLES:
            raise _unsupported(where, f"a message of role {message.role!r}")
        yield Message(_ROLES[message.role], _text(where, message.parts))


def _text(where: str, parts: Sequence[Any]) -> str:
    for index, part in enumerate(parts):
        if not isinstance(part, lm15.TextPart):
            raise _unsupported(f"{where}.parts[{index}]", f"a part of type {part.type!r}")
    return "".join(part.text for part in parts)


def _budget(prompt_tokens: int, max_tokens: int | None, context_tokens: int) -> int:
    """``max_tokens``, or the rest of the context, whichever is less."""
    room = context_tokens - prompt_tokens
    if room < 1:
        raise ContextLengthError(prompt_tokens, None, context_tokens, "the context")
    return room if max_tokens is None else min(max_tokens, room)


def _logit_bias(given: Any) -> dict[int, float] | None:
    """OpenAI's form, whose keys are ids in text."""
    if given is None:
        return None
    try:
        return {int(token): float(bias) for token, bias in dict(given).items()}
    except (TypeError, ValueError):
        raise InvalidArgumentError("logit_bias", given, "a mapping from token ids to numbers") from None


def _refuse_unsupported(request: lm15.Request) -> None:
    for feature in _unsupported_features(request):
        raise _unsupported(feature, feature.rpartition(".")[2])


def _unsupported_features(request: lm15.Request) -> Iterator[str]:
    config = request.config
    if request.tools:
        yield "tools"
    if config.tool_choice is not None and config.tool_choice.mode != "none":
        yield "config.tool_choice"
    if config.reasoning is not None and not config.reasoning.is_off:
        yield "config.reasoning"
    for name in ("response_format", "logprobs", "probabilities", "service_tier", "user_id"):
        if getattr(config, name) is not None:
            yield f"config.{name}"
    if config.store:  # False asks for what is the case: nothing is stored
        yield "config.store"
    for name in config.extensions or ():
        if name not in ("logit_bias", "metadata"):  # metadata is a note for logs
            yield f"config.extensions.{name}"
    yield from _unsupported_cache_options(config.cache)


def _unsupported_cache_options(cache: lm15.CacheConfig | None) -> Iterator[str]:
    """Every prefix is cached and shared by itself, so a wish for that is granted; others are not."""
    if cache is None:
        return
    if cache.mode == "off":
        yield "config.cache.mode"
    if cache.retention == "long":
        yield "config.cache.retention"
    if cache.resource is not None:
        yield "config.cache.resource"


def _unsupported(feature: str, what: str) -> lm15.UnsupportedFeatureError:
    message = f"{feature}: {what} is not supported by this version of sgl_dspy; leave it out"
    return lm15.UnsupportedFeatureError(message, feature=feature)


# ---- to DSPy ---------------------------------------------------------------------------------------------------------
def _finish_reason(result: GenResult) -> str:
    if result.finish_reason is FinishReason.ABORT:
        raise RequestAborted("the request was aborted before it was finished")
    return _FINISH[result.finish_reason]


def _usage(result: GenResult, backend: Backend) -> lm15.Usage:
    usage = result.usage
    return lm15.Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=usage.cached_tokens if backend.capabilities.cached_tokens else None,
    )
