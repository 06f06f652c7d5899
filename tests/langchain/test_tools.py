"""Tools as LangChain's users hand them over: binding, choices, and the tools of a call."""

from __future__ import annotations

import copy
import json

import pytest
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import StructuredTool, tool
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from sgl_core.chat.tools import ToolSet
from sgl_core.errors import InvalidArgumentError, UnknownOptionError
from sgl_langchain import ChatSgl
from sgl_langchain.tools import bind_tools, tool_set


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def weather(city: str, days: int = 1) -> str:
    """Tell the weather."""
    return "fine"


class Lookup(BaseModel):
    """Look a word up."""

    word: str = Field(description="the word")


class LookupV1(BaseModelV1):
    """Look a word up."""

    word: str


class LookupDict(TypedDict):
    """Look a word up."""

    word: str


LOOKUP_SCHEMA = {
    "title": "lookup",
    "description": "Look a word up.",
    "type": "object",
    "properties": {"word": {"type": "string"}},
    "required": ["word"],
}
LOOKUP_ANTHROPIC = {"name": "lookup", "description": "Look a word up.", "input_schema": LOOKUP_SCHEMA}
LOOKUP_FUNCTION = {"name": "lookup", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}}


@pytest.fixture
def model(engine) -> ChatSgl:
    return ChatSgl(engine=engine)


def names(tools: ToolSet) -> list[str]:
    return [one.name for one in tools.tools]


# ---- binding ---------------------------------------------------------------------------------------------------------
def test_a_model_with_tools_is_a_binding_that_carries_them_in_openais_form(model):
    bound = bind_tools(model, [add, weather])
    assert isinstance(bound, RunnableBinding)
    assert [one["function"]["name"] for one in bound.kwargs["tools"]] == ["add", "weather"]
    assert "tool_choice" not in bound.kwargs


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (add, "add"),
        (weather, "weather"),
        (Lookup, "Lookup"),
        (LookupV1, "LookupV1"),
        (LookupDict, "LookupDict"),
        (LOOKUP_SCHEMA, "lookup"),
        (LOOKUP_ANTHROPIC, "lookup"),
        (LOOKUP_FUNCTION, "lookup"),
        ({"type": "function", "function": LOOKUP_FUNCTION}, "lookup"),
        ({"type": "function", **LOOKUP_FUNCTION}, "lookup"),
    ],
)
def test_every_kind_of_tool_binds_and_reaches_the_call(model, kind, name):
    tools = tool_set(bind_tools(model, [kind]).kwargs)
    assert names(tools) == [name]
    assert tools.tools[0].parameters["properties"]


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("any", "any"),
        ("required", "any"),
        (True, "any"),
        ("weather", "weather"),
        ({"type": "function", "function": {"name": "weather"}}, "weather"),
        ({"type": "tool", "name": "weather"}, "weather"),
        ({"type": "any"}, "any"),
    ],
)
def test_every_form_of_a_choice_becomes_one_word_where_it_is_bound_and_where_it_is_called(model, given, bound):
    options = bind_tools(model, [add, weather], tool_choice=given).kwargs
    assert options["tool_choice"] == bound
    assert tool_set({**options, "tool_choice": given}).choice == bound


@pytest.mark.parametrize("nothing", [None, False])
def test_no_choice_leaves_it_to_the_model(model, nothing):
    options = bind_tools(model, [add], tool_choice=nothing).kwargs
    assert "tool_choice" not in options
    assert tool_set({**options, "tool_choice": nothing}).choice == "auto"


def test_the_choice_of_an_unknown_tool_names_the_nearest(model):
    with pytest.raises(ValueError, match=r"tool_choice: got 'wether', .*Did you mean 'weather'\?"):
        bind_tools(model, [add, weather], tool_choice="wether")


@pytest.mark.parametrize("choice", [3, ["add"], {"type": "function"}, {}, ""])
def test_a_choice_of_no_known_form_is_refused(model, choice):
    with pytest.raises(InvalidArgumentError, match="tool_choice"):
        bind_tools(model, [add], tool_choice=choice)


@pytest.mark.parametrize("choice", ["any", "auto", "add", True])
def test_a_choice_without_tools_is_refused_where_it_is_bound_and_where_it_is_called(model, choice):
    with pytest.raises(InvalidArgumentError, match=r"Give tools=\[\.\.\.\]"):
        bind_tools(model, [], tool_choice=choice)
    with pytest.raises(InvalidArgumentError, match=r"Give tools=\[\.\.\.\]"):
        tool_set({"tool_choice": choice})


@pytest.mark.parametrize("wrong", [3, "add", {"type": "object"}, {"type": "function", "function": {}}, object()])
def test_something_that_is_no_tool_is_refused_by_its_place(model, wrong):
    with pytest.raises(InvalidArgumentError, match=r"tools\[1\]"):
        bind_tools(model, [add, wrong])


def test_a_tool_that_a_providers_service_runs_is_refused(model):
    with pytest.raises(InvalidArgumentError, match=r"tools\[0\]: got \"a dict of type 'web_search'\".*local model"):
        bind_tools(model, [{"type": "web_search"}])


def test_one_tool_outside_a_list_is_refused(model):
    with pytest.raises(InvalidArgumentError, match="a list of tools"):
        bind_tools(model, {"type": "function", "function": LOOKUP_FUNCTION})


def test_a_tool_named_like_a_word_of_the_choice_is_refused(model):
    with pytest.raises(InvalidArgumentError, match="Rename it"):
        bind_tools(model, [{"name": "any", "parameters": {"type": "object", "properties": {}}}])


def test_other_options_of_a_call_are_bound_with_the_tools(model):
    assert bind_tools(model, [add], temperature=0.5, max_tokens=9).kwargs["temperature"] == 0.5


def test_a_misspelt_option_is_an_error_at_binding_that_names_the_nearest(model):
    with pytest.raises(UnknownOptionError, match="Did you mean 'temperature'"):
        bind_tools(model, [add], tempreature=0.5)


def test_an_option_out_of_range_is_an_error_at_binding(model):
    with pytest.raises(InvalidArgumentError, match="top_p"):
        bind_tools(model, [add], top_p=3)


@pytest.mark.parametrize("flag", ["strict", "parallel_tool_calls"])
def test_flags_are_true_or_false(model, flag):
    with pytest.raises(InvalidArgumentError, match=flag):
        bind_tools(model, [add], **{flag: "yes"})
    with pytest.raises(InvalidArgumentError, match=flag):
        tool_set({"tools": [add], flag: "yes"})


def test_a_response_format_is_bound_in_openais_form_also_without_tools(model):
    bound = bind_tools(model, [], response_format=Lookup, strict=True)
    assert bound.kwargs == {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "Lookup", "schema": Lookup.model_json_schema(), "strict": True},
        }
    }


def test_a_wrong_response_format_is_an_error_at_binding(model):
    with pytest.raises(InvalidArgumentError, match="response_format"):
        bind_tools(model, [add], response_format={"type": "json_schema"})


def test_bound_tools_reach_the_prompt_and_a_forced_call_is_read(engine, monkeypatch):
    monkeypatch.setattr(engine, "_reply", lambda ids, params: '{"name": "add", "arguments": {"a": 1, "b": 2}}')
    answer = ChatSgl(engine=engine).bind_tools([add], tool_choice="any").invoke("1 + 2?")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("add", {"a": 1, "b": 2})]
    assert "Add two numbers." in engine.codec.decode(engine.requests[0].input_ids)


def test_what_stops_a_text_does_not_cut_a_forced_call(engine, monkeypatch):
    monkeypatch.setattr(engine, "_reply", lambda ids, params: '{"name": "add", "arguments": {"a": 1, "b": 2}}')
    stops = {"stop": ["a"], "stop_regex": "[0-9]", "stop_token_ids": [5]}
    answer = ChatSgl(engine=engine, **stops).bind_tools([add], tool_choice="any").invoke("1 + 2?")
    assert [call["args"] for call in answer.tool_calls] == [{"a": 1, "b": 2}]
    params = engine.requests[0].params
    assert (params.stop, params.stop_regex, params.stop_token_ids) == ((), None, ())


# ---- the tools of a call ---------------------------------------------------------------------------------------------
def test_a_call_without_tools_has_none():
    assert tool_set({}) is None
    assert tool_set({"tools": []}) is None
    assert tool_set({"tools": None, "tool_choice": None}) is None


def test_tools_may_come_with_the_call_as_functions_and_classes():
    tools = tool_set({"tools": [add, Lookup], "tool_choice": "required", "parallel_tool_calls": True})
    assert names(tools) == ["add", "Lookup"]
    assert (tools.choice, tools.parallel) == ("any", True)


def test_equal_tools_are_read_once_and_a_changed_dict_is_read_again():
    given = {"type": "function", "function": copy.deepcopy(LOOKUP_FUNCTION)}
    first = tool_set({"tools": [given]})
    assert tool_set({"tools": [copy.deepcopy(given)]}) is first
    given["function"]["description"] = "Another."
    assert tool_set({"tools": [given]}).tools[0].description == "Another."


@pytest.mark.parametrize("strict", [True, False])
def test_strict_requires_every_parameter_and_leaves_the_callers_dict_alone(model, strict):
    given = {"type": "function", "function": copy.deepcopy(LOOKUP_FUNCTION)}
    before = json.dumps(given)
    tools = tool_set(bind_tools(model, [given], strict=strict).kwargs)
    assert ("required" in tools.tools[0].parameters) is strict
    assert json.dumps(given) == before


def test_what_a_tool_says_of_its_own_strictness_counts():
    own = {"type": "function", "function": {**LOOKUP_FUNCTION, "strict": False}}
    assert "required" not in tool_set({"tools": [own], "strict": True}).tools[0].parameters


def test_a_tool_given_twice_is_one_tool():
    assert names(tool_set({"tools": [Lookup, add, Lookup]})) == ["Lookup", "add"]


def test_two_tools_of_one_name_that_differ_can_be_bound_and_not_called(model):
    bound = bind_tools(model, [Lookup, Lookup.model_json_schema()])
    with pytest.raises(InvalidArgumentError, match="Lookup"):
        tool_set(bound.kwargs)


def test_a_field_that_the_tools_own_rules_refuse_is_named_by_its_place():
    with pytest.raises(InvalidArgumentError, match=r"tools\[1\]\.name"):
        tool_set({"tools": [add, {"name": "two words", "parameters": {"type": "object"}}]})


def test_tools_with_a_value_that_json_cannot_hold_are_refused():
    wrong = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"default": {1, 2}}}}}
    with pytest.raises(InvalidArgumentError, match="what JSON can hold"):
        tool_set({"tools": [wrong]})


class Tree(BaseModel):
    """A tree of numbers."""

    value: int
    kids: list[Tree] = []


class Forest(BaseModel):
    name: str
    trees: list[Tree]


def plant(tree: Tree) -> str:
    return "planted"


@pytest.mark.parametrize(
    "tool",
    [Tree, Forest, StructuredTool.from_function(plant, name="plant", description="Plant it.", args_schema=Forest)],
    ids=["refers to itself", "has a part that does", "a tool of LangChain's"],
)
def test_a_class_that_refers_to_itself_keeps_its_whole_schema(engine, tool):
    bound = ChatSgl(engine=engine).bind_tools([tool], tool_choice="any")
    function = bound.kwargs["tools"][0]["function"]
    assert "#/$defs/Tree" in json.dumps(function["parameters"])
    assert function["name"] == getattr(tool, "name", getattr(tool, "__name__", None))
    tree = function["parameters"]["$defs"]["Tree"]
    assert tree["properties"]["kids"]["items"] == {"$ref": "#/$defs/Tree"}
    bound.invoke("x")
    assert "#/$defs/" in json.dumps(engine.requests[0].params.json_schema)


def test_a_wrong_dict_is_refused_with_its_keys(engine):
    with pytest.raises(ValueError, match="a dict with the keys 'nme'"):
        ChatSgl(engine=engine).bind_tools([{"nme": "f"}])


@pytest.mark.parametrize("name", ["parallel_tool_calls", "strict"])
def test_flags_are_checked_also_without_tools(engine, name):
    with pytest.raises(InvalidArgumentError, match=name):
        ChatSgl(engine=engine).invoke("x", **{name: "yes"})
