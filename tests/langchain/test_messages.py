"""Messages as token ids: roles, content, and conversations that templates do not like."""

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from sgl_core.chat.conversation import render
from sgl_core.chat.tools import Tool, ToolSet
from sgl_core.errors import InvalidArgumentError, TemplateError
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_langchain import ChatSgl
from sgl_langchain.messages import conversation
from sgl_native import assistant, function, gen, system, user

CODEC = ByteCodec()


def prompt_ids(codec, messages):
    return render(codec, conversation(messages)).ids


def spelled(messages, codec=CODEC):
    return "".join(codec.spell(token) if token >= 256 else chr(token) for token in prompt_ids(codec, messages))


class StrictCodec(ByteCodec):
    """Takes a system turn only as the first, as many templates do."""

    def open_turn(self, role, turns):
        if role == "system" and turns.roles:
            raise TemplateError("system turns come first")
        return super().open_turn(role, turns)


class NoTemplateCodec(ByteCodec):
    def open_turn(self, role, turns):
        raise TemplateError("no chat template")


def test_a_conversation_is_its_turns_and_an_open_assistant_turn():
    messages = [SystemMessage("S"), HumanMessage("H"), AIMessage("A"), HumanMessage("I")]
    assert spelled(messages) == (
        "<|begin|><|system|>S<|end_system|>\n<|user|>H<|end_user|>\n"
        "<|assistant|>A<|end_assistant|>\n<|user|>I<|end_user|>\n<|assistant|>"
    )


def test_a_conversation_has_the_ids_of_the_same_native_program():
    @function
    def program(s):
        s += system("Be brief.") + user("What is a tide?") + assistant(gen("a"))

    with FakeBackend() as backend:
        program.run(backend=backend)
        ChatSgl(engine=backend).invoke([("system", "Be brief."), ("human", "What is a tide?")])
        native, chain = backend.requests
        assert native.input_ids == chain.input_ids


def test_the_next_turn_of_a_conversation_begins_with_the_ids_of_the_last():
    before = prompt_ids(CODEC, [HumanMessage("H")])
    assert prompt_ids(CODEC, [HumanMessage("H"), AIMessage("A"), HumanMessage("I")])[: len(before)] == before


def test_text_that_spells_a_control_token_is_only_text():
    ids = prompt_ids(CODEC, [HumanMessage("<|end_user|>")])
    assert ids.count(CODEC.encode_trusted("<|end_user|>")[0]) == 1


def test_text_between_two_control_ids_is_encoded_as_one_string():
    seen = []

    class Recorder(ByteCodec):
        def open_turn(self, role, turns):
            return (*super().open_turn(role, turns), "\n")

        def encode(self, text):
            seen.append(text)
            return super().encode(text)

    prompt_ids(Recorder(), [HumanMessage("H")])
    assert seen == ["\nH", "\n", "\n"]


def test_doubled_roles_and_late_system_messages_keep_their_order():
    messages = [HumanMessage("1"), HumanMessage("2"), AIMessage("3"), AIMessage("4"), SystemMessage("5"), HumanMessage("6")]
    assert [c for c in spelled(messages) if c.isdigit()] == list("123456")


def test_a_system_message_that_the_template_refuses_is_given_as_a_users():
    messages = [HumanMessage("H"), SystemMessage("late")]
    assert spelled(messages, StrictCodec()).endswith("<|user|>late<|end_user|>\n<|assistant|>")


def test_a_model_without_a_template_says_so():
    with pytest.raises(TemplateError, match="no chat template"):
        prompt_ids(NoTemplateCodec(), [SystemMessage("S")])


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (ChatMessage("x", role="developer"), "system"),
        (ChatMessage("x", role="user"), "user"),
        (ChatMessage("x", role="assistant"), "assistant"),
        (AIMessageChunk("x"), "assistant"),
        (HumanMessage("x", name="ann"), "user"),
    ],
)
def test_every_way_to_write_a_role_is_understood(message, role):
    assert spelled([message]).startswith(f"<|begin|><|{role}|>x")


def test_text_blocks_are_joined():
    blocks = ["a", {"type": "text", "text": "b"}, {"type": "text", "text": "c", "index": 0}]
    assert prompt_ids(CODEC, [HumanMessage(blocks)]) == prompt_ids(CODEC, [HumanMessage("abc")])


def test_other_blocks_are_refused_by_type_and_never_shown():
    blocks = [{"type": "image", "url": "https://secret.example/picture.png"}]
    with pytest.raises(InvalidArgumentError, match="'image'") as refused:
        prompt_ids(CODEC, [HumanMessage(blocks)])
    assert "secret" not in str(refused.value)


CALL = {"name": "add", "args": {"b": 2, "a": "é"}, "id": "1"}
CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"b": 2, "a": "é"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (AIMessage("", tool_calls=[CALL]), CALL_TEXT),
        (AIMessage("I add.", tool_calls=[CALL, CALL]), f"I add.\n{CALL_TEXT}\n{CALL_TEXT}"),
        (AIMessage([{"type": "tool_use", "name": "add", "input": {}, "id": "1"}], tool_calls=[CALL]), CALL_TEXT),
        (
            AIMessage("", invalid_tool_calls=[{"name": None, "args": '<tool_call>{"na', "id": "1", "error": "cut off"}]),
            '<tool_call>{"na\n</tool_call>',
        ),
        (
            AIMessage("", invalid_tool_calls=[{"name": "add", "args": '{"a": ', "id": "1", "error": "elsewhere"}]),
            '<tool_call>\n{"a": \n</tool_call>',
        ),
    ],
    ids=["call", "text and calls", "blocks", "as written", "without marks"],
)
def test_calls_of_tools_are_written_as_the_model_writes_them(message, text):
    assert [(one.role, one.text) for one in conversation([message])] == [("assistant", text)]


def test_results_of_tools_in_a_row_are_one_turn_of_the_user():
    results = [
        ToolMessage("4", tool_call_id="1"),
        ToolMessage("no such harbour", tool_call_id="2", status="error"),
        ToolMessage([{"type": "text", "text": "low"}, {"depth": 3}], tool_call_id="3"),
        HumanMessage("Well?"),
    ]
    first, second = conversation(results)
    assert (first.role, second.role) == ("user", "user")
    assert first.text == (
        "<tool_response>\n4\n</tool_response>\n"
        "<tool_response>\nError: no such harbour\n</tool_response>\n"
        '<tool_response>\nlow{"depth": 3}\n</tool_response>'
    )


def test_a_result_bears_the_name_of_the_tool_that_was_called():
    history = [
        AIMessage("", tool_calls=[CALL]),
        ToolMessage("4", tool_call_id="1"),
        ToolMessage("5", tool_call_id="1", name="mine"),
    ]
    results = conversation(history, form="signatures")[-1]
    assert results.text.startswith("Result of add: 4\nResult of mine: 5\n\n")


def test_tools_are_described_in_the_system_message_behind_its_text():
    tools = ToolSet((Tool("add", "Add.", {}),))
    with_system = conversation([SystemMessage("Be brief."), HumanMessage("x")], tools)
    without = conversation([HumanMessage("x")], tools)
    assert with_system[0].text == f"Be brief.\n\n{tools.system_text()}"
    assert (without[0].role, without[0].text) == ("system", tools.system_text())


@pytest.mark.parametrize("message", [ChatMessage("x", role="critic"), RemoveMessage(id="1")])
def test_an_unknown_role_is_refused_with_the_known_ones(message):
    with pytest.raises(InvalidArgumentError, match="one of system, "):
        prompt_ids(CODEC, [message])


def test_an_empty_conversation_is_refused():
    with pytest.raises(InvalidArgumentError, match="at least one message"):
        prompt_ids(CODEC, [])
