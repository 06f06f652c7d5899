"""Agents: ReAct as text, ReActV2 with native tools and as text, under DSPy's adapters and ours."""

import asyncio
import json
import warnings

import dspy
import pytest
from dspy import lm15

from sgl_core.backend import Capabilities
from sgl_dspy.adapters import ChatAdapter
from sgl_dspy.lm import SglLM

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental.*")  # DSPy's own, of ReActV2


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def look(what: str) -> str:
    """Looks something up."""
    return f"seen {what}"


class Turns:
    """Values that follow each other from call to call, the last one for ever."""

    def __init__(self, *values):
        self._values = list(values)

    def __call__(self, prompt, params):
        return self._values.pop(0) if len(self._values) > 1 else self._values[0]


# ---- ReAct -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def acting(lm, fake):
    fake.script.update(
        next_thought="I shall add.",
        next_tool_name=Turns("add", "finish"),
        next_tool_args=Turns({"a": 2, "b": 3}, {}),
        reasoning="the tool said so",
        answer="5",
    )
    return lm


@pytest.mark.parametrize("adapter", [None, dspy.JSONAdapter(), ChatAdapter()], ids=["plain", "json", "fields"])
def test_react_calls_a_tool_and_answers(acting, adapter):
    with dspy.context(adapter=adapter):
        prediction = dspy.ReAct("question -> answer", tools=[add, look])(question="2 + 3?")
    assert prediction.answer == "5"
    assert (prediction.trajectory["tool_name_0"], prediction.trajectory["observation_0"]) == ("add", 5)
    assert len(acting.history) == 3


def test_react_works_awaited(acting):
    with dspy.context(adapter=ChatAdapter()):
        prediction = asyncio.run(dspy.ReAct("question -> answer", tools=[add]).acall(question="2 + 3?"))
    assert prediction.trajectory["observation_0"] == 5


def test_react_only_names_its_tools_and_their_arguments(lm, scripted):
    """A model that knows no format picks a tool that there is, and writes arguments of that tool."""
    fake = scripted()
    with dspy.context(lm=SglLM(backend=fake, cache=False), adapter=ChatAdapter()):
        prediction = dspy.ReAct("question -> answer", tools=[add, look], max_iters=4)(question="2 + 3?")
    steps = [index for index in range(4) if f"tool_name_{index}" in prediction.trajectory]
    wanted = {"add": {"a", "b"}, "look": {"what"}, "finish": set()}
    for index in steps:
        name = prediction.trajectory[f"tool_name_{index}"]
        assert set(prediction.trajectory[f"tool_args_{index}"]) == wanted[name]
        assert "Execution error" not in str(prediction.trajectory[f"observation_{index}"])
    assert steps


def test_what_follows_a_chosen_tool_is_the_schema_of_that_tool(acting, fake):
    with dspy.context(adapter=ChatAdapter()):
        dspy.ReAct("question -> answer", tools=[add, look])(question="2 + 3?")
    asked = [
        request.params.json_schema
        for request in fake.requests
        if fake.codec.decode(request.input_ids).endswith("## next_tool_args ## ]]\n")
    ]
    first = json.loads(asked[0]) if isinstance(asked[0], str) else asked[0]
    assert set(first["properties"]) == {"a", "b"}


def test_tools_of_one_agent_are_not_those_of_another(lm, scripted):
    fake = scripted()
    with dspy.context(lm=SglLM(backend=fake, cache=False), adapter=ChatAdapter()):
        for tool in (add, look):
            prediction = dspy.ReAct("question -> answer", tools=[tool], max_iters=1)(question="?")
            assert prediction.trajectory["tool_name_0"] in {tool.__name__, "finish"}


def test_a_trajectory_grows_behind_what_was_asked_before(acting, fake):
    with dspy.context(adapter=ChatAdapter()):
        dspy.ReAct("question -> answer", tools=[add])(question="2 + 3?")
    first, second = [prompt for prompt in fake.prompts() if prompt.endswith("## next_thought ## ]]\n")]
    same = next(index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    assert same >= first.index("[[ ## trajectory ## ]]\n", first.rindex("2 + 3?"))


# ---- ReActV2 ---------------------------------------------------------------------------------------------------------
def agent(max_iters=4):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dspy.ReActV2("question -> answer", tools=[add], max_iters=max_iters)


def call_of(name, **arguments):
    return {"tool_calls": [{"name": name, "args": arguments}]}


@pytest.mark.parametrize("adapter", [None, ChatAdapter()], ids=["plain", "fields"])
def test_react_v2_works_as_text(lm, fake, adapter):
    fake.script.update(next_thought="hm", tool_calls=Turns(call_of("add", a=2, b=3), call_of("submit", answer="5")))
    with dspy.context(adapter=adapter):
        prediction = agent()(question="2 + 3?")
    assert (prediction.answer, prediction.termination_reason) == ("5", "submit")


def native(fake, *calls):
    """Makes a backend write native calls, one after the other, whatever it is asked."""
    turns = Turns(*(json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls))
    plain = fake.written

    def written(ids, params):
        prompt = fake.codec.decode(ids)
        text = turns(prompt, params)
        opened = prompt.rpartition("<tool_call>")[2]
        is_open = prompt.rstrip().endswith("<tool_call>") or (
            opened != prompt and "</tool_call>" not in opened and not opened.strip()
        )
        return f"{text}\n</tool_call>" if is_open else f"<tool_call>\n{text}\n</tool_call>"

    fake._reply = written
    return plain


ADAPTERS = [
    pytest.param(dspy.ChatAdapter(use_native_function_calling=True), id="plain"),
    pytest.param(ChatAdapter(use_native_function_calling=True), id="fields"),
]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_react_v2_calls_tools_natively(lm, fake, adapter):
    native(fake, ("add", {"a": 2, "b": 3}), ("submit", {"answer": "5"}))
    with dspy.context(adapter=adapter):
        prediction = agent()(question="2 + 3?")
    assert (prediction.answer, prediction.termination_reason) == ("5", "submit")
    (result,) = prediction.history.messages[0]["tool_calls"].tool_call_results.tool_call_results
    assert (result.value, result.is_error) == (5, False)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_last_turn_of_react_v2_forces_the_submission(lm, fake, adapter):
    native(fake, ("add", {"a": 2, "b": 3}), ("submit", {"answer": "5"}))
    with dspy.context(adapter=adapter):
        prediction = agent(max_iters=1)(question="2 + 3?")
    assert (prediction.answer, prediction.termination_reason) == ("5", "forced_submit")


def test_native_turns_have_the_previous_prompt_as_their_beginning(lm, fake):
    native(fake, ("add", {"a": 2, "b": 3}), ("submit", {"answer": "5"}))
    with dspy.context(adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        agent()(question="2 + 3?")
    ids = [request.input_ids for request in fake.requests]
    assert ids[-1][: len(ids[0])] == ids[0]


def test_a_native_call_is_a_tool_call_part_with_its_reason(lm, fake):
    native(fake, ("add", {"a": 2, "b": 3}))
    tool = lm15.FunctionTool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
    config = lm15.Config(max_tokens=200, tool_choice=lm15.ToolChoice("required"))
    response = lm(lm15.Request(lm.model, (lm15.Message.user("2 + 3?"),), tools=(tool,), config=config))
    (call,) = response.tool_calls
    assert (call.name, call.input, response.finish_reason) == ("add", {"a": 2, "b": 3}, "tool_call")
    assert call.id


def test_native_calls_stream_as_events_that_add_up(lm, fake):
    native(fake, ("add", {"a": 2, "b": 3}))
    tool = lm15.FunctionTool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
    config = lm15.Config(max_tokens=200, tool_choice=lm15.ToolChoice("required"))
    request = lm15.Request(lm.model, (lm15.Message.user("2 + 3?"),), tools=(tool,), config=config)
    events = list(lm.engine.stream(request))
    assert (events[0].type, events[-1].type, events[-1].finish_reason) == ("start", "end", "tool_call")
    parts = [event.delta for event in events[1:-1] if event.delta.type == "tool_call"]
    assert json.loads("".join(part.input for part in parts)) == {"a": 2, "b": 3}
    assert {part.name for part in parts if part.name} == {"add"}


def test_no_tool_means_text_even_where_tools_are_offered(lm, fake):
    fake.script[""] = "just words"
    tool = lm15.FunctionTool("add", "Adds.", {"type": "object", "properties": {}})
    config = lm15.Config(max_tokens=200, tool_choice=lm15.ToolChoice("none"))
    response = lm(lm15.Request(lm.model, (lm15.Message.user("Hello"),), tools=(tool,), config=config))
    assert (response.text, list(response.tool_calls), response.finish_reason) == ("just words", [], "stop")


def test_an_agent_whose_context_is_full_ends_with_dspys_error(scripted):
    fake = scripted({"next_thought": "hm", "next_tool_name": "look", "next_tool_args": {"what": "x"}})
    fake.capabilities = Capabilities(heal=True, context_tokens=1_500)
    with dspy.context(lm=SglLM(backend=fake, max_tokens=200)), pytest.raises(dspy.ContextWindowExceededError):
        dspy.ReAct("question -> answer", tools=[look], max_iters=3)(question="why? " * 300)
    assert fake.requests == []
