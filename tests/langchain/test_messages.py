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

from sgl_core.errors import InvalidArgumentError, NotYetAvailableError, TemplateError
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_langchain import ChatSgl
from sgl_langchain.messages import prompt_ids
from sgl_native import assistant, function, gen, system, user

CODEC = ByteCodec()


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


@pytest.mark.parametrize(
    "message",
    [
        ToolMessage("4", tool_call_id="1"),
        AIMessage("", tool_calls=[{"name": "add", "args": {}, "id": "1"}]),
    ],
)
def test_tools_in_the_history_are_refused_with_what_to_use(message):
    with pytest.raises(NotYetAvailableError, match="ordinary message"):
        prompt_ids(CODEC, [HumanMessage("x"), message])


@pytest.mark.parametrize("message", [ChatMessage("x", role="critic"), RemoveMessage(id="1")])
def test_an_unknown_role_is_refused_with_the_known_ones(message):
    with pytest.raises(InvalidArgumentError, match="one of system, "):
        prompt_ids(CODEC, [message])


def test_an_empty_conversation_is_refused():
    with pytest.raises(InvalidArgumentError, match="at least one message"):
        prompt_ids(CODEC, [])
