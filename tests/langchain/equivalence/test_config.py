"""What the caller configures reaches the chain's own functions as it is.

A ``max_concurrency`` that nobody named may be the exception: LangChain's thread pools are then as wide as the engine, and their
width stands in the configuration.
"""

import asyncio
from contextvars import copy_context

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda, RunnableParallel, RunnablePassthrough

INPUTS = ({"what": "tide"}, {"what": "rope"})
READ = ("tags", "metadata", "configurable", "recursion_limit", "max_concurrency", "run_name")


def says(world, text="Describe the {what}."):
    return ChatPromptTemplate([("human", text)]) | world.chat | StrOutputParser()


def reader(world, label):
    def read(value, config: RunnableConfig):
        seen = {key: config.get(key) for key in READ}
        world.note(label, seen if world.is_limited else {**seen, "max_concurrency": None})
        return value

    return RunnableLambda(read)


def with_readers(world):
    ways = RunnableParallel(long=says(world) | reader(world, "arm"), same=RunnablePassthrough())
    return reader(world, "first") | ways | reader(world, "last").with_config(tags=["own"], metadata={"own": 1})


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tags": ["t"], "metadata": {"m": 1}},
        {"max_concurrency": 3},
        {"recursion_limit": 7},
        {"configurable": {"thread": "5"}},
        {"run_name": "named"},
    ],
    ids=lambda config: next(iter(config), "nothing"),
)
def test_functions_read_the_config_that_the_caller_gave(sides, config):
    both = sides(with_readers, INPUTS)
    for side in both.all():
        side.world.is_limited = "max_concurrency" in config
    both.agree(lambda side: side.runnable.invoke(side.inputs[0], config))
    both.agree(lambda side: side.runnable.batch(list(side.inputs), config))
    both.agree(lambda side: asyncio.run(side.runnable.ainvoke(side.inputs[0], config)))
    both.agree(lambda side: asyncio.run(side.runnable.abatch(list(side.inputs), config)))
    both.agree(lambda side: side.runnable.with_config(config).invoke(side.inputs[0]))
    assert len(both.plain.world.log) == 21


def test_a_batch_takes_one_config_for_each_input(sides):
    both = sides(with_readers, INPUTS)
    configs = [{"metadata": {"n": n}, "tags": [f"t{n}"]} for n in range(2)]
    both.agree(lambda side: side.runnable.batch(list(side.inputs), configs))
    both.agree(lambda side: asyncio.run(side.runnable.abatch(list(side.inputs), configs)))
    both.agree(lambda side: side.runnable.batch(list(side.inputs), configs[:1]))


def test_the_callers_config_is_not_changed(sides):
    config = {"tags": ["mine"], "metadata": {"m": 1}}
    both = sides(with_readers, INPUTS)
    both.agree(lambda side: side.runnable.batch(list(side.inputs), config))
    both.agree(lambda side: side.runnable.invoke(side.inputs[0], config))
    assert config == {"tags": ["mine"], "metadata": {"m": 1}}


def test_a_model_configured_at_the_call_is_the_one_that_answers(sides):
    def build(world):
        template = ChatPromptTemplate([("human", "Describe the {what}.")])
        template = template.configurable_alternatives(
            ConfigurableField("style"), default_key="plain", verse=ChatPromptTemplate([("human", "A verse on the {what}.")])
        )
        return template | world.chat.configurable_fields(temperature=ConfigurableField("heat")) | StrOutputParser()

    both = sides(build, INPUTS)
    _, plain = both.agree(lambda side: side.runnable.invoke(side.inputs[0]))
    _, verse = both.agree(lambda side: side.runnable.with_config(configurable={"style": "verse"}).invoke(side.inputs[0]))
    _, hot = both.agree(lambda side: side.runnable.invoke(side.inputs[0], {"configurable": {"style": "verse", "heat": 0.5}}))
    both.agree(lambda side: side.runnable.invoke(side.inputs[0], {"configurable": {"style": "none such"}}))
    both.agree(lambda side: side.runnable.batch(list(side.inputs), {"configurable": {"style": "verse"}}))
    assert len({plain, verse, hot}) > 1


def test_functions_see_the_callers_context_variables_and_the_very_input(sides, per_key):
    def build(world):
        def look(value):
            world.saw("look", value)
            return value

        return RunnableLambda(look) | RunnableParallel(a=RunnableLambda(look) | says(world), b=look)

    def call(side, run):
        def named():
            side.world.caller.set("the caller")
            return run()

        return copy_context().run(named)

    both = sides(build, INPUTS)
    both.agree(lambda side: call(side, lambda: side.runnable.invoke(side.inputs[0])))
    both.agree(lambda side: call(side, lambda: side.runnable.batch(list(side.inputs))))
    both.agree(lambda side: call(side, lambda: per_key(list(side.runnable.stream(side.inputs[1])))))
    both.agree(lambda side: call(side, lambda: asyncio.run(side.runnable.ainvoke(side.inputs[0]))))
    both.agree(lambda side: call(side, lambda: asyncio.run(side.runnable.abatch(list(side.inputs)))))
    assert {caller for _, _, caller in both.plain.world.log} == {"the caller"}
    assert {which for _, which, _ in both.plain.world.log} == {0, 1}


def test_what_a_function_sets_in_its_context_stays_there(sides):
    def build(world):
        return RunnableLambda(lambda value: world.caller.set("a function") and value) | says(world)

    def run(side):
        side.runnable.invoke(side.inputs[0])
        asyncio.run(side.runnable.ainvoke(side.inputs[0]))
        return side.world.caller.get()

    assert sides(build, INPUTS).agree(run) == ("value", "nobody")
