"""Plugins that observe requests hear of those that LangChain's models send."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import HumanMessage

from sgl_core.plugins import AdapterSource, AdapterSpec, PluginHost, hookimpl
from sgl_core.types import FinishReason
from sgl_langchain import ChatSgl, SglLLM, running


class Listener:
    """A plugin."""

    def __init__(self):
        self.records = []

    @hookimpl
    def sgl_adapter(self):
        return AdapterSpec("listener", 1, dict)

    @hookimpl
    def sgl_request_finished(self, record):
        self.records.append(record)


@pytest.fixture
def listener(monkeypatch):
    plugin = Listener()
    source = AdapterSource("listener", "listener-sgl", "1.0", lambda: plugin)
    host = PluginHost(find=lambda: [source], disabled=())
    assert not host.has_observers
    host.load("listener")
    assert host.has_observers
    monkeypatch.setattr(running, "get_host", lambda: host)
    return plugin


def test_every_road_to_the_engine_is_observed_once_a_request(engine, listener):
    chat, llm = ChatSgl(engine=engine), SglLLM(engine=engine)
    chat.invoke("x")
    list(chat.stream("x"))
    asyncio.run(chat.ainvoke("x"))
    llm.generate(["x", "y"])
    assert [(record.adapter, record.finish_reason) for record in listener.records] == [("langchain", FinishReason.STOP)] * 5


def test_several_answers_are_one_record(engine, listener):
    ChatSgl(engine=engine, n=3).generate([[HumanMessage("x")]])
    assert len(listener.records) == 1
