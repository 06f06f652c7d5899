"""Streams: their chunks, and what happens to a request whose reader goes away."""

import asyncio

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser

from sgl_core.handle import RequestHandle
from sgl_core.types import FinishReason
from sgl_langchain import ChatSgl, SglLLM

TEXT = "The tide comes in. It goes out."


class Tokens(BaseCallbackHandler):
    def __init__(self):
        self.tokens = []

    def on_llm_new_token(self, token, **kwargs):
        self.tokens.append(token)


async def collected(iterator):
    return [item async for item in iterator]


def aborted(backend):
    return [handle.result(20).finish_reason for handle in backend.handles] == [FinishReason.ABORT] * len(backend.handles)


@pytest.fixture(params=["stream", "astream"])
def chunks(request, engine):
    chat = ChatSgl(engine=engine, stop=["goes"])
    return list(chat.stream("x")) if request.param == "stream" else asyncio.run(collected(chat.astream("x")))


def test_a_stream_has_several_chunks_that_add_up_to_the_answer(chunks):
    assert len([chunk for chunk in chunks if chunk.text]) > 1
    assert "".join(chunk.text for chunk in chunks) == "The tide comes in. It "


def test_only_the_last_chunk_carries_usage_and_metadata(chunks):
    *texts, last = chunks
    assert all(chunk.usage_metadata is None and not chunk.response_metadata for chunk in texts)
    assert all(chunk.chunk_position is None for chunk in texts)
    assert last.chunk_position == "last"
    assert last.usage_metadata["output_tokens"] > 0
    assert last.response_metadata == {"model_name": "FakeBackend", "finish_reason": "stop", "stop_reason": "goes"}


def test_added_up_chunks_have_the_metadata_of_the_answer(engine, chunks):
    full = sum(chunks[1:], chunks[0])
    message = ChatSgl(engine=engine, stop=["goes"]).invoke("x")
    assert isinstance(full, AIMessageChunk)
    assert full.usage_metadata == message.usage_metadata
    assert {**message.response_metadata, **full.response_metadata} == message.response_metadata


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_a_stream_makes_one_text_block_in_both_output_versions(engine, version):
    chunks = list(ChatSgl(engine=engine, output_version=version).stream("x"))
    blocks = sum(chunks[1:], chunks[0]).content_blocks
    assert [(block["type"], block["text"]) for block in blocks] == [("text", TEXT)]


def test_an_empty_answer_streams_one_last_chunk(engine):
    (chunk,) = ChatSgl(engine=engine, stop=["The"]).stream("x")
    assert (chunk.text, chunk.chunk_position) == ("", "last")


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_callbacks_get_every_token_from_both_kinds_of_stream(engine, model_class):
    for stream in (lambda m, c: list(m.stream("x", c)), lambda m, c: asyncio.run(collected(m.astream("x", c)))):
        handler = Tokens()
        stream(model_class(engine=engine), {"callbacks": [handler]})
        assert len(handler.tokens) > 1
        assert "".join(handler.tokens) == TEXT


def test_a_streaming_model_gives_tokens_to_callbacks_of_invoke(engine):
    handler = Tokens()
    ChatSgl(engine=engine, streaming=True).invoke("x", {"callbacks": [handler]})
    assert "".join(handler.tokens) == TEXT


def test_events_of_the_third_version_are_made_from_the_stream(engine):
    stream = ChatSgl(engine=engine).stream_events("x", version="v3")
    assert len(list(stream)) > 2
    assert stream.output.text == TEXT


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_closing_a_stream_aborts_its_request(endless, model_class):
    stream = model_class(engine=endless).stream("x")
    next(stream)
    stream.close()
    assert len(endless.handles) == 1
    assert aborted(endless)


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_leaving_an_async_stream_aborts_its_request(endless, model_class):
    async def leave():
        stream = model_class(engine=endless).astream("x")
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(leave())
    assert len(endless.handles) == 1
    assert aborted(endless)


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
@pytest.mark.parametrize("road", ["ainvoke", "astream", "abatch"])
def test_cancelling_an_async_call_aborts_its_requests(endless, model_class, road):
    model = model_class(engine=endless)
    num_requests = 3 if road == "abatch" else 1

    async def cancel():
        calls = {
            "ainvoke": lambda: model.ainvoke("x"),
            "astream": lambda: collected(model.astream("x")),
            "abatch": lambda: model.abatch(["x"] * 3),
        }
        task = asyncio.ensure_future(calls[road]())
        while len(endless.handles) < num_requests:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert len(endless.handles) == num_requests
    assert aborted(endless)


def test_a_cancelled_async_chain_aborts_its_request(endless):
    chain = ChatSgl(engine=endless) | StrOutputParser()

    async def cancel():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chain.ainvoke([HumanMessage("x")]), 0.05)

    asyncio.run(cancel())
    assert len(endless.handles) == 1
    assert aborted(endless)


def test_an_interrupted_call_aborts_its_request(endless, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    chat = ChatSgl(engine=endless)
    monkeypatch.setattr(RequestHandle, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chat.invoke("x")
    assert [handle.done() for handle in endless.handles] == [True]
