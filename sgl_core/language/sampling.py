"""Options of ``gen`` and defaults of ``run``: one list of names (the fields of ``SamplingParams``), checked in one place.

Called by the primitives and by ``SglFunction``; the stream combines both into the request's ``SamplingParams``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypedDict

from sgl_core.errors import GrammarError, InvalidArgumentError, check_options
from sgl_core.types import SamplingParams

__all__ = ["DTYPES", "OPTION_NAMES", "SamplingOptions", "combined_params", "read_as", "sampling_options", "to_context"]


class _ToContext(int):
    """A number with a name."""

    def __repr__(self) -> str:
        return "to_context"

    def __reduce__(self) -> str:
        return "to_context"


to_context: Final = _ToContext(2**31 - 1)
"""A budget for ``max_tokens``: all of the model's context that the prompt leaves.

It is the largest number that a budget can be, which no context has room for, so it may go wherever an int goes, JSON
included. What the number stands for is put into the request when the length of the prompt is known.
"""

DEFAULT_TEMPERATURE: Final = 1.0  # SGLang's; ported programs rely on it. SamplingParams() itself is greedy.
_ALIASES: Final = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
_SGLANG_LOGPROBS: Final = frozenset({"return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs"})
OPTION_NAMES: Final = (SamplingParams.field_names() - {"choices"}) | frozenset(_ALIASES) | _SGLANG_LOGPROBS


class SamplingOptions(TypedDict, total=False):
    """Keywords of ``gen`` and of ``run``; their meaning stands in ``SamplingParams``. None means "not set".

    The last four are SGLang's: ``return_logprob=True`` is ``logprobs=top_logprobs_num``, or 0, and with
    ``logprob_start_len=0`` also ``prompt_logprobs=True``. Reported tokens have their text anyway.
    """

    max_new_tokens: int | None
    min_new_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    n: int | None
    stop: str | list[str] | tuple[str, ...] | None
    stop_token_ids: list[int] | tuple[int, ...] | None
    stop_regex: str | None
    ignore_eos: bool | None
    seed: int | None
    logprobs: int | None
    prompt_logprobs: bool | None
    regex: str | None
    json_schema: Any
    grammar: str | None
    return_logprob: bool | None
    logprob_start_len: int | None
    top_logprobs_num: int | None
    return_text_in_logprobs: bool | None


def sampling_options(where: str, given: Mapping[str, Any], *, others: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """Check options and give them their ``SamplingParams`` names; those that are None are left out.

    Args:
        where: the function the user called, for errors.
        given: options by the names the user typed; not changed.
        others: keywords of the function that are none of these, for the error.

    Raises:
        UnknownOptionError: a name nobody knows.
        InvalidArgumentError: a value out of range, or an option given under both of its names.
    """
    check_options(where, given, OPTION_NAMES | others)
    options = _logprob_options(given)
    for typed, value in given.items():
        if value is None or typed in _SGLANG_LOGPROBS:
            continue
        name = _ALIASES.get(typed, typed)
        if name in options:
            alias = next((a for a, full in _ALIASES.items() if full == name), "return_logprob")
            raise InvalidArgumentError(f"{alias} and {name}", "both", f"one of them: {alias} sets {name}")
        options[name] = value
    if options.get("n", 1) != 1:
        raise InvalidArgumentError("n", options["n"], "1", "Use s.fork(n) for several continuations of one prompt.")
    if isinstance(options.get("json_schema"), Mapping):  # what the caller does to it later must not reach the node
        options["json_schema"] = _schema_text(options["json_schema"])
    try:
        checked = SamplingParams(**options)
    except InvalidArgumentError as error:
        raise error.renamed({name: alias for alias, name in _ALIASES.items() if given.get(alias) is not None}) from None
    return {name: getattr(checked, name) for name in options}


def _logprob_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """SGLang's four options as our two."""
    for name in ("return_logprob", "return_text_in_logprobs"):
        if not isinstance(given.get(name), bool | None):
            raise InvalidArgumentError(name, given[name], "True or False")
    top, start = given.get("top_logprobs_num"), given.get("logprob_start_len")
    if top is not None:
        try:
            SamplingParams(logprobs=top)
        except InvalidArgumentError as error:
            raise InvalidArgumentError("top_logprobs_num", top, error.expected) from None
    if start is not None and (isinstance(start, bool) or start not in (-1, 0)):
        raise InvalidArgumentError("logprob_start_len", start, "-1 (the output alone) or 0 (the prompt, too)")
    if given.get("return_logprob"):
        return {"logprobs": top or 0, **({"prompt_logprobs": True} if start == 0 else {})}
    for name, value, off in (("top_logprobs_num", top, 0), ("logprob_start_len", start, -1)):
        if value not in (None, off):
            raise InvalidArgumentError(name, value, "return_logprob=True beside it")
    if given.get("return_logprob") is None:
        return {}
    return {"logprobs": None, "prompt_logprobs": False}  # said outright: not even where ``run`` asks for them


def _schema_text(schema: dict[Any, Any]) -> str:
    """A schema as JSON text: what its owner does to it later must not reach the node.

    Raises:
        GrammarError: JSON cannot express it.
    """
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        reason = "it holds a value that JSON cannot, contains itself, or is nested too deeply"
        raise GrammarError("json_schema", reason) from error


def combined_params(defaults: Mapping[str, Any], options: Mapping[str, Any], seed: int) -> SamplingParams:
    """The parameters of one request: the node's options over the run's defaults over the language's.

    Args:
        defaults, options: results of ``sampling_options``.
        seed: used unless one of the two names a seed.

    Raises:
        InvalidArgumentError: each was fine alone and they do not go together.
    """
    return SamplingParams(**{"temperature": DEFAULT_TEMPERATURE, "seed": seed, **defaults, **options})


def _as_bool(text: str) -> bool:
    return {"true": True, "false": False}[text.strip().lower()]


DTYPES: Final[Mapping[type, Callable[[str], Any]]] = {str: str, int: int, float: float, bool: _as_bool}


def read_as(dtype: type, text: str) -> Any:
    """The value of generated text.

    Raises:
        InvalidArgumentError: the text does not read as ``dtype``.
    """
    try:
        return DTYPES[dtype](text)
    except (ValueError, KeyError) as error:
        raise InvalidArgumentError(
            "dtype",
            f"{len(text)} generated characters",
            f"text that reads as {dtype.__name__}",
            "Constrain it with regex=... or choices=..., or leave dtype out and convert it yourself.",
        ) from error
