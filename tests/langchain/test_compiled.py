"""Compiled runnables: what they take, what they look like, how wide they run, what they keep and what they leave behind."""

import asyncio
import copy
import gc
import logging
import threading
from multiprocessing.reduction import ForkingPickler
from operator import itemgetter

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel, RunnablePassthrough

from sgl_core.errors import InvalidArgumentError
from sgl_core.language import SglFunction
from sgl_core.plugins import get_host
from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl, CompiledRunnable, SglLLM, compile_runnable
from sgl_langchain.scope import current_scope

HANG_S = 20
LONG = "You answer in one sentence, and you never say more than you know. " * 3
QUESTIONS = [{"n": f"#{i}"} for i in range(12)]
TIDE = {"n": "#1"}


def says(engine, text="{n}", **options):
    return ChatPromptTemplate([("system", LONG), ("human", text)]) | ChatSgl(engine=engine, **options) | StrOutputParser()


def arms(engine, number):
    return RunnableParallel({f"arm{i}": says(engine, f"{i}: {{n}}") for i in range(number)})


class Handler(BaseCallbackHandler):
    """Wants to be called, so nothing runs as a program; counts the runs."""

    def __init__(self):
        self.names = []

    def on_chain_start(self, serialized, inputs, **kwargs):
        self.names.append(kwargs["name"])


@pytest.fixture(autouse=True)
def no_scope_is_left():
    yield
    assert current_scope() is None


# ---- what it takes -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("runnable", [3, "chain", None, [], object()])
def test_what_langchain_takes_for_no_runnable_is_refused_by_kind(runnable):
    with pytest.raises(InvalidArgumentError, match=f"runnable: got '{type(runnable).__name__}', expected a Runnable"):
        compile_runnable(runnable)


@pytest.mark.parametrize(("option", "value"), [("mode", "fast"), ("engine", "gpt"), ("engine", FakeBackend)])
def test_a_wrong_option_is_refused_by_name(option, value):
    with pytest.raises(InvalidArgumentError, match=option):
        compile_runnable(len, **{option: value})


def test_functions_dicts_and_generators_are_runnables_too():
    def letters(chunks):
        for chunk in chunks:
            yield from chunk

    assert compile_runnable(len).invoke("four") == 4
    assert compile_runnable({"size": len, "same": RunnablePassthrough()}).invoke("abc") == {"size": 3, "same": "abc"}
    assert list(compile_runnable(letters).stream("ab")) == ["a", "b"]


def test_a_compiled_runnable_is_compiled_again_from_its_original(engine):
    chain = says(engine)
    once = compile_runnable(chain, mode="scope")
    again = compile_runnable(once, mode="program")
    assert again.bound is chain
    assert again.mode == "program"


# ---- what it looks like ------------------------------------------------------------------------------------------------
def test_from_outside_it_is_the_original(engine):
    chain = says(engine).with_config(run_name="sailor")
    compiled = compile_runnable(chain)
    assert isinstance(compiled, CompiledRunnable)
    assert compiled.get_name() == chain.get_name()
    assert compiled.input_schema.model_json_schema() == chain.input_schema.model_json_schema()
    assert compiled.output_schema.model_json_schema() == chain.output_schema.model_json_schema()
    assert compiled.get_graph().to_json() == chain.get_graph().to_json()
    assert compiled.config_specs == chain.config_specs
    assert repr(chain) in repr(compiled)


def test_it_goes_wherever_a_runnable_goes(engine):
    compiled = compile_runnable(says(engine))
    answer = compiled.invoke(TIDE)
    assert (compiled | RunnableLambda(len)).invoke(TIDE) == len(answer)
    assert compiled.map().invoke([TIDE, TIDE]) == [answer] * 2
    assert compiled.with_retry().invoke(TIDE) == answer
    assert compiled.with_config(tags=["t"]).invoke(TIDE) == answer
    assert RunnableParallel(a=compiled).invoke(TIDE) == {"a": answer}
    assert compiled.with_fallbacks([compiled]).batch([TIDE, TIDE]) == [answer] * 2


def test_arguments_of_a_call_reach_the_first_step(engine):
    compiled = compile_runnable(ChatSgl(engine=engine))
    assert compiled.invoke("x", stop=["in"]).text == "The tide comes "
    assert compiled.bind(stop=["tide"]).invoke("x").text == "The "


@pytest.mark.parametrize("mode", ["auto", "scope", "program"])
@pytest.mark.parametrize("options", [{"tools": ["no tool"]}, {"tempreature": 1}], ids=["tools", "name"])
def test_bound_options_that_cannot_be_used_are_the_same_error_at_the_same_place(engine, options, mode):
    chain = says(engine) | ChatSgl(engine=engine).bind(**options)
    with pytest.raises(ModelInvalidRequestError) as plain:
        chain.invoke(TIDE)
    with pytest.raises(ModelInvalidRequestError) as compiled:
        compile_runnable(chain, mode=mode).invoke(TIDE)
    assert (type(compiled.value), str(compiled.value)) == (type(plain.value), str(plain.value))
    mended = compile_runnable(chain.with_fallbacks([RunnableLambda(lambda _: "else")]), mode=mode)
    assert mended.invoke(TIDE) == "else"


@pytest.mark.parametrize("mode", ["auto", "scope", "program"])
def test_there_is_no_run_more_than_in_the_original(engine, mode):
    plain, compiled = Handler(), Handler()
    chain = says(engine)
    chain.invoke(TIDE, {"callbacks": [plain]})
    compile_runnable(chain, mode=mode).invoke(TIDE, {"callbacks": [compiled]})
    assert compiled.names == plain.names


def test_a_pickle_is_the_original_and_the_options():
    chain = ChatPromptTemplate([("human", "{n}")]) | ChatSgl(temperature=0.5) | itemgetter(0)
    compiled = ForkingPickler.loads(ForkingPickler.dumps(compile_runnable(chain, mode="scope")))
    assert compiled.mode == "scope"
    assert compiled.bound.steps[1].temperature == 0.5
    assert len(compiled.plan.models) == 1


def test_a_deep_copy_has_a_plan_of_its_own(engine):
    compiled = compile_runnable(says(engine))
    copied = copy.deepcopy(compiled)
    assert copied.plan is not compiled.plan
    assert copied.invoke(TIDE) == compiled.invoke(TIDE)


def test_the_caller_s_config_is_not_changed(counting):
    compiled = compile_runnable(arms(counting(), 2), mode="scope")
    config = {"tags": ["mine"]}
    compiled.batch(QUESTIONS, config)
    compiled.batch(QUESTIONS, [config] * len(QUESTIONS))
    assert config == {"tags": ["mine"]}


# ---- engines -----------------------------------------------------------------------------------------------------------
def test_an_engine_is_lent_to_the_models_that_name_none(engine):
    with FakeBackend(lambda ids, params: "mine") as other:
        prompt = ChatPromptTemplate([("human", "{n}")])
        chain = RunnableParallel(
            open=prompt | ChatSgl(max_tokens=9) | StrOutputParser(),
            own=prompt | ChatSgl(engine=engine) | StrOutputParser(),
            text=itemgetter("n") | SglLLM().bind(stop=["x"]),
        )
        compiled = compile_runnable(chain, engine=other)
        assert compiled.invoke(TIDE) == {"open": "mine", "own": "The tide comes in. It goes out.", "text": "mine"}
    assert {request.params.max_new_tokens for request in other.requests} == {9, None}
    assert chain.steps__["open"].steps[1].engine is None


def test_a_model_that_names_another_model_keeps_it(engine):
    compiled = compile_runnable(RunnableParallel(a=ChatSgl(model="some/model"), b=ChatSgl()), engine=engine)
    assert compiled.bound.steps__["a"].engine is None
    assert compiled.bound.steps__["b"].engine is engine


def test_prompts_are_shared_with_the_original_when_an_engine_is_lent(engine):
    prompt = ChatPromptTemplate([("human", "{n}")])
    compiled = compile_runnable(prompt | ChatSgl(), engine=engine)
    prompt.append(("human", "and this"))
    compiled.invoke(TIDE)
    assert "and this" in engine.codec.decode(engine.requests[-1].input_ids)


def test_without_a_model_to_move_nothing_is_copied(engine):
    chain = says(engine)
    assert compile_runnable(chain, engine=engine).bound is chain


# ---- how wide ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["scope", "program"])
@pytest.mark.parametrize(
    "run",
    [
        lambda c: c.invoke(TIDE),
        lambda c: asyncio.run(c.ainvoke(TIDE)),
        lambda c: list(c.stream(TIDE)),
    ],
    ids=["invoke", "ainvoke", "stream"],
)
def test_twenty_branches_reach_the_engine_together(counting, mode, run):
    engine = counting(gate=20)
    run(compile_runnable(arms(engine, 20), mode=mode))
    assert engine.most_in_flight == 20


@pytest.mark.parametrize("mode", ["scope", "program"])
def test_branches_of_a_whole_batch_reach_the_engine_together(counting, mode):
    engine = counting(gate=36)
    compile_runnable(arms(engine, 3), mode=mode).batch(QUESTIONS)
    assert engine.most_in_flight == 36


async def pairs_of(stream):
    return [pair async for pair in stream]


@pytest.mark.parametrize("mode", ["scope", "program"])
@pytest.mark.parametrize("build", [says, lambda e: arms(e, 4), lambda e: itemgetter("all") | says(e).map()])
@pytest.mark.parametrize(
    "run",
    [
        lambda c, config: c.batch(QUESTIONS, config),
        lambda c, config: list(c.batch_as_completed(QUESTIONS, config)),
        lambda c, config: asyncio.run(c.abatch(QUESTIONS, config)),
        lambda c, config: asyncio.run(pairs_of(c.abatch_as_completed(QUESTIONS, config))),
        lambda c, config: c.with_config(config).batch(QUESTIONS),
        lambda c, config: [c.invoke(QUESTIONS[0], config), list(c.stream(QUESTIONS[1], config))],
    ],
    ids=["batch", "as completed", "abatch", "async as completed", "with_config", "one"],
)
def test_a_callers_max_concurrency_is_never_exceeded_however_pools_are_nested(counting, mode, build, run):
    engine = counting()
    compiled = compile_runnable(RunnablePassthrough.assign(all=lambda q: [q, q, q]) | build(engine), mode=mode)
    run(compiled, {"max_concurrency": 2})
    assert 1 <= engine.most_in_flight <= 2
    assert engine.in_flight == 0


@pytest.mark.parametrize("mode", ["scope", "program"])
def test_a_max_concurrency_that_is_bound_around_the_chain_holds_as_well(counting, mode):
    engine = counting()
    compiled = compile_runnable(arms(engine, 4).with_config(max_concurrency=2), mode=mode)
    compiled.batch(QUESTIONS)
    asyncio.run(compiled.abatch(QUESTIONS))
    assert 1 <= engine.most_in_flight <= 2


def test_a_max_concurrency_that_is_bound_to_a_part_is_not_replaced(counting):
    seen = []
    part = RunnableLambda(lambda q, config: seen.append(config["max_concurrency"]) or q).with_config(max_concurrency=3)
    compile_runnable(part | says(counting()), mode="scope").batch(QUESTIONS)
    assert set(seen) == {3}


def test_a_compiled_chain_inside_another_is_bounded_by_both(counting):
    engine = counting()
    inner = compile_runnable(arms(engine, 4), mode="scope")
    outer = compile_runnable(RunnableLambda(lambda q: inner.invoke(q, {"max_concurrency": 3})), mode="scope")
    outer.batch(QUESTIONS, {"max_concurrency": 2})
    assert 1 <= engine.most_in_flight <= 2


def test_without_a_model_of_ours_nothing_is_widened():
    seen = []
    compile_runnable(RunnableLambda(lambda q, config: seen.append(config.get("max_concurrency"))), mode="scope").batch([1, 2])
    assert seen == [None, None]


# ---- streams -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("run", ["stream", "transform"])
def test_closing_a_chain_s_stream_early_aborts_its_request(endless, run):
    compiled = compile_runnable(says(endless))
    stream = compiled.stream(TIDE) if run == "stream" else compiled.transform(iter([TIDE]))
    assert next(stream) == "word "
    stream.close()
    assert [handle.done() for handle in endless.handles] == [True]


def test_closing_the_stream_of_branches_aborts_them_all(endless):
    stream = compile_runnable(arms(endless, 4)).stream(TIDE)
    next(stream)
    stream.close()
    assert len(endless.handles) == 4
    assert all(handle.done() for handle in endless.handles)


def test_no_step_takes_half_an_answer_for_a_whole_one_when_its_stream_is_closed(endless):
    seen = []
    chain = RunnableParallel(now=RunnableLambda(lambda q: q["n"]), later=says(endless) | RunnableLambda(seen.append))
    stream = compile_runnable(chain).stream(TIDE)
    assert next(stream) == {"now": "#1"}
    stream.close()
    assert all(handle.done() for handle in endless.handles)
    assert seen == []


def test_a_stream_that_is_dropped_aborts_too(endless):
    stream = compile_runnable(says(endless)).stream(TIDE)
    next(stream)
    del stream
    gc.collect()
    assert all(handle.done() for handle in endless.handles)


@pytest.mark.parametrize("run", ["astream", "atransform", "astream_events"])
def test_leaving_an_async_stream_early_aborts_its_request(endless, run):
    compiled = compile_runnable(says(endless))

    async def source():
        yield TIDE

    async def main():
        opened = {
            "astream": lambda: compiled.astream(TIDE),
            "atransform": lambda: compiled.atransform(source()),
            "astream_events": lambda: compiled.astream_events(TIDE, version="v2"),
        }
        stream = opened[run]()
        async for _ in stream:
            assert current_scope() is None
            if endless.handles:
                break
        await stream.aclose()

    asyncio.run(asyncio.wait_for(main(), HANG_S))
    assert [handle.done() for handle in endless.handles] == [True]


def test_leaving_a_batch_as_completed_aborts_what_is_under_way(endless):
    done = RunnableLambda(lambda q: q["n"])
    chain = RunnableLambda(lambda q: done if q["n"] == "#0" else says(endless))
    pairs = compile_runnable(chain, mode="scope").batch_as_completed(QUESTIONS[:3], {"max_concurrency": 3})
    assert next(pairs) == (0, "#0")
    pairs.close()
    assert all(handle.done() for handle in endless.handles)


def test_pieces_come_through_while_a_consumer_uses_models_of_its_own(counting):
    engine = counting()
    chat = ChatSgl(engine=engine)
    for _ in compile_runnable(says(engine)).stream(TIDE, {"max_concurrency": 1}):
        assert current_scope() is None
        assert chat.invoke("#2").text.startswith("2")


def test_a_model_inside_a_stream_of_one_may_call_another_of_the_same_gate(counting):
    engine = counting()
    chat = ChatSgl(engine=engine)

    def again(pieces):
        for piece in pieces:
            yield chat.invoke(f"#{piece}").text if piece else ""

    chain = says(engine) | again
    read = []
    thread = threading.Thread(
        target=lambda: read.extend(compile_runnable(chain).stream(TIDE, {"max_concurrency": 1})), daemon=True
    )
    thread.start()
    thread.join(HANG_S)
    assert read
    assert engine.most_in_flight == 1


# ---- programs ----------------------------------------------------------------------------------------------------------
def test_mode_program_tells_the_log_once_why_a_call_is_no_program(engine, caplog):
    compiled = compile_runnable(says(engine), mode="program")
    with caplog.at_level(logging.WARNING, "sgl_langchain"):
        compiled.invoke(TIDE)
        assert not caplog.records
        for _ in range(3):
            compiled.invoke(TIDE, {"callbacks": [Handler()]})
    assert len(caplog.records) == 1
    assert "Handler" in caplog.text


def test_mode_auto_tells_nobody(engine, caplog):
    with caplog.at_level(logging.WARNING, "sgl_langchain"):
        compile_runnable(says(engine)).invoke(TIDE, {"callbacks": [Handler()]})
    assert not caplog.records


def test_one_configuration_with_a_handler_keeps_a_batch_from_being_a_program(engine):
    handler = Handler()
    compile_runnable(says(engine)).batch([TIDE, TIDE], [{}, {"callbacks": [handler]}])
    assert handler.names[0] == "RunnableSequence"


@pytest.mark.parametrize("mode", ["scope", "program"])
def test_a_retry_around_the_chain_tries_as_often_as_langchain_does(engine, mode):
    calls = []

    def fails(text):
        calls.append(text)
        raise KeyError(text)

    chain = (says(engine) | RunnableLambda(fails)).with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    counts = []
    for runnable in (chain, compile_runnable(chain, mode=mode)):
        calls.clear()
        assert isinstance(dict(runnable.batch_as_completed([TIDE], return_exceptions=True))[0], KeyError)
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_the_program_is_a_native_one_and_prints_as_text(engine):
    program = compile_runnable(says(engine)).program()
    assert isinstance(program, SglFunction)
    assert program.run(input=TIDE, backend=engine).ret_value == "The tide comes in. It goes out."
    assert "s += sgl.system(" in str(program)


def test_the_host_translates_a_runnable_and_leaves_others_alone(engine):
    program = get_host().translate(says(engine), {"mode": "scope"})
    assert program.run(input=TIDE).ret_value == "The tide comes in. It goes out."
    assert get_host().translate({"no": "runnable"}) is None


def test_configurable_parts_are_shown_as_a_call_would_have_them(engine):
    prompt = ChatPromptTemplate([("human", "{n}")]).configurable_alternatives(
        ConfigurableField("prompt"), long=ChatPromptTemplate([("system", LONG), ("human", "{n}")])
    )
    compiled = compile_runnable(prompt | ChatSgl(engine=engine) | StrOutputParser())
    config = {"configurable": {"prompt": "long"}}
    assert "You answer in one" in str(compiled.program(config))
    assert "You answer in one" not in str(compiled.program({}))
    assert compiled.explain(config) != compiled.explain()
    compiled.invoke(TIDE, config)
    assert "never say more" in engine.codec.decode(engine.requests[-1].input_ids)


def test_moves_are_shown_and_only_made_when_asked_for(engine):
    prompt = ChatPromptTemplate([("human", "{n}"), ("system", LONG)])
    plain, moved = (compile_runnable(prompt | ChatSgl(engine=engine), reorder=reorder) for reorder in (False, True))
    assert plain.moves == ""
    assert moved.moves
    assert moved.explain().startswith(moved.moves)
    assert [message.prompt.template for message in prompt.messages] == ["{n}", LONG]


# ---- many threads ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["scope", "program"])
def test_one_compiled_chain_serves_64_threads_at_once(counting, mode):
    engine = counting(gate=64)
    compiled = compile_runnable(says(engine), mode=mode)
    answers = [""] * 64

    def ask(number):
        answers[number] = compiled.invoke({"n": f"#{number}"})

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert [answer.split("<")[0] for answer in answers] == [str(number) for number in range(64)]
