"""Tools as LangChain's users hand them over, for ``sgl_core.chat.tools``: called by ``ChatSgl``.

Binding turns every kind of tool into OpenAI's form and every form of ``tool_choice`` into one word, so a mistake shows where it
was made; what a call brings along goes the same way.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

from sgl_core.chat.tools import Tool, ToolForm, ToolSet
from sgl_core.errors import InvalidArgumentError
from sgl_langchain.errors import langchain_errors
from sgl_langchain.schemas import all_required, as_openai_tool, json_text, shown_keys
from sgl_langchain.structured import bound_response_format, response_constraint

if TYPE_CHECKING:
    from sgl_langchain.chat import ChatSgl

__all__ = ["bind_tools", "tool_set"]

_WORDS: Final = {"auto": "auto", "none": "none", "any": "any", "required": "any"}
_KINDS: Final = "a function, a Pydantic class, a TypedDict, a BaseTool, or a dict that describes a function"


def bind_tools(
    model: ChatSgl,
    tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
    *,
    tool_choice: str | bool | dict[str, Any] | None = None,
    strict: bool | None = None,
    parallel_tool_calls: bool | None = None,
    response_format: object = None,
    **kwargs: Any,
) -> Runnable[LanguageModelInput, AIMessage]:
    """A binding of ``model`` that knows ``tools``.

    Args:
        model: the model.
        tools: functions, Pydantic classes, ``TypedDict`` classes, LangChain's tools, or dicts that describe a function.
        tool_choice: None or "auto": the model decides. "none": it calls no tool. "any", "required" or True: it calls one. A name,
            or ``{"type": "function", "function": {"name": ...}}``: it calls that one.
        strict: True makes every parameter required, except of tools that have a ``strict`` of their own. Calls are held to the
            schemas either way.
        parallel_tool_calls: True: one answer may be several calls.
        response_format: what an answer that calls no tool is held to, see ``structured.response_constraint``.
        **kwargs: other options of a call, as ``temperature``.

    Raises:
        InvalidArgumentError: something that is no tool, a choice of a tool that is not there, or a value out of range.
        UnknownOptionError: an option that no call has.
    """
    with langchain_errors():
        options: dict[str, Any] = {}
        if tools:
            options["tools"] = _openai_tools(tools, strict)
        choice = _choice(tool_choice, _names(options.get("tools", ())))
        if choice is not None:
            options["tool_choice"] = choice
        if parallel_tool_calls is not None:
            options["parallel_tool_calls"] = _flag("parallel_tool_calls", parallel_tool_calls)
        if response_format is not None:
            options["response_format"] = bound_response_format(response_format, strict)
            response_constraint(options["response_format"])
        call, _ = model._for_call(None, kwargs)
        call._sampling_params()
    return model.bind(**options, **kwargs)


def tool_set(options: Mapping[str, Any], form: ToolForm = "hermes") -> ToolSet | None:
    """The tools of a call; None if it has none.

    Args:
        options: of the call. ``tools``, ``tool_choice``, ``parallel_tool_calls`` and ``strict`` are read, in any form that
            ``bind_tools`` takes.
        form: how the prompt offers them.

    Raises:
        InvalidArgumentError: as in ``bind_tools``; also for two tools that share a name and differ.
    """
    tools, choice, strict = options.get("tools"), options.get("tool_choice"), options.get("strict")
    parallel = options.get("parallel_tool_calls")
    is_parallel = parallel is not None and _flag("parallel_tool_calls", parallel)
    if strict is not None:
        _flag("strict", strict)
    if not tools:
        _choice(choice, ())
        return None
    converted = _openai_tools(tools, strict)
    word = _choice(choice, _names(converted)) or "auto"
    # Bound tools come back at every call. They are told apart by their text, since anybody may change a dict.
    text = json_text("tools", converted)
    return _tool_set(text, word, is_parallel, form)


@lru_cache(maxsize=256)
def _tool_set(text: str, choice: str, parallel: bool, form: ToolForm) -> ToolSet:
    """Of tools that are given twice, the same in every word, one is left."""
    distinct: dict[str, Tool] = {}
    for index, tool in enumerate(json.loads(text)):
        key = json_text("tools", tool)
        if key not in distinct:
            distinct[key] = _tool(f"tools[{index}]", tool)
    return ToolSet(tuple(distinct.values()), choice, parallel, form)


def _tool(argument: str, tool: dict[str, Any]) -> Tool:
    function = tool["function"]
    if function.get("strict") is True and isinstance(function.get("parameters"), dict):
        function["parameters"] = all_required(function["parameters"])
    return Tool.from_openai(tool, argument=argument)


# ---- conversion ------------------------------------------------------------------------------------------------------
def _openai_tools(tools: object, strict: object) -> list[dict[str, Any]]:
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise InvalidArgumentError("tools", type(tools).__name__, "a list of tools")
    if strict is not None:
        _flag("strict", strict)
    return [_openai_tool(index, tool, strict) for index, tool in enumerate(tools)]


def _openai_tool(index: int, tool: Any, strict: object) -> dict[str, Any]:
    """OpenAI's form of one tool, shared with the caller where it has that form already."""
    if isinstance(tool, Mapping) and tool.get("type") == "function" and "function" not in tool:
        tool = {key: value for key, value in tool.items() if key != "type"}  # how OpenAI's newer interface writes them
    try:
        converted = as_openai_tool(tool)
    except Exception as error:  # the tool is the caller's, and so is what describing it raises
        raise InvalidArgumentError(f"tools[{index}]", _shown(tool), _KINDS, _first_line(error)) from error
    function = converted.get("function")
    if converted.get("type") != "function" or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidArgumentError(
            f"tools[{index}]", _shown(tool), _KINDS, "Tools that a provider's service runs are not available to a local model."
        )
    if function["name"] in _WORDS:
        raise InvalidArgumentError(f"tools[{index}]", function["name"], "a name that is no word of tool_choice", "Rename it.")
    if strict is None or "strict" in function:
        return converted
    return {**converted, "function": {**function, "strict": strict}}


def _shown(tool: object) -> str:
    if isinstance(tool, Mapping):
        return f"a dict of type {tool['type']!r}" if "type" in tool else f"a dict with {shown_keys(tool)}"
    return str(getattr(tool, "__name__", type(tool).__name__))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


# ---- choice ----------------------------------------------------------------------------------------------------------
def _names(tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(tool["function"]["name"] for tool in tools)


def _choice(given: object, names: Sequence[str]) -> str | None:
    """One of the words "auto", "none" and "any", or a name; None where nothing was chosen."""
    if given is None or given is False:
        return None
    if not names:
        raise InvalidArgumentError(
            "tool_choice", given, "no choice without tools", "Give tools=[...], or leave tool_choice out."
        )
    wanted = "any" if given is True else _named(given) if isinstance(given, Mapping) else given
    if isinstance(wanted, str) and wanted in names:
        return wanted
    if isinstance(wanted, str) and wanted in _WORDS:
        return _WORDS[wanted]
    near = difflib.get_close_matches(wanted, [*names, *_WORDS], n=1) if isinstance(wanted, str) else []
    expected = f"auto, none, any, required, True, or the name of a tool: {', '.join(dict.fromkeys(names))}"
    raise InvalidArgumentError("tool_choice", given, expected, f"Did you mean {near[0]!r}?" if near else "")


def _named(choice: Mapping[str, Any]) -> object:
    """What OpenAI's and Anthropic's dicts choose."""
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    return choice.get("type") if name is None else name


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgumentError(name, value, "True or False")
    return value
