"""Log-probabilities in the shape that OpenAI's clients know. Pure; called by the adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sgl_core.backend import TextCodec
from sgl_core.types import TokenLogprob

__all__ = ["openai_logprobs"]

_UNREADABLE = "\ufffd"


def openai_logprobs(tokens: Sequence[TokenLogprob], codec: TextCodec) -> list[dict[str, Any]]:
    """One entry a token: ``token``, ``logprob`` (natural logarithm), ``bytes``, and ``top_logprobs`` likewise.

    ``bytes`` is None where a token holds a part of a character only.
    """
    return [
        {**_entry(one.token_id, one.logprob, codec), "top_logprobs": [_entry(*pair, codec) for pair in one.top]}
        for one in tokens
    ]


def _entry(token_id: int, logprob: float, codec: TextCodec) -> dict[str, Any]:
    text = codec.decode((token_id,))
    return {"token": text, "logprob": logprob, "bytes": None if _UNREADABLE in text else list(text.encode())}
