"""Model calls of a program reach the engine as LangChain's do, and come back as LangChain's do."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import StringPromptValue

from sgl_core.language.run import ProgramRun
from sgl_core.testing import FakeBackend
from sgl_core.types import Hints
from sgl_langchain import ChatSgl, SglLLM
from sgl_langchain.programs import RunnableProgram
from sgl_langchain.translate.lower import lower


def same(request):
    """A request without what only a program knows."""
    return replace(request, params=replace(request.params, seed=None), hints=Hints())


def both(engine, runnable, value):
    """What reached the engine, once from the program and once from LangChain."""
    RunnableProgram(lower(runnable)).invoke(value)
    runnable.invoke(value)
    first, second = engine.requests[-2:]
    return same(first), same(second)


INPUTS = {
    "text": "What is a tide?",
    "messages": [SystemMessage("Be brief."), HumanMessage("Hello"), AIMessage("Yes?"), HumanMessage("Tide?")],
    "tuples": [("human", "  spaces around  ")],
    "blocks": [HumanMessage([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}])],
    "prompt value": StringPromptValue(text="a value"),
}
OPTIONS = [
    {},
    {"temperature": 0.7, "max_tokens": 9, "top_p": 0.9, "stop": ["x", "y"]},
    {"logprobs": True, "top_logprobs": 2},
    {"regex": "[a-z ]+"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "N", "schema": {"type": "object"}}}},
    {"namespace": "mine"},
    {"ls_structured_output_format": {"kwargs": {"method": "json_mode"}, "schema": {"type": "object"}}},
]


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("kind", [ChatSgl, SglLLM])
def test_the_request_is_the_one_that_langchain_sends(engine, kind, name):
    program, plain = both(engine, kind(engine=engine, namespace="n"), INPUTS[name])
    assert program == plain


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options), "none"))
def test_options_of_a_binding_are_those_of_the_request(engine, options):
    program, plain = both(engine, ChatSgl(engine=engine, max_tokens=5).bind(**options), "Tide?")
    assert program == plain


def test_a_forced_tool_call_is_asked_for_as_langchain_asks():
    tool = {
        "type": "function",
        "function": {"name": "add", "description": "", "parameters": {"type": "object", "properties": {}}},
    }
    with FakeBackend(lambda ids, params: '{"name": "add", "arguments": {}}') as engine:
        chat = ChatSgl(engine=engine).bind_tools([tool], tool_choice="any")
        program, plain = both(engine, chat, "Add.")
        assert program == plain
        assert RunnableProgram(lower(chat)).invoke("Add.").tool_calls[0]["name"] == "add"


def test_keyword_arguments_of_the_call_go_to_the_first_step(engine):
    RunnableProgram(lower(ChatSgl(engine=engine) | (lambda message: message.text))).invoke("Tide?", max_tokens=3)
    assert engine.requests[-1].params.max_new_tokens == 3


def test_a_message_has_the_metadata_that_langchain_gives_it(engine):
    chat = ChatSgl(engine=engine, logprobs=True)
    ours, plain = RunnableProgram(lower(chat)).invoke("Tide?"), chat.invoke("Tide?")
    assert ours.id.startswith("lc_run--")
    assert ours.id.endswith("-0")
    assert ours.id != plain.id
    assert len(ours.id) == len(plain.id)
    assert ours.model_copy(update={"id": None}) == plain.model_copy(update={"id": None})


def test_a_reply_is_known_when_it_comes_back_in_the_history(engine):
    chat = ChatSgl(engine=engine)
    reply = RunnableProgram(lower(chat)).invoke("Tide?")
    program, plain = both(engine, chat, [HumanMessage("Tide?"), reply, HumanMessage("More.")])
    assert program == plain


@pytest.mark.parametrize("options", [{"n": 2}, {"timeout": 30.0}, {"stream": True}], ids=lambda options: next(iter(options)))
def test_a_call_that_is_no_single_request_is_made_by_langchain(engine, options):
    chat = ChatSgl(engine=engine)
    program = RunnableProgram(lower(chat))
    assert program.invoke("Tide?", **options).text == chat.invoke("Tide?", **options).text
    assert asyncio.run(program.ainvoke("Tide?", **options)).text == "The tide comes in. It goes out."


def test_a_model_on_another_engine_is_still_asked(engine):
    with FakeBackend(lambda ids, params: "other") as other:
        chain = ChatSgl(engine=engine) | (lambda message: message.text) | ChatSgl(engine=other)
        assert RunnableProgram(lower(chain)).invoke("Tide?").text == "other"
        assert (len(engine.requests), len(other.requests)) == (1, 1)


def test_all_calls_of_a_batch_are_one_run(engine, monkeypatch):
    opened = []
    make = ProgramRun.__init__

    def counted(self, *args, **options):
        opened.append(self)
        make(self, *args, **options)

    monkeypatch.setattr(ProgramRun, "__init__", counted)
    RunnableProgram(lower(ChatSgl(engine=engine))).batch(["a", "b", "c"])
    assert len(opened) == 1
    assert len({request.hints.program_id for request in engine.requests}) == 1
