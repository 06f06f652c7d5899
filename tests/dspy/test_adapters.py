"""Our adapters: what they add to a call, when they add nothing, and that everything around a call stays DSPy's."""

import asyncio
import json
from typing import Any

import dspy
import pytest
from dspy.adapters.decision import DecisionAdapter
from dspy.adapters.decision_state import DecisionState
from dspy.adapters.types import decision

from sgl_core.errors import InvalidArgumentError
from sgl_core.testing import FakeBackend
from sgl_dspy.adapters import ChatAdapter, JSONAdapter, configure, tools_in_reach
from sgl_dspy.engine import SglEngine
from sgl_dspy.formats.reply_program import PROGRAM_KEY, JsonBy, JsonValue, ReplyProgram
from sgl_dspy.lm import SglLM

WAIT_S = 60.0
TRIAGE = "ticket -> why: str, team: Literal['billing', 'bug'], count: int, words: list[str]"
CHAT_REPLY = (
    "[[ ## why ## ]]\nbecause\n\n[[ ## team ## ]]\nbug\n\n[[ ## count ## ]]\n7\n\n"
    '[[ ## words ## ]]\n["a","b"]\n\n[[ ## completed ## ]]\n'
)
JSON_REPLY = '{\n  "why": "because",\n  "team": "bug",\n  "count": 7,\n  "words": ["a","b"]\n}'


def scripted(ids, params):
    """One field at a time, as its constraint has it; a call without a program gets a reply in the chat format, and more."""
    if params.choices is not None:
        return params.choices[-1]
    if params.json_schema is not None:
        schema = json.loads(params.json_schema) if isinstance(params.json_schema, str) else params.json_schema
        return {"array": '["a","b"]', "string": '"because"', "object": JSON_REPLY}[schema["type"]]
    if params.regex is None:
        return CHAT_REPLY + "and more"
    return next((f"7{end}" for end in ("\n\n", ",\n", "\n") if params.regex.endswith(end)), "because \n\n[[ ## team")


@pytest.fixture
def fake():
    with FakeBackend(scripted) as backend:
        yield backend


@pytest.fixture
def lm(fake):
    return SglLM(backend=fake, max_tokens=500, cache=False)


def program_of(lm):
    """The plan of the last call; None if it had none."""
    plain = (lm.history[-1]["kwargs"].get("metadata") or {}).get(PROGRAM_KEY)
    return None if plain is None else ReplyProgram.from_json(plain)


def ask(lm, adapter, signature=TRIAGE, **options):
    with dspy.context(lm=lm, adapter=adapter):
        return dspy.Predict(signature, **options)(ticket="It broke.")


# ---- replies ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("make", "reply"), [(ChatAdapter, CHAT_REPLY), (JSONAdapter, JSON_REPLY)])
def test_a_reply_is_written_field_by_field_and_parsed_by_dspy(lm, make, reply):
    prediction = ask(lm, make())
    assert lm.history[-1]["outputs"] == [reply]
    assert dict(prediction) == {"why": "because", "team": "bug", "count": 7, "words": ["a", "b"]}


@pytest.mark.parametrize("make", [ChatAdapter, JSONAdapter])
def test_an_awaited_call_is_written_the_same_way(lm, make):
    async def main():
        with dspy.context(lm=lm, adapter=make()):
            return await asyncio.wait_for(dspy.Predict(TRIAGE).acall(ticket="It broke."), WAIT_S)

    assert asyncio.run(main()).team == "bug"
    assert program_of(lm) is not None


def test_the_prompt_stays_dspys(lm):
    ask(lm, ChatAdapter())
    planned = lm.history[-1]["messages"]
    ask(lm, dspy.ChatAdapter())
    assert lm.history[-1]["messages"] == planned


def test_a_json_reply_needs_no_response_format(lm):
    ask(lm, JSONAdapter(), "ticket -> words: list[str], is_new: bool")
    assert "response_format" not in lm.history[-1]["kwargs"]
    assert program_of(lm) is not None


def test_an_open_mapping_has_a_schema_in_json_too(lm):
    ask(lm, JSONAdapter(), "ticket -> why: str, words: list[str]")
    with dspy.context(lm=lm, adapter=JSONAdapter()), pytest.raises(dspy.utils.exceptions.AdapterParseError):
        dspy.Predict("ticket -> counts: dict[str, int]")(ticket="It broke.")  # what the fake says is none
    (step,) = [step for step in program_of(lm).steps if isinstance(step, JsonValue)]
    assert step.schema["type"] == "object"
    assert list(step.schema["patternProperties"].values()) == [{"type": "integer"}]


# ---- options ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("adapter", [ChatAdapter(), ChatAdapter(structure="stop"), JSONAdapter()])
def test_the_callers_options_are_left_as_they_are(lm, adapter):
    options = {"temperature": 0.5, "metadata": {"user": "ann"}}
    adapter(lm, options, dspy.Signature(TRIAGE), [], {"ticket": "It broke."})
    assert options == {"temperature": 0.5, "metadata": {"user": "ann"}}


def test_a_program_stands_beside_other_metadata(lm):
    ask(lm, ChatAdapter(), metadata={"user": "ann"})
    assert lm.history[-1]["kwargs"]["metadata"].keys() == {"user", PROGRAM_KEY}


def test_metadata_of_the_lm_is_kept(fake):
    lm = SglLM(backend=fake, max_tokens=500, metadata={"user": "ann"})
    ask(lm, ChatAdapter())
    assert lm.history[-1]["kwargs"]["metadata"].keys() == {"user", PROGRAM_KEY}


@pytest.mark.parametrize("make", [ChatAdapter, JSONAdapter])
@pytest.mark.parametrize("options", [{"logprobs": True}, {"logprobs": True, "top_logprobs": 2}])
def test_a_call_that_wants_logprobs_has_no_program(lm, make, options):
    adapter = make()
    processed = dict(options)
    adapter._call_preprocess(lm, processed, dspy.Signature(TRIAGE), {})
    assert "metadata" not in processed


def test_a_response_format_of_the_callers_own_has_no_program(lm):
    options = {"response_format": {"type": "json_object"}}
    ChatAdapter()._call_preprocess(lm, options, dspy.Signature(TRIAGE), {})
    assert options == {"response_format": {"type": "json_object"}}


def test_a_stop_of_the_callers_own_ends_a_field(fake, lm):
    ask(lm, ChatAdapter(), stop=["cause"])
    assert lm.history[-1]["outputs"][0].startswith("[[ ## why ## ]]\nbe\n\n[[ ## team ## ]]\n")


# ---- what is shared --------------------------------------------------------------------------------------------------
def test_system_and_demos_are_shared_and_history_is_not(lm):
    signature = dspy.Signature("ticket, history: dspy.History -> answer")
    demos = [
        {"ticket": "a", "answer": "b", "history": dspy.History(messages=[])},
        {"ticket": "a", "answer": "b"},
        {"ticket": "no answer"},
        {"answer": "no ticket"},
    ]
    past = dspy.History(messages=[{"ticket": "c", "answer": "d"}])
    ChatAdapter()(lm, {}, signature, demos, {"ticket": "e", "history": past})
    messages = lm.history[-1]["messages"]
    assert program_of(lm).shared == (0, 5)
    assert len(messages) == 8
    assert [message["content"] for message in messages[5:7]][1].startswith("[[ ## answer ## ]]\nd")


def test_without_demos_the_system_message_is_shared(lm):
    ask(lm, ChatAdapter())
    assert program_of(lm).shared == (0, 1)


# ---- switches --------------------------------------------------------------------------------------------------------
def test_stop_ends_a_free_reply_at_the_completed_marker(lm):
    assert ask(lm, ChatAdapter(structure="stop")).count == 7
    assert program_of(lm) is None
    assert lm.history[-1]["outputs"][0] == CHAT_REPLY.removesuffix("[[ ## completed ## ]]\n")


def test_stop_keeps_the_callers_stops(lm):
    options = {"stop": "END"}
    ChatAdapter(structure="stop")._call_preprocess(lm, options, dspy.Signature(TRIAGE), {})
    assert options["stop"] == ["END", "[[ ## completed ## ]]"]


def test_off_is_dspy(lm):
    options = {"stop": ["END"]}
    ChatAdapter(structure="off")._call_preprocess(lm, options, dspy.Signature(TRIAGE), {})
    assert options == {"stop": ["END"]}


@pytest.mark.parametrize("structure", ["stop", "off"])
def test_json_without_a_program_has_dspys_response_format(lm, structure):
    assert ask(lm, JSONAdapter(structure=structure)).team == "bug"
    assert program_of(lm) is None
    assert "response_format" in lm.history[-1]["kwargs"]


@pytest.mark.parametrize("make", [ChatAdapter, JSONAdapter])
def test_an_unknown_structure_is_refused(make):
    with pytest.raises(InvalidArgumentError, match="structure"):
        make(structure="strict")


@pytest.mark.parametrize("make", [ChatAdapter, JSONAdapter])
def test_a_structure_in_the_place_of_the_callbacks_is_refused_with_the_cure(make):
    with pytest.raises(InvalidArgumentError, match=r"^callbacks: .*structure='stop'"):
        make("stop")


def test_configure_makes_the_lm_and_takes_none(lm):
    for wrong in (lambda: configure(lm=lm), lambda: configure(lm), lambda: configure(adapter=ChatAdapter())):
        with pytest.raises(InvalidArgumentError, match=r"dspy\.configure\("):
            wrong()


def test_a_field_that_cannot_be_planned_leaves_the_end_of_the_reply(lm):
    options: dict[str, Any] = {}
    ChatAdapter()._call_preprocess(lm, options, dspy.Signature("ticket -> why: str, picture: dspy.Image"), {})
    assert options == {"stop": ["[[ ## completed ## ]]"]}


# ---- where nothing is added ------------------------------------------------------------------------------------------
class Other:
    """An engine of somebody else."""

    supported_params = frozenset({"stop"})

    def complete(self, request):
        raise AssertionError("it is not called here")


@pytest.mark.parametrize("adapter", [ChatAdapter(), ChatAdapter(structure="stop"), JSONAdapter()])
def test_an_lm_of_others_gets_what_it_always_got(adapter):
    lm, options = dspy.LM("other/model", engine=Other()), {"temperature": 0.5}
    adapter._call_preprocess(lm, options, dspy.Signature(TRIAGE), {})
    assert options == {"temperature": 0.5}


def test_a_plain_lm_on_our_engine_gets_a_program(fake):
    lm = dspy.LM("sgl/any", engine=SglEngine(fake), max_tokens=500)
    assert ask(lm, ChatAdapter()).team == "bug"
    assert program_of(lm) is not None


@pytest.mark.parametrize(
    "adapter", [dspy.XMLAdapter(), dspy.BAMLAdapter() if hasattr(dspy, "BAMLAdapter") else dspy.XMLAdapter()]
)
def test_dspys_other_adapters_are_not_touched(lm, adapter):
    options: dict[str, Any] = {}
    adapter._call_preprocess(lm, options, dspy.Signature(TRIAGE), {})
    assert options == {}


# ---- fallback --------------------------------------------------------------------------------------------------------
class Failing(ChatAdapter):
    """Cannot read its own replies."""

    def parse(self, signature, completion):
        raise dspy.utils.exceptions.AdapterParseError("ChatAdapter", signature, completion)


def test_the_fallback_is_our_json_adapter_and_its_program_replaces_the_first(lm):
    assert ask(lm, Failing()).team == "bug"
    assert len(lm.history) == 2
    assert program_of(lm).steps[0].text == '{\n  "why": '


def test_the_fallback_keeps_the_switch_and_what_it_cannot_plan_loses_the_program(lm):
    adapter = ChatAdapter(structure="stop", use_native_function_calling=True, parallel_tool_calls=True)
    fallback = adapter._make_json_adapter_fallback()
    assert type(fallback) is JSONAdapter
    assert (fallback.structure, fallback.use_native_function_calling, fallback.parallel_tool_calls) == ("stop", True, True)
    options = {"metadata": {PROGRAM_KEY: {"v": 1}}}
    fallback._call_preprocess(lm, options, dspy.Signature(TRIAGE), {})
    assert "metadata" not in options


# ---- tools -----------------------------------------------------------------------------------------------------------
def search(query: str, limit: int = 3) -> str:
    return query * limit


def test_native_function_calling_is_left_to_the_engine(lm):
    signature = dspy.Signature("ticket, tools: list[dspy.Tool] -> answer, calls: dspy.ToolCalls")
    options: dict[str, Any] = {}
    adapter = ChatAdapter(use_native_function_calling=True)
    processed = adapter._call_preprocess(lm, options, signature, {"ticket": "a", "tools": [dspy.Tool(search)]})
    assert list(processed.output_fields) == ["answer"]
    assert options.keys() == {"tools"}


def test_tool_calls_as_text_are_held_to_the_tools_of_the_call(lm):
    signature = dspy.Signature("ticket, tools: list[dspy.Tool] -> calls: dspy.ToolCalls")
    options: dict[str, Any] = {}
    ChatAdapter()._call_preprocess(lm, options, signature, {"ticket": "a", "tools": [dspy.Tool(search)]})
    assert "'const': 'search'" in str(options["metadata"])


def test_the_tools_of_react_are_found_while_it_runs():
    react = dspy.ReAct("ticket -> answer", tools=[search])
    assert tools_in_reach(react.react.signature, {}) is None
    with dspy.context(caller_modules=[react, react.react]):
        assert tools_in_reach(react.react.signature, {}).keys() == {"search", "finish"}


def test_the_innermost_react_with_these_names_counts():
    def other(text: str) -> str:
        return text

    outer, inner = (dspy.ReAct("ticket -> answer", tools=[tool]) for tool in (search, other))
    with dspy.context(caller_modules=[outer, inner]):
        assert "search" in tools_in_reach(outer.react.signature, {})


def test_a_step_of_react_writes_arguments_of_the_tool_that_it_chose():
    def react_reply(ids, params):
        if params.choices is not None:
            return params.choices[0]
        return "thinking" if params.json_schema is None else '{"query":"lid"}'

    with FakeBackend(react_reply) as fake:
        lm = SglLM(backend=fake, max_tokens=500, cache=False)
        with dspy.context(lm=lm, adapter=ChatAdapter()):
            prediction = dspy.ReAct("ticket -> answer", tools=[search], max_iters=1)(ticket="It broke.")
    assert prediction.trajectory["observation_0"] == "lidlidlid"
    first = ReplyProgram.from_json(lm.history[0]["kwargs"]["metadata"][PROGRAM_KEY])
    assert any(isinstance(step, JsonBy) for step in first.steps)


# ---- around a call ---------------------------------------------------------------------------------------------------
class Counting(dspy.utils.BaseCallback):
    """Writes down what adapters do."""

    def __init__(self):
        self.events = []

    def on_adapter_format_start(self, call_id, instance, inputs):
        self.events.append("format")

    def on_adapter_parse_start(self, call_id, instance, inputs):
        self.events.append("parse")


@pytest.mark.parametrize("make", [ChatAdapter, JSONAdapter])
def test_callbacks_hear_of_each_format_and_parse_once(lm, make):
    counting = Counting()
    ask(lm, make(callbacks=[counting]))
    assert counting.events == ["format", "parse"]


@pytest.mark.parametrize("make", [ChatAdapter, JSONAdapter])
def test_candidates_share_a_program(lm, make):
    prediction = ask(lm, make(), n=3)
    assert len(prediction.completions.team) == 3
    assert len(lm.history) == 1


@pytest.mark.parametrize("make", [ChatAdapter, JSONAdapter])
def test_a_listener_hears_a_field(lm, make):
    with dspy.context(lm=lm, adapter=make()):
        stream = dspy.streamify(
            dspy.Predict("ticket -> team: Literal['billing', 'bug'], why: str"),
            stream_listeners=[dspy.streaming.StreamListener("why")],
            async_streaming=False,
        )
        items = list(stream(ticket="It broke."))
    heard = "".join(item.chunk for item in items if isinstance(item, dspy.streaming.StreamResponse))
    assert heard.strip('"\n') == "because"
    assert items[-1].why == "because"


def test_a_subclass_without_arguments_works_as_refine_makes_it(lm):
    class Wrapper(ChatAdapter):
        pass

    assert Wrapper().structure == "fields"
    assert ask(lm, Wrapper()).team == "bug"


def test_decisions_are_planned_by_the_schema_of_their_evidence(lm):
    signature = dspy.Signature(
        {"ticket": (str, dspy.InputField()), "is_angry": (decision.Noul, dspy.OutputField(desc="Is the customer angry?"))}
    )
    adapter = DecisionAdapter(ChatAdapter(), DecisionState(signature, {}), False)
    with pytest.raises(dspy.utils.exceptions.AdapterParseError):  # what the fake says is none
        adapter(lm, {}, signature, [], {"ticket": "It broke."})
    step = ReplyProgram.from_json(lm.history[0]["kwargs"]["metadata"][PROGRAM_KEY]).steps[1]
    assert step.schema["properties"]["noul"] == {"type": "number", "minimum": 0, "maximum": 1}


def test_configure_sets_an_lm_and_an_adapter(engines, model_folder):
    configure(str(model_folder), structure="stop", temperature=0.5)
    assert isinstance(dspy.settings.lm, SglLM)
    assert dspy.settings.lm.kwargs["temperature"] == 0.5
    assert type(dspy.settings.adapter) is ChatAdapter
    assert dspy.settings.adapter.structure == "stop"
    assert not engines  # nothing is loaded


@pytest.mark.parametrize("adapter", [ChatAdapter(), JSONAdapter()], ids=["chat", "json"])
def test_metadata_that_is_no_dict_is_refused_by_name(fake, lm, adapter):
    with pytest.raises(InvalidArgumentError, match="metadata: got 'str'"):
        ask(lm, adapter, metadata="a note")
    assert fake.requests == []


CALLS = dspy.Signature("ticket, tools: list[dspy.Tool] -> calls: dspy.ToolCalls", custom_types={"dspy": dspy})


@pytest.mark.parametrize(
    ("choice", "names", "least"),
    [
        ("auto", ["close", "forward"], 0),
        ("required", ["close", "forward"], 1),
        ({"type": "function", "function": {"name": "close"}}, ["close"], 1),
    ],
)
def test_a_demanded_call_is_demanded_of_calls_in_text_too(choice, names, least):
    def written(ids, params):
        return '{"tool_calls":[{"name":"close","args":{}}]}'

    lm = SglLM(backend=FakeBackend(written), cache=False)
    tools = [dspy.Tool(lambda: None, name=name, desc=name) for name in ("close", "forward")]
    with dspy.context(lm=lm, adapter=ChatAdapter()):
        dspy.Predict(CALLS)(ticket="It broke.", tools=tools, config={"tool_choice": choice})
    [step] = [step for step in program_of(lm).steps if isinstance(step, JsonValue)]
    calls = step.schema["properties"]["tool_calls"]
    assert [one["properties"]["name"]["const"] for one in calls["items"]["anyOf"]] == names
    assert calls.get("minItems", 0) == least
