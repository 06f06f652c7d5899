"""Tools as values and as text: what is refused, and what a prompt says about them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from sgl_core.chat.tools import CALL_OPENING, Tool, ToolResult, ToolSet, render_call, render_results
from sgl_core.errors import InvalidArgumentError

WEATHER = Tool(
    "get_weather",
    "Get the weather at a location.",
    {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
)
CLOCK = Tool("get_time")


def described(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "get_weather", **fields}}


def test_a_tool_is_read_from_openai_and_written_back_the_same() -> None:
    given = described(description="It is warm.", parameters={"type": "object", "properties": {"b": {}, "a": {}}})
    assert Tool.from_openai(given).as_openai() == given


def test_a_tool_without_parameters_takes_an_empty_object() -> None:
    assert Tool.from_openai(described()).as_openai()["function"]["parameters"] == {"type": "object", "properties": {}}


def test_strict_is_accepted_as_calls_are_strict_anyway() -> None:
    assert Tool.from_openai(described(strict=True)) == Tool.from_openai(described(strict=False))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("get_weather", "tools[1]"),
        ({"name": "get_weather"}, "tools[1]"),
        ({"type": "retrieval", "function": {"name": "x"}}, "tools[1]"),
        (described(paremeters={}), "tools[1].paremeters"),
        (described(name="two words"), "tools[1].name"),
        (described(name=""), "tools[1].name"),
        (described(name="x" * 65), "tools[1].name"),
        (described(description=3), "tools[1].description"),
        (described(parameters=[1]), "tools[1].parameters"),
        (described(parameters={"type": "array"}), "tools[1].parameters"),
        (described(parameters={"default": {1, 2}}), "tools[1].parameters"),
        (described(parameters={"maximum": math.inf}), "tools[1].parameters"),
    ],
)
def test_what_is_no_tool_is_refused_by_its_place(given: Any, named: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Tool.from_openai(given, argument="tools[1]")
    assert caught.value.argument == named


def test_a_schema_that_contains_itself_is_refused() -> None:
    endless: dict[str, Any] = {"type": "object"}
    endless["properties"] = {"again": endless}
    with pytest.raises(InvalidArgumentError, match="parameters"):
        Tool("endless", "", endless)


def test_a_schema_nested_beyond_reason_is_refused_by_name() -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(400):
        deep = {"type": "object", "properties": {"x": deep}}
    with pytest.raises(InvalidArgumentError, match="parameters"):
        Tool("deep", "", deep)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"tools\[2\]\.name.*second time"):
        ToolSet((WEATHER, CLOCK, WEATHER))


def test_no_tools_are_no_tool_set() -> None:
    with pytest.raises(InvalidArgumentError, match="at least one tool"):
        ToolSet(())


def test_an_unknown_choice_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InvalidArgumentError, match="Did you mean 'get_weather'"):
        ToolSet((WEATHER, CLOCK), "get_wether")


@pytest.mark.parametrize(("choice", "forces"), [("auto", False), ("none", False), ("any", True), ("get_time", True)])
def test_a_choice_of_any_or_of_a_name_forces_a_call(choice: str, forces: bool) -> None:
    assert ToolSet((WEATHER, CLOCK), choice).forces_call is forces


def test_the_system_text_holds_each_tool_on_a_line_of_its_own() -> None:
    lines = ToolSet((WEATHER, CLOCK)).system_text().splitlines()
    offered = lines[lines.index("<tools>") + 1 : lines.index("</tools>")]
    assert [json.loads(line) for line in offered] == [WEATHER.as_openai(), CLOCK.as_openai()]


def test_the_system_text_keeps_the_order_of_keys_and_letters_that_are_not_ascii() -> None:
    tool = Tool("search", "Søk på nettet.", {"type": "object", "properties": {"z": {}, "a": {}}})
    assert '"description": "Søk på nettet.", "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}' in (
        ToolSet((tool,)).system_text()
    )


def test_the_system_text_is_equal_for_equal_tools_whatever_the_choice() -> None:
    again = Tool.from_openai(json.loads(json.dumps(WEATHER.as_openai())))
    texts = {ToolSet((tool,), choice).system_text() for tool in (WEATHER, again) for choice in ("auto", "any", "get_weather")}
    assert len(texts) == 1


def test_a_call_is_written_between_its_marks() -> None:
    expected = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Tromsø"}}\n</tool_call>'
    assert render_call("get_weather", {"location": "Tromsø"}) == expected


def test_arguments_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="arguments"):
        render_call("get_weather", {"location": object()})


def test_results_stand_between_their_marks_one_after_another() -> None:
    results = [ToolResult("Sunny."), ToolResult("Rain.")]
    expected = "<tool_response>\nSunny.\n</tool_response>\n<tool_response>\nRain.\n</tool_response>"
    assert render_results(results) == expected


def test_a_named_result_says_whose_it_is() -> None:
    body = render_results([ToolResult('"Sunny"', "get_weather")]).splitlines()[1]
    assert json.loads(body) == {"name": "get_weather", "content": '"Sunny"'}


@pytest.mark.parametrize(("content", "shown"), [("no such city", "Error: no such city"), ("Error: timeout", "Error: timeout")])
def test_a_failure_says_once_that_it_is_one(content: str, shown: str) -> None:
    assert render_results([ToolResult(content, is_error=True)]).splitlines()[1] == shown
    assert render_results([ToolResult(content, is_error=True)], "signatures").splitlines()[0].endswith(f": {shown}")


def test_results_for_a_model_that_was_not_trained_for_tools_end_with_what_is_to_be_done() -> None:
    results = [ToolResult("Sunny.", "get_weather"), ToolResult("4")]
    assert render_results(results, "signatures") == (
        "Result of get_weather: Sunny.\nResult of the function: 4\n\nAnswer my question in a sentence."
    )


def scores(tools: ToolSet, call: float, answer: float) -> list[tuple[float, ...]]:
    """Scores as an engine would report them, each in two tokens; a call has the first text, answers the others."""
    texts = tools.decision_texts()
    assert texts[0] == CALL_OPENING
    return [(value / 2, value / 2) for value in (call, *[answer] * (len(texts) - 1))]


@pytest.mark.parametrize("follows_result", [False, True])
@pytest.mark.parametrize(("call", "decides"), [(-0.05, True), (-12.0, False)])
def test_a_model_that_is_sure_decides_by_itself(call: float, decides: bool, follows_result: bool) -> None:
    tools = ToolSet((WEATHER,))
    assert tools.decides_call(scores(tools, call, -9.0), follows_result=follows_result) is decides


def test_a_model_that_only_thinks_of_a_call_makes_one() -> None:
    tools = ToolSet((WEATHER,))
    assert tools.decides_call(scores(tools, -5.2, -7.0))


def test_a_pleasantry_that_is_likelier_than_a_call_is_an_answer() -> None:
    tools = ToolSet((WEATHER,))
    assert not tools.decides_call(scores(tools, -4.3, -2.5))


def test_behind_a_result_a_call_must_be_likelier_than_not() -> None:
    tools = ToolSet((WEATHER,))
    assert not tools.decides_call(scores(tools, -0.8, -7.0), follows_result=True)
