"""What became of a request, in ``dspy.lm15``'s words: parts of a message, usage, why it ended, log-probabilities. Pure; ``calls`` calls it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from dspy import lm15

from sgl_core.backend import TextCodec
from sgl_core.chat.logprobs import openai_logprobs
from sgl_core.chat.tool_reading import ParsedReply, ReplyPiece
from sgl_core.errors import RequestAborted
from sgl_core.types import FinishReason, GenResult, TokenLogprob, Usage

__all__ = ["finish_reason", "lm15_deltas", "lm15_logprobs", "lm15_usage", "reply_parts"]

_FINISH: Final = {FinishReason.STOP: "stop", FinishReason.GRAMMAR: "length", FinishReason.LENGTH: "length"}
"""The budget closed what ends by GRAMMAR: it can be parsed, and the model would have said more."""


def finish_reason(result: GenResult, *, calls_tools: bool = False) -> str:
    """Why it ended.

    Raises:
        RequestAborted: somebody aborted it, and half an answer is none.
    """
    if result.finish_reason is FinishReason.ABORT:
        raise RequestAborted("the request was aborted before it was finished")
    reason = _FINISH[result.finish_reason]
    return "tool_call" if calls_tools and reason == "stop" else reason


def lm15_usage(usage: Usage, *, counts_cached: bool) -> lm15.Usage:
    """Token counts; cached ones stand inside the prompt's.

    Args:
        usage: ours.
        counts_cached: the backend counts them; otherwise nothing is said of them.
    """
    return lm15.Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=usage.cached_tokens if counts_cached else None,
    )


def lm15_logprobs(tokens: Sequence[TokenLogprob] | None, codec: TextCodec) -> tuple[lm15.TokenLogprob, ...] | None:
    """Of each token of a reply; None where nobody asked."""
    if tokens is None:
        return None
    return tuple(
        lm15.TokenLogprob(
            **_entry(plain, token.token_id),
            top=tuple(
                lm15.TopLogprob(**_entry(other, other_id))
                for other, (other_id, _) in zip(plain["top_logprobs"], token.top, strict=True)
            ),
        )
        for plain, token in zip(openai_logprobs(tokens, codec), tokens, strict=True)
    )


def reply_parts(reply: ParsedReply) -> tuple[lm15.TextPart | lm15.ToolCallPart, ...]:
    """The parts of a message that says this; what was meant to be a call and is none is text."""
    text = "\n".join([*([reply.text] if reply.text else []), *(one.arguments for one in reply.invalid)])
    calls = [lm15.ToolCallPart(call.id, call.name, call.arguments) for call in reply.calls]
    return (*([lm15.TextPart(text)] if text or not calls else []), *calls)


def lm15_deltas(piece: ReplyPiece) -> Iterator[lm15.TextDelta | lm15.ToolCallDelta]:
    """What a piece of a reply adds. Text is the first part of the message, each call one behind it."""
    text = "\n".join([*([piece.text] if piece.text else []), *(one.arguments for one in piece.invalid)])
    if text:
        yield lm15.TextDelta(text)
    for call in piece.calls:
        yield lm15.ToolCallDelta(call.arguments, part_index=call.index + 1, id=call.id, name=call.name)


def _entry(plain: dict[str, Any], token_id: int) -> dict[str, Any]:
    return {"token": plain["token"], "logprob": plain["logprob"], "bytes": plain["bytes"], "token_id": token_id}
