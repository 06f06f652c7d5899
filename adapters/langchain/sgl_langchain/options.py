"""Names of options, as people and frameworks type them: aliases, names without a meaning here, and names that come later.

The models check every constructor and every call against this, so a typo is an error and nothing is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from sgl_core.errors import InvalidArgumentError, NotYetAvailableError, UnknownOptionError

__all__ = ["canonical_options"]

_ALIASES: Final = {
    "model_name": "model",
    "stop_sequences": "stop",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
}
# Generic code passes these to every model; here is nothing to log in to and nothing to try again.
_WITHOUT_MEANING: Final = frozenset({"api_key", "max_retries"})

_NO_TOOLS = "describe the tools in the prompt and read the answer with an output parser"
_NO_SCHEMA = "ask for JSON in the prompt and read the answer with JsonOutputParser or PydanticOutputParser"
_NO_LOGPROBS = "score continuations with engine.score(prompt, continuations)"
_NOT_YET: Final = {
    "tools": _NO_TOOLS,
    "tool_choice": _NO_TOOLS,
    "parallel_tool_calls": _NO_TOOLS,
    "functions": _NO_TOOLS,
    "function_call": _NO_TOOLS,
    "strict": _NO_SCHEMA,
    "response_format": _NO_SCHEMA,
    "json_schema": _NO_SCHEMA,
    "regex": _NO_SCHEMA,
    "grammar": _NO_SCHEMA,
    "ebnf": _NO_SCHEMA,
    "stop_regex": "use stop=[...], or stop_regex in a program of sgl_native",
    "choices": "use sgl.select in a program of sgl_native",
    "logprobs": _NO_LOGPROBS,
    "top_logprobs": _NO_LOGPROBS,
    "n": "use batch([x] * n), which computes the prompt once",
}
_NEUTRAL: Final[tuple[object, ...]] = (None, False, 0, (), [], {})


def canonical_options(where: str, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The options by their own names, those without a meaning left out.

    Args:
        where: what the caller called, for errors.
        given: options as typed; not changed.
        known: names that ``where`` takes.

    Raises:
        NotYetAvailableError: an option that asks for something this version does not have.
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
        elif typed in _NOT_YET:
            _check_neutral(where, typed, value)
        elif typed not in _WITHOUT_MEANING:
            raise UnknownOptionError(where, typed, known)
    return options


def _check_neutral(where: str, option: str, value: object) -> None:
    """Values that ask for nothing pass: frameworks write them out."""
    if value in _NEUTRAL or (option == "n" and value == 1):
        return
    raise NotYetAvailableError(f"{where}: {option} is not available yet; {_NOT_YET[option]}")
