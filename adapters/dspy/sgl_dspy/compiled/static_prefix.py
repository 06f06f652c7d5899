"""What every call of a predictor begins with, found by formatting its prompt twice with different inputs.

``explain`` counts it and ``run_batch`` has it computed ahead. Counted in tokens where the LM is ours, else in characters. Pure,
except that asking for tokens loads the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dspy
from dspy import lm15

from sgl_core.errors import SglError
from sgl_dspy.engine import SglEngine
from sgl_dspy.requests.calls import PreparedCall, prepare
from sgl_dspy.requests.options import OPTIONS_KEY, standing_namespace

__all__ = ["PromptReader", "StaticPrefix", "shared_len", "static_prefix"]

_STAND_INS: Final = ("a value", "Some other value")  # that differ in their first letter
Ids = Sequence[int] | str
"""A prompt, as tokens or as text: what prompts share is a common beginning of these."""


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Reads prompts as an LM does.

    Args:
        lm: one of ours, whose tokens are counted; any other or none counts characters.
    """

    lm: Any = None

    @property
    def unit(self) -> str:
        """What ``ids`` are."""
        return "tokens" if self._is_ours else "characters"

    @property
    def _is_ours(self) -> bool:
        return isinstance(getattr(self.lm, "engine", None), SglEngine)

    def ids(self, messages: Sequence[Mapping[str, Any]]) -> Ids:
        """A prompt up to where the reply begins.

        Raises:
            SglError, dspy.lm15.LM15Error: our engine cannot take it.
        """
        call = self.call(messages)
        return "\n\n".join(f"{one['role']}: {_text_of(one)}" for one in messages) if call is None else call.prompt.ids

    def call(self, messages: Sequence[Mapping[str, Any]]) -> PreparedCall | None:
        """A request for a prompt as our engine would run it; None for an LM that is not ours. Raises as ``ids``."""
        if not self._is_ours:
            return None
        system = [_text_of(one) for one in messages if one["role"] == "system"]
        make = {"user": lm15.Message.user, "assistant": lm15.Message.assistant}
        turns = tuple(make[one["role"]](_text_of(one)) for one in messages if one["role"] in make)
        cache = self.lm.kwargs.get("prompt_cache")
        config = lm15.Config(
            max_tokens=1,
            cache=cache if isinstance(cache, lm15.CacheConfig) else None,
            extensions={OPTIONS_KEY: {"namespace": standing_namespace(self.lm.kwargs)}},
        )
        request = lm15.Request(self.lm.model, turns, system="\n\n".join(system) or None, config=config)
        return prepare(request, self.lm.engine.backend)


@dataclass(frozen=True, slots=True)
class StaticPrefix:
    """The beginning that all calls of a predictor share.

    Args:
        ids: of it.
        num_demos: examples in it.
        call: a request that begins with it; None for an LM that is not ours.
    """

    ids: Ids
    num_demos: int = 0
    call: PreparedCall | None = None


def static_prefix(adapter: Any, predictor: Any, reader: PromptReader) -> StaticPrefix | None:
    """The prefix of a predictor as it is now, in the layout of the settings around this call.

    Args:
        adapter: that formats its prompts.
        predictor: a ``dspy.Predict``, whose signature and demos are read.
        reader: what counts.

    Returns:
        None where a prompt cannot be made without real inputs.
    """
    signature = predictor.signature
    names = [name for name, field in signature.input_fields.items() if field.annotation is not dspy.History]
    try:
        prompts = [adapter.format(signature, predictor.demos, dict.fromkeys(names, text)) for text in _STAND_INS]
        one, other = (reader.ids(messages) for messages in prompts)
        call = reader.call(prompts[0])
    except (SglError, lm15.LM15Error):
        return None
    demos = sum(message["role"] == "assistant" for message in prompts[0])
    return StaticPrefix(one[: shared_len(one, other)], demos, call)


def shared_len(one: Ids, other: Ids) -> int:
    """How much of two prompts is the same from the beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (first, second) in pairs if first != second), min(len(one), len(other)))


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))
