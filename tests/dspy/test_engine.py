"""DSPy's engine contract: complete, stream, errors, and what a handle is."""

import asyncio
import copy
import dataclasses
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import dspy
import pytest
from dspy import lm15

from sgl_core import errors
from sgl_core.errors import InvalidArgumentError, UnknownOptionError
from sgl_core.handle import RequestHandle
from sgl_core.testing import FakeBackend
from sgl_core.types import FinishReason, ScoreResult, Usage
from sgl_dspy import SglAsyncEngine, SglEngine
from sgl_dspy.formats.reply_program import Forced, FreeText, ReplyProgram

WAIT_S = 60.0


def sent_to_another_process(value):
    """What would arrive there, pickled and unpickled as a process pool does it."""
    return ForkingPickler.loads(bytes(ForkingPickler.dumps(value)))


async def collect(stream):
    return [event async for event in stream]


def wait_until(condition):
    done = threading.Event()
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("it did not happen")


# ---- complete --------------------------------------------------------------------------------------------------------
def test_complete_answers_with_text_reason_and_usage(ask):
    engine = SglEngine(FakeBackend(reply=lambda ids, params: "Yes."))
    response = engine.complete(ask("Really?"))
    assert (response.text, response.finish_reason, response.model) == ("Yes.", "stop", "sgl/x")
    assert response.usage.output_tokens == len("Yes.") + 1
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.provider_data is None


def test_a_budget_that_is_reached_says_length(backend, ask):
    assert SglEngine(backend).complete(ask(max_tokens=3)).finish_reason == "length"


def test_an_output_that_the_budget_closed_as_its_grammar_demands_says_length(ask):
    class Closing(FakeBackend):
        def _result(self, *args):
            return dataclasses.replace(super()._result(*args), finish_reason=FinishReason.GRAMMAR)

    with Closing() as backend:
        assert SglEngine(backend).complete(ask()).finish_reason == "length"
        assert list(SglEngine(backend).stream(ask()))[-1].finish_reason == "length"


def test_an_empty_reply_is_an_empty_text(ask):
    response = SglEngine(FakeBackend(reply=lambda ids, params: "")).complete(ask())
    assert response.text == ""


def test_cached_tokens_are_reported_only_by_a_backend_that_counts_them(backend, ask):
    assert SglEngine(backend).complete(ask()).usage.cache_read_tokens is None

    class Counting(FakeBackend):
        capabilities = type(backend.capabilities)(cached_tokens=True)

    assert SglEngine(Counting()).complete(ask()).usage.cache_read_tokens == 0


def test_many_threads_get_their_own_answers(ask):
    fake = FakeBackend(reply=lambda ids, params: fake.codec.decode(ids).strip()[-4:], latency_s=0.01)
    engine = SglEngine(fake)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: engine.complete(ask(f"{i:04}")).text, range(64)))
    assert answers == [f"{i:04}" for i in range(64)]


def test_the_async_engine_runs_requests_side_by_side(ask):
    all_there = threading.Barrier(4)

    def reply(ids, params):
        all_there.wait(WAIT_S)
        return "met"

    engine = SglAsyncEngine(FakeBackend(reply=reply))

    async def four():
        return await asyncio.gather(*(engine.complete(ask(f"{i}")) for i in range(4)))

    assert [response.text for response in asyncio.run(four())] == ["met"] * 4


# ---- stream ----------------------------------------------------------------------------------------------------------
def test_a_stream_is_a_start_deltas_and_an_end(backend, ask):
    engine = SglEngine(backend)
    events = list(engine.stream(ask()))
    assert [event.type for event in events] == ["start", *["delta"] * (len(events) - 2), "end"]
    assert len(events) > 4
    whole = engine.complete(ask())
    assert "".join(event.delta.text for event in events[1:-1]) == whole.text
    assert (events[-1].finish_reason, events[-1].usage) == (whole.finish_reason, whole.usage)


def test_an_async_stream_has_the_same_events(backend, ask):
    def shape(events):
        return [getattr(event, "delta", event.type) for event in events]

    events = asyncio.run(collect(SglAsyncEngine(backend).stream(ask())))
    assert shape(events) == shape(SglEngine(backend).stream(ask()))


class Watched(FakeBackend):
    """Replies when it is told to; remembers the handles it gave out."""

    def __init__(self):
        self.go_on = threading.Event()
        self.handles = []
        super().__init__(reply=self._when_told)

    def _when_told(self, ids, params):
        assert self.go_on.wait(WAIT_S)
        return "late"

    def submit(self, request):
        self.handles.append(super().submit(request))
        return self.handles[-1]

    def aborted(self):
        return [handle for handle in self.handles if handle.done() and handle.result(0).finish_reason == "abort"]


def test_closing_a_stream_early_aborts_its_request(ask):
    fake = Watched()
    stream = SglEngine(fake).stream(ask())
    assert next(stream).type == "start"
    stream.close()
    assert fake.aborted() == fake.handles
    fake.go_on.set()


def test_closing_an_async_stream_early_aborts_its_request(ask):
    fake = Watched()

    async def start_and_close():
        stream = SglAsyncEngine(fake).stream(ask())
        assert (await anext(stream)).type == "start"
        await stream.aclose()

    asyncio.run(start_and_close())
    assert fake.aborted() == fake.handles
    fake.go_on.set()


def test_cancelling_an_async_completion_aborts_its_request(ask):
    fake = Watched()

    async def start_and_cancel():
        task = asyncio.ensure_future(SglAsyncEngine(fake).complete(ask()))
        while not fake.handles:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(start_and_cancel(), WAIT_S))
    assert fake.aborted() == fake.handles
    fake.go_on.set()


def test_a_stream_that_is_never_read_asks_nothing(backend, ask):
    SglEngine(backend).stream(ask()).close()
    assert backend.requests == []


# ---- tools, scores, probabilities ------------------------------------------------------------------------------------
ADD = lm15.FunctionTool("add", "Adds.", {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})
TOOL_CALL = '{"name": "add", "arguments": {"x": 1}}'


class Deciding(FakeBackend):
    """Would rather call, or rather not."""

    def __init__(self, *, calls):
        super().__init__(reply=lambda ids, params: "Plain." if params.json_schema is None else TOOL_CALL)
        self._first = -0.1 if calls else -90.0

    def score(self, request):
        handle = RequestHandle()
        self.scores.append(request)
        rows = [(self._first,), *((-50.0,) for _ in request.continuations[1:])]
        handle.finish(ScoreResult(tuple(rows), Usage(len(request.input_ids), 0, 0)))
        return handle


def asked_with_tools(**choice):
    config = lm15.Config(tool_choice=lm15.ToolChoice(**choice) if choice else None)
    return lm15.Request("sgl/x", (lm15.Message.user("Add."),), tools=(ADD,), config=config)


@pytest.mark.parametrize(("calls", "reason"), [(True, "tool_call"), (False, "stop")])
def test_a_free_choice_is_settled_by_one_score_on_every_road(calls, reason):
    request = asked_with_tools()
    with Deciding(calls=calls) as fake:
        responses = [SglEngine(fake).complete(request), asyncio.run(SglAsyncEngine(fake).complete(request))]
        streams = [list(SglEngine(fake).stream(request)), asyncio.run(collect(SglAsyncEngine(fake).stream(request)))]
    assert [response.finish_reason for response in responses] == [reason] * 2
    assert [events[-1].finish_reason for events in streams] == [reason] * 2
    assert len(fake.scores) == 4


def test_a_demanded_call_is_not_scored():
    with Deciding(calls=False) as fake:
        (call,) = SglEngine(fake).complete(asked_with_tools(mode="required")).tool_calls
    assert (call.name, call.input, fake.scores) == ("add", {"x": 1}, [])


def test_an_awaited_decision_leaves_the_loop_free():
    class Slow(Deciding):
        def score(self, request):
            settled, handle = super().score(request), RequestHandle()
            waiting.append(lambda: handle.finish(settled.result(0)))
            return handle

    waiting = []

    async def decide_while_the_loop_runs():
        task = asyncio.ensure_future(SglAsyncEngine(fake).complete(asked_with_tools()))
        while not waiting:
            await asyncio.sleep(0)
        waiting.pop()()
        return await task

    with Slow(calls=True) as fake:
        response = asyncio.run(asyncio.wait_for(decide_while_the_loop_runs(), WAIT_S))
    assert response.finish_reason == "tool_call"


def test_log_probabilities_are_those_of_the_tokens_of_the_reply(ask):
    engine = SglEngine(FakeBackend(reply=lambda ids, params: "Yes."))
    response = engine.complete(ask(logprobs=2))
    assert "".join(token.token for token in response.logprobs) == "Yes."
    assert {len(token.top) for token in response.logprobs} == {2}
    assert engine.complete(ask()).logprobs is None
    deltas = [event.delta for event in engine.stream(ask(logprobs=2)) if event.type == "delta"]
    assert tuple(token for delta in deltas for token in delta.logprobs) == response.logprobs


def test_forced_replies_have_log_probabilities_on_every_road(ask):
    program = ReplyProgram((Forced("A: "), FreeText("a"))).to_json()
    request = ask(logprobs=0, max_tokens=60, extensions={"metadata": {"sgl_program": program}})
    fake = FakeBackend(reply=lambda ids, params: "yes")
    one, other = SglEngine(fake).complete(request), asyncio.run(SglAsyncEngine(fake).complete(request))
    assert one.logprobs == other.logprobs
    assert "".join(token.token for token in one.logprobs) == "A: yes"


JUDGED = lm15.judgments(
    team=lm15.choice("Who?", ["billing", "bug"]), urgent=lm15.yes_no("Now?"), anger=lm15.score("How angry?", ["calm", "cross"])
)


def test_probabilities_are_scored_and_nothing_is_generated(backend, ask):
    request = ask(probabilities="required", response_format=JUDGED)
    one, other = SglEngine(backend).complete(request), asyncio.run(SglAsyncEngine(backend).complete(request))
    assert one.probabilities == other.probabilities
    assert one.method == "candidate_sequence_likelihood"
    assert {name: list(shares) for name, shares in one.probabilities.items()} == {
        "team": ["billing", "bug"],
        "urgent": ["true", "false"],
        "anger": ["0", "1"],
    }
    assert [sum(shares.values()) for shares in one.probabilities.values()] == pytest.approx([1.0] * 3)
    likeliest = {name: max(shares, key=shares.get) for name, shares in one.probabilities.items()}
    assert one.data["team"] == likeliest["team"]
    assert (one.data["urgent"], one.data["anger"]) == (likeliest["urgent"] == "true", int(likeliest["anger"]))
    assert backend.requests == []


def test_no_declared_answer_begins_another(backend, ask):
    judged = lm15.judgments(word=lm15.choice("Which?", ["a", "ab"]), size=lm15.score("How?", [str(i) for i in range(10)]))
    SglEngine(backend).complete(ask(probabilities="if_available", response_format=judged))
    for request in backend.scores:
        texts = [backend.codec.decode(span) for span in request.continuations]
        assert not any(one != other and one.startswith(other) for one in texts for other in texts)


def test_probabilities_that_cannot_be_had_are_refused_or_noted(ask):
    open_schema = {"type": "json_schema", "schema": {"type": "object", "properties": {"name": {"type": "string"}}}}
    engine = SglEngine(FakeBackend(reply=lambda ids, params: '{"name": "x"}'))
    with pytest.raises(lm15.UnsupportedFeatureError, match="probabilities"):
        engine.complete(ask(probabilities="required", response_format=open_schema))
    with pytest.raises(lm15.UnsupportedFeatureError, match="stream"):
        list(engine.stream(ask(probabilities="required", response_format=JUDGED)))
    (note,) = engine.complete(ask(probabilities="if_available", response_format=open_schema)).adaptations
    assert (note.field, note.action) == ("config.probabilities", "dropped")


# ---- kept prefixes ---------------------------------------------------------------------------------------------------
class Pinning(FakeBackend):
    """Pins, or has no room."""

    has_room = True
    capabilities = dataclasses.replace(FakeBackend.capabilities, cached_tokens=True)

    def __init__(self):
        super().__init__()
        self.pins = []

    def pin(self, prompt, *, namespace=None):
        if not self.has_room:
            raise errors.PoolExhaustedError("no room")
        self.pins.append((prompt, namespace))
        return SimpleNamespace(cached_tokens=0, unpin=lambda: self.pins.remove((prompt, namespace)))


def kept_long(ask):
    return ask(system="Be brief.", cache=lm15.CacheConfig(retention="long", key="mine"))


def test_long_retention_pins_once_and_closing_unpins(ask):
    fake = Pinning()
    engine = SglEngine(fake)
    engine.complete(kept_long(ask))
    asyncio.run(SglAsyncEngine(engine).complete(kept_long(ask)))
    ((prefix, namespace),) = fake.pins
    assert namespace == "mine"
    assert all(request.input_ids[: len(prefix)] == prefix for request in fake.requests)
    engine.close()
    assert fake.pins == []


def test_a_pin_that_finds_no_room_is_noted_in_the_answer(ask):
    fake = Pinning()
    fake.has_room = False
    (note,) = SglEngine(fake).complete(kept_long(ask)).adaptations
    assert (note.field, note.action, note.asked) == ("config.cache.retention", "dropped", "long")


# ---- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (errors.ContextLengthError(9, None, 8, "the context"), lm15.ContextLengthError),
        (errors.InvalidArgumentError("top_p", 0, "more"), lm15.InvalidRequestError),
        (errors.TemplateError("no such role"), lm15.InvalidRequestError),
        (errors.NotYetAvailableError("later"), lm15.UnsupportedFeatureError),
        (errors.DeadlineExceeded("too late"), lm15.TimeoutError),
        (errors.QueueFull("come back"), lm15.RateLimitError),
        (errors.EngineShutdown("closed"), lm15.ServerError),
        (errors.EngineStepError("a step failed"), lm15.ServerError),
        (errors.UnsupportedModelError("not this one"), lm15.UnsupportedModelError),
    ],
)
def test_our_errors_become_lm15_errors_with_ours_as_the_cause(ask, ours, theirs):
    engine = SglEngine(FakeBackend(fail=lambda request: ours))
    with pytest.raises(theirs) as raised:
        engine.complete(ask())
    assert type(raised.value) is theirs
    assert raised.value.__cause__ is ours
    assert str(ours).partition(".")[0] in raised.value.message


def test_errors_name_options_as_users_of_dspy_type_them(ask):
    ours = errors.GrammarError("json_schema", "it does not fit", "Raise max_new_tokens.")
    with pytest.raises(lm15.InvalidRequestError, match=r"Raise max_tokens\."):
        SglEngine(FakeBackend(fail=lambda request: ours)).complete(ask())


@pytest.mark.parametrize("other", [errors.MissingExtraError("runtime", "torch"), errors.NumericsError("NaN"), OSError("disk")])
def test_other_errors_pass_untouched(ask, other):
    with pytest.raises(type(other)) as raised:
        SglEngine(FakeBackend(fail=lambda request: other)).complete(ask())
    assert raised.value is other


def test_streams_fail_with_lm15_errors_too(ask):
    fake = FakeBackend(fail=lambda request: errors.EngineShutdown("closed"))
    with pytest.raises(lm15.ServerError):
        list(SglEngine(fake).stream(ask()))
    with pytest.raises(lm15.ServerError):
        asyncio.run(collect(SglAsyncEngine(fake).stream(ask())))


def test_a_request_that_somebody_else_aborts_is_an_error_and_no_short_answer(ask):
    fake = Watched()

    def abort_soon():
        wait_until(lambda: fake.handles)
        fake.handles[0].abort()

    thread = threading.Thread(target=abort_soon)
    thread.start()
    with pytest.raises(errors.RequestAborted):
        SglEngine(fake).complete(ask())
    thread.join(WAIT_S)
    fake.go_on.set()


def test_a_prompt_that_does_not_fit_is_dspys_context_window_error(backend):
    lm = dspy.LM("sgl/x", engine=SglEngine(backend), cache=False)
    with pytest.raises(dspy.ContextWindowExceededError):
        lm("x" * 9000)


def test_a_feature_that_we_lack_is_dspys_unsupported_feature(backend):
    lm = dspy.LM("sgl/x", engine=SglEngine(backend), cache=False)
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="prediction"):
        lm("Hello", prediction={"type": "content", "content": "Hi"})


# ---- what a handle is ------------------------------------------------------------------------------------------------
def test_making_one_neither_loads_nor_looks_for_a_model(engines):
    SglEngine(model="/no/such/folder")
    assert engines == []


def test_the_first_request_leases_and_all_that_want_the_same_share_it(engines, model_folder, ask):
    one, two = SglEngine(model=str(model_folder)), SglAsyncEngine(model=str(model_folder))
    one.complete(ask())
    asyncio.run(two.complete(ask()))
    assert len(engines) == 1
    assert len(engines[0].requests) == 2


def test_other_options_are_another_engine(engines, model_folder, ask):
    for dtype in (None, "float32"):
        SglEngine(model=str(model_folder), dtype=dtype).complete(ask())
    assert [engine.config.dtype for engine in engines] == [None, "float32"]


def test_the_engine_closes_with_the_last_lease(engines, model_folder, ask):
    one, two = (SglEngine(model=str(model_folder)) for _ in range(2))
    one.complete(ask())
    two.complete(ask())
    one.close()
    one.close()
    assert not engines[0].is_closed
    two.close()
    assert engines[0].is_closed


def test_a_closed_handle_leases_anew(engines, model_folder, ask):
    engine = SglEngine(model=str(model_folder))
    engine.complete(ask())
    engine.close()
    engine.complete(ask())
    assert [engine.is_closed for engine in engines] == [True, False]


def test_a_handle_that_nobody_holds_gives_its_lease_back(engines, model_folder, ask):
    SglEngine(model=str(model_folder)).complete(ask())
    gc.collect()
    wait_until(lambda: engines[0].is_closed)


def test_many_threads_load_once(engines, model_folder, ask):
    engine = SglEngine(model=str(model_folder))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: engine.complete(ask()), range(32)))
    assert len(engines) == 1


def test_a_borrowed_backend_is_never_closed(backend, ask):
    SglEngine(backend).close()
    asyncio.run(SglAsyncEngine(backend).aclose())
    assert SglEngine(backend).complete(ask()).text


def test_copies_are_the_engine_itself(backend):
    for engine in (SglEngine(), SglEngine(backend), SglAsyncEngine()):
        assert copy.copy(engine) is engine
        assert copy.deepcopy({"engine": engine})["engine"] is engine


def test_a_pickle_carries_options_and_finds_the_same_engine(engines, model_folder, ask):
    engine = SglEngine(model=str(model_folder), max_running=8)
    engine.complete(ask())
    thawed = sent_to_another_process(engine)
    thawed.complete(ask())
    assert len(engines) == 1
    assert engines[0].config.max_running == 8


def test_a_pickled_pair_still_shares_its_backend():
    engine = SglEngine()
    one, two = sent_to_another_process((engine, SglAsyncEngine(engine)))
    assert one.shares_backend_with(two)
    assert not one.shares_backend_with(engine)


def test_a_borrowed_backend_is_not_pickled_and_says_what_to_do(backend):
    with pytest.raises(InvalidArgumentError, match="engine_options"):
        sent_to_another_process(SglEngine(backend))


def test_its_state_is_its_options(model_folder):
    engine = SglEngine(model=str(model_folder), dtype="float32")
    assert engine.dump_state() == {"options": {"model": str(model_folder), "dtype": "float32"}}
    assert SglEngine.load_state(engine.dump_state()).dump_state() == engine.dump_state()


def test_backend_and_engine_are_two_names_of_one_thing(backend, ask):
    assert SglEngine(engine=backend).backend is SglEngine(backend).backend is backend
    with pytest.raises(InvalidArgumentError, match="engine"):
        SglEngine(backend, engine=backend)


def test_options_do_not_go_with_a_backend(backend):
    with pytest.raises(InvalidArgumentError, match="dtype"):
        SglEngine(backend, dtype="float32")


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(UnknownOptionError, match="dtype"):
        SglEngine(dtpye="float32")


def test_what_is_no_backend_is_refused():
    with pytest.raises(InvalidArgumentError, match="backend"):
        SglEngine("a-model-name")


def test_capabilities_are_what_this_version_has(backend):
    engine = SglEngine(backend)
    claims = (engine.supports_function_calling, engine.supports_reasoning, engine.supports_response_schema)
    assert claims == (True, False, True)
    honoured = {"temperature", "max_tokens", "stop", "response_format", "tools", "tool_choice", "logprobs", "top_logprobs"}
    assert honoured <= engine.supported_params
