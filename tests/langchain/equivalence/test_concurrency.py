"""How much runs at once: never more than the caller allows, as much as the engine takes, and everybody gets its own."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough

from sgl_langchain import ChatSgl, SglLLM

TWO = {"max_concurrency": 2}
NUMBERS = [{"n": f"#{n}"} for n in range(6)]


def says(engine, text="{n}"):
    return ChatPromptTemplate([("system", "Say the number."), ("human", text)]) | ChatSgl(engine=engine) | StrOutputParser()


def arms(engine, num=4):
    return RunnableParallel({f"arm{n}": says(engine, "{n}" + f"-{n}") for n in range(num)})


CHAINS = {
    "chain": says,
    "parallel": arms,
    "two steps": lambda engine: arms(engine, 2) | RunnableLambda(lambda found: {"n": found["arm0"]}) | arms(engine, 3),
    "assign": lambda engine: RunnablePassthrough.assign(x=says(engine), y=says(engine), z=says(engine)),
    "map": lambda engine: RunnableLambda(lambda one: [one] * 4) | arms(engine, 2).map(),
    "fallbacks": lambda engine: arms(engine, 2).with_fallbacks([says(engine)]),
    "retry": lambda engine: arms(engine, 2).with_retry(stop_after_attempt=2),
    "text": lambda engine: (
        RunnableLambda(lambda one: one["n"])
        | RunnableParallel(a=SglLLM(engine=engine), b=SglLLM(engine=engine), c=SglLLM(engine=engine))
    ),
    "a function that calls": lambda engine: RunnableLambda(lambda one: arms(engine, 3).invoke(one)),
}


async def collected(iterator):
    return [item async for item in iterator]


ROADS = {
    "invoke": lambda chain: chain.invoke(NUMBERS[0], TWO),
    "batch": lambda chain: chain.batch(NUMBERS, TWO),
    "batch with errors in place": lambda chain: chain.batch(NUMBERS, TWO, return_exceptions=True),
    "batch with a config each": lambda chain: chain.batch(NUMBERS, [TWO] * len(NUMBERS)),
    "configured batch": lambda chain: chain.with_config(TWO).batch(NUMBERS),
    "batch_as_completed": lambda chain: list(chain.batch_as_completed(NUMBERS, TWO)),
    "stream": lambda chain: list(chain.stream(NUMBERS[0], TWO)),
    "ainvoke": lambda chain: asyncio.run(chain.ainvoke(NUMBERS[0], TWO)),
    "abatch": lambda chain: asyncio.run(chain.abatch(NUMBERS, TWO)),
    "abatch_as_completed": lambda chain: asyncio.run(collected(chain.abatch_as_completed(NUMBERS, TWO))),
    "astream": lambda chain: asyncio.run(collected(chain.astream(NUMBERS[0], TWO))),
}


@pytest.mark.parametrize("build", CHAINS.values(), ids=CHAINS)
def test_a_callers_max_concurrency_is_never_exceeded(counting, compiled, within_limit, build):
    for road, run in ROADS.items():
        engine = counting(latency_s=0.001)
        within_limit(lambda run=run, engine=engine: run(compiled(build(engine))))
        assert (road, engine.most_in_flight) <= (road, 2)
        assert engine.most_in_flight >= 1
        assert engine.in_flight == 0


def test_callers_with_limits_of_their_own_do_not_share_them(counting, compiled, within_limit):
    engine = counting(gate=4)
    chain = compiled(arms(engine))
    with ThreadPoolExecutor(2) as callers:
        both = [callers.submit(chain.invoke, one, TWO) for one in NUMBERS[:2]]
        within_limit(lambda: [one.result() for one in both])
    assert engine.most_in_flight == 4


@pytest.mark.parametrize(
    "run",
    [
        lambda chain: chain.batch(NUMBERS * 6),
        lambda chain: asyncio.run(chain.abatch(NUMBERS * 6)),
        lambda chain: list(chain.batch_as_completed(NUMBERS * 6)),
    ],
    ids=["batch", "abatch", "batch_as_completed"],
)
def test_without_a_limit_a_batch_reaches_the_engine_whole(counting, compiled, within_limit, run):
    engine = counting(gate=36)
    assert len(within_limit(lambda: run(compiled(says(engine))))) == 36
    assert engine.most_in_flight == 36


def test_without_a_limit_all_arms_run_at_once(counting, compiled, within_limit):
    engine = counting(gate=20)
    assert len(within_limit(lambda: compiled(arms(engine, 20)).invoke(NUMBERS[0]))) == 20
    assert engine.most_in_flight == 20


def test_64_threads_get_each_its_own_answers(counting, compiled, within_limit):
    engine = counting()
    build = RunnablePassthrough.assign(first=says(engine), second=says(engine, "again {n}"))
    plain, chain = build, compiled(build)
    together = threading.Barrier(64)

    def caller(number):
        together.wait(60)
        inputs = [{"n": f"#{number}.{turn}"} for turn in range(4)]
        run = plain if number % 4 == 0 else chain
        return inputs, [run.invoke(inputs[0]), *run.batch(inputs[1:3]), asyncio.run(run.ainvoke(inputs[3]))]

    with ThreadPoolExecutor(64) as callers:
        for inputs, answers in within_limit(lambda: list(callers.map(caller, range(64)))):
            texts = [one["n"].removeprefix("#") for one in inputs]
            assert [answer["n"] for answer in answers] == [one["n"] for one in inputs]
            assert [answer["first"] for answer in answers] == texts
            assert [answer["second"] for answer in answers] == texts
