"""Options that sgl-core has and DSPy does not: how they travel to the engine, and what they mean there.

DSPy refuses keywords that it does not know, before an engine sees them. ``SglLM`` moves ours into ``metadata``, which DSPy passes on
as it is and makes a part of the key of its answer cache; ``lower`` reads them there. Pure.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Final

import dspy
from pydantic import BaseModel

from sgl_core.errors import InvalidArgumentError, UnknownOptionError, check_options

__all__ = ["OPTIONS_KEY", "OWN_OPTIONS", "check_names", "moved", "own_options", "standing_namespace"]

OPTIONS_KEY: Final = "sgl_options"
"""Under which ``metadata`` holds them."""

OWN_OPTIONS: Final[Mapping[str, str | None]] = {
    "regex": "regex",
    "choices": "choices",
    "grammar": "grammar",
    "json_schema": "json_schema",
    "min_p": "min_p",
    "min_tokens": "min_new_tokens",
    "repetition_penalty": "repetition_penalty",
    "stop_token_ids": "stop_token_ids",
    "stop_regex": "stop_regex",
    "ignore_eos": "ignore_eos",
    "namespace": None,
    "timeout_s": None,
}
"""Each option, and the field of ``SamplingParams`` that it is."""

_LM_SETTINGS: Final = frozenset(inspect.signature(dspy.LM).parameters) - {"engine", "kwargs"}
_ASKED_BY_DSPY: Final = frozenset({"messages", "n", "num_generations", "request", "rollout_id"})
_REFUSED_LATER: Final = frozenset(  # by DSPy or by ``lower``, with a reason for each
    {"api_base", "api_key", "api_version", "azure_ad_token_provider", "base_url", "custom_llm_provider", "extra_headers"}
    | {"extra_query", "headers", "organization", "project", "timeout"}
    | {"audio", "modalities", "moderation", "prediction", "provider", "verbosity", "web_search_options"}
    | {"chat_template_kwargs", "enable_thinking", "reasoning", "reasoning_effort", "reasoning_format", "thinking"}
    | {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "service_tier", "store"}
    | {"safety_identifier", "user", "user_id"}
    | {"function_call", "functions", "max_completion_tokens", "stream", "stream_options"}  # other names of what there is
)


def check_names(where: str, given: Iterable[str], honoured: Iterable[str]) -> None:
    """Refuse what no call can use.

    Args:
        where: the class or method that was given them.
        given: names that somebody typed.
        honoured: options of requests that ``lower`` reads.

    Raises:
        UnknownOptionError: a name that neither DSPy nor we know.
    """
    known = {*honoured, *OWN_OPTIONS, "cache", "callbacks", "metadata", "n", "num_retries", "prompt_cache", "rollout_id"}
    for name in given:
        if name not in known | _LM_SETTINGS | _ASKED_BY_DSPY | _REFUSED_LATER:
            raise UnknownOptionError(where, name, known)


def moved(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a call with our options inside their ``metadata``.

    Args:
        given: what the caller typed. None takes a default back.
        defaults: keywords of the LM, moved already; DSPy would let the ``metadata`` of a call replace theirs as a whole.
    """
    kept = {name: value for name, value in given.items() if name not in OWN_OPTIONS}
    own = {name: _plain(value) for name, value in given.items() if name in OWN_OPTIONS}
    called, standing = given.get("metadata"), defaults.get("metadata")
    if not own and (called is None or standing is None):
        return kept
    for metadata in (called, standing):
        if not isinstance(metadata, Mapping | None):
            raise InvalidArgumentError("metadata", type(metadata).__name__, "a dict")
    both = {**(standing or {}), **(called or {})}
    options = {**(standing or {}).get(OPTIONS_KEY, {}), **(called or {}).get(OPTIONS_KEY, {}), **own}
    options = {name: value for name, value in options.items() if value is not None}
    both.pop(OPTIONS_KEY, None)
    metadata = {**both, OPTIONS_KEY: options} if options else both
    return {**kept, "metadata": metadata or None}


def own_options(given: object) -> Mapping[str, Any]:
    """Our options as a request holds them, their names checked.

    Raises:
        UnknownOptionError: a name that is none of them.
        InvalidArgumentError: no mapping.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(f"metadata[{OPTIONS_KEY!r}]", type(given).__name__, "a dict of options by name")
    check_options(f"metadata[{OPTIONS_KEY!r}]", given, OWN_OPTIONS)
    return given


def standing_namespace(defaults: Mapping[str, Any]) -> str | None:
    """The ``namespace`` of all calls of an LM, if it has one.

    Args:
        defaults: keywords of the LM, moved already.
    """
    metadata = defaults.get("metadata")
    options = metadata.get(OPTIONS_KEY) if isinstance(metadata, Mapping) else None
    return options.get("namespace") if isinstance(options, Mapping) else None


def _plain(value: Any) -> Any:
    """JSON, for cache keys and saved programs."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return value.model_json_schema()
    return list(value) if isinstance(value, tuple | set | frozenset) else value
