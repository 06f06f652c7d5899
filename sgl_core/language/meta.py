"""What ``get_meta_info`` says about a gen or a select: plain values, made from the backend's result. Called by the stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sgl_core.backend import TextCodec
from sgl_core.language.ir import Gen, Select
from sgl_core.types import FinishReason, GenResult, ScoreResult, Timings, TokenLogprob, Usage

__all__ = ["gen_meta", "select_meta"]


def gen_meta(node: Gen, result: GenResult, seed: int | None, codec: TextCodec) -> Mapping[str, Any]:
    """About a gen; the keys are listed at ``ProgramState.get_meta_info``.

    Args:
        seed: of the request.
        codec: gives each reported token its text.
    """
    meta: dict[str, Any] = {
        **_accounting(result.usage, result.timings),
        "finish_reason": result.finish_reason.value,
        "matched_stop": result.matched_stop,
        "seed": seed,
        "healed_tokens": len(result.healed_ids),
        "logprobs": _tokens(result.logprobs, codec),
        "prompt_logprobs": _tokens(result.prompt_logprobs, codec),
        "grammar_cut": None if result.grammar_cut is None else dataclasses.asdict(result.grammar_cut),
        "verification": None if result.verification is None else dataclasses.asdict(result.verification),
    }
    if node.dtype is not str or node.reasoning is not None:
        meta["raw_text"] = result.text
    return MappingProxyType(meta)


def select_meta(node: Select, result: ScoreResult, scores: Mapping[str, Any]) -> Mapping[str, Any]:
    """About a select.

    Args:
        result: of the choices behind the prompt.
        scores: what ``decide`` says about all choices.
    """
    meta = {
        **_accounting(result.usage, result.timings),
        "finish_reason": FinishReason.STOP.value,
        "matched_stop": None,
        "seed": None,
        "choices": node.choices,
        "choices_method": node.choices_method,
        **scores,
    }
    return MappingProxyType(meta)


def _accounting(usage: Usage, timings: Timings) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "queue_s": timings.queue_s,
        "prefill_s": timings.prefill_s,
        "decode_s": timings.decode_s,
    }


def _tokens(tokens: tuple[TokenLogprob | None, ...] | None, codec: TextCodec) -> tuple[dict[str, Any] | None, ...] | None:
    if tokens is None:
        return None
    return tuple(
        None
        if token is None
        else {
            **_token(token.token_id, token.logprob, codec),
            "top": tuple(_token(token_id, logprob, codec) for token_id, logprob in token.top),
        }
        for token in tokens
    )


def _token(token_id: int, logprob: float, codec: TextCodec) -> dict[str, Any]:
    return {"token_id": token_id, "text": codec.decode((token_id,)), "logprob": logprob}
