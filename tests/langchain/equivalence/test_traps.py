"""What a translation of chains gets wrong most easily, one test for each."""

import asyncio
import json
from multiprocessing.reduction import ForkingPickler
from operator import itemgetter

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnableParallel, RunnablePassthrough

from sgl_langchain import ChatSgl, compile_runnable

TIDE, ROPE, LAMP, BROKEN = {"what": "tide"}, {"what": "rope"}, {"what": "lamp"}, {"what": "explode"}


def asks(text="Describe the {what}."):
    return ChatPromptTemplate([("human", text)])


def says(world, text="Describe the {what}."):
    return asks(text) | world.chat | StrOutputParser()


def failing(label):
    def fail(value):
        raise LookupError(label)

    return RunnableLambda(fail)


class Starts(BaseCallbackHandler):
    """The tags that the steps of a chain start with."""

    def __init__(self):
        self.tags = []

    def on_chain_start(self, serialized, inputs, *, tags=None, **_):
        self.tags += tags or []

    def on_chat_model_start(self, serialized, messages, *, tags=None, **_):
        self.tags += tags or []


def test_callbacks_see_the_place_of_every_step(sides):
    def build(world):
        branch = RunnableBranch((lambda found: not found, failing("never")), says(world, "{a} and {b}"))
        return RunnableParallel(a=says(world), b=itemgetter("what")) | branch.with_retry(stop_after_attempt=2)

    def run(side):
        seen = Starts()
        side.runnable.invoke(TIDE, {"callbacks": [seen]})
        return sorted(seen.tags)

    _, (_, tags) = sides(build).agree(run)
    assert {"seq:step:1", "seq:step:2", "map:key:a", "map:key:b", "condition:1", "branch:default"} <= set(tags)


def test_all_arms_run_and_the_first_error_in_the_order_of_keys_is_raised(sides):
    def build(world):
        def late(value):
            world.note("late")
            raise LookupError("late")

        arms = {"one": says(world), "two": says(world, "explode") | failing("not reached"), "three": RunnableLambda(late)}
        return RunnableParallel(arms)

    both = sides(build)
    kind, (_, name, _) = both.agree(lambda side: side.runnable.invoke(TIDE))
    assert (kind, name) == ("raised", "SglAPIError")
    both.did_the_same()
    assert both.plain.world.log == [("late",)]
    assert len(both.plain.world.requests()) == 2


def test_in_async_the_first_error_is_raised_and_the_other_arms_run_on(sides):
    """An arm that waits for the error to be raised can only run on if the error does not wait for the arm."""

    def build(world):
        async def wait(value):
            await world.raised.wait()
            world.note("ran on")
            return value

        return RunnableParallel(slow=RunnableLambda(wait), bad=failing("bad"))

    async def raised_first(side):
        side.world.raised = asyncio.Event()
        with pytest.raises(LookupError, match="bad"):
            await side.runnable.ainvoke(TIDE)
        side.world.raised.set()
        while not side.world.log:
            await asyncio.sleep(0)
        return True

    both = sides(build)
    assert both.agree(lambda side: asyncio.run(asyncio.wait_for(raised_first(side), 60))) == ("value", True)
    assert both.plain.world.log == [("ran on",)]


def test_a_batch_runs_all_and_raises_the_first_error_by_position(sides):
    def build(world):
        def refuse(text):
            world.note("told", text)
            raise LookupError(text)

        return says(world) | RunnableLambda(refuse)

    both = sides(build)
    kind, error = both.agree(lambda side: side.runnable.batch([TIDE, LAMP, ROPE]))
    assert kind == "raised"
    both.did_the_same()
    assert ("told", error[2]) in both.plain.world.log
    assert len(both.plain.world.log) == 3


def test_an_error_of_an_early_step_is_raised_before_one_of_a_later_step(sides):
    inputs = [TIDE, BROKEN, {"nothing": 1}, ROPE]
    kind, (_, name, _) = sides(says).agree(lambda side: side.runnable.batch(inputs))
    assert (kind, name) == ("raised", "KeyError")


def test_fallbacks_of_a_batch_run_for_the_failed_inputs_only(sides):
    both = sides(lambda world: says(world).with_fallbacks([says(world, "Instead of it.")]))
    both.agree(lambda side: side.runnable.batch([TIDE, BROKEN, ROPE]))
    assert len(both.plain.world.requests()) == 4
    both.agree(lambda side: asyncio.run(side.runnable.abatch([TIDE, BROKEN, ROPE])))
    assert len(both.plain.world.requests()) == 8


def test_retries_of_a_batch_run_for_the_failed_inputs_only(sides):
    both = sides(lambda world: says(world).with_retry(stop_after_attempt=3, wait_exponential_jitter=False))
    both.agree(lambda side: side.runnable.batch([TIDE, {"what": "flaky"}, BROKEN], return_exceptions=True))
    assert len(both.plain.world.requests()) == 1 + 2 + 3
    both.agree(lambda side: asyncio.run(side.runnable.abatch([ROPE, {"what": "flaky two"}])))
    assert len(both.plain.world.requests()) == 6 + 1 + 2


def test_inputs_that_never_reach_the_engine_keep_nobody_waiting(sides, within_limit):
    both = sides(says)
    inputs = [TIDE, *({"nothing": n} for n in range(6)), ROPE]
    both.agree(lambda side: within_limit(lambda: side.runnable.batch(inputs, return_exceptions=True)))
    assert len(both.plain.world.requests()) == 2


def test_a_cached_answer_is_one_request_however_often_it_is_asked(sides, within_limit):
    both = sides(lambda world: asks() | world.chat.bind(temperature=0.9) | StrOutputParser())

    def run(side):
        set_llm_cache(InMemoryCache())
        try:
            return [side.runnable.invoke(TIDE), *within_limit(lambda: side.runnable.batch([TIDE] * 8))]
        finally:
            set_llm_cache(None)

    both.agree(run)
    assert len(both.plain.world.requests()) == 1


def test_a_prompt_may_change_after_compiling(sides):
    templates = []

    def build(world):
        templates.append(asks())
        return templates[-1] | world.chat | StrOutputParser()

    both = sides(build)
    _, before = both.agree(lambda side: side.runnable.invoke(TIDE))
    for template in templates:
        template.append(("human", "In {words} words."))
    both.agree(lambda side: side.runnable.invoke(TIDE))
    _, after = both.agree(lambda side: side.runnable.invoke({**TIDE, "words": 3}))
    both.agree(lambda side: side.runnable.batch([{**TIDE, "words": n} for n in range(3)]))
    assert before != after


def test_a_bound_option_may_change_after_compiling(sides):
    def change(side):
        side.world.chat.stop = ["e"]

    both = sides(says)
    both.agree(lambda side: side.runnable.invoke(TIDE))
    both.agree(change)
    _, text = both.agree(lambda side: side.runnable.invoke(TIDE))
    assert "e" not in text


def test_steps_share_the_very_dict_and_change_it_for_one_another(sides):
    def build(world):
        def count(known):
            world.saw("count", known)
            known["count"] = known.get("count", 0) + 1
            return known

        return RunnableLambda(count) | RunnableLambda(count) | RunnableParallel(a=count, text=says(world)) | itemgetter("a")

    both = sides(build, (dict(TIDE),))
    both.agree(lambda side: (side.runnable.invoke(side.inputs[0]) is side.inputs[0], side.inputs[0]["count"]))
    assert [which for _, which, _ in both.plain.world.log] == [0, 0, 0]


def test_two_calls_of_an_impure_function_are_two_calls(sides):
    def build(world):
        drawn = iter(range(100))

        def draw(value):
            number = next(drawn)
            world.note("drawn", number)
            return {"what": f"{value['what']} {number}"}

        return RunnablePassthrough.assign(a=RunnableLambda(draw) | says(world)) | RunnablePassthrough.assign(
            b=RunnableLambda(draw) | says(world)
        )

    both = sides(build)
    both.agree(lambda side: side.runnable.invoke(TIDE))
    assert len(both.plain.world.log) == 2


def test_arguments_of_a_call_go_to_the_first_step(sides):
    both = sides(lambda world: world.chat | StrOutputParser() | RunnableLambda(lambda text: text.upper()))
    both.agree(lambda side: side.runnable.invoke("tide", stop=["e"]))
    both.agree(lambda side: side.runnable.batch(["tide", "rope"], stop=["e"]))
    both.agree(lambda side: list(side.runnable.stream("tide", stop=["e"])))
    both.agree(lambda side: asyncio.run(side.runnable.ainvoke("tide", max_tokens=3)))
    both.agree(lambda side: side.runnable.bind(stop=["o"]).invoke("tide"))
    kind, (_, name, _) = both.agree(lambda side: side.runnable.invoke("tide", tempreature=1))
    assert (kind, name) == ("raised", "SglUnknownOptionError")


def test_another_model_in_the_chain_answers_its_part(sides):
    def build(world):
        foreign = FakeListChatModel(responses=["one", "two"])
        return says(world) | foreign | StrOutputParser() | (lambda text: {"what": text}) | says(world)

    both = sides(build)
    for _ in range(3):
        both.agree(lambda side: side.runnable.invoke(TIDE))
    assert len(both.plain.world.requests()) == 6


@pytest.mark.parametrize("again", [lambda r: r | str.upper, lambda r: {"x": r}, lambda r: r.with_config(tags=["t"])])
def test_a_compiled_chain_is_a_part_like_any_other(sides, again):
    def build(world):
        return says(world)

    both = sides(build)
    whole = {}

    def run(side):
        if side not in whole:
            whole[side] = RunnableLambda(lambda value: value) | again(side.runnable)
        return whole[side].batch([TIDE, ROPE])

    both.agree(run)
    both.agree(lambda side: list(whole[side].stream(TIDE)))


def test_every_way_to_make_one_runnable_of_another_gives_the_same(sides):
    def ways(side):
        r = side.runnable
        return [
            r.map().invoke([TIDE, ROPE]),
            r.with_retry(stop_after_attempt=2).invoke(LAMP),
            r.with_fallbacks([RunnableLambda(lambda value: "nothing")]).invoke(BROKEN),
            r.pipe(str.upper).invoke(TIDE),
            (RunnableLambda(lambda what: {"what": what}) | r).batch(["a", "b"]),
            r.with_types(input_type=dict).invoke(TIDE),
        ]

    kind, _ = sides(says).agree(ways)
    assert kind == "value"


def test_a_compiled_chain_travels_as_the_chain_it_was_made_of(compiled):
    chain = compiled(asks() | ChatSgl(max_tokens=8) | StrOutputParser())
    again = ForkingPickler.loads(ForkingPickler.dumps(chain))
    assert type(again) is type(chain)
    assert json.dumps(again.get_graph().to_json()) == json.dumps(chain.get_graph().to_json())
    assert again.get_input_jsonschema() == chain.get_input_jsonschema()


def test_compiling_twice_is_compiling_once(world):
    own = world()
    once = compile_runnable(says(own))
    assert compile_runnable(once).invoke(TIDE) == once.invoke(TIDE)
    assert len(set(own.requests())) == 1
