"""Structured output: what ``ChatSgl.with_structured_output`` builds, and what ``response_format`` asks of an answer.

The engine's grammars hold the answer to the schema and close it within its budget, so it can always be parsed. Three methods are
three ways to ask for it: as the text of the answer (``json_schema``, ``json_mode``), or as the call of a tool
(``function_calling``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.pydantic import is_basemodel_subclass

from sgl_core.errors import InvalidArgumentError, check_options
from sgl_langchain.errors import langchain_errors
from sgl_langchain.reply_parsers import JsonCallParser, JsonReplyParser, PydanticCallParser, PydanticReplyParser
from sgl_langchain.schemas import NamedSchema, as_openai_tool, constraint_text, read_schema

if TYPE_CHECKING:
    from sgl_langchain.chat import ChatSgl

__all__ = ["StructuredMethod", "bound_response_format", "response_constraint", "with_structured_output"]

StructuredMethod = Literal["json_schema", "function_calling", "json_mode"]

_METHODS: Final[tuple[str, ...]] = get_args(StructuredMethod)
_UNNAMED: Final = "response"
_ANY_OBJECT: Final = '{"type":"object"}'
_TYPES_OF_SCHEMAS: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null", "function"})


# ---- response_format -------------------------------------------------------------------------------------------------
def response_constraint(response_format: object) -> dict[str, Any]:
    """The field of ``SamplingParams`` that a ``response_format`` asks for; empty where it asks for nothing.

    Args:
        response_format: as OpenAI has it, ``{"type": "json_schema", "json_schema": {"name", "schema", "strict"}}``,
            ``{"type": "json_object"}`` or ``{"type": "text"}``; or a schema, see ``schemas.read_schema``; or None.

    Raises:
        InvalidArgumentError: it is something else.
    """
    bound = bound_response_format(response_format)
    if bound is None or bound["type"] == "text":
        return {}
    if bound["type"] == "json_object":
        return {"json_schema": _ANY_OBJECT}
    inner = bound["json_schema"]
    return {"json_schema": constraint_text("response_format", inner["schema"], strict=inner.get("strict") is True)}


def bound_response_format(response_format: object, strict: bool | None = None) -> dict[str, Any] | None:
    """A ``response_format`` as plain data in OpenAI's form, for bindings and traces.

    Args:
        response_format: as in ``response_constraint``.
        strict: for a schema that does not say so itself.

    Raises:
        InvalidArgumentError: it is something else.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        return _json_schema_format(response_format, strict)
    kind = response_format.get("type")
    if kind in {"text", "json_object"} and len(response_format) == 1:
        return {"type": kind}
    if isinstance(kind, str) and kind not in {"json_schema", *_TYPES_OF_SCHEMAS}:
        raise InvalidArgumentError(
            "response_format",
            dict(response_format),
            '{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {...}}, or a schema',
            "A schema goes with the type json_schema.",
        )
    if kind != "json_schema":
        return _json_schema_format(response_format, strict)
    inner = response_format.get("json_schema")
    if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
        raise InvalidArgumentError(
            "response_format",
            "type 'json_schema' without a schema",
            '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
        )
    return _json_schema_format({**inner, "name": inner.get("name") or _UNNAMED}, strict)


def _json_schema_format(schema: object, strict: bool | None) -> dict[str, Any]:
    read = read_schema("response_format", schema)
    strict = strict if read.strict is None else read.strict
    if strict is not None and not isinstance(strict, bool):
        raise InvalidArgumentError("strict", strict, "None, True or False")
    inner = {"name": read.name or _UNNAMED, "schema": dict(read.schema)} | ({} if strict is None else {"strict": strict})
    return {"type": "json_schema", "json_schema": inner}


# ---- with_structured_output ------------------------------------------------------------------------------------------
def with_structured_output(
    model: ChatSgl,
    schema: dict[str, Any] | type | None = None,
    *,
    method: StructuredMethod = "json_schema",
    include_raw: bool = False,
    strict: bool | None = None,
    tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    **kwargs: Any,
) -> Runnable[LanguageModelInput, Any]:
    """A runnable that answers with objects of ``schema``.

    Args:
        model: whose answers they are.
        schema: a Pydantic class of either version, a ``TypedDict``, a JSON schema, or a function as OpenAI describes it. Answers
            are objects of a Pydantic class, otherwise dicts. None, for any JSON object, only with ``json_mode``.
        method: ``"json_schema"``: the answer's text is the object. ``"json_mode"``: the same, and the schema may be left out.
            ``"function_calling"``: the object is the arguments of a call that the model has to make.
        include_raw: give ``{"raw": message, "parsed": object or None, "parsing_error": error or None}`` and raise no error of the
            parser's.
        strict: True makes every property required, as OpenAI has it, unless the schema's own ``strict`` says otherwise. Answers
            are held to the schema either way.
        tools: that the model may call instead of answering; needs ``"json_schema"`` and ``include_raw=True``, the calls are in
            the raw message.
        **kwargs: nothing.

    Raises:
        InvalidArgumentError: an argument that cannot be used, or a name that nobody knows.
    """
    with langchain_errors():
        check_options("with_structured_output", kwargs, ("method", "include_raw", "strict", "tools"))
        _check(schema, method, include_raw=include_raw, tools=tools)
        if method == "function_calling":
            answering, parser = _as_call(model, schema, strict)
        else:
            answering, parser = _as_text(model, schema, method, strict, tools)
    return _with_raw(answering, parser) if include_raw else answering | parser


def _check(schema: object, method: str, *, include_raw: bool, tools: Sequence[Any] | None) -> None:
    if method not in _METHODS:
        raise InvalidArgumentError("method", method, f"one of {', '.join(_METHODS)}")
    if schema is None and method != "json_mode":
        raise InvalidArgumentError("schema", None, f"a schema for method={method!r}", "Use method='json_mode' for any object.")
    if tools and (method != "json_schema" or not include_raw):
        raise InvalidArgumentError(
            "tools",
            f"{len(tools)} with method={method!r} and include_raw={include_raw}",
            "method='json_schema' and include_raw=True",
            "An answer may then be calls, which are in its raw message.",
        )


def _as_text(
    model: ChatSgl, schema: Any, method: str, strict: bool | None, tools: Sequence[Any] | None
) -> tuple[Runnable[LanguageModelInput, AIMessage], BaseOutputParser[Any]]:
    options: dict[str, Any] = {"response_format": {"type": "json_object"}}
    if schema is not None:
        read = read_schema("schema", schema)
        named = {"name": read.name or _UNNAMED, "schema": read.schema, "strict": read.strict}
        options["response_format"] = bound_response_format(named, strict)
        options["ls_structured_output_format"] = _traced(schema, read, method)
        response_constraint(options["response_format"])  # raises now what a call would raise
    answering = model.bind_tools(tools, **options) if tools else model.bind(**options)
    if _is_pydantic(schema):
        return answering, PydanticReplyParser(pydantic_object=schema)
    return answering, JsonReplyParser()


def _as_call(
    model: ChatSgl, schema: Any, strict: bool | None
) -> tuple[Runnable[LanguageModelInput, AIMessage], BaseOutputParser[Any]]:
    read = read_schema("schema", schema)
    if read.name is None:
        raise InvalidArgumentError("schema", "a JSON schema without a title", "one with a title", "The tool is named after it.")
    tool = read.as_tool() if isinstance(schema, Mapping) else as_openai_tool(schema)
    name = tool["function"]["name"]
    answering = model.bind_tools(
        [tool], tool_choice=name, strict=strict, ls_structured_output_format=_traced(schema, read, "function_calling")
    )
    if _is_pydantic(schema):
        return answering, PydanticCallParser(tools=[schema], first_tool_only=True)
    return answering, JsonCallParser(key_name=name, first_tool_only=True)


def _traced(schema: Any, read: NamedSchema, method: str) -> dict[str, Any]:
    """What LangChain's tracers are told: a schema that LangChain's own conversion understands."""
    known = {**read.schema, "title": read.name or _UNNAMED} if isinstance(schema, Mapping) else schema
    return {"kwargs": {"method": method}, "schema": known}


def _is_pydantic(schema: object) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _with_raw(
    answering: Runnable[LanguageModelInput, AIMessage], parser: BaseOutputParser[Any]
) -> Runnable[LanguageModelInput, dict[str, Any]]:
    """The shape that LangChain's own models give: an error of the parser's becomes a value."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=_nothing)
    unparsed = RunnablePassthrough.assign(parsed=_nothing)
    return RunnableMap(raw=answering) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")


def _nothing(_: object) -> None:
    return None
