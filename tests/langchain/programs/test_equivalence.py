"""A chain as a program gives what LangChain gives: the value, or the error."""

from __future__ import annotations

import asyncio
from operator import itemgetter

import pytest
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import (
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnablePick,
)
from langchain_core.runnables.router import RouterRunnable

from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl, SglLLM
from sgl_langchain.programs import RunnableProgram
from sgl_langchain.translate.lower import lower


def reply(ids, params):
    text = FakeBackend().codec.decode(ids)
    if "boom" in text:
        raise RuntimeError("the model failed")
    return '{"n": 1}' if "json" in text else f"len {len(text)}"


ENGINE = FakeBackend(reply)
CHAT = ChatSgl(engine=ENGINE, max_tokens=64)
LLM = SglLLM(engine=ENGINE, max_tokens=64)
PROMPT = ChatPromptTemplate([("system", "You judge."), ("human", "Judge {x}")])
TEXT = PromptTemplate.from_template("Go on: {x}")


def fail_on_b(value):
    if "b" in str(value):
        raise ValueError(f"bad {value!r}")
    return value


def one_word(value):
    return str(value).split()[0]


def judge(word):
    return ChatPromptTemplate([("human", word + " {x}")]) | CHAT | StrOutputParser()


CHAINS = {
    "prompt": PROMPT,
    "chat": CHAT,
    "chat and parser": PROMPT | CHAT | StrOutputParser(),
    "message": PROMPT | CHAT,
    "text model": TEXT | LLM,
    "json": ChatPromptTemplate([("human", "json {x}")]) | CHAT | JsonOutputParser(),
    "bad json": PROMPT | CHAT | JsonOutputParser(),
    "bound stop": PROMPT | CHAT.bind(stop=["e"]) | StrOutputParser(),
    "bound twice": PROMPT | CHAT.bind(max_tokens=3).bind(max_tokens=2) | StrOutputParser(),
    "config": (PROMPT | CHAT).with_config(tags=["t"]) | StrOutputParser(),
    "parallel": RunnableParallel(a=judge("one"), b=judge("two"), c=lambda v: v.get("x")),
    "assign": RunnablePassthrough.assign(v=judge("one")) | RunnablePassthrough.assign(w=judge("two")),
    "pick": RunnablePassthrough.assign(v=judge("one")) | RunnablePick(["v", "x"]),
    "pick one": RunnablePassthrough.assign(v=judge("one")) | RunnablePick("v"),
    "lambda": itemgetter("x") | RunnableLambda(fail_on_b) | RunnableLambda(lambda x: {"x": x}) | PROMPT | CHAT,
    "lambda behind": PROMPT | CHAT | StrOutputParser() | one_word,
    "lambda that gives a chain": RunnableLambda(lambda x: PROMPT | CHAT | StrOutputParser()),
    "two models": judge("one") | RunnableLambda(lambda t: {"x": t}) | judge("two"),
    "errors in two arms": RunnableParallel(
        a=judge("bring") | RunnableLambda(lambda t: "b" + t) | fail_on_b, b=RunnableLambda(fail_on_b)
    ),
    "branch": RunnableBranch((lambda v: v["x"] == "a", judge("one")), (lambda v: v["x"] == "b", LLM), judge("two")),
    "map": RunnableLambda(lambda v: [{"x": c} for c in v["x"]]) | judge("one").map(),
    "map that fails": RunnableLambda(lambda v: list(v["x"])) | RunnableLambda(fail_on_b).map(),
    "router": RunnableLambda(lambda v: {"key": v.get("x"), "input": v})
    | RouterRunnable({"a": judge("one"), "c": judge("two")}),
    "fallbacks": (PROMPT | CHAT | JsonOutputParser()).with_fallbacks([judge("one")]),
    "fallbacks that fail": RunnableLambda(fail_on_b).with_fallbacks([RunnableLambda(lambda v: 1 / 0)]),
    "fallbacks that do not handle": RunnableLambda(fail_on_b).with_fallbacks([CHAT], exceptions_to_handle=(KeyError,)),
    "retry": RunnableLambda(fail_on_b).with_retry(stop_after_attempt=2, wait_exponential_jitter=False),
    "retry of a model": (PROMPT | CHAT).with_retry(stop_after_attempt=2, wait_exponential_jitter=False),
    "assign without dict": itemgetter("x") | RunnablePassthrough.assign(v=judge("one")),
    "passthrough with effect": RunnablePassthrough(lambda v: None) | PROMPT | CHAT,
    "wrong input of a model": RunnableLambda(lambda v: 3) | CHAT,
    "unknown option": PROMPT | CHAT.bind(temprature=1.0),
}
RACES = {"errors in two arms"}  # on a loop the first error in time is raised, in a thread the first by key
INPUTS = [{"x": "a"}, {"x": "b"}, {"x": "cab"}, {"y": "d"}, {"x": "boom"}]


def seen(value):
    """A value without what is new in every run."""
    if isinstance(value, AIMessage):
        assert value.id.startswith("lc_run-")
        return value.model_copy(update={"id": None})
    if isinstance(value, BaseException):
        return type(value), str(value)
    return value


def outcome(run, *args):
    try:
        return seen(run(*args))
    except Exception as error:
        return seen(error)


def awaited(runnable, value):
    return asyncio.run(runnable.ainvoke(value))


def batched(runnable, values):
    return [seen(one) for one in runnable.batch(values)]


def pair(name):
    return CHAINS[name], RunnableProgram(lower(CHAINS[name]))


@pytest.mark.parametrize("name", CHAINS)
def test_invoke_gives_the_value_or_the_error_of_the_chain(name):
    chain, program = pair(name)
    for value in INPUTS:
        assert outcome(program.invoke, dict(value)) == outcome(chain.invoke, dict(value)), value


@pytest.mark.parametrize("name", sorted(CHAINS.keys() - RACES))
def test_ainvoke_gives_the_value_or_the_error_of_the_chain(name):
    chain, program = pair(name)
    for value in INPUTS:
        assert outcome(awaited, program, dict(value)) == outcome(awaited, chain, dict(value)), value


@pytest.mark.parametrize("name", CHAINS)
def test_batch_gives_each_value_and_each_error_in_its_place(name):
    chain, program = pair(name)
    expected = [seen(one) for one in chain.batch(list(INPUTS), return_exceptions=True)]
    assert [seen(one) for one in program.batch(list(INPUTS), return_exceptions=True)] == expected


@pytest.mark.parametrize("name", CHAINS)
def test_batch_raises_the_error_that_the_chain_raises(name):
    chain, program = pair(name)
    for inputs in (INPUTS[:1] * 2, INPUTS[::-1], INPUTS[1:3], []):
        assert outcome(batched, program, list(inputs)) == outcome(batched, chain, list(inputs))


@pytest.mark.parametrize("name", sorted(CHAINS.keys() - RACES))
def test_abatch_gives_each_value_and_each_error_in_its_place(name):
    chain, program = pair(name)
    expected = [seen(one) for one in asyncio.run(chain.abatch(list(INPUTS), return_exceptions=True))]
    assert [seen(one) for one in asyncio.run(program.abatch(list(INPUTS), return_exceptions=True))] == expected


@pytest.mark.parametrize("name", ["chat and parser", "parallel", "retry", "lambda"])
def test_batch_as_completed_gives_every_place_once(name):
    chain, program = pair(name)
    expected = {i: seen(one) for i, one in chain.batch_as_completed(INPUTS, return_exceptions=True)}
    assert {i: seen(one) for i, one in program.batch_as_completed(INPUTS, return_exceptions=True)} == expected

    async def collect():
        return {i: seen(one) async for i, one in program.abatch_as_completed(INPUTS, return_exceptions=True)}

    assert asyncio.run(collect()) == expected


def test_an_error_of_an_earlier_step_is_raised_before_one_of_a_later_step():
    def refuse_negative(n):
        if n < 0:
            raise ValueError(n)

    chain = RunnableLambda(lambda n: n) | RunnableLambda(lambda n: 1 / (n - 1)) | RunnableLambda(refuse_negative)
    program = RunnableProgram(lower(chain))
    for inputs in ([0, 1], [1, 0], [0, 2]):
        assert outcome(batched, program, inputs) == outcome(batched, chain, inputs)
