"""Ten well-known shapes of SGLang programs, as examples: what they say to the model, and that they mean the same compiled."""

import re
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sgl_core.errors import TraceError
from sgl_core.handle import RequestHandle
from sgl_core.testing import FakeBackend
from sgl_core.types import ScoreResult, Usage

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHEET = '{\n  "name": "Mara",\n  "role": "thief",\n  "strength": 12,\n  "carries": ["a rope", "a lamp"]\n}'


@dataclass(frozen=True)
class Port:
    """A run of an example on a scripted model.

    Args:
        arguments: of the program.
        replies: what a prompt ends with (white space apart) -> the model's answer.
        likes: whether prompt and choice, as one text, are what a select should find likeliest.
        variables: what the run must leave.
        static: arguments that shape the graph.
    """

    arguments: Mapping[str, Any]
    replies: Mapping[str, str] = field(default_factory=dict)
    likes: Callable[[str], bool] = lambda text: False
    variables: Mapping[str, Any] = field(default_factory=dict)
    static: tuple[str, ...] = ()


class ScriptedBackend(FakeBackend):
    """Answers as a port says, whatever the order of its requests."""

    def __init__(self, port):
        def reply(ids, params):
            prompt = self.codec.decode(ids).rstrip()
            (text,) = (text for ending, text in port.replies.items() if prompt.endswith(ending))
            return text

        super().__init__(reply)
        self.port = port

    def score(self, request):
        texts = [self.codec.decode(request.input_ids + choice) for choice in request.continuations]
        logprobs = [0.0 if self.port.likes(text) else -1.0 for text in texts]
        handle = RequestHandle()
        rows = tuple((logprob,) * len(choice) for logprob, choice in zip(logprobs, request.continuations, strict=True))
        handle.finish(ScoreResult(rows, Usage(len(request.input_ids), 0, 0)))
        return handle


def is_next_action(text):
    """ReAct: calculate until the result is there, then finish."""
    has_result = "Observation: 42" in text
    return text.endswith("Action: finish") if has_result else text.endswith("Action: calculate")


PORTS = {
    "few_shot_qa": Port(
        {"question": "Where do fish swim?"},
        {"Q: Where do fish swim?\nA:": " In the sea.\n\nQ: And"},
        variables={"answer": " In the sea."},
    ),
    "mt_bench": Port(
        {"first": "Name a tree.", "second": "Is it tall?"},
        {"Name a tree.": "The oak.", "Is it tall?": "Rather."},
        variables={"answer_1": "The oak.", "answer_2": "Rather."},
    ),
    "select_methods": Port(
        {"prompt": "The capital is", "choices": ("Oslo", "Rome", "Rome City")},
        likes=lambda text: text.endswith("The capital is Rome"),
        variables={"choice": ["Rome", "Rome", "Rome"]},
        static=("choices",),
    ),
    "int_decode": Port(
        {"first": "The tower fell", "second": "The bridge opened"},
        {"The tower fell in": "1805", "The bridge opened in": "1790", "In the 15 years between,": " it rained. And"},
        variables={"year": [1805, 1790], "between": 15, "meanwhile": " it rained"},
    ),
    "json_regex": Port(
        {"character": "a thief in the night"},
        {"as JSON.": SHEET, "Answer in one sentence.": "A thief."},
        variables={
            "sheet": SHEET,
            "character": {"name": "Mara", "role": "thief", "strength": 12, "carries": ["a rope", "a lamp"]},
            "story": "A thief.",
        },
    ),
    "expert_answer": Port(
        {"question": "Why does dough rise?"},
        {"Ask a": "baker. Or", "In one or two sentences: Why does dough rise?": "The yeast."},
        variables={"expert": "baker", "answer": "The yeast."},
    ),
    "tool_use": Port(
        {"question": "Which day is 2024-02-29?"},
        {"Tool: weekday\nInput:": " 2024-02-29\nResult", "Result: Thursday\nAnswer:": " A Thursday.\n\nQuestion"},
        likes=lambda text: text.endswith("2024-02-29?\nTool: weekday"),
        variables={"tool": "weekday", "input": " 2024-02-29", "result": "Thursday", "answer": " A Thursday."},
    ),
    "react": Port(
        {"question": "What is 6 times 7?"},
        {"Thought:": " I think.\nAction", "calculate\nInput:": " 6 * 7\nObservation", "finish\nInput:": " 42\n\nQuestion"},
        likes=is_next_action,
        variables={"thought": " I think.", "action": "finish", "answer": "42"},
    ),
    "parallel_decoding": Port(
        {"topic": "feeling well", "points": 2},
        {"1.": " Sleep\n2", "2.": " Walks: d", "sentence: Sleep": "Rest at night.", "sentence: Walks": "Go outside."},
        variables={"point_0": " Sleep", "point_1": " Walks", "explanation": ["Rest at night.", "Go outside."]},
        static=("points",),
    ),
    "streaming": Port(
        {"animal": "an ant"},
        {"about an ant.": "The Ant\nIt", "first sentence.": "An ant went out."},
        variables={"title": "The Ant", "opening": "An ant went out."},
    ),
}
BRANCHING = {"tool_use": 'if s["tool"] != "none":', "react": 'if s["action"] == "finish":'}
STRAIGHT = sorted(PORTS.keys() - BRANCHING.keys())


def load(name):
    """The example's names, without running its ``main``."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")


def interpreted(name):
    port = PORTS[name]
    with ScriptedBackend(port) as backend:
        return load(name)[name].run(**port.arguments, backend=backend)


def compiled(name):
    port = PORTS[name]
    return load(name)[name].compile(static={argument: port.arguments[argument] for argument in port.static})


def outcome(state):
    return state.text(), state.messages(), state.variables(), state.ret_value


@pytest.mark.parametrize("name", PORTS)
def test_a_port_leaves_the_variables_that_the_model_gave_it(name):
    variables = interpreted(name).variables()
    assert {key: variables[key] for key in PORTS[name].variables} == PORTS[name].variables


# ---- what they say to the model --------------------------------------------------------------------------------------
def test_few_shot_qa_puts_the_question_behind_its_examples():
    text = interpreted("few_shot_qa").text()
    assert re.fullmatch(r"Each question .*\n\n(Q: .*\nA: .*\n\n){4}Q: Where do fish swim\?\nA: In the sea\.", text)


def test_mt_bench_asks_the_second_question_behind_the_first_answer():
    turns = [(message["role"], message["content"]) for message in interpreted("mt_bench").messages()[1:]]
    assert turns == [("user", "Name a tree."), ("assistant", "The oak."), ("user", "Is it tall?"), ("assistant", "Rather.")]


def test_select_methods_scores_the_same_choices_once_for_each_method():
    metas = interpreted("select_methods").get_meta_info("choice")
    assert [meta["choices"] for meta in metas] == [("Oslo", "Rome", "Rome City")] * 3
    assert len({meta["choices_method"] for meta in metas}) == 3


def test_int_decode_goes_on_from_the_difference():
    assert interpreted("int_decode").text().splitlines()[-1] == "In the 15 years between, it rained"


def test_json_regex_asks_for_the_name_in_the_sheet():
    state = interpreted("json_regex")
    assert re.fullmatch(load("json_regex")["SHEET"], state["sheet"])
    assert state.messages()[2] == {"role": "user", "content": "Who is Mara? Answer in one sentence."}


def test_expert_answer_puts_the_expert_into_the_next_turn():
    contents = [message["content"] for message in interpreted("expert_answer").messages()]
    assert contents[2] == "Ask a baker"
    assert contents[3].startswith("Imagine that you are a baker. ")


def test_tool_use_answers_behind_the_result_of_the_tool():
    tail = "Tool: weekday\nInput: 2024-02-29\nResult: Thursday\nAnswer: A Thursday."
    assert interpreted("tool_use").text().endswith("Question: Which day is 2024-02-29?\n" + tail)


def test_tool_use_asks_no_tool_where_none_helps():
    port = Port({}, {"Tool: none\nAnswer:": " It just is."}, likes=lambda text: text.endswith("green?\nTool: none"))
    with ScriptedBackend(port) as backend:
        state = load("tool_use")["tool_use"].run(question="Why is grass green?", backend=backend)
    assert "result" not in state
    assert state.text().endswith("Tool: none\nAnswer: It just is.")


@pytest.mark.parametrize(("given", "said"), [(" 2024-02-29", "Thursday"), ("soon", "not a date")])
def test_the_weekday_of_tool_use_takes_whatever_the_model_writes(given, said):
    assert load("tool_use")["weekday"](given) == said


def test_react_observes_what_the_calculator_says():
    steps = interpreted("react").text().rpartition("Question: ")[2]
    assert re.findall(r"^(?:Action|Input|Observation): .*", steps, re.MULTILINE) == [
        "Action: calculate",
        "Input: 6 * 7",
        "Observation: 42",
        "Action: finish",
        "Input: 42",
    ]


def test_parallel_decoding_writes_every_part_behind_the_whole_outline():
    port = PORTS["parallel_decoding"]
    with ScriptedBackend(port) as backend:
        load("parallel_decoding")["parallel_decoding"].run(**port.arguments, backend=backend)
        parts = [backend.codec.decode(request.input_ids) for request in backend.requests[2:]]
    assert [part.count("1. Sleep\n2. Walks\n") for part in parts] == [1, 1]


@pytest.mark.parametrize("name", ["title", "opening", None])
def test_streaming_yields_a_variable_or_the_whole_text(name):
    port = PORTS["streaming"]
    with ScriptedBackend(port) as backend:
        state = load("streaming")["streaming"].run(**port.arguments, backend=backend, stream=True)
        streamed = "".join(state.text_iter(name))
    assert streamed == (state.text() if name is None else port.variables[name])


# ---- compiled --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", STRAIGHT)
def test_a_port_compiles_and_gives_the_same_as_interpreted(name):
    port = PORTS[name]
    arguments = {key: value for key, value in port.arguments.items() if key not in port.static}
    with ScriptedBackend(port) as backend:
        assert outcome(compiled(name).run(**arguments, backend=backend)) == outcome(interpreted(name))


@pytest.mark.parametrize("name", STRAIGHT)
def test_a_compiled_port_does_not_say_that_it_is_interpreted(name):
    report = compiled(name).explain()
    assert report.startswith(f"{name}: compiled")
    assert "interpreted" not in report


@pytest.mark.parametrize("name", BRANCHING)
def test_a_port_that_branches_on_what_the_model_said_is_refused_with_that_line(name):
    with pytest.raises(TraceError) as refused:
        compiled(name)
    assert refused.value.place.endswith(BRANCHING[name])
    assert refused.value.argument is None


@pytest.mark.parametrize("name", BRANCHING)
def test_a_port_that_branches_runs_by_fallback_and_says_so(name):
    port, program = PORTS[name], load(name)[name]
    falling_back = program.compile(fallback=True)
    with ScriptedBackend(port) as backend, pytest.warns(UserWarning, match="runs interpreted"):
        assert outcome(falling_back.run(**port.arguments, backend=backend)) == outcome(interpreted(name))
    assert falling_back.explain().startswith(f"{name}: interpreted because of line ")
    assert BRANCHING[name] in program.explain()


def test_at_most_the_two_ports_that_branch_are_interpreted():
    assert len(PORTS) == 10
    assert len(STRAIGHT) == 8


def test_the_essay_judge_compiles_with_its_dimensions_fixed_and_names_them_otherwise():
    judge = load("essay_judge")["essay_judge"]
    with pytest.raises(TraceError, match="static") as refused:
        judge.compile()
    assert refused.value.argument == "dimensions"
    dimensions = ("clarity", "style")
    fixed = judge.compile(static={"dimensions": dimensions})
    with FakeBackend() as one, FakeBackend() as other:
        by_graph = fixed.run(essay="Short.", backend=one, seed=1)
        assert outcome(by_graph) == outcome(judge.run(essay="Short.", dimensions=dimensions, backend=other, seed=1))
