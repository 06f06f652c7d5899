"""Tools that a model may call: how a prompt offers them, how calls and results are written, and what a call must look like.

A call is a JSON object between ``<tool_call>`` marks, and results come back in a user's turn between ``<tool_response>`` marks,
as Hermes, Qwen2.5 and Qwen3 and many other local models were trained to. The tools stand in the system text: for such models
as JSON lines, in the words of their training, for others as signatures with an example. The LangChain and DSPy adapters call
this; ``tool_reading`` is the way back. All of it is values and pure functions, and equal tools give equal text, so prompts that
offer the same tools begin alike.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, get_args

from sgl_core.backend import TextCodec
from sgl_core.chat.tool_schemas import call_schema
from sgl_core.chat.tool_signatures import signature
from sgl_core.errors import InvalidArgumentError

__all__ = [
    "CALL_CLOSING",
    "CALL_OPENING",
    "CHOICES",
    "Tool",
    "ToolForm",
    "ToolResult",
    "ToolSet",
    "form_for",
    "render_call",
    "render_results",
]

CALL_OPENING: Final = "<tool_call>\n"
CALL_CLOSING: Final = "\n</tool_call>"
ToolForm = Literal["hermes", "signatures"]
"""How the system text offers tools."""

CHOICES: Final = ("auto", "none", "any")
"""Ways to choose; every other choice is the name of a tool."""

MOST_PARALLEL_CALLS: Final = 16
"""In one reply. A model that does not know when to stop would otherwise spend its whole budget on calls."""

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MOST_LEVELS: Final = 64
"""More than any engine takes in a schema."""

_NO_PARAMETERS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}}
_FUNCTION: Final = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'

_HERMES_OFFER: Final = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""Word for word what such models have seen in training."""

_SIGNATURES_OFFER: Final = """Functions:
{tools}

A function call is JSON. The arguments are copied from the user's message. For example, for the message "Add 17 and 4." the \
call of a function add(x: integer, y: integer) is
<tool_call>
{{"name":"add","arguments":{{"x":17,"y":4}}}}
</tool_call>

Where no function is needed, answer in plain words."""
"""Without the example, small models make arguments up. The last sentence makes it serve answers as well as calls."""

_THEN_ANSWER: Final = "\n\nAnswer my question in a sentence."

_LEAST_CALL_LOGPROB: Final = -6.0
"""One in 400. A trained model is far above it where it means to call and far below where it does not."""

_LEAST_CALL_LOGPROB_BEHIND_RESULT: Final = math.log(0.5)
_LEAST_SUM_WITH_NAME: Final = -20.5
"""Of the log-probabilities of both beginnings of a call, a mark and a tool's name."""

_LEAST_NAME_LEAD: Final = -3.45
"""Of the name over pleasantries. Both were fitted to the first 54 messages that ``ToolSet.decides_call`` tells of."""

_PLEASANTRIES: Final[Mapping[ToolForm, tuple[str, ...]]] = {
    "hermes": ("I'm glad", "Hello"),
    "signatures": ("I'm glad", "Hello", "You're welcome"),
}
"""Beginnings of answers to thanks and greetings, where small models think of calls as well."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask for.

    Args:
        name: 1 to 64 letters, digits, underscores and hyphens.
        description: what it does, for the model.
        parameters: JSON schema of its arguments, an object's; the order of its properties is the order they are written in.
            Empty for a tool without parameters. It must not be changed afterwards.

    Raises:
        InvalidArgumentError: for the first field that cannot be used.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field."""
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InvalidArgumentError("name", self.name, "1 to 64 letters, digits, underscores or hyphens")
        if not isinstance(self.description, str):
            raise InvalidArgumentError("description", type(self.description).__name__, "a str")
        if not isinstance(self.parameters, Mapping):
            raise InvalidArgumentError("parameters", type(self.parameters).__name__, "a JSON schema as a dict")
        if self.parameters.get("type", "object") != "object":
            raise InvalidArgumentError(
                "parameters",
                f"a schema of type {self.parameters['type']!r}",
                "a schema of type 'object'",
                "Name each argument.",
            )
        try:
            json.dumps(self.parameters, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise InvalidArgumentError("parameters", "a value that JSON cannot hold", "a JSON schema as a dict") from None
        if _is_deep(self.parameters):
            given = f"a schema nested more than {_MOST_LEVELS} levels deep"
            raise InvalidArgumentError("parameters", given, "a flatter one", "Use $defs and $ref.")

    @classmethod
    def from_openai(cls, function: Mapping[str, Any], *, argument: str = "tools") -> Tool:
        """A tool as OpenAI's clients and LangChain's ``convert_to_openai_tool`` describe it.

        Args:
            function: ``{"type": "function", "function": {"name", "description", "parameters", "strict"}}``. ``strict`` changes
                nothing: forced calls always meet their schema.
            argument: what the caller calls it, for errors; ``tools[2]``.

        Raises:
            InvalidArgumentError: something else, or a field that cannot be used.
        """
        inner = function.get("function") if isinstance(function, Mapping) else None
        if not isinstance(inner, Mapping) or function.get("type", "function") != "function":
            raise InvalidArgumentError(argument, _described(function), _FUNCTION)
        for key in inner:
            if key not in ("name", "description", "parameters", "strict"):
                raise InvalidArgumentError(f"{argument}.{key}", "an unknown field", _FUNCTION)
        try:
            return cls(inner.get("name", ""), inner.get("description") or "", inner.get("parameters") or {})
        except InvalidArgumentError as error:
            raise error.renamed({error.argument: f"{argument}.{error.argument}"}) from None

    def as_openai(self) -> dict[str, Any]:
        """The same as ``from_openai`` reads it."""
        parameters = dict(self.parameters) or dict(_NO_PARAMETERS)
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolSet:
    """The tools of one request and who decides about calling them.

    Args:
        tools: at least one, no two of one name.
        choice: "auto" (the model decides), "none" (it must answer), "any" (it must call one of them) or the name of the one it
            must call.
        parallel: one reply may hold several calls.
        form: how they are offered, see ``form_for``.

    Raises:
        InvalidArgumentError: no tools, two of one name, or a choice or form that is none of them.
    """

    tools: tuple[Tool, ...]
    choice: str = "auto"
    parallel: bool = False
    form: ToolForm = "hermes"

    def __post_init__(self) -> None:
        """Check names, choice and form."""
        if self.form not in get_args(ToolForm):
            raise InvalidArgumentError("form", self.form, f"one of {', '.join(get_args(ToolForm))}")
        if not self.tools:
            raise InvalidArgumentError("tools", "none", "at least one tool")
        names = [tool.name for tool in self.tools]
        for index, name in enumerate(names):
            if name in names[:index]:
                given = f"{name!r} a second time"
                raise InvalidArgumentError(
                    f"tools[{index}].name", given, "a name of its own for each tool", "Rename one of them."
                )
        if not isinstance(self.choice, str) or self.choice not in (*CHOICES, *names):
            near = difflib.get_close_matches(str(self.choice), [*CHOICES, *names], n=1)
            cure = f"Did you mean {near[0]!r}?" if near else ""
            raise InvalidArgumentError("tool_choice", self.choice, f"one of {', '.join((*CHOICES, *names))}", cure)

    @property
    def opening(self) -> str:
        """What a reply that must be a call is made to begin with; the constraint holds behind it."""
        return CALL_OPENING

    @property
    def forces_call(self) -> bool:
        """Whether the reply must be a call, whatever the model thinks."""
        return self.choice not in ("auto", "none")

    def system_text(self) -> str:
        """The part of the system text that offers the tools. It does not depend on ``choice``, so prefixes stay equal."""
        return self._offer

    def constraint(self) -> dict[str, Any]:
        """The field of ``SamplingParams`` that makes a reply behind ``opening`` a call of an allowed tool.

        One call is a JSON schema, which the engine closes best within a budget; its text ends with the object, without
        ``CALL_CLOSING``. With ``parallel`` it is a grammar of up to 16 calls with ``CALL_CLOSING`` and ``CALL_OPENING`` between
        them, as trained models write them; the last may be closed or not. An array of calls would be simpler, and none of them
        writes that. Required strings whose schema leaves it open hold more than white space, and objects hold no members that
        their schema does not list.
        """
        return dict(self._constraint)

    def decision_texts(self) -> tuple[str, ...]:
        """With choice "auto": beginnings of the reply whose log-probabilities ``decides_call`` wants to know."""
        texts = (CALL_OPENING, *_PLEASANTRIES[self.form])
        return texts if self.form == "hermes" else (*texts, *(f"{tool.name}(" for tool in self.tools))

    def decides_call(self, token_logprobs: Sequence[Sequence[float]], *, follows_result: bool = False) -> bool:
        """With choice "auto": whether the model would rather call a tool than answer.

        Small models hardly ever begin a call by themselves, yet what they think of its opening tells when one is due. So there
        is a bias: a call needs a probability of 1 in 400 and must be likelier than a pleasantry. A model that has read
        signatures may think of a call as they are written instead, of a tool's name and a bracket, which is how no answer
        begins; less is asked of that. Behind a result there is no bias, a call must be likelier than everything else together:
        the answer is due, and small models repeat what they have read.

        Measured on SmolLM2-135M-Instruct, which was not trained for tools, with 40 requests for a tool, 62 other messages and
        15 results: as "hermes" 33 requests became calls and nothing else did, as "signatures" 37 requests and one message of
        thanks. Of these 18, 30 and 5 were not seen before the rules were settled, with 15 and 17 requests and nothing else.

        Args:
            token_logprobs: of each token of each of ``decision_texts``, as ``ScoreResult`` has them.
            follows_result: the last message is a tool's result.
        """
        call, *others = map(sum, token_logprobs)
        if follows_result:
            return call >= _LEAST_CALL_LOGPROB_BEHIND_RESULT
        num_pleasantries = len(_PLEASANTRIES[self.form])
        pleasantry, names = max(others[:num_pleasantries]), others[num_pleasantries:]
        if call >= max(_LEAST_CALL_LOGPROB, pleasantry):
            return True
        return any(name >= max(_LEAST_SUM_WITH_NAME - call, pleasantry + _LEAST_NAME_LEAD) for name in names)

    @cached_property
    def _offer(self) -> str:
        if self.form == "hermes":
            return _HERMES_OFFER.format(tools="\n".join(_json(tool.as_openai()) for tool in self.tools))
        signatures = (signature(tool.name, tool.description, tool.parameters) for tool in self.tools)
        return _SIGNATURES_OFFER.format(tools="\n".join(signatures))

    @cached_property
    def _constraint(self) -> dict[str, Any]:
        allowed = [tool for tool in self.tools if self.choice in (*CHOICES, tool.name)]
        schema = call_schema([(tool.name, tool.parameters) for tool in allowed], in_grammar=self.parallel)
        if not self.parallel:
            return {"json_schema": schema}
        between = _json(CALL_CLOSING + "\n" + CALL_OPENING)
        call = _json({"x-guidance": {"whitespace_flexible": False}, **schema})
        more = f"({between} call){{0,{MOST_PARALLEL_CALLS - 1}}}"
        return {"grammar": f"start: call {more} ({_json(CALL_CLOSING)})?\ncall: %json {call}\n"}


def form_for(codec: TextCodec) -> ToolForm:
    """The form that suits the model: "hermes" where its chat template takes tools, so that it was trained to call them."""
    return "hermes" if codec.knows_tools else "signatures"


def render_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as the model writes it, for a conversation's history. Several are joined by a newline.

    Raises:
        InvalidArgumentError: JSON cannot hold the arguments.
    """
    try:
        call = _json({"name": name, "arguments": arguments})
    except (TypeError, ValueError, RecursionError):
        raise InvalidArgumentError("arguments", "a value that JSON cannot hold", "arguments as JSON values") from None
    return f"{CALL_OPENING}{call}{CALL_CLOSING}"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave.

    Args:
        content: its result as text.
        name: of the tool, if it is known.
        is_error: it failed, and ``content`` is why.
    """

    content: str
    name: str | None = None
    is_error: bool = False


def render_results(results: Sequence[ToolResult], form: ToolForm = "hermes") -> str:
    """Results as the model reads them: a user's turn, for all that stand in a row.

    Where the model was not trained for tools, the turn ends with what is to be done now. Without that,
    SmolLM2-135M-Instruct wrote the result or its own call again for 4 of 5 results; with it, it answered from the result 4 times,
    and the fifth was an error message.
    """
    if form == "hermes":
        return "\n".join(f"<tool_response>\n{_response(result)}\n</tool_response>" for result in results)
    lines = (f"Result of {result.name or 'the function'}: {_content(result)}" for result in results)
    return "\n".join(lines) + _THEN_ANSWER


def _response(result: ToolResult) -> str:
    content = _content(result)
    return content if result.name is None else _json({"name": result.name, "content": content})


def _content(result: ToolResult) -> str:
    is_marked = not result.is_error or result.content.lower().startswith("error")
    return result.content if is_marked else f"Error: {result.content}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=False, ensure_ascii=False)


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(2 * _MOST_LEVELS):  # a level of a schema is a map of names and the schemas in it
        level = [child for one in level for child in _children(one)]
    return bool(level)


def _children(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _described(value: object) -> str:
    return f"a dict with {', '.join(map(repr, value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
