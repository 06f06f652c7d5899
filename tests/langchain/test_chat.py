"""ChatSgl, one call at a time: what it answers, and what it says about its answer."""

import asyncio

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBinding

from sgl_core.errors import InvalidArgumentError
from sgl_core.testing import FakeBackend
from sgl_core.types import FinishReason, GenResult, GrammarCut, Usage
from sgl_langchain import ChatSgl

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


def test_cached_prompt_tokens_are_reported_as_cache_read(engine):
    call = ChatSgl(engine=engine)._prepare([HumanMessage("x")], None, {})
    result = GenResult("x", (1,), FinishReason.STOP, Usage(50, 40, 2))
    for message in (call.chat_result([result]).generations[0].message, call.stream_reader().chunks(result)[-1].message):
        assert message.usage_metadata["input_token_details"] == {"cache_read": 40}


def test_an_output_that_the_budget_closed_as_its_grammar_demands_says_so(engine):
    call = ChatSgl(engine=engine)._prepare([HumanMessage("x")], None, {"json_schema": {"type": "object"}})
    result = GenResult("{}", (1, 2), FinishReason.GRAMMAR, Usage(5, 0, 2), grammar_cut=GrammarCut(2, 0))
    for message in (call.chat_result([result]).generations[0].message, call.stream_reader().chunks(result)[-1].message):
        assert message.response_metadata["finish_reason"] == "stop"
        assert message.response_metadata["grammar_cut"] == {"num_tokens": 2, "first_index": 0}


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


def test_token_counts_with_tools_equal_the_usage(engine):
    tool = {"type": "function", "function": {"name": "t", "description": "T.", "parameters": {}}}
    messages = [HumanMessage("x")]
    chat = ChatSgl(engine=engine)
    counted = chat.get_num_tokens_from_messages(messages, tools=[tool])
    assert counted > chat.get_num_tokens_from_messages(messages)
    for choice in ("none", "any", "auto"):
        assert chat.invoke(messages, tools=[tool], tool_choice=choice).usage_metadata["input_tokens"] == counted


def test_a_custom_counter_is_used(engine):
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


def test_an_answer_in_text_has_a_token_at_least_unless_somebody_says_otherwise(engine):
    chat = ChatSgl(engine=engine)
    chat.invoke("x")
    chat.invoke("x", min_tokens=0)
    chat.invoke("x", regex="a*")
    assert [request.params.min_new_tokens for request in engine.requests] == [1, 0, 0]


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"choices": ["a", "b"]}, {"choices": ("a", "b")}),
        ({"grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
        ({"ebnf": 'start: "a"'}, {"grammar": 'start: "a"'}),
        ({"json_schema": {"type": "object"}}, {"json_schema": {"type": "object"}}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": 2}),
        ({"logprobs": False}, {"logprobs": None}),
        ({"n": 2}, {"n": 2}),
        ({"stop_regex": "a+"}, {"stop_regex": "a+"}),
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5}),
    ],
    ids=str,
)
def test_an_option_reaches_the_request_from_call_binding_and_constructor(engine, option, field):
    ChatSgl(engine=engine).invoke("x", **option)
    ChatSgl(engine=engine).bind(**option).invoke("x")
    ChatSgl(engine=engine, **option).invoke("x")
    ChatSgl(engine=engine, model_kwargs=option).invoke("x")
    for request in engine.requests:
        assert {name: getattr(request.params, name) for name in field} == field
    assert len(engine.requests) == 4


def test_one_option_in_two_places_is_refused(engine):
    with pytest.raises(ValueError, match="outside model_kwargs"):
        ChatSgl(engine=engine, top_k=3, model_kwargs={"top_k": 4})
    with pytest.raises(ValueError, match="top_logprobs: got 2, expected None beside logprobs=False"):
        ChatSgl(engine=engine, logprobs=False, top_logprobs=2)
    with pytest.raises(InvalidArgumentError, match="regex"):
        ChatSgl(engine=engine).invoke("x", regex="a", choices=["a"])


def test_options_that_ask_for_nothing_pass(engine):
    assert ChatSgl(engine=engine, n=1).invoke("x", tools=[], logprobs=False, response_format=None, n=1).text == TEXT


def test_several_answers_to_one_prompt_are_one_request_and_generate_shows_them_all(engine):
    result = ChatSgl(engine=engine, n=3, temperature=1, seed=1).generate([[HumanMessage("x")]])
    assert [generation.text for generation in result.generations[0]] == [TEXT] * 3
    assert len(engine.requests) == 1
    usage = result.llm_output["token_usage"]
    assert usage["prompt_tokens"] == len(engine.requests[0].input_ids)
    assert usage["completion_tokens"] == 3 * (len(TEXT) + 1)
    with pytest.raises(InvalidArgumentError, match="n: got 3, expected 1 in a stream"):
        next(ChatSgl(engine=engine, n=3).stream("x"))


def test_log_probabilities_have_the_shape_that_openais_clients_know():
    with FakeBackend(lambda ids, params: "ab") as engine:
        chat = ChatSgl(engine=engine)
        for message in (
            chat.invoke("x", logprobs=True, top_logprobs=2),
            sum_of(chat.stream("x", logprobs=True, top_logprobs=2)),
        ):
            first, second = message.response_metadata["logprobs"]["content"][:2]
            assert (first["token"], first["bytes"], second["token"]) == ("a", [97], "b")
            assert first["logprob"] <= 0
            assert len(first["top_logprobs"]) == 2
        assert "logprobs" not in chat.invoke("x").response_metadata


def sum_of(chunks):
    total, *rest = chunks
    for chunk in rest:
        total += chunk
    return total


def test_the_profile_says_what_the_model_can_and_knows_its_context_without_loading_it(engine):
    borrowed, embedded = ChatSgl(engine=engine).profile, ChatSgl().profile
    assert borrowed["max_input_tokens"] == engine.capabilities.context_tokens
    assert embedded["max_input_tokens"] == 8192
    assert all(embedded[name] for name in ("tool_calling", "tool_choice", "tool_call_streaming", "structured_output"))
    assert "max_input_tokens" not in ChatSgl(model="no/such-model").profile


def test_a_reply_goes_back_into_the_history_as_the_ids_that_were_generated(engine):
    chat = ChatSgl(engine=engine, max_tokens=8)
    history = [HumanMessage("What is a tide?")]
    answer = chat.invoke(history)
    asked = engine.requests[0].input_ids
    told_again = AIMessage(answer.text)  # any message that says the same: frameworks make new ones
    call = chat._prepare([*history, told_again, HumanMessage("Why?")], None, {})
    reply = call.prompt.turns[1].parts
    assert [part.text for part in reply] == [answer.text]
    assert call.prompt.ids[: len(asked) + len(reply[0].ids)] == asked + reply[0].ids
    other = chat._prepare([HumanMessage("Another prompt."), told_again, HumanMessage("Why?")], None, {})
    assert other.prompt.turns[1].parts == (answer.text,)
