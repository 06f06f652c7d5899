"""What a forced call may be, by the real compiler on a real vocabulary: closed at every budget, and always a call of a tool."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from sgl_core.chat.tool_reading import ParsedCall, read_reply
from sgl_core.chat.tools import Tool, ToolSet
from sgl_core.runtime.grammar.compiled import CompiledGrammar
from sgl_core.runtime.grammar.compiler import GrammarCompiler
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.types import SamplingParams

Compile = Callable[[ToolSet], CompiledGrammar]


def tool(
    name: str, properties: dict[str, Any], *, required: list[str] | None = None, more: dict[str, Any] | None = None
) -> Tool:
    needed = list(properties) if required is None else required
    return Tool(name, "", {"properties": properties, "required": needed, "type": "object", **(more or {})})


NOTHING = tool("magic_function_no_args", {})
BOUNDED = tool("magic_function", {"input": {"exclusiveMinimum": -1000, "exclusiveMaximum": 1000, "type": "integer"}})
WEATHER = tool("get_weather", {"location": {"type": "string"}})
ADDER = tool("my_adder_tool", {"a": {"type": "integer"}, "b": {"type": "integer"}})
CUSTOMER = tool("unicode_customer", {"customer_name": {"type": "string"}, "description": {"type": "string"}})
OPTIONAL = tool(
    "search",
    {"query": {"type": "string"}, "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}},
    required=["query"],
)
CITY = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
BY_CITY = tool("by_city", {"place": {"$ref": "#/$defs/Place"}}, more={"$defs": {"Place": CITY}})
BY_POINT = tool("by_point", {"place": {"$ref": "#/$defs/Place"}}, more={"$defs": {"Place": POINT}})
FILE = tool("open_file", {"path": {"type": "string", "format": "file-path"}}, more={"$id": "https://example.org/file"})
REMOTE = tool("by_id", {"place": {"$ref": "#/$defs/Place"}}, more={"$id": "https://example.org/x", "$defs": {"Place": CITY}})
TREE = Tool(
    "plant",
    "",
    {"type": "object", "properties": {"label": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}}},
)
ALL = (NOTHING, BOUNDED, WEATHER, ADDER, CUSTOMER, OPTIONAL, BY_CITY, BY_POINT, FILE, REMOTE, TREE)
SETS = {
    **{one.name: ToolSet((one,), "any") for one in ALL},
    "any of all": ToolSet(ALL, "any"),
    "one of all": ToolSet(ALL, "get_weather"),
    "auto": ToolSet((WEATHER, ADDER)),
    "several": ToolSet((WEATHER, ADDER, NOTHING), "any", parallel=True),
    "several of one": ToolSet(ALL, "by_city", parallel=True),
}


@pytest.fixture(scope="module")
def vocabulary(embedded_folder: Path) -> Vocabulary:
    return Vocabulary((embedded_folder / "tokenizer.json").read_text(), 49_152, [2])


@pytest.fixture(scope="module")
def compiled(vocabulary: Vocabulary) -> Compile:
    compiler = GrammarCompiler(vocabulary)

    def compile_set(tools: ToolSet) -> CompiledGrammar:
        grammar = compiler.compile(SamplingParams(**tools.constraint()))
        assert grammar is not None
        return grammar

    return compile_set


def written(grammar: CompiledGrammar, vocabulary: Vocabulary, budget: int, seed: object) -> str:
    """What a model writes that takes any token it may."""
    matcher, rng = grammar.matcher(), random.Random(str(seed))
    tokens: list[int] = []
    ended = False
    while not ended and len(tokens) < budget:
        allowed = np.flatnonzero(np.unpackbits(matcher.mask(), count=vocabulary.size, bitorder="little"))
        verdict = matcher.propose(int(allowed[rng.randrange(len(allowed))]), budget - len(tokens))
        matcher.commit(verdict)
        tokens += verdict.tokens
        ended = verdict.ended
    assert len(tokens) <= budget
    return vocabulary.text_bytes(tokens).decode()


def calls_in(text: str, tools: Sequence[Tool]) -> tuple[ParsedCall, ...]:
    """The calls of a forced reply, each checked against the schema that the tool's author wrote."""
    reply = read_reply(text, is_call=True)
    assert (reply.text, reply.invalid) == ("", ())
    schemas = {one.name: one.parameters for one in tools}
    for call in reply.calls:
        Draft202012Validator(schemas[call.name]).validate(call.arguments)
    return reply.calls


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("budget", [40, 100])
def test_random_tokens_make_calls_of_the_tools_at_every_budget(
    name: str, budget: int, compiled: Compile, vocabulary: Vocabulary
) -> None:
    tools = SETS[name]
    grammar = compiled(tools)
    for seed in range(3):
        calls = calls_in(written(grammar, vocabulary, budget, (name, budget, seed)), tools.tools)
        assert len(calls) == 1 or (tools.parallel and calls)
        assert tools.choice in ("auto", "any") or {call.name for call in calls} == {tools.choice}


@pytest.mark.parametrize("name", SETS)
def test_the_shortest_call_is_small(name: str, compiled: Compile) -> None:
    assert len(compiled(SETS[name]).shortest) <= 24


def test_a_call_of_a_tool_without_parameters_has_no_arguments(compiled: Compile, vocabulary: Vocabulary) -> None:
    grammar = compiled(ToolSet((NOTHING,), "any"))
    texts = {written(grammar, vocabulary, 60, seed) for seed in range(3)}
    assert texts == {'{"name":"magic_function_no_args","arguments":{}}'}


def accepts(grammar: CompiledGrammar, vocabulary: Vocabulary, text: str) -> bool:
    matcher = grammar.prototype.deep_copy()
    tokens = vocabulary.canonical(text.encode())
    return tokens is not None and matcher.try_consume_tokens(list(tokens)) == len(tokens) and bool(matcher.is_accepting())


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ('{"location":"Oslo"}', True),
        ('{"location":""}', False),
        ("{}", False),
        ('{"location":"Oslo","unit":"K"}', False),
        ('"Oslo"', False),
    ],
)
def test_arguments_are_what_the_schema_lists_and_required_texts_are_not_empty(
    arguments: str, allowed: bool, compiled: Compile, vocabulary: Vocabulary
) -> None:
    text = f'{{"name":"get_weather","arguments":{arguments}}}'
    assert accepts(compiled(ToolSet((WEATHER,), "any")), vocabulary, text) is allowed


@pytest.mark.parametrize(
    ("name", "place", "allowed"),
    [
        ("by_city", '{"name":"Oslo"}', True),
        ("by_city", '{"x":1}', False),
        ("by_point", '{"x":1}', True),
        ("by_point", '{"name":"Oslo"}', False),
    ],
)
def test_definitions_of_one_name_stay_with_their_tools(
    name: str, place: str, allowed: bool, compiled: Compile, vocabulary: Vocabulary
) -> None:
    text = f'{{"name":"{name}","arguments":{{"place":{place}}}}}'
    assert accepts(compiled(ToolSet((BY_CITY, BY_POINT), "any")), vocabulary, text) is allowed


@pytest.mark.parametrize("tail", ["", "\n</tool_call>", '\n</tool_call>\n<tool_call>\n{"name":"get_time","arguments":{}}'])
def test_of_several_calls_the_last_may_be_closed_or_not(tail: str, compiled: Compile, vocabulary: Vocabulary) -> None:
    grammar = compiled(ToolSet((tool("get_time", {}),), "any", parallel=True))
    assert accepts(grammar, vocabulary, '{"name":"get_time","arguments":{}}' + tail)


def test_one_call_may_not_be_followed_by_another(compiled: Compile, vocabulary: Vocabulary) -> None:
    call = '{"name":"magic_function_no_args","arguments":{}}'
    assert not accepts(compiled(SETS["magic_function_no_args"]), vocabulary, f"{call}\n</tool_call>\n<tool_call>\n{call}")


@pytest.mark.parametrize(
    "settled",
    [{"minLength": 3}, {"enum": ["", "x"]}, {"pattern": "^a*$"}, {"format": "date"}, {"maxLength": 0}],
    ids=lambda settled: next(iter(settled)),
)
def test_a_text_whose_author_settled_it_is_left_alone(settled: dict[str, Any]) -> None:
    given = {"type": "string", **settled}
    schema = ToolSet((tool("write", {"text": given}),), "any").constraint()["json_schema"]
    assert schema["$defs"]["write"]["properties"]["text"] == given


def test_an_object_described_in_several_places_is_not_closed(compiled: Compile, vocabulary: Vocabulary) -> None:
    parts = [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}]
    both = tool("both", {"pair": {"type": "object", "allOf": parts, "required": ["a", "b"]}})
    text = '{"name":"both","arguments":{"pair":{"a":1,"b":2}}}'
    assert accepts(compiled(ToolSet((both,), "any")), vocabulary, text)


def test_members_stand_in_the_authors_order(compiled: Compile, vocabulary: Vocabulary) -> None:
    grammar = compiled(ToolSet((tool("f", {"z": {"type": "integer"}, "a": {"type": "integer"}}),), "any"))
    (call,) = read_reply(written(grammar, vocabulary, 60, 0), is_call=True).calls
    assert list(call.arguments) == ["z", "a"]


def test_the_authors_schema_is_not_changed() -> None:
    before = copy.deepcopy(BY_CITY.parameters)
    ToolSet((BY_CITY,), "any").constraint()
    assert before == BY_CITY.parameters


def test_data_inside_a_schema_is_copied_as_it_is() -> None:
    data = {"$ref": "#/x", "properties": {"p": {"type": "string"}}, "required": ["p"]}
    schema = ToolSet((tool("f", {"a": {"const": data}}),), "any").constraint()["json_schema"]
    assert schema["$defs"]["f"]["properties"]["a"] == {"const": data}


def test_equal_tools_have_equal_constraints() -> None:
    first, second = (json.dumps(ToolSet(ALL, "any").constraint()) for _ in range(2))
    assert first == second
