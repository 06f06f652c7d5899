"""SglLLM: plain prompts, all of a call together."""

import asyncio

import pytest
from langchain_core.caches import InMemoryCache

from sgl_core.errors import ContextLengthError
from sgl_core.testing import FakeBackend
from sgl_core.types import FinishReason
from sgl_langchain import SglLLM

TEXT = "The tide comes in. It goes out."


def test_a_prompt_is_the_beginning_and_the_text_without_a_template(engine):
    assert SglLLM(engine=engine).invoke("Why?") == TEXT
    assert engine.requests[0].input_ids == (*engine.codec.begin(), *b"Why?")


def test_every_generation_says_how_it_ended_and_what_it_used(engine):
    result = SglLLM(engine=engine, stop=["comes"]).generate(["a", "bb"])
    infos = [generations[0].generation_info for generations in result.generations]
    assert [generations[0].text for generations in result.generations] == ["The tide "] * 2
    assert [(info["finish_reason"], info["stop_reason"]) for info in infos] == [("stop", "comes")] * 2
    assert [info["usage_metadata"]["input_tokens"] for info in infos] == [2, 3]
    assert result.llm_output["model_name"] == "FakeBackend"
    assert result.llm_output["token_usage"]["prompt_tokens"] == 5


def test_async_calls_answer_the_same(engine):
    llm = SglLLM(engine=engine)
    assert asyncio.run(llm.ainvoke("x")) == llm.invoke("x")
    result = asyncio.run(llm.agenerate(["x", "y"]))
    assert [generations[0].text for generations in result.generations] == [TEXT, TEXT]


def test_a_stream_ends_with_the_generation_info(engine):
    llm = SglLLM(engine=engine)
    *texts, last = llm._stream("x")
    assert "".join(chunk.text for chunk in texts) == TEXT
    assert all(chunk.generation_info is None for chunk in texts)
    assert (last.text, last.generation_info["finish_reason"]) == ("", "stop")
    assert "".join(llm.stream("x")) == TEXT


def test_options_of_a_call_replace_the_constructors(engine):
    llm = SglLLM(engine=engine, max_tokens=9)
    llm.invoke("x", max_tokens=2, stop=["q"])
    llm.invoke("x")
    assert [(r.params.max_new_tokens, r.params.stop) for r in engine.requests] == [(2, ("q",)), (9, ())]


def test_langchains_cache_tells_call_options_apart():
    with FakeBackend() as backend:
        llm = SglLLM(engine=backend, cache=InMemoryCache())
        greedy = llm.invoke("x")
        assert llm.invoke("x") == greedy
        assert len(backend.requests) == 1
        llm.invoke("x", temperature=1, seed=3)
        asyncio.run(llm.ainvoke("x", max_tokens=1))
        assert len(backend.requests) == 3


def test_one_prompt_that_cannot_run_aborts_those_before_it(endless, monkeypatch):
    submit = endless.submit

    def refuse_the_second(request):
        if len(endless.handles) == 1:
            raise ContextLengthError(9000, None, 8192, "the context")
        return submit(request)

    monkeypatch.setattr(endless, "submit", refuse_the_second)
    with pytest.raises(ContextLengthError):
        SglLLM(engine=endless).generate(["fits", "does not"])
    assert [handle.result(20).finish_reason for handle in endless.handles] == [FinishReason.ABORT]


def test_token_counts_equal_the_usage(engine):
    llm = SglLLM(engine=engine)
    used = llm.generate(["Why?"]).generations[0][0].generation_info["usage_metadata"]["input_tokens"]
    assert llm.get_num_tokens("Why?") == used == 5
    assert SglLLM(engine=engine, custom_get_token_ids=lambda text: [len(text)]).get_token_ids("four") == [4]


def test_run_names_tags_and_metadata_still_reach_langchain(engine):
    result = SglLLM(engine=engine).generate(["x"], tags=["t"], metadata={"m": 1}, run_name="named")
    assert len(result.run) == 1
