"""DSPy's engine contract on the embedded model: what needs neither tools nor schemas."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from dspy import lm15

import sgl_native as sgl
from sgl_dspy import SglAsyncEngine, SglEngine, SglLM

WAIT_S = 300.0
LONG = "Tell me a long story about the sea. " * 20


def request_for(lm, text, **config):
    return lm15.Request(lm.model, (lm15.Message.user(text),), config=lm15.Config(**{"max_tokens": 8, **config}))


def wait_until_idle(engine):
    deadline = time.monotonic() + WAIT_S
    while engine.stats().num_running or engine.stats().num_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_completion_has_text_usage_and_cached_tokens(lm):
    first = lm(request_for(lm, LONG))
    again = lm(request_for(lm, LONG))
    assert first.text == again.text != ""
    assert first.finish_reason in {"stop", "length"}
    assert 0 < first.usage.output_tokens <= 8
    assert first.usage.input_tokens == again.usage.input_tokens
    assert first.usage.cache_read_tokens < again.usage.cache_read_tokens <= again.usage.input_tokens
    assert lm.history[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == again.usage.cache_read_tokens


def test_greedy_text_is_what_a_native_program_generates(lm, engine):
    @sgl.function
    def ask(s):
        s += sgl.system("You are brief.") + sgl.user("What is the capital of France?")
        s += sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=0))

    native = ask.run(backend=engine)
    request = lm15.Request(
        lm.model,
        (lm15.Message.user("What is the capital of France?"),),
        system="You are brief.",
        config=lm15.Config(max_tokens=8),
    )
    answer = lm(request)
    assert answer.text == native["answer"]
    assert answer.usage.input_tokens == native.get_meta_info("answer")["prompt_tokens"]
    assert answer.usage.cache_read_tokens >= answer.usage.input_tokens - 1


def test_the_async_engine_says_the_same(lm):
    async def both():
        return await asyncio.gather(lm.acall("Name a colour."), lm.acall(request_for(lm, "Name a colour.")))

    texts, response = asyncio.run(both())
    assert texts == [response.text] == lm("Name a colour.")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stream_adds_up_to_the_completion(lm, engine, kind):
    request = request_for(lm, "Name three animals.")
    if kind == "sync":
        events = list(SglEngine(engine).stream(request))
    else:

        async def collect():
            return [event async for event in SglAsyncEngine(engine).stream(request)]

        events = asyncio.run(collect())
    whole = SglEngine(engine).complete(request)
    assert [event.type for event in events] == ["start", *["delta"] * (len(events) - 2), "end"]
    assert "".join(event.delta.text for event in events[1:-1]) == whole.text
    assert len(events) > 4
    assert events[-1].finish_reason == whole.finish_reason
    assert events[-1].usage.output_tokens == whole.usage.output_tokens


def test_n_candidates_share_one_prefill_and_differ(lm, engine):
    texts = lm(LONG, n=4, temperature=1.0, seed=5)
    stats = engine.stats()
    prompt = stats.prompt_tokens // 4
    assert stats.prompt_tokens == 4 * prompt
    assert stats.prefilled_tokens <= prompt + 3  # the last token of a prompt is always computed
    assert len(set(texts)) == 4
    assert lm(LONG, n=4, temperature=1.0, seed=5) == texts


def test_a_stop_string_ends_the_text(lm):
    whole = lm("Count from one to ten.", max_tokens=12)[0]
    stop = whole[len(whole) // 2 :][:2]
    assert lm("Count from one to ten.", max_tokens=12, stop=[stop])[0] == whole[: whole.index(stop)]


def test_a_budget_is_clipped_to_the_context_and_a_prompt_that_does_not_fit_is_refused(tiny_llama):
    with sgl.Engine(str(tiny_llama)) as engine:
        lm = SglLM(backend=engine, max_tokens=10**6)
        context = engine.capabilities.context_tokens
        usage = lm(request_for(lm, "x " * (context // 3), max_tokens=10**6)).usage
        assert context // 3 < usage.input_tokens
        assert usage.total_tokens <= context
        with pytest.raises(dspy.ContextWindowExceededError):
            lm("x " * context)


def test_threads_get_the_answers_that_they_would_get_alone(lm):
    short = lm.copy(max_tokens=4)
    prompts = [f"{number} plus {number} is" for number in range(8)]
    alone = [short(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(short, prompts)) == alone


def test_leaving_streams_early_leaves_nothing_behind(lm, engine):
    before = threading.active_count()
    for number in range(10):
        stream = SglEngine(engine).stream(request_for(lm, f"Tell me story {number}.", max_tokens=400))
        assert next(stream).type == "start"
        stream.close()

    async def leave(number):
        stream = SglAsyncEngine(engine).stream(request_for(lm, f"Tell me story {number}.", max_tokens=400))
        async for event in stream:
            if event.type == "delta":
                break
        await stream.aclose()

    async def leave_all():
        await asyncio.gather(*(leave(number) for number in range(10)))

    asyncio.run(leave_all())
    wait_until_idle(engine)
    assert threading.active_count() <= before


def test_cancelling_a_call_with_candidates_leaves_nothing_behind(lm, engine):
    async def start_and_cancel():
        task = asyncio.ensure_future(lm.acall("Tell me a story.", n=4, temperature=1.0, max_tokens=400))
        while not engine.stats().num_running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(start_and_cancel(), WAIT_S))
    wait_until_idle(engine)


def test_a_closed_engine_is_dspys_server_error(tiny_llama):
    with sgl.Engine(str(tiny_llama)) as engine:
        lm = SglLM(backend=engine, max_tokens=4)
        assert isinstance(lm("Hi")[0], str)
    with pytest.raises(dspy.LMServerError):
        lm("Hello")


def test_a_program_of_dspy_finds_its_static_prefix_in_the_cache(lm):
    predict = dspy.Predict("question -> answer")
    for question in ("What is red?", "What is blue?"):
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
            try:
                predict(question=question)
            except dspy.AdapterParseError:
                assert lm.history[-1]["outputs"], "a reply of eight tokens need not have the format"
    usage = lm.history[-1]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] // 2


def test_leased_lms_share_one_engine_which_goes_with_the_last(tiny_llama):
    one, two = SglLM(str(tiny_llama), max_tokens=4), SglLM(str(tiny_llama), max_tokens=4)
    assert one("Hi") == two("Hi")
    shared = one.engine.backend
    assert shared is two.engine.backend
    assert SglLM(backend=shared).model == one.model
    one.close()
    assert two("Hello")
    two.close()
    with pytest.raises(sgl.EngineShutdown):
        shared.submit("Hi")
