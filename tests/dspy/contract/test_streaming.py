"""Streams: DSPy's listeners over our engine and adapters, small pieces, and what may not happen after the first."""

import asyncio
import json
import threading
from typing import Literal

import dspy
import pytest
from dspy.streaming import StreamListener, StreamResponse

from sgl_core.errors import EngineStepError
from sgl_core.language.dispatcher import post
from sgl_core.language.stream import StreamExecutor
from sgl_core.types import GenDelta
from sgl_dspy.adapters import ChatAdapter, JSONAdapter
from sgl_dspy.lm import SglLM

WAIT_S = 60.0
LONG = "a rather long answer, which takes many pieces to arrive"


def heard(streaming, **inputs):
    """Everything that a stream yields."""

    async def collect():
        return [item async for item in streaming(**inputs)]

    return asyncio.run(asyncio.wait_for(collect(), WAIT_S))


def chunks(items, field=None):
    found = [item for item in items if isinstance(item, StreamResponse)]
    return [item.chunk for item in found if field in (None, item.signature_field_name)]


class Qa(dspy.Module):
    """Usable plain and awaited."""

    def __init__(self, signature="question -> answer", kind=dspy.ChainOfThought):
        super().__init__()
        self.predict = kind(signature)

    def forward(self, **inputs):
        return self.predict(**inputs)

    async def aforward(self, **inputs):
        return await self.predict.acall(**inputs)


@pytest.fixture
def spoken(lm, fake):
    """Scripted long values, and no answer cache, which would not stream."""
    fake.script.update(reasoning="because " * 5 + "so", answer=LONG)
    lm.cache = False
    return lm


ADAPTERS = [
    pytest.param(None, id="plain"),
    pytest.param(dspy.JSONAdapter(), id="plain-json"),
    pytest.param(ChatAdapter(), id="chat"),
    pytest.param(ChatAdapter(structure="stop"), id="chat-stop"),
    pytest.param(JSONAdapter(), id="json"),
]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_listener_hears_its_field_in_pieces(spoken, adapter, is_async):
    listener = StreamListener(signature_field_name="answer")
    with dspy.context(adapter=adapter):
        items = heard(dspy.streamify(Qa(), stream_listeners=[listener], is_async_program=is_async), question="why?")
    assert len(chunks(items)) > 2
    assert "".join(chunks(items)).strip().strip('"') == LONG
    assert items[-1].answer == LONG
    assert not listener.cache_hit


@pytest.mark.parametrize("adapter", [pytest.param(None, id="plain"), pytest.param(ChatAdapter(), id="chat")])
def test_two_listeners_hear_their_own_fields(spoken, adapter):
    listeners = [StreamListener(signature_field_name=name) for name in ("reasoning", "answer")]
    with dspy.context(adapter=adapter):
        items = heard(dspy.streamify(Qa(), stream_listeners=listeners), question="why?")
    for name in ("reasoning", "answer"):
        assert "".join(chunks(items, name)) == items[-1][name]


@pytest.mark.parametrize("adapter", [pytest.param(None, id="plain"), pytest.param(ChatAdapter(), id="chat")])
def test_a_listener_for_reuse_hears_every_call(spoken, fake, adapter):
    fake.script["answer"] = lambda prompt, params: f"{LONG} {len(fake.requests)}"
    listener = StreamListener(signature_field_name="answer", allow_reuse=True)

    class Twice(dspy.Module):
        def __init__(self):
            super().__init__()
            self.predict = dspy.Predict("question -> answer")

        def forward(self, question):
            return dspy.Prediction(answers=[self.predict(question=f"{question} {i}").answer for i in range(2)])

    streaming = dspy.streamify(Twice(), stream_listeners=[listener])
    with dspy.context(adapter=adapter):
        items = heard(streaming, question="one")
        again = heard(streaming, question="two")
    for stream in (items, again):
        assert "".join(chunks(stream)).count(LONG) == 2
        assert all(answer in "".join(chunks(stream)) for answer in stream[-1].answers)


def test_a_listener_that_is_not_for_reuse_hears_the_first_call_only(spoken):
    listener = StreamListener(signature_field_name="answer")
    streaming = dspy.streamify(Qa(), stream_listeners=[listener])
    assert chunks(heard(streaming, question="one"))
    assert chunks(heard(streaming, question="two")) == []


def test_a_chosen_value_and_a_forced_header_arrive_apart(spoken, fake):
    """A piece with a header and the next one in it would count as a hit of the answer cache, and nothing would stream."""
    signature = dspy.Signature("question -> answer, mood: Literal['glad', 'sad']", custom_types={"Literal": Literal})
    fake.script["answer"] = "x"
    listeners = [StreamListener(signature_field_name=name) for name in ("answer", "mood")]
    with dspy.context(adapter=ChatAdapter()):
        items = heard(dspy.streamify(Qa(signature, dspy.Predict), stream_listeners=listeners), question="why?")
    assert "".join(chunks(items, "answer")) == "x"
    assert "".join(chunks(items, "mood")) == items[-1].mood
    assert not any(listener.cache_hit for listener in listeners)


def test_without_listeners_the_engines_chunks_come_through(spoken):
    items = heard(dspy.streamify(Qa(kind=dspy.Predict)), question="why?")
    *pieces, prediction = items
    assert {type(piece).__name__ for piece in pieces} == {"EngineChunk"}
    assert LONG in "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert len({piece.predict_id for piece in pieces}) == 1
    assert json.loads(pieces[0].json())["model"] == spoken.model
    assert prediction.answer == LONG


def test_chunks_go_out_as_server_sent_events(spoken):
    async def collect():
        stream = dspy.streamify(Qa(kind=dspy.Predict))(question="why?")
        return [line async for line in dspy.streaming.streaming_response(stream)]

    lines = asyncio.run(asyncio.wait_for(collect(), WAIT_S))
    assert json.loads(lines[-2].removeprefix("data: ")) == {"prediction": {"answer": LONG}}
    assert lines[-1] == "data: [DONE]\n\n"


def test_a_stream_can_be_read_without_an_event_loop(spoken):
    listener = StreamListener(signature_field_name="answer")
    items = list(dspy.streamify(Qa(), stream_listeners=[listener], async_streaming=False)(question="why?"))
    assert "".join(chunks(items)) == LONG


def test_status_messages_come_along(spoken):
    class Saying(dspy.streaming.StatusMessageProvider):
        def lm_start_status_message(self, instance, inputs):
            return f"asking {instance.model}"

    items = heard(dspy.streamify(Qa(), status_message_provider=Saying()), question="why?")
    assert [item.message for item in items if isinstance(item, dspy.streaming.StatusMessage)] == [f"asking {spoken.model}"]


def test_a_streamed_reply_is_kept_and_a_hit_brings_the_prediction_at_once(spoken, fake):
    spoken.cache = True
    streaming = dspy.streamify(Qa(), stream_listeners=[StreamListener(signature_field_name="answer")])
    first = heard(streaming, question="why?")
    again = heard(streaming, question="why?")
    assert again[-1].answer == first[-1].answer
    assert len([item for item in again if not isinstance(item, dspy.Prediction)]) == 0
    assert len(fake.requests) == 1


def test_a_stream_is_one_history_entry_with_usage(spoken):
    heard(dspy.streamify(Qa()), question="why?")
    (entry,) = spoken.history
    assert entry["usage"]["completion_tokens"] > len(LONG)


def test_usage_of_streams_is_tracked(spoken):
    dspy.configure(track_usage=True)
    prediction = heard(dspy.streamify(Qa()), question="why?")[-1]
    assert prediction.get_lm_usage()[spoken.model]["completion_tokens"] > len(LONG)


def test_agents_stream_every_turn(spoken, fake):
    def look(what: str) -> str:
        """Looks."""
        return "seen"

    turns = iter(["look", "finish"])
    fake.script.update(next_thought="I should " + LONG, next_tool_name=lambda *_: next(turns), next_tool_args={})
    listener = StreamListener(signature_field_name="next_thought", allow_reuse=True)
    items = heard(dspy.streamify(dspy.ReAct("question -> answer", tools=[look]), stream_listeners=[listener]), question="why?")
    assert "".join(chunks(items)).count(LONG) == 2
    assert items[-1].answer == LONG


def test_a_program_that_is_slow_to_start_is_heard_from_its_beginning(spoken, monkeypatch):
    """The listener of a reply may be there before its first step is: then it must wait for that."""
    submit = StreamExecutor.submit

    def late(self, nodes):
        idle = threading.Event()
        post(idle.set)
        assert idle.wait(WAIT_S)  # whatever was posted before has run
        return submit(self, nodes)

    monkeypatch.setattr(StreamExecutor, "submit", late)
    with dspy.context(adapter=ChatAdapter()):
        items = heard(dspy.streamify(Qa(), stream_listeners=[StreamListener("answer")]), question="why?")
    assert "".join(chunks(items)) == LONG


def test_an_adapter_of_another_name_cannot_be_listened_to(spoken):
    """Why our classes are called as DSPy's are."""

    class Renamed(dspy.ChatAdapter):
        pass

    listener = StreamListener(signature_field_name="answer")
    with dspy.context(adapter=Renamed()), pytest.raises(ValueError, match="Unsupported adapter"):
        heard(dspy.streamify(Qa(), stream_listeners=[listener], is_async_program=True), question="why?")


# ---- after the first piece -------------------------------------------------------------------------------------------
def broken_midway(scripted, **options):
    """An LM whose requests push a piece and then fail."""

    class Breaking(scripted):
        def submit(self, request):
            handle = super().submit(request)
            handle.push(GenDelta("[[ ## answer ## ]]\nfirst words", ()))
            return handle

    fake = Breaking(fail=lambda request: EngineStepError("a step failed"), latency_s=0.01)
    return fake, SglLM(backend=fake, **options)


@pytest.mark.parametrize("is_async", [True, False])
def test_nothing_is_tried_again_once_a_piece_is_out(scripted, no_delay, is_async):
    fake, lm = broken_midway(scripted, num_retries=3)
    with dspy.context(lm=lm), pytest.raises(dspy.LMServerError):
        heard(dspy.streamify(Qa(kind=dspy.Predict), is_async_program=is_async), question="why?")
    assert len(fake.requests) == 1
    assert no_delay == []


def test_a_streamed_reply_that_does_not_parse_is_not_asked_for_again_as_json(spoken, fake, monkeypatch):
    monkeypatch.setattr(fake, "written", None)
    fake._reply = lambda ids, params: "no format at all"
    with pytest.raises(dspy.AdapterParseError):
        heard(dspy.streamify(Qa(kind=dspy.Predict)), question="why?")
    assert len(fake.requests) == 1


def test_candidates_are_not_grouped_in_a_stream(spoken, fake):
    """One stream at a time: a user reads the first candidate, and nobody runs ahead of them."""
    items = heard(dspy.streamify(Qa("question -> answer", dspy.Predict)), question="why?", config={"n": 2, "temperature": 1.0})
    assert len(items[-1].completions.answer) == 2
    assert len(fake.requests) == 2
