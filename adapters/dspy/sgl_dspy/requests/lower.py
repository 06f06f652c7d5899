"""The configuration of a ``dspy.lm15.Request`` as sampling parameters and the rest of what a call needs; what we lack is refused by name.

Called by ``calls`` for each request. Nothing that a caller asks for is dropped in silence. Pure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from dspy import lm15

from sgl_core.chat.json_schemas import close_object, is_composed, rewritten
from sgl_core.errors import ContextLengthError, InvalidArgumentError
from sgl_core.types import SamplingParams
from sgl_dspy.formats.reply_program import PROGRAM_KEY, ReplyProgram
from sgl_dspy.requests.failures import unsupported
from sgl_dspy.requests.options import OPTIONS_KEY, OWN_OPTIONS, own_options

__all__ = ["SUPPORTED_PARAMS", "Lowered", "lowered", "room_behind"]

SUPPORTED_PARAMS: Final = frozenset(
    {"temperature", "max_tokens", "top_p", "top_k", "stop", "seed", "frequency_penalty", "presence_penalty", "logit_bias"}
    | {"response_format", "tools", "tool_choice", "parallel_tool_calls", "logprobs", "top_logprobs"}
)
"""Options that are honoured, by their OpenAI names."""

_SAMPLING: Final = ("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty", "logprobs")
_CONSTRAINTS: Final = ("regex", "json_schema", "grammar", "choices")
_EXTENSIONS: Final = ("logit_bias", "metadata", PROGRAM_KEY, OPTIONS_KEY)
_ANY_OBJECT: Final = '{"type":"object"}'


@dataclass(frozen=True, slots=True)
class Lowered:
    """What a request asks for besides its prompt.

    Args:
        options: fields of ``SamplingParams``, without a budget.
        max_tokens: the budget, None for the rest of the context.
        program: how the reply is to be written.
        namespace, timeout_s: of its requests.
    """

    options: Mapping[str, Any]
    max_tokens: int | None
    program: ReplyProgram | None
    namespace: str | None
    timeout_s: float | None

    def params(self, room: int) -> SamplingParams:
        """The sampling parameters where there is room for so many tokens.

        Raises:
            InvalidArgumentError: a value is out of range, or there are several constraints.
        """
        budget = room if self.max_tokens is None else min(self.max_tokens, room)
        return SamplingParams(max_new_tokens=budget, **self.options)


def lowered(request: lm15.Request) -> Lowered:
    """Read the configuration of a request.

    Raises:
        dspy.lm15.UnsupportedFeatureError: it asks for something that we lack.
        InvalidArgumentError: an option has a value that cannot be used, or does not go with another.
        UnknownOptionError: an option of ours that does not exist.
    """
    _refuse_unsupported(request)
    config = request.config
    extensions = config.extensions or {}
    notes = _notes(extensions)
    own = own_options(notes.get(OPTIONS_KEY))
    plain = notes.get(PROGRAM_KEY)
    program = None if plain is None else ReplyProgram.from_json(plain)
    options: dict[str, Any] = {name: getattr(config, name) for name in _SAMPLING if getattr(config, name) is not None}
    options["stop"] = config.stop
    options["logit_bias"] = _logit_bias(extensions.get("logit_bias"))
    options |= {field: own[name] for name, field in OWN_OPTIONS.items() if field is not None and own.get(name) is not None}
    _add_response_format(config.response_format, options)
    if program is not None:
        _check_program(options, has_format=config.response_format is not None)
    elif not any(options.get(name) is not None for name in (*_CONSTRAINTS, "min_new_tokens")):
        options["min_new_tokens"] = 1  # an empty reply is an error for every adapter of DSPy
    return Lowered(
        options, config.max_tokens, program, _namespace(config.cache, own.get("namespace")), _timeout(own.get("timeout_s"))
    )


def room_behind(prompt_tokens: int, context_tokens: int) -> int:
    """Tokens that a reply may have.

    Raises:
        ContextLengthError: none, as the prompt alone is too long.
    """
    if prompt_tokens >= context_tokens:
        raise ContextLengthError(prompt_tokens, None, context_tokens, "the context")
    return context_tokens - prompt_tokens


def _add_response_format(given: Mapping[str, Any] | None, options: dict[str, Any]) -> None:
    if given is None:
        return
    other = next((name for name in _CONSTRAINTS if options.get(name) is not None), None)
    if other is not None:
        raise InvalidArgumentError(f"response_format and {other}", "both", "one of them")
    if given["type"] == "json_object":
        options["json_schema"] = _ANY_OBJECT
        return
    try:
        text = json.dumps(given["schema"], allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidArgumentError("response_format", "a schema that JSON cannot hold", "a JSON schema") from None
    options["json_schema"] = _held_to(text, given.get("strict") is True)


@lru_cache(maxsize=256)
def _held_to(text: str, is_strict: bool) -> str:
    """A schema as a model is held to it: it makes up no keys where the schema names them; every output meets the original."""

    def change(schema: dict[str, Any]) -> None:
        if closes:
            close_object(schema)
        if is_strict and isinstance(schema.get("properties"), dict) and schema["properties"]:
            schema["required"] = list(schema["properties"])

    schema = json.loads(text)
    try:
        closes = not is_composed(schema)
        return json.dumps(rewritten(schema, change), ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise InvalidArgumentError("response_format", "a schema that is nested too deep", "a flatter one") from None


def _check_program(options: Mapping[str, Any], *, has_format: bool) -> None:
    constraint = next((name for name in _CONSTRAINTS if options.get(name) is not None), None)
    if constraint is not None:
        raise InvalidArgumentError(
            "response_format" if has_format else constraint,
            "a constraint beside an adapter that says how replies are written",
            "one of the two",
            "Use ChatAdapter(structure='off') for this call.",
        )
    if options.get("logprobs"):
        raise InvalidArgumentError(
            "top_logprobs",
            options["logprobs"],
            "none for a reply whose format is forced, as nothing else could have stood there",
            "Leave it out, or use an adapter with structure='off'.",
        )


def _notes(extensions: Mapping[str, Any]) -> dict[str, Any]:
    """Where adapters and ``SglLM`` leave word for us: in the metadata, which may hold anything else, or beside it."""
    metadata = extensions.get("metadata")
    beside = {key: extensions[key] for key in (PROGRAM_KEY, OPTIONS_KEY) if key in extensions}
    return {**(metadata if isinstance(metadata, Mapping) else {}), **beside}


def _timeout(given: object) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise InvalidArgumentError("timeout_s", given, "seconds above 0, or None")
    return given


def _namespace(cache: lm15.CacheConfig | None, own: object) -> str | None:
    key = None if cache is None else cache.key
    if own is not None and not isinstance(own, str):
        raise InvalidArgumentError("namespace", own, "a str")
    if own is not None and key is not None and own != key:
        raise InvalidArgumentError("namespace", own, "the same as prompt_cache.key, or only one of them")
    return key if own is None else own


def _logit_bias(given: Any) -> dict[int, float] | None:
    """OpenAI's form, whose keys are ids in text."""
    if given is None:
        return None
    try:
        return {int(token): float(bias) for token, bias in dict(given).items()}
    except (TypeError, ValueError):
        raise InvalidArgumentError("logit_bias", given, "a mapping from token ids to numbers") from None


# ---- refusals --------------------------------------------------------------------------------------------------------
def _refuse_unsupported(request: lm15.Request) -> None:
    for feature in _unsupported_features(request.config):
        raise unsupported(feature, feature.rpartition(".")[2])


def _unsupported_features(config: lm15.Config) -> Iterator[str]:
    if config.reasoning is not None and not config.reasoning.is_off:
        yield "config.reasoning"
    for name in ("service_tier", "user_id"):
        if getattr(config, name) is not None:
            yield f"config.{name}"
    if config.store:  # False asks for what is the case: nothing is stored
        yield "config.store"
    for name in config.extensions or ():
        if name not in _EXTENSIONS:
            yield f"config.extensions.{name}"
