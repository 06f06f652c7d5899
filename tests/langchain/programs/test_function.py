"""A chain as a native program."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel

import sgl_core.language.program as language
from sgl_core.errors import InvalidArgumentError, TraceError
from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl
from sgl_langchain.programs import RunnableProgram
from sgl_langchain.translate.lower import lower

PROMPT = ChatPromptTemplate([("system", "You judge."), ("human", "Judge {x}")])


def function_of(runnable):
    return RunnableProgram(lower(runnable)).function


def test_a_run_has_the_output_as_its_value(engine):
    chain = PROMPT | ChatSgl(engine=engine) | StrOutputParser()
    assert function_of(chain).run(input={"x": "a"}).ret_value == chain.invoke({"x": "a"})
    assert function_of(chain).run({"x": "a"}).ret_value == chain.invoke({"x": "a"})


def test_a_backend_of_the_caller_serves_all_models(engine):
    with FakeBackend(lambda ids, params: "mine") as mine:
        state = function_of(PROMPT | ChatSgl(engine=engine) | StrOutputParser()).run(input={"x": "a"}, backend=mine)
    assert state.ret_value == "mine"
    assert not engine.requests


def test_models_on_several_engines_need_to_be_told_one():
    with FakeBackend(lambda ids, params: "one") as one, FakeBackend(lambda ids, params: "other") as other:
        function = function_of(
            RunnableParallel({"a": ChatSgl(engine=one) | StrOutputParser(), "b": ChatSgl(engine=other) | StrOutputParser()})
        )
        with pytest.raises(InvalidArgumentError, match=r"^backend: got None, expected the engine that all models"):
            function.run(input="x")
        assert function.run(input="x", backend=other).ret_value == {"a": "other", "b": "other"}


def test_requests_stay_in_the_namespace_of_their_models(engine):
    mine, yours = ChatSgl(engine=engine, namespace="mine"), ChatSgl(engine=engine, namespace="yours")
    function_of(mine).run(input="x")
    function_of(mine).run(input="x", namespace="given")
    assert [request.namespace for request in engine.requests] == ["mine", "given"]
    with pytest.raises(InvalidArgumentError, match=r"^namespace: got None, expected the namespace that all models"):
        function_of(RunnableParallel({"a": mine, "b": yours})).run(input="x")


def test_it_runs_in_batches_and_on_a_loop(engine):
    function = function_of(PROMPT | ChatSgl(engine=engine) | StrOutputParser())
    states = function.run_batch([{"input": {"x": "a"}}, {"input": {"x": "b"}}])
    assert [state.ret_value for state in states] == ["The tide comes in. It goes out."] * 2
    assert asyncio.run(function.arun(input={"x": "a"})).ret_value == states[0].ret_value


def test_an_error_is_that_of_the_chain_and_is_told_once(engine):
    with pytest.raises(KeyError, match="missing variables"):
        function_of(PROMPT | ChatSgl(engine=engine)).run(input={"y": 1})


def test_an_error_that_a_fallback_has_dealt_with_is_not_raised():
    def fail(request):
        return RuntimeError("no") if len(request.input_ids) > 60 else None

    with FakeBackend(lambda ids, params: "yes", fail=fail) as engine:
        chat = ChatSgl(engine=engine)
        chain = (RunnableLambda(lambda v: v * 60) | chat).with_fallbacks([chat]) | StrOutputParser()
        assert function_of(chain).run(input="x").ret_value == "yes"
        assert len(engine.requests) == 2


def test_it_is_called_inside_another_program(engine):
    function = function_of(PROMPT | ChatSgl(engine=engine) | StrOutputParser())

    @language.function
    def outer(s, x):
        return function(input={"x": x}).ret_value.upper()

    assert outer.run(x="a", backend=engine).ret_value == "THE TIDE COMES IN. IT GOES OUT."


def test_it_is_not_traced_and_runs_interpreted_instead(engine):
    function = function_of(PROMPT | ChatSgl(engine=engine) | StrOutputParser())
    with pytest.raises(TraceError, match="LangChain runnable"):
        function.trace()


def test_a_value_that_does_not_parse_is_the_parsers_error(engine):
    chain = PROMPT | ChatSgl(engine=engine) | JsonOutputParser()
    with pytest.raises(Exception, match="Invalid json"):
        function_of(chain).run(input={"x": "a"})


def test_cancelling_a_run_on_a_loop_aborts_its_requests(endless):
    async def main():
        task = asyncio.create_task(function_of(PROMPT | ChatSgl(engine=endless)).arun(input={"x": "a"}))
        while not endless.handles:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not endless.handles[0].done():
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 30))
