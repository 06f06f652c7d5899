"""Which form of tools a prompt of ``ChatSgl`` has."""

import pytest
from langchain_core.messages import HumanMessage

from sgl_core.testing import FakeBackend
from sgl_core.testing.byte_codec import ByteCodec
from sgl_langchain import ChatSgl

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
SIGNATURE = "get_weather(place: string) - Get the weather."


class TrainedCodec(ByteCodec):
    knows_tools = True


def prompt_of(engine, **options):
    ChatSgl(engine=engine, **options).bind_tools([WEATHER], tool_choice="none").invoke("Hello.")
    return engine.codec.decode(engine.requests[-1].input_ids)


@pytest.mark.parametrize(
    ("codec", "tool_format", "is_signature"),
    [
        (ByteCodec(), "auto", True),
        (TrainedCodec(), "auto", False),
        (ByteCodec(), "hermes", False),
        (TrainedCodec(), "signatures", True),
    ],
)
def test_tools_are_offered_as_the_model_or_the_caller_has_it(codec, tool_format, is_signature):
    prompt = prompt_of(FakeBackend(codec=codec), tool_format=tool_format)
    assert (SIGNATURE in prompt) is is_signature
    assert ('"name": "get_weather"' in prompt) is not is_signature


def test_counting_knows_the_form():
    counts = {}
    for tool_format in ("hermes", "signatures"):
        chat = ChatSgl(engine=FakeBackend(), tool_format=tool_format)
        counts[tool_format] = chat.get_num_tokens_from_messages([HumanMessage("Hello.")], tools=[WEATHER])
        answer = chat.bind_tools([WEATHER], tool_choice="none").invoke("Hello.")
        assert answer.usage_metadata["input_tokens"] == counts[tool_format]
    assert counts["signatures"] < counts["hermes"]


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="tool_format"):
        ChatSgl(tool_format="xml")


def test_the_form_is_a_part_of_the_cache_key():
    assert ChatSgl(tool_format="hermes")._identifying_params != ChatSgl()._identifying_params
