"""Engines of model objects: leased at the first call, shared by copies, given back at the end."""

import asyncio
import copy
import gc
import threading
from multiprocessing.reduction import ForkingPickler

import pytest
from langchain_core.runnables import RunnableBranch, RunnableLambda

from sgl_core.config import EngineConfig
from sgl_core.errors import ModelNotFoundError
from sgl_core.runtime import leases
from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl, SglLLM, compile_runnable


class Desk:
    """Stands where the registry stands: a fake engine for each configuration, and a record of its leases."""

    def __init__(self):
        self.engine = FakeBackend()
        self.taken: list[EngineConfig] = []
        self.returned = threading.Semaphore(0)

    def acquire(self, config):
        if config.model == "./nowhere":
            raise ModelNotFoundError("model: './nowhere' does not exist.")
        self.taken.append(config)
        return Lease(self)


class Lease:
    def __init__(self, desk):
        self.engine = desk.engine
        self._desk = desk

    def close(self):
        self._desk.returned.release()


@pytest.fixture
def desk(monkeypatch):
    desk = Desk()
    monkeypatch.setattr(leases, "acquire", desk.acquire)
    yield desk
    desk.engine.close()


def test_nothing_is_leased_before_the_first_call(desk):
    chat = ChatSgl(dtype="float32", device="cpu", engine_kwargs={"max_running": 5}, model="m")
    _ = (repr(chat), chat._identifying_params, chat._get_ls_params(), chat.bind(stop=["a"]), copy.deepcopy(chat))
    assert desk.taken == []
    chat.invoke("x")
    assert desk.taken == [EngineConfig(model="m", dtype="float32", device="cpu", max_running=5)]


def test_all_calls_and_copies_use_one_lease(desk):
    chat = ChatSgl()
    for twin in (chat, chat, copy.copy(chat), copy.deepcopy(chat), chat.model_copy()):
        twin.invoke("x", max_tokens=4)
    asyncio.run(chat.ainvoke("x"))
    chat.batch(["x"] * 8)
    assert len(desk.taken) == 1


def test_an_async_first_call_leases_too(desk):
    assert asyncio.run(ChatSgl().ainvoke("x")).text
    assert asyncio.run(SglLLM().ainvoke("x"))
    assert len(desk.taken) == 2


def test_a_model_named_in_a_call_is_leased_beside_the_objects_own(desk):
    chat = ChatSgl(model="one")
    assert chat.invoke("x").response_metadata["model_name"] == "one"
    assert chat.invoke("x", model="two").response_metadata["model_name"] == "two"
    chat.invoke("x", model="two")
    assert [config.model for config in desk.taken] == ["one", "two"]


def test_close_gives_back_and_the_next_call_leases_anew(desk):
    chat = ChatSgl()
    chat.invoke("x")
    chat.close()
    chat.close()
    assert desk.returned.acquire(timeout=20)
    assert not desk.returned.acquire(blocking=False)
    chat.invoke("x")
    assert len(desk.taken) == 2


def test_the_lease_goes_back_when_the_last_copy_dies(desk):
    chat = ChatSgl()
    chat.invoke("x")
    twin = copy.deepcopy(chat)
    del chat
    gc.collect()
    assert not desk.returned.acquire(timeout=0.05)
    twin.invoke("x")
    del twin
    gc.collect()
    assert desk.returned.acquire(timeout=20)


def test_an_object_that_never_ran_gives_nothing_back(desk):
    ChatSgl()
    gc.collect()
    assert not desk.returned.acquire(timeout=0.05)


def test_a_pickle_of_a_running_model_leases_for_itself(desk):
    chat = ChatSgl()
    chat.invoke("x")
    woken = ForkingPickler.loads(ForkingPickler.dumps(chat))
    woken.invoke("x")
    assert len(desk.taken) == 2


def test_a_borrowed_engine_is_never_leased_nor_closed(desk, engine):
    chat = ChatSgl(engine=engine)
    chat.invoke("x")
    chat.close()
    del chat
    gc.collect()
    assert desk.taken == []
    assert ChatSgl(engine=engine).invoke("x").text


def test_a_model_that_does_not_exist_fails_the_call_and_not_the_constructor(desk):
    chat = ChatSgl(model="./nowhere")
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        chat.invoke("x")
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        asyncio.run(chat.ainvoke("x"))


@pytest.mark.parametrize("model_class", [ChatSgl, SglLLM])
def test_a_compiled_chain_on_a_loop_leases_for_the_calls_that_it_makes(desk, model_class):
    missing = RunnableLambda(str) | model_class(model="./nowhere")
    branch = compile_runnable(RunnableBranch((lambda x: x > 1, missing), RunnableLambda(lambda x: "no call")))
    mended = compile_runnable(missing.with_fallbacks([RunnableLambda(lambda x: "mended")]))
    moved = compile_runnable(RunnableLambda(str) | model_class(model="./nowhere").bind(model="there"))

    async def calls():
        return await branch.ainvoke(1), await mended.ainvoke(1), await moved.ainvoke(1)

    assert asyncio.run(calls())[:2] == ("no call", "mended")
    assert [config.model for config in desk.taken] == ["there"]


def test_many_threads_lease_once(desk):
    chat = ChatSgl()
    threads = [threading.Thread(target=chat.invoke, args=("x",)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(desk.taken) == 1
