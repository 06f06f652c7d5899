"""What people type: functions that build expressions.

Every check that needs no model happens here, so that a mistake shows in the line that made it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final, ParamSpec, TypeVar, Unpack, cast

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.choices import CHOICE_METHODS, DEFAULT_CHOICES_METHOD
from sgl_core.language.healing import DEFAULT_HEAL, check_heal
from sgl_core.language.ir import (
    CommutativeMark,
    Expr,
    ExprList,
    Gen,
    Heal,
    Image,
    RawText,
    RoleBegin,
    RoleEnd,
    Select,
    as_nodes,
)
from sgl_core.language.reasoning import check_model_type
from sgl_core.language.run import CURRENT_STATE
from sgl_core.language.sampling import DTYPES, SamplingOptions, sampling_options
from sgl_core.language.traced_state import TracedState

__all__ = [
    "assistant",
    "assistant_begin",
    "assistant_end",
    "call",
    "commutative",
    "gen",
    "gen_int",
    "gen_string",
    "greedy_token_selection",
    "image",
    "raw",
    "select",
    "separate_reasoning",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
]

# SGLang's programs name the methods of ``select`` so: choices_method=sgl.greedy_token_selection.
greedy_token_selection: Final = "greedy_token_selection"  # noqa: S105  (the name of a method)
token_length_normalized: Final = "token_length_normalized"  # noqa: S105
unconditional_likelihood_normalized: Final = "unconditional_likelihood_normalized"

P = ParamSpec("P")
T = TypeVar("T")

_INTEGER = r"[-+]?[0-9]+"
_OF_GEN = frozenset({"choices", "choices_method", "dtype", "heal", "name"})


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    *,
    dtype: type | None = None,
    choices: Sequence[str] | None = None,
    choices_method: str = DEFAULT_CHOICES_METHOD,
    heal: Heal = DEFAULT_HEAL,
    **options: Unpack[SamplingOptions],
) -> Expr:
    """Generate text.

    Args:
        name: variable that gets the text; None when nobody reads it.
        max_tokens: short for ``max_new_tokens``; None is the backend's default budget, ``to_context`` all of the context
            that the prompt leaves.
        dtype: int, float or bool: the variable holds that value, and the text is in the meta info as ``raw_text``.
        choices: makes this a ``select`` among them; sampling options then have no effect.
        choices_method: as in ``select``.
        heal: which last token of the prompt is taken back, for the model to spell its text anew together with what follows:
            "space": of the spaces or tabs that the program's own text ends with; "token": of that text, whatever it is,
            line ends excepted; False: none. The prompt's text stays as it is written, and the output begins behind it.
        **options: any field of ``SamplingParams``, and SGLang's ``return_logprob``, ``logprob_start_len``,
            ``top_logprobs_num`` and ``return_text_in_logprobs``. Unlike in ``SamplingParams``, the temperature is 1.0
            unless given here or to ``run``.

    Raises:
        UnknownOptionError: an option nobody knows.
        InvalidArgumentError: a value that cannot be used.
    """
    checked = sampling_options("gen", {"max_tokens": max_tokens, **options}, others=_OF_GEN)
    check_heal(heal)
    if choices is not None:
        return select(name, choices, choices_method=choices_method)
    if dtype is not None and dtype not in DTYPES:
        raise InvalidArgumentError("dtype", dtype, "str, int, float or bool", "Use json_schema=... for anything richer.")
    return Gen(_checked_name(name), MappingProxyType(checked), dtype or str, heal)


def gen_int(
    name: str | None = None, max_tokens: int | None = None, *, heal: Heal = DEFAULT_HEAL, **options: Unpack[SamplingOptions]
) -> Expr:
    """Generate an integer: ``gen`` with ``dtype=int`` and a regex of digits with an optional sign."""
    if options.get("regex") is None:
        options["regex"] = _INTEGER
    return gen(name, max_tokens, dtype=int, heal=heal, **options)


def gen_string(
    name: str | None = None, max_tokens: int | None = None, *, heal: Heal = DEFAULT_HEAL, **options: Unpack[SamplingOptions]
) -> Expr:
    """Generate text: ``gen`` with ``dtype=str``."""
    return gen(name, max_tokens, dtype=str, heal=heal, **options)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    *,
    choices_method: str = DEFAULT_CHOICES_METHOD,
) -> Select:
    """Append the likeliest of several texts.

    Args:
        name: variable that gets the chosen text; None when nobody reads it.
        choices: at least one, none empty; they cannot be left out. Equal scores go to the first.
        temperature: taken for compatibility; the choice is always the best one.
        choices_method: "token_length_normalized", "greedy_token_selection" or "unconditional_likelihood_normalized".

    Raises:
        InvalidArgumentError: for ``choices`` or ``choices_method``.
    """
    sampling_options("select", {"temperature": temperature})
    if choices is None or isinstance(choices, str) or not isinstance(choices, Sequence):
        given = "nothing" if choices is None else type(choices).__name__
        raise InvalidArgumentError("choices", given, "a list of str")
    if not choices:
        raise InvalidArgumentError("choices", "an empty list", "at least one choice")
    for index, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise InvalidArgumentError(f"choices[{index}]", type(choice).__name__, "a str", "Convert it with str(...) first.")
        if not choice:
            raise InvalidArgumentError(f"choices[{index}]", "an empty str", "at least one character")
    if choices_method not in CHOICE_METHODS:
        raise InvalidArgumentError("choices_method", choices_method, f"one of {', '.join(sorted(CHOICE_METHODS))}")
    return Select(_checked_name(name), tuple(choices), choices_method)


def raw(text: str) -> RawText:
    """An author's literal: spellings of control tokens inside it become those tokens.

    Only write literals here. Text that comes from elsewhere belongs in a plain str, which cannot yield a control token.

    Raises:
        TypeError: ``text`` is no str.
    """
    if not isinstance(text, str):
        raise TypeError(f"raw: got {type(text).__name__}, expected a str literal")
    return RawText(text)


def image(source: str | os.PathLike[str] | bytes) -> Image:
    """A picture. Whether the backend takes any shows when the program runs.

    Args:
        source: a path, a URL, or the bytes of the file.

    Raises:
        InvalidArgumentError: it is none of them, or empty.
        TraceError: it is the argument of a program that is being compiled; make it static.
    """
    given = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(given, str | bytes):
        cure = "Convert it with bytes(...) first." if isinstance(given, bytearray | memoryview) else ""
        raise InvalidArgumentError("source", type(given).__name__, "a path, a URL, or the bytes of a file", cure)
    if not given:
        raise InvalidArgumentError("source", given, "a path, a URL, or the bytes of a file")
    return Image(given)


def separate_reasoning(expr: Expr, model_type: str) -> ExprList:
    """Keep the reasoning of a model apart from its answer, for every gen in ``expr``.

    A gen ``name`` then defines two variables: ``name``, the answer, and ``name_reasoning_content``. The state's text and
    what later gens continue hold the answer alone. Budget, stops and constraints are for the whole output, reasoning
    included. Streaming the variable gives the answer when all of it is there, as only then is known where it begins.

    Args:
        expr: an expression with at least one gen; each needs a name.
        model_type: "deepseek-r1", "qwen3", "gpt-oss", ...: ``sgl_core.language.reasoning.MODEL_TYPES``.

    Raises:
        InvalidArgumentError: a gen without a name, no gen at all, or an unknown kind of model.
    """
    check_model_type(model_type)
    if not isinstance(expr, Expr):
        raise InvalidArgumentError("expr", type(expr).__name__, "an expression with a gen in it")
    nodes = expr.nodes()
    gens = [node for node in nodes if isinstance(node, Gen)]
    if not gens:
        raise InvalidArgumentError("expr", "no gen", "an expression with a gen in it")
    if any(gen.name is None for gen in gens):
        cure = 'Write separate_reasoning(gen("answer"), ...): the variable of its reasoning is named after it.'
        raise InvalidArgumentError("expr", "a gen without a name", "a name for every gen in it", cure)
    return ExprList(tuple(replace(node, reasoning=model_type) if isinstance(node, Gen) else node for node in nodes))


def commutative(*parts: Expr | str) -> ExprList:
    """Say that some parts of a prompt mean the same in any order, as examples or documents mostly do.

    They are appended as they stand here. Only ``compile(..., move="safe")`` takes the author at the word: it may put them
    into another order, the same for every run, so that more of the prompt is shared. No part is ever dropped, doubled or
    changed, nothing moves into or out of the group, and what is generated behind it reads all of them.

    Args:
        *parts: at least two, each text or an expression that closes the turns it opens and generates nothing.

    Raises:
        InvalidArgumentError: a single part, or one that cannot be moved.
    """
    if len(parts) < 2:
        raise InvalidArgumentError(
            "parts", len(parts), "at least two", "One part has no order; write it without commutative()."
        )
    marked: list[Expr] = []
    for index, part in enumerate(parts):
        nodes = as_nodes(part, f"parts[{index}]")
        _check_movable(nodes, f"parts[{index}]")
        marked += (CommutativeMark("next" if index else "begin"), *nodes)
    return ExprList((*marked, CommutativeMark("end")))


def call(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run host code on values: ``sgl.call(", ".join, s["words"])``.

    The interpreter runs it at once; in a program that is compiled it runs when its arguments are there, each time.
    """
    state = CURRENT_STATE.get()
    if isinstance(state, TracedState):
        return cast("T", state.call_host(fn, args, kwargs))
    return fn(*args, **kwargs)


def system(expr: Expr | str = "") -> ExprList:
    """A system turn around ``expr``."""
    return _turn("system", expr)


def user(expr: Expr | str = "") -> ExprList:
    """A user turn around ``expr``."""
    return _turn("user", expr)


def assistant(expr: Expr | str = "") -> ExprList:
    """An assistant turn around ``expr``."""
    return _turn("assistant", expr)


def system_begin() -> RoleBegin:
    """Open a system turn."""
    return RoleBegin("system")


def system_end() -> RoleEnd:
    """Close the system turn."""
    return RoleEnd("system")


def user_begin() -> RoleBegin:
    """Open a user turn."""
    return RoleBegin("user")


def user_end() -> RoleEnd:
    """Close the user turn."""
    return RoleEnd("user")


def assistant_begin() -> RoleBegin:
    """Open an assistant turn."""
    return RoleBegin("assistant")


def assistant_end() -> RoleEnd:
    """Close the assistant turn."""
    return RoleEnd("assistant")


def _turn(role: str, expr: Expr | str) -> ExprList:
    return ExprList((RoleBegin(role), *as_nodes(expr, f"{role}(...)"), RoleEnd(role)))


def _check_movable(nodes: tuple[Expr, ...], argument: str) -> None:
    """Refuse a part that means something else in another place."""
    role: str | None = None
    for node in nodes:
        match node:
            case CommutativeMark():
                raise InvalidArgumentError(
                    argument, "commutative(...)", "parts without groups of their own", "Make it one group."
                )
            case Gen() | Select():
                cure = "What is generated depends on all that stands before it; put it behind commutative(...)."
                raise InvalidArgumentError(argument, type(node).__name__, "parts that generate nothing", cure)
            case RoleBegin() if role is not None:
                raise InvalidArgumentError(argument, f"a {node.role} turn inside a {role} turn", "turns one after another")
            case RoleBegin():
                role = node.role
            case RoleEnd() if node.role != role:
                raise _unbalanced(argument, f"the end of a {node.role} turn that it does not open")
            case RoleEnd():
                role = None
    if role is not None:
        raise _unbalanced(argument, f"a {role} turn that it does not close")


def _unbalanced(argument: str, given: str) -> InvalidArgumentError:
    cure = "Write system(...), user(...) or assistant(...) around the whole of a part, or around all of commutative(...)."
    return InvalidArgumentError(argument, given, "parts that close the turns they open", cure)


def _checked_name(name: str | None) -> str | None:
    if name is not None and (not isinstance(name, str) or not name):
        raise InvalidArgumentError("name", name, "a non-empty str, or None")
    return name
