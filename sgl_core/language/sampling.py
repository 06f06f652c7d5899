"""Options of ``gen`` and defaults of ``run``: one list of names (the fields of ``SamplingParams``), checked in one place.

Called by the primitives and by ``SglFunction``; the stream combines both into the request's ``SamplingParams``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypedDict

from sgl_core.errors import InvalidArgumentError, check_options
from sgl_core.types import SamplingParams

__all__ = ["DTYPES", "OPTION_NAMES", "SamplingOptions", "combined_params", "read_as", "sampling_options"]

DEFAULT_TEMPERATURE: Final = 1.0  # SGLang's; ported programs rely on it. SamplingParams() itself is greedy.
_ALIASES: Final = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
OPTION_NAMES: Final = (SamplingParams.field_names() - {"choices"}) | frozenset(_ALIASES)


class SamplingOptions(TypedDict, total=False):
    """Keywords of ``gen`` and of ``run``; their meaning stands in ``SamplingParams``. None means "not set"."""

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


def sampling_options(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check options and give them their ``SamplingParams`` names; those that are None are left out.

    Args:
        where: the function the user called, for errors.
        given: options by the names the user typed; not changed.

    Raises:
        UnknownOptionError: a name nobody knows.
        InvalidArgumentError: a value out of range, or an option given under both of its names.
    """
    check_options(where, given, OPTION_NAMES)
    options: dict[str, Any] = {}
    for typed, value in given.items():
        if value is None:
            continue
        name = _ALIASES.get(typed, typed)
        if name in options:
            alias = next(a for a, full in _ALIASES.items() if full == name)
            raise InvalidArgumentError(f"{alias} and {name}", "both", f"one of them: {alias} is a short name for {name}")
        options[name] = value
    if options.get("n", 1) != 1:
        raise InvalidArgumentError("n", options["n"], "1", "Use s.fork(n) for several continuations of one prompt.")
    checked = SamplingParams(**options)
    return {name: getattr(checked, name) for name in options}


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
