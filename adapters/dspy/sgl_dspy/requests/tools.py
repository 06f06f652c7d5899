"""Tools of a ``dspy.lm15.Request`` for ``sgl_core.chat.tools``: what a prompt offers, and what a reply may call. Pure; ``calls`` calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dspy import lm15

from sgl_core.chat.tools import Tool, ToolForm, ToolSet
from sgl_core.errors import InvalidArgumentError
from sgl_dspy.requests.failures import unsupported

__all__ = ["RequestTools", "request_tools"]

_CHOICES: Final = {"auto": "auto", "none": "none", "required": "any"}


@dataclass(frozen=True, slots=True)
class RequestTools:
    """The tools of one request.

    Args:
        offered: all of them; the prompt shows these, so that prompts begin alike whatever may be called.
        allowed: those that the reply may call, and who decides about calling.
    """

    offered: ToolSet
    allowed: ToolSet


def request_tools(request: lm15.Request, form: ToolForm) -> RequestTools | None:
    """The tools of a request; None if it has none.

    Args:
        request: DSPy's.
        form: how a prompt offers them.

    Raises:
        dspy.lm15.UnsupportedFeatureError: a tool that a provider runs.
        InvalidArgumentError: a tool that cannot be called here, or a call that is demanded without any.
    """
    choice = request.config.tool_choice or lm15.ToolChoice()
    if not request.tools:
        if choice.mode == "required":
            raise InvalidArgumentError("tool_choice", choice.mode, "no choice without tools", "Give tools, or leave it out.")
        return None
    tools = tuple(_tool(f"tools[{index}]", tool) for index, tool in enumerate(request.tools))
    allowed = tuple(tool for tool in tools if tool.name in choice.allowed) if choice.allowed else tools
    word = _CHOICES[choice.mode]
    if word == "any" and len(allowed) == 1:
        word = allowed[0].name
    return RequestTools(ToolSet(tools, form=form), ToolSet(allowed, word, choice.parallel is True, form))


def _tool(argument: str, tool: lm15.FunctionTool | lm15.BuiltinTool) -> Tool:
    if not isinstance(tool, lm15.FunctionTool):
        raise unsupported(argument, f"a tool of type {tool.type!r}")
    try:
        return Tool(tool.name, tool.description or "", tool.parameters)
    except InvalidArgumentError as error:
        raise error.renamed({error.argument: f"{argument}.{error.argument}"}) from None
