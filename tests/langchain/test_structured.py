"""Structured output: what is bound, what an answer is held to, and how it is read."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import jsonschema
import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import Field as FieldV1
from typing_extensions import TypedDict

from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime.grammar.compiler import GrammarCompiler
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.testing import FakeBackend
from sgl_core.types import SamplingParams
from sgl_langchain import ChatSgl
from sgl_langchain.structured import response_constraint, with_structured_output

METHODS = ["json_schema", "function_calling", "json_mode"]


class Joke(BaseModel):
    """A joke."""

    setup: str = Field(description="the question")
    punchline: str | None = Field(default=None, description="the answer")


class JokeV1(BaseModelV1):
    """A joke."""

    setup: str = FieldV1(description="the question")
    punchline: Optional[str] = FieldV1(default=None, description="the answer")  # noqa: UP045  # as version 1 reads it


class JokeDict(TypedDict):
    """A joke."""

    setup: Annotated[str, ..., "the question"]
    punchline: Annotated[str | None, None, "the answer"]


class Tree(BaseModel):
    name: str
    kind: Literal["leaf", "branch"] = "leaf"
    children: list[Tree] = Field(default=[], max_length=2)


JOKE_SCHEMA = Joke.model_json_schema()
JOKE_FUNCTION = convert_to_openai_tool(Joke)["function"]
JOKE_TOOL = {"type": "function", "function": JOKE_FUNCTION}
FORMS: list[Any] = [Joke, JokeV1, JokeDict, JOKE_SCHEMA, JOKE_FUNCTION, JOKE_TOOL]
FORM_NAMES = ["pydantic", "pydantic_v1", "typeddict", "json_schema", "function", "tool"]

JOKE = {"setup": "Why do cats sit?", "punchline": "They can."}
TEXT = json.dumps(JOKE)
CALL = json.dumps({"name": "Joke", "arguments": JOKE})


def call_of(name: str) -> str:
    return json.dumps({"name": name, "arguments": JOKE})


_backends: list[FakeBackend] = []


@pytest.fixture(autouse=True)
def closing_backends() -> Iterator[None]:
    yield
    while _backends:
        _backends.pop().close()


def chat(reply: str, **options: Any) -> ChatSgl:
    _backends.append(FakeBackend(lambda ids, params: reply))
    return ChatSgl(engine=_backends[-1], **options)


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else value.dict() if isinstance(value, BaseModelV1) else value.model_dump()


def asked(model: ChatSgl) -> SamplingParams:
    return model.engine.requests[-1].params


# ---- building --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("schema", FORMS, ids=FORM_NAMES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strict", [None, False, True])
def test_every_schema_method_and_strictness_answers_with_its_object(schema, method, strict):
    name = schema.__name__ if isinstance(schema, type) else "Joke"
    model = chat(call_of(name) if method == "function_calling" else TEXT)
    answer = model.with_structured_output(schema, method=method, strict=strict).invoke("A joke?")
    assert as_dict(answer) == JOKE
    assert isinstance(answer, schema if schema in (Joke, JokeV1) else dict)
    assert asked(model).json_schema is not None


@pytest.mark.parametrize("schema", FORMS, ids=FORM_NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_tracers_hear_of_the_schema_as_langchain_converts_it(schema, method):
    answering = chat(TEXT).with_structured_output(schema, method=method).first
    told = answering.kwargs["ls_structured_output_format"]
    assert told["kwargs"] == {"method": method}
    assert convert_to_json_schema(told["schema"]) == convert_to_json_schema(schema)


@pytest.mark.parametrize(
    ("schema", "method", "parser"),
    [
        (Joke, "json_schema", PydanticOutputParser),
        (JokeV1, "json_mode", PydanticOutputParser),
        (JokeDict, "json_schema", JsonOutputParser),
        (Joke, "function_calling", PydanticToolsParser),
        (JOKE_SCHEMA, "function_calling", JsonOutputKeyToolsParser),
    ],
)
def test_the_parser_is_one_of_langchains_for_the_schema_and_the_method(schema, method, parser):
    assert isinstance(chat(TEXT).with_structured_output(schema, method=method).last, parser)


def test_function_calling_forces_the_call_of_the_tool():
    answering = chat(CALL).with_structured_output(Joke, method="function_calling").first
    assert answering.kwargs["tool_choice"] == "Joke"
    assert [tool["function"]["name"] for tool in answering.kwargs["tools"]] == ["Joke"]


def test_a_schema_without_a_title_can_be_text_and_no_tool():
    untitled = {"type": "object", "properties": {"setup": {"type": "string"}}}
    assert chat(TEXT).with_structured_output(untitled).invoke("A joke?") == JOKE
    with pytest.raises(InvalidArgumentError, match="title"):
        chat(TEXT).with_structured_output(untitled, method="function_calling")


def test_alternatives_at_the_top_of_a_schema_reach_the_tool():
    either = {"title": "either", "anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}, {"$ref": "#/anyOf/0"}]}
    bound = chat(TEXT).with_structured_output(either, method="function_calling").first.kwargs
    assert bound["tools"][0]["function"]["parameters"] == {"anyOf": either["anyOf"]}


def test_a_schema_in_the_form_of_a_response_format_works_with_every_method():
    named = {"name": "Joke", "schema": JOKE_SCHEMA, "strict": True}
    for method in METHODS:
        model = chat(CALL if method == "function_calling" else TEXT)
        assert model.with_structured_output(named, method=method).invoke("A joke?") == JOKE


@pytest.mark.parametrize("method", METHODS)
def test_what_a_schema_says_of_its_own_strictness_counts(method):
    model = chat(CALL if method == "function_calling" else TEXT)
    bound = model.with_structured_output({**JOKE_FUNCTION, "strict": False}, method=method, strict=True).first.kwargs
    described = bound["tools"][0]["function"] if method == "function_calling" else bound["response_format"]["json_schema"]
    assert described["strict"] is False


def test_json_mode_without_a_schema_is_any_object():
    model = chat('{"anything": [1, 2]}')
    assert with_structured_output(model, method="json_mode").invoke("Some JSON?") == {"anything": [1, 2]}
    assert json.loads(asked(model).json_schema) == {"type": "object"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_other_methods_need_a_schema(method):
    with pytest.raises(InvalidArgumentError, match="json_mode"):
        chat(TEXT).with_structured_output(None, method=method)


def test_an_unknown_method_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"method: got 'json', expected one of json_schema, function_calling, json_mode"):
        chat(TEXT).with_structured_output(Joke, method="json")


def test_other_keywords_are_errors_that_name_them():
    with pytest.raises(ValueError, match=r"got 'includ_raw'.*Did you mean 'include_raw'"):
        chat(TEXT).with_structured_output(Joke, includ_raw=True)
    with pytest.raises(ValueError, match="got 'temperature'"):
        chat(TEXT).with_structured_output(Joke, temperature=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [int, "Joke", 3, {}, {"foo": 1}, object(), lambda: 1])
def test_something_that_is_no_schema_is_refused(method, wrong):
    with pytest.raises(InvalidArgumentError, match="schema"):
        chat(TEXT).with_structured_output(wrong, method=method)


def test_a_class_that_json_schema_cannot_describe_is_refused():
    class Holder(BaseModel, arbitrary_types_allowed=True):
        thing: FakeBackend

    with pytest.raises(InvalidArgumentError, match="Holder"):
        chat(TEXT).with_structured_output(Holder)


@pytest.mark.parametrize("strict", ["yes", 1])
def test_strict_is_none_true_or_false(strict):
    for method in METHODS:
        with pytest.raises(InvalidArgumentError, match="strict"):
            chat(TEXT).with_structured_output(Joke, method=method, strict=strict)


def test_a_chain_pickles():
    chain = ChatSgl().with_structured_output(Joke)
    assert ForkingPickler.loads(ForkingPickler.dumps(chain)).first.kwargs == chain.first.kwargs


# ---- raw answers and failures ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_the_raw_answer_comes_with_what_was_read(method):
    model = chat(CALL if method == "function_calling" else TEXT)
    answer = model.with_structured_output(Joke, method=method, include_raw=True).invoke("A joke?")
    assert list(answer) == ["raw", "parsed", "parsing_error"]
    assert isinstance(answer["raw"], AIMessage)
    assert (answer["parsed"], answer["parsing_error"]) == (Joke(**JOKE), None)


def test_with_the_raw_answer_an_error_of_the_parsers_is_a_value():
    answer = chat("no JSON").with_structured_output(Joke, include_raw=True).invoke("A joke?")
    assert answer["raw"].content == "no JSON"
    assert answer["parsed"] is None
    assert isinstance(answer["parsing_error"], OutputParserException)


def ways_to_ask(chain: Any) -> list[Any]:
    return [lambda: chain.invoke("A joke?"), lambda: list(chain.stream("A joke?"))]


@pytest.mark.parametrize("schema", [Joke, JOKE_SCHEMA])
@pytest.mark.parametrize(("options", "why"), [({"stop": ["punchline"]}, "stop string"), ({"max_tokens": 30}, "max_tokens")])
def test_an_answer_that_was_cut_is_never_completed_and_the_error_says_what_cut_it(schema, options, why):
    for ask in ways_to_ask(chat(TEXT, **options).with_structured_output(schema)):
        with pytest.raises(OutputParserException, match=f"not whole.*{why}"):
            ask()


@pytest.mark.parametrize("schema", [Joke, JOKE_SCHEMA])
def test_a_call_that_was_cut_is_never_completed_and_the_error_says_what_cut_it(schema):
    num_tokens = CALL.index("They")
    for ask in ways_to_ask(chat(CALL, max_tokens=num_tokens).with_structured_output(schema, method="function_calling")):
        with pytest.raises(OutputParserException, match=r"call of Joke cannot be read.*max_tokens"):
            ask()


def test_a_whole_answer_that_ends_on_its_last_token_is_an_answer():
    assert chat(TEXT, max_tokens=len(TEXT)).with_structured_output(JOKE_SCHEMA).invoke("A joke?") == JOKE


def test_an_answer_that_calls_nothing_or_something_else_is_an_error_that_says_so():
    chain = chat(TEXT).with_structured_output(JOKE_SCHEMA, method="function_calling")
    with pytest.raises(OutputParserException, match="it is text"):
        chain.last.invoke(AIMessage("A joke."))
    other = AIMessage("", tool_calls=[{"name": "other", "args": {}, "id": "1"}])
    with pytest.raises(OutputParserException, match="it calls other"):
        chain.last.invoke(other)


def test_errors_about_answers_show_none_of_their_text():
    with pytest.raises(OutputParserException) as raised:
        chat(TEXT, stop=["punchline"]).with_structured_output(Joke).invoke("A joke?")
    assert "Why do cats" not in str(raised.value)
    assert "cats" in raised.value.llm_output


def test_tools_beside_a_schema_may_be_called_instead_of_answering():
    def lookup(word: str) -> str:
        """Look a word up."""
        return word

    chain = chat(TEXT).with_structured_output(Joke, include_raw=True, tools=[lookup])
    bound = chain.first.steps__["raw"].kwargs
    assert [tool["function"]["name"] for tool in bound["tools"]] == ["lookup"]
    assert bound["response_format"]["json_schema"]["name"] == "Joke"
    calling = AIMessage("", tool_calls=[{"name": "lookup", "args": {"word": "cat"}, "id": "1"}])
    read = chain.steps[1].invoke({"raw": calling})
    assert (read["parsed"], read["parsing_error"]) == (None, None)


@pytest.mark.parametrize("options", [{"include_raw": False}, {"include_raw": True, "method": "json_mode"}])
def test_tools_beside_a_schema_need_the_raw_answer_and_the_schema_as_text(options):
    with pytest.raises(InvalidArgumentError, match="include_raw=True"):
        chat(TEXT).with_structured_output(Joke, tools=[convert_to_openai_tool(Joke)], **options)


def test_an_agent_with_a_response_format_answers_with_its_object():
    agents = pytest.importorskip("langchain.agents")
    model = chat(TEXT)
    agent = agents.create_agent(model, tools=[], response_format=Joke)
    assert agent.invoke({"messages": [("human", "A joke?")]})["structured_response"] == Joke(**JOKE)
    assert json.loads(asked(model).json_schema)["properties"] == JOKE_SCHEMA["properties"]


# ---- streams ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_a_stream_of_dicts_grows_to_the_whole(method):
    model = chat(CALL if method == "function_calling" else TEXT)
    seen = list(model.with_structured_output(JOKE_SCHEMA, method=method).stream("A joke?"))
    assert seen[-1] == JOKE
    assert len(seen) > 2
    for before, after in itertools.pairwise(seen):
        assert before.keys() <= after.keys()
        assert all(after[key].startswith(text) for key, text in before.items())


@pytest.mark.parametrize("schema", [Joke, JokeV1])
@pytest.mark.parametrize("method", METHODS)
def test_a_stream_of_objects_ends_with_the_whole(schema, method):
    model = chat(call_of(schema.__name__) if method == "function_calling" else TEXT)
    seen = list(model.with_structured_output(schema, method=method).stream("A joke?"))
    assert all(isinstance(one, schema) for one in seen)
    assert seen[-1] == schema(**JOKE)


def test_it_works_asynchronously_and_in_batches():
    chain = chat(TEXT).with_structured_output(Joke)

    async def last() -> Any:
        return [one async for one in chain.astream("A joke?")][-1]

    assert asyncio.run(last()) == asyncio.run(chain.ainvoke("A joke?")) == Joke(**JOKE)
    assert chain.batch(["A joke?"] * 5) == [Joke(**JOKE)] * 5


# ---- what an answer is held to ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("nothing", [None, {"type": "text"}])
def test_a_format_that_asks_for_nothing_holds_an_answer_to_nothing(nothing):
    assert response_constraint(nothing) == {}


def held_to(response_format: object) -> dict[str, Any]:
    (field, text), *others = response_constraint(response_format).items()
    assert (field, others) == ("json_schema", [])
    return json.loads(text)


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"name": "joke", "schema": JOKE_SCHEMA}},
        {"type": "json_schema", "json_schema": {"schema": JOKE_SCHEMA, "description": "Of a joke.", "strict": False}},
        JOKE_SCHEMA,
        Joke,
    ],
)
def test_every_form_of_a_format_holds_an_answer_to_its_schema(form):
    assert held_to(form) == {**JOKE_SCHEMA, "additionalProperties": False}


def test_any_object_is_held_to_be_an_object():
    assert held_to({"type": "json_object"}) == {"type": "object"}


@pytest.mark.parametrize(
    "wrong",
    [
        "json",
        3,
        ["json_object"],
        {},
        {"type": "json"},
        {"type": "json_object", "schema": JOKE_SCHEMA},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        int,
    ],
)
def test_a_format_of_no_known_form_is_refused(wrong):
    with pytest.raises(InvalidArgumentError, match="response_format"):
        response_constraint(wrong)


def test_a_schema_with_a_value_that_json_cannot_hold_is_refused():
    with pytest.raises(InvalidArgumentError, match="what JSON can hold"):
        response_constraint({"type": "object", "properties": {"a": {"default": {1}}}})


def test_a_schema_nested_beyond_reading_is_refused():
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(450):
        deep = {"items": deep}
    with pytest.raises(InvalidArgumentError, match=r"nested too deep|JSON can hold"):
        response_constraint(deep)


def test_objects_have_the_members_they_name_and_the_callers_schema_is_left_alone():
    schema = {
        "type": "object",
        "properties": {
            "inner": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}}}},
            "open": {"type": "object", "properties": {}, "additionalProperties": True},
            "any": {"type": "object"},
            "default": {"default": {"properties": {}}},
        },
    }
    before = copy.deepcopy(schema)
    held = held_to(schema)
    assert schema == before
    assert held["additionalProperties"] is held["properties"]["inner"]["items"]["additionalProperties"] is False
    assert held["properties"]["open"]["additionalProperties"] is True
    assert held["properties"]["any"] == {"type": "object"}
    assert held["properties"]["default"] == {"default": {"properties": {}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}]},
        {"properties": {"a": {"type": "integer"}}, "anyOf": [{"properties": {"b": {"type": "integer"}}}]},
        {"$ref": "#/$defs/x", "anyOf": [{"required": ["a"]}], "$defs": {"x": {"properties": {"a": {}}}}},
    ],
)
def test_objects_that_several_schemas_describe_stay_as_open_as_they_are(schema):
    assert held_to(schema) == schema


def test_strict_requires_every_member_that_is_named():
    held = held_to({"type": "json_schema", "json_schema": {"name": "tree", "schema": Tree.model_json_schema(), "strict": True}})
    assert held["$defs"]["Tree"]["required"] == ["name", "kind", "children"]


def test_properties_that_are_named_like_keywords_are_no_keywords():
    schema = {"type": "object", "properties": {"properties": {"type": "string"}, "not": {"type": "string"}}}
    strict = {"type": "json_schema", "json_schema": {"name": "odd", "schema": schema, "strict": True}}
    assert held_to(strict) == {**schema, "additionalProperties": False, "required": ["properties", "not"]}


# ---- with the engine's grammars --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def compiler(embedded_folder: Path) -> GrammarCompiler:
    return GrammarCompiler(Vocabulary((embedded_folder / "tokenizer.json").read_text(), 49_152, [2]))


def allows(compiler: GrammarCompiler, form: object, text: str) -> bool:
    grammar = compiler.compile(SamplingParams(**response_constraint(form)))
    tokens = grammar.vocabulary.canonical(text.encode())
    return bool(grammar.prototype.validate_tokens([*tokens, 2]) == len(tokens) + 1)


@pytest.mark.parametrize("schema", [Joke, JokeV1, JokeDict, JOKE_SCHEMA, JOKE_FUNCTION], ids=FORM_NAMES[:5])
def test_the_engine_compiles_every_form_and_its_shortest_answer_meets_the_schema(compiler, schema):
    grammar = compiler.compile(SamplingParams(**response_constraint(schema)))
    shortest = json.loads(grammar.vocabulary.text_bytes(grammar.shortest))
    jsonschema.validate(shortest, convert_to_json_schema(schema))


def test_an_optional_field_may_be_null_left_out_or_given(compiler):
    for text in ('{"setup":"a"}', '{"setup":"a","punchline":null}', '{"setup":"a","punchline":"b"}'):
        assert allows(compiler, Joke, text)
    assert not allows(compiler, Joke, '{"punchline":"b"}')


def test_keys_that_the_schema_does_not_name_are_never_written(compiler):
    for schema in (Joke, JokeV1, JokeDict, JOKE_SCHEMA):
        assert not allows(compiler, schema, '{"setup":"a","punchline":"b","extra":1}')


def test_strict_makes_the_engine_write_every_key(compiler):
    strict = {"type": "json_schema", "json_schema": {"name": "joke", "schema": JOKE_SCHEMA, "strict": True}}
    assert allows(compiler, strict, '{"setup":"a","punchline":null}')
    assert not allows(compiler, strict, '{"setup":"a"}')


def test_a_class_that_holds_itself_compiles(compiler):
    inner = '{"name":"b","kind":"leaf","children":[]}'
    assert allows(compiler, Tree, f'{{"name":"a","kind":"branch","children":[{inner}]}}')
    assert not allows(compiler, Tree, '{"name":"a","kind":"root","children":[]}')


def test_any_object_is_an_object_and_nothing_else(compiler):
    assert allows(compiler, {"type": "json_object"}, '{"a":[1,{"b":null}]}')
    assert not allows(compiler, {"type": "json_object"}, "[1]")
