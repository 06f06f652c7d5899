"""Messages to prompts: roles, tools and their results, and parts that are no text."""

import pytest
from dspy import lm15

from sgl_core.chat.conversation import Message, render
from sgl_core.chat.tools import Tool, ToolResult, ToolSet, render_call, render_results
from sgl_dspy.requests.messages import common_prefix, conversation, key_of

TOOLS = ToolSet((Tool("add", "Adds."),))
CALL = lm15.ToolCallPart("c1", "add", {"x": 1})


def told(*messages, system=None, offered=None):
    return conversation(lm15.Request("sgl/x", messages, system=system), offered)


def turns(found):
    return [(message.role, message.text) for message in found.messages]


def test_system_and_developer_messages_are_system_turns():
    messages = (lm15.Message.user("a"), lm15.Message.developer("b"), lm15.Message.assistant("c"), lm15.Message.user("d"))
    expected = [("system", "s"), ("user", "a"), ("system", "b"), ("assistant", "c"), ("user", "d")]
    assert turns(told(*messages, system="s")) == expected


def test_text_parts_are_joined_and_data_is_json():
    message = lm15.Message.user(["one ", "two ", lm15.DataPart({"é": 1})])
    assert turns(told(message, system=("a", "b"))) == [("system", "ab"), ("user", 'one two {"é": 1}')]


def test_tools_stand_in_the_system_message_and_make_one():
    about = TOOLS.system_text()
    assert turns(told(lm15.Message.user("a"), system="s", offered=TOOLS))[0] == ("system", f"s\n\n{about}")
    assert turns(told(lm15.Message.user("a"), offered=TOOLS))[0] == ("system", about)


def test_calls_are_written_behind_the_text():
    reply = lm15.Message.assistant(["I add.", CALL])
    assert turns(told(lm15.Message.user("a"), reply))[1] == ("assistant", "I add.\n" + render_call("add", {"x": 1}))


def test_results_in_a_row_are_one_turn_and_take_names_from_their_calls():
    other = lm15.ToolCallPart("c2", "sub", {})
    messages = (
        lm15.Message.user("a"),
        lm15.Message.assistant([CALL, other]),
        lm15.Message.tool("c1", "3"),
        lm15.Message("tool", (lm15.ToolResultPart("c2", (lm15.TextPart("no"),), is_error=True),)),
        lm15.Message.user("b"),
    )
    found = told(*messages)
    results = render_results([ToolResult("3", "add"), ToolResult("no", "sub", is_error=True)])
    assert turns(found)[2:] == [("user", results), ("user", "b")]
    assert found.ends == (1, 2, 3, 3, 4)
    assert not found.follows_result
    assert told(*messages[:3]).follows_result


def test_what_a_reply_says_does_not_depend_on_the_white_space_around_it():
    assert key_of("yes\n", []) == key_of("yes", [])
    assert key_of("yes", []) != key_of("yes", [("add", {})])


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("messages[1].parts[1]", lm15.Message.user(["look", lm15.ImagePart("image/png", url="https://example.org/a.png")])),
        ("messages[1].parts[0]", lm15.Message.assistant(lm15.ThinkingPart("hm"))),
        (
            "messages[1].parts[0].content[0]",
            lm15.Message.tool("c1", [lm15.ImagePart("image/png", url="https://example.org/a")]),
        ),
    ],
)
def test_parts_that_are_no_text_are_refused_by_place(feature, message):
    with pytest.raises(lm15.UnsupportedFeatureError) as raised:
        told(lm15.Message.user("Hi"), message)
    assert raised.value.feature == feature


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_beginning_of_a_conversation_is_what_all_that_go_on_from_there_begin_with(backend, count):
    messages = [Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    found = told(*(lm15.Message.user("a"), lm15.Message.assistant("b"), lm15.Message.user("c")), system="s")
    ids = found.beginning(count, backend.codec)
    assert ids == render(backend.codec, messages).start_ids[: len(ids)]
    assert len(ids) > len(found.beginning(count - 1, backend.codec))


def test_a_common_prefix():
    assert common_prefix((1, 2, 3), (1, 2, 4)) == (1, 2)
    assert common_prefix((1, 2), (1, 2, 3)) == (1, 2)
    assert common_prefix((), (1,)) == ()
