"""ChatSgl, one call at a time: what it answers, and what it says about its answer."""

import asyncio

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBinding

from sgl_core.errors import NotYetAvailableError
from sgl_core.types import FinishReason, GenResult, Usage
from sgl_langchain import ChatSgl
from sgl_langchain.messages import answer, closing_chunk

TEXT = "The tide comes in. It goes out."


def test_an_answer_is_a_message_with_text_usage_and_metadata(engine):
    message = ChatSgl(engine=engine).invoke("What is a tide?")
    assert isinstance(message, AIMessage)
    assert message.text == TEXT
    num_prompt = len(engine.requests[0].input_ids)
    num_output = len(TEXT) + 1
    assert message.usage_metadata == {
        "input_tokens": num_prompt,
        "output_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "input_token_details": {"cache_read": 0},
    }
    assert message.response_metadata["model_name"] == "FakeBackend"
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.id.startswith("lc_run-")


def test_cached_prompt_tokens_are_reported_as_cache_read():
    result = GenResult("x", (1,), FinishReason.STOP, Usage(50, 40, 2))
    assert answer(result, "m").usage_metadata["input_token_details"] == {"cache_read": 40}
    assert closing_chunk(result, "m").usage_metadata["input_token_details"] == {"cache_read": 40}


def test_an_output_that_the_budget_closed_as_its_grammar_demands_says_so():
    result = GenResult("{}", (1, 2), FinishReason.GRAMMAR, Usage(5, 0, 2))
    assert answer(result, "m").response_metadata["finish_reason"] == "grammar"
    assert closing_chunk(result, "m").response_metadata["finish_reason"] == "grammar"


def test_the_answer_is_the_same_whichever_way_it_is_asked_for(engine):
    chat = ChatSgl(engine=engine)
    question = [HumanMessage("What is a tide?")]
    texts = {
        chat.invoke(question).text,
        asyncio.run(chat.ainvoke(question)).text,
        chat.batch([question])[0].text,
        asyncio.run(chat.abatch([question]))[0].text,
        "".join(chunk.text for chunk in chat.stream(question)),
        chat.invoke(question, stream=True).text,
        ChatSgl(engine=engine, streaming=True).invoke(question).text,
        (ChatPromptTemplate([("human", "{q}")]) | chat | StrOutputParser()).invoke({"q": "What is a tide?"}),
    }
    assert texts == {TEXT}
    assert len({request.input_ids for request in engine.requests}) == 1


def test_greedy_is_the_default_and_a_call_option_replaces_the_constructors(engine):
    chat = ChatSgl(engine=engine, max_tokens=9, top_p=0.5)
    chat.invoke("x")
    chat.invoke("x", temperature=0.7, max_tokens=3, seed=5)
    chat.bind(top_k=4).invoke("x")
    first, second, third = (request.params for request in engine.requests)
    assert (first.temperature, first.max_new_tokens, first.top_p) == (0.0, 9, 0.5)
    assert (second.temperature, second.max_new_tokens, second.top_p, second.seed) == (0.7, 3, 0.5, 5)
    assert (third.top_k, third.max_new_tokens) == (4, 9)


def test_every_sampling_option_reaches_the_request(engine):
    options = {
        "temperature": 0.5,
        "min_tokens": 1,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "repetition_penalty": 1.1,
        "logit_bias": {3: 1.5},
        "stop_token_ids": [4, 5],
        "ignore_eos": True,
        "seed": 6,
    }
    ChatSgl(engine=engine, max_tokens=8, stop=["q"], **options).invoke("x")
    params = engine.requests[0].params
    expected = {**options, "min_new_tokens": 1, "max_new_tokens": 8, "stop": ("q",), "stop_token_ids": (4, 5)}
    del expected["min_tokens"]
    assert {name: getattr(params, name) for name in expected} == expected


def test_namespace_and_timeout_reach_the_request(engine):
    chat = ChatSgl(engine=engine, namespace="tenant", timeout=60)
    chat.invoke("x")
    chat.invoke("x", namespace="other", timeout=5)
    assert [(r.namespace, r.timeout_s) for r in engine.requests] == [("tenant", 60.0), ("other", 5)]


def test_stop_cuts_the_answer_and_the_matched_text_is_in_the_metadata(engine):
    message = ChatSgl(engine=engine, stop=["comes", "goes"]).invoke("x")
    assert message.text == "The tide "
    assert message.response_metadata["stop_reason"] == "comes"
    assert message.response_metadata["finish_reason"] == "stop"


def test_stop_of_a_call_replaces_the_constructors_even_with_an_empty_list(engine):
    chat = ChatSgl(engine=engine, stop=["comes"])
    assert chat.invoke("x", stop=["out"]).text == "The tide comes in. It goes "
    assert chat.invoke("x", stop=[]).text == TEXT
    assert chat.invoke("x").text == "The tide "


def test_an_answer_cut_by_its_budget_says_length(engine):
    assert ChatSgl(engine=engine, max_tokens=3).invoke("x").response_metadata["finish_reason"] == "length"


def test_the_seed_of_a_sampled_answer_is_in_its_metadata(engine):
    assert ChatSgl(engine=engine, temperature=1, seed=11).invoke("x").response_metadata["seed"] == 11
    assert "seed" not in ChatSgl(engine=engine).invoke("x").response_metadata


def test_token_counts_equal_the_usage(engine):
    chat = ChatSgl(engine=engine)
    messages = [SystemMessage("Be brief."), HumanMessage("What is a tide?"), AIMessage("Water."), HumanMessage("Why?")]
    used = chat.invoke(messages).usage_metadata["input_tokens"]
    assert chat.get_num_tokens_from_messages(messages) == used
    assert chat.get_token_ids("tide") == [*b"tide"]
    assert chat.get_num_tokens("tide") == 4


def test_token_counts_with_tools_are_refused_and_a_custom_counter_is_used(engine):
    with pytest.raises(NotYetAvailableError, match="tools"):
        ChatSgl(engine=engine).get_num_tokens_from_messages([HumanMessage("x")], tools=[{"name": "t"}])
    assert ChatSgl(engine=engine, custom_get_token_ids=lambda text: [len(text)]).get_token_ids("four") == [4]


def test_generate_sums_the_usage_of_its_prompts(engine):
    result = ChatSgl(engine=engine).generate([[HumanMessage("a")], [HumanMessage("bb")]])
    assert result.llm_output["token_usage"] == {
        "prompt_tokens": sum(len(request.input_ids) for request in engine.requests),
        "cached_tokens": 0,
        "completion_tokens": 2 * (len(TEXT) + 1),
        "total_tokens": sum(len(request.input_ids) for request in engine.requests) + 2 * (len(TEXT) + 1),
    }


def test_the_usage_callback_counts_by_model_name(engine):
    usage = UsageMetadataCallbackHandler()
    ChatSgl(engine=engine).invoke("x", config={"callbacks": [usage]})
    assert usage.usage_metadata["FakeBackend"]["output_tokens"] == len(TEXT) + 1


@pytest.mark.parametrize("change", [{"temperature": 1.0, "seed": 1}, {"max_tokens": 4}, {"stop": ["tide"]}, {"namespace": "n"}])
def test_langchains_cache_tells_options_apart(engine, change):
    for roads in (
        lambda chat: (chat, chat.bind(**change)),
        lambda chat: (chat, ChatSgl(engine=engine, cache=chat.cache, **change)),
    ):
        before = len(engine.requests)
        plain, changed = roads(ChatSgl(engine=engine, cache=InMemoryCache()))
        for model in (plain, plain, changed, changed, plain):
            model.invoke("x")
        assert len(engine.requests) - before == 2


def test_langchains_cache_sees_a_field_that_was_changed(engine):
    chat = ChatSgl(engine=engine, cache=InMemoryCache())
    chat.invoke("x")
    chat.max_tokens = 3
    assert chat.invoke("x").text == "The"


def test_binding_keeps_the_model_and_its_options(engine):
    bound = ChatSgl(engine=engine).bind(stop=["tide"])
    assert isinstance(bound, RunnableBinding)
    assert bound.invoke("x").text == "The "


@pytest.mark.parametrize(
    ("option", "cure"),
    [
        ({"tools": [{"name": "t"}]}, "output parser"),
        ({"response_format": {"type": "json_object"}}, "JsonOutputParser"),
        ({"logprobs": True}, "engine.score"),
        ({"top_logprobs": 3}, "engine.score"),
        ({"n": 2}, "batch"),
        ({"regex": "a+"}, "JsonOutputParser"),
        ({"choices": ["a", "b"]}, "sgl.select"),
    ],
)
def test_what_comes_later_is_refused_by_name_with_what_to_use(engine, option, cure):
    (name,) = option
    with pytest.raises(NotYetAvailableError, match=f"{name} .*{cure}"):
        ChatSgl(engine=engine).invoke("x", **option)
    with pytest.raises(NotYetAvailableError, match=name):
        ChatSgl(engine=engine, **option)
    assert engine.requests == []


def test_options_that_ask_for_nothing_pass(engine):
    assert ChatSgl(engine=engine, n=1).invoke("x", tools=[], logprobs=False, response_format=None, n=1).text == TEXT


def test_tools_and_structured_output_are_refused_with_what_to_use(engine):
    chat = ChatSgl(engine=engine)
    with pytest.raises(NotYetAvailableError, match="output parser"):
        chat.bind_tools([])
    with pytest.raises(NotYetAvailableError, match="JsonOutputParser"):
        chat.with_structured_output({"title": "T", "type": "object", "properties": {}})
    assert (chat.profile["tool_calling"], chat.profile["structured_output"]) == (False, False)
