"""Names of options, as people and frameworks type them: aliases, and names without a meaning here.

The models check every constructor and every call against this, so a typo is an error and nothing is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from sgl_core.errors import InvalidArgumentError, UnknownOptionError

__all__ = ["CHAT_OPTIONS", "SAMPLING_FIELDS", "TEXT_OPTIONS", "canonical_options"]

SAMPLING_FIELDS: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repetition_penalty",
    "logit_bias": "logit_bias",
    "n": "n",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "stop_regex": "stop_regex",
    "ignore_eos": "ignore_eos",
    "seed": "seed",
    "regex": "regex",
    "choices": "choices",
    "grammar": "grammar",
    "json_schema": "json_schema",
}
"""Fields of a model, and the fields of ``SamplingParams`` that they are."""

TEXT_OPTIONS: Final = frozenset(SAMPLING_FIELDS) | {"logprobs", "top_logprobs", "model", "namespace", "timeout"}
"""Options of a call of any model."""

CHAT_OPTIONS: Final = TEXT_OPTIONS | {"tools", "tool_choice", "parallel_tool_calls", "strict", "response_format"}
"""Options of a call of a chat model."""

_ALIASES: Final = {
    "model_name": "model",
    "stop_sequences": "stop",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "ebnf": "grammar",
}
# Generic code passes these to every model; here is nothing to log in to and nothing to try again. ``stream`` is core's own
# switch, and the form of a structured output is a note for traces.
_WITHOUT_MEANING: Final = frozenset({"api_key", "max_retries", "stream", "ls_structured_output_format"})


def canonical_options(where: str, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The options by their own names, those without a meaning left out.

    Args:
        where: what the caller called, for errors.
        given: options as typed; not changed.
        known: names that ``where`` takes.

    Raises:
        UnknownOptionError: a name nobody knows.
        InvalidArgumentError: one option under two names.
    """
    options: dict[str, Any] = {}
    for typed, value in given.items():
        name = _ALIASES.get(typed, typed)
        if name in options:
            raise InvalidArgumentError(f"{where}, {name}", "two of its names", "one of them")
        if name in known:
            options[name] = value
        elif typed not in _WITHOUT_MEANING:
            raise UnknownOptionError(where, typed, known)
    return options
