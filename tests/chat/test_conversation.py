"""Conversations as prompts: turns, templates that strip, replies that are known, and the same as expressions."""

import pytest

from sgl_core.chat.conversation import Message, Turn, render
from sgl_core.chat.replies import Reply, ReplyMemory
from sgl_core.errors import TemplateError
from sgl_core.language import function, gen
from sgl_core.testing import ByteCodec, FakeBackend

CODEC = ByteCodec()
QUESTION = Message("user", "What is a tide?")


class StrippingCodec(ByteCodec):
    """Strips bodies of users, and has a space and a control id before an assistant's body that is given."""

    def body_trim(self, role, turns):
        return (role == "user", role == "user")

    def body_lead(self, role, turns):
        return (" ", self.begin()[0]) if role == "assistant" else ()


class FewRolesCodec(ByteCodec):
    def open_turn(self, role, turns):
        if role == "system":
            raise TemplateError("no system turns")
        return super().open_turn(role, turns)


def ids_of(nodes, codec):
    """The prompt that a program of these nodes sends."""

    @function
    def program(s):
        s.stream.submit(nodes)  # as front ends do: their users' texts need no warning of what they spell
        s += gen("answer", max_tokens=1, heal=False)

    with FakeBackend(codec=codec) as backend:
        program.run(backend=backend)
        return backend.requests[0].input_ids


def test_a_conversation_is_joined_as_turns_with_an_open_assistant_turn_behind_them():
    prompt = render(CODEC, [Message("system", "S"), QUESTION])
    assert prompt.ids == prompt.start_ids
    assert prompt.turns == (Turn("system", ("S",)), Turn("user", ("What is a tide?",)))
    assert CODEC.decode(prompt.ids) == "S\nWhat is a tide?\n"
    assert prompt.ids[-1] == CODEC.encode_trusted("<|assistant|>")[0]


def test_an_opening_is_a_part_of_the_prompt_behind_the_place_where_the_answer_begins():
    plain, opened = render(CODEC, [QUESTION]), render(CODEC, [QUESTION], opening="<tool_call>\n")
    assert opened.start_ids == plain.ids
    assert opened.ids == plain.ids + CODEC.encode("<tool_call>\n")


def test_white_space_that_the_template_strips_is_gone_and_what_it_writes_before_a_body_is_there():
    prompt = render(StrippingCodec(), [Message("user", " \n x \n"), Message("assistant", " y ")])
    assert prompt.turns == (Turn("user", ("x",)), Turn("assistant", (" ", Reply((256,), ""), " y ")))


def test_a_system_turn_that_the_template_refuses_is_a_users():
    assert [turn.role for turn in render(FewRolesCodec(), [Message("system", "S"), QUESTION]).turns] == ["user", "user"]


def test_a_known_reply_is_spliced_in_as_its_ids_and_everything_behind_it_follows():
    replies = ReplyMemory()
    before = render(CODEC, [QUESTION])
    replies.remember(before.start_ids, "key", Reply((120, 121), "xyz", "z"))
    history = [QUESTION, Message("assistant", "xyz", reply_key="key"), Message("user", "Why?")]
    prompt = render(CODEC, history, replies=replies)
    assert prompt.turns[1].parts == (Reply((120, 121), "xyz", "z"),)
    assert prompt.ids[: len(before.ids) + 2] == before.ids + (120, 121)
    assert CODEC.decode(prompt.ids) == "What is a tide?\nxyz\nWhy?\n"


@pytest.mark.parametrize("key", [None, "another key"])
def test_a_reply_that_nobody_knows_is_encoded_as_its_text(key):
    replies = ReplyMemory()
    replies.remember(render(CODEC, [QUESTION]).start_ids, "key", Reply((120,), "x"))
    prompt = render(CODEC, [QUESTION, Message("assistant", "x", reply_key=key)], replies=replies)
    assert prompt.turns[1].parts == ("x",)


@pytest.mark.parametrize("codec", [ByteCodec(), StrippingCodec(), FewRolesCodec()], ids=lambda codec: type(codec).__name__)
def test_the_same_conversation_as_expressions_gives_the_same_ids(codec):
    replies = ReplyMemory()
    told = [Message("system", " S "), QUESTION]
    replies.remember(render(codec, told).start_ids, "key", Reply((120, 121), "xyz", "z"))
    told += [Message("assistant", "xyz", reply_key="key"), Message("user", " Why? "), Message("assistant", "given")]
    told += [Message("user", "<|end_user|> and more")]
    for opening in ("", "<tool_call>\n"):
        prompt = render(codec, told, opening=opening, replies=replies)
        assert ids_of(prompt.nodes(), codec) == prompt.ids
