"""What ``explain`` says, and the graph of a run."""

import asyncio

import dspy
import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.graph import Join, StreamKind
from sgl_core.language.ir import Argument, Fork, Gen, Variable
from sgl_core.language.verifier import verify
from sgl_core.testing import FakeBackend
from sgl_dspy.compiled.compiling import compile_module, plan_of
from sgl_dspy.compiled.explaining import explain
from sgl_dspy.lm import SglLM

ESSAY = "An essay about trees. " * 10


class Judges(dspy.Module):
    def __init__(self):
        super().__init__()
        self.style = dspy.Predict(dspy.Signature("essay -> verdict", "Judge the style."))
        self.logic = dspy.Predict(dspy.Signature("essay -> verdict", "Judge the logic."))
        self.sum = dspy.Predict("verdicts: list[str] -> summary")

    def forward(self, essay):
        return self.sum(verdicts=[judge(essay=essay).verdict for judge in (self.style, self.logic)])


class Questions(dspy.Module):
    def __init__(self, **config):
        super().__init__()
        self.ask = dspy.Predict("question, context -> answer", **config)

    def forward(self, context, questions):
        answers = [self.ask(question=question, context=context).answer for question in questions]
        return dspy.Prediction(answers=answers)


@pytest.fixture
def fake():
    counter = iter(range(1000))
    with FakeBackend(reply=lambda ids, params: f"reply number {next(counter)}") as backend:
        dspy.configure(lm=SglLM(backend=backend, cache=False))
        yield backend


def ops(graph, kind):
    return [node for node in graph.nodes if isinstance(node.op, kind)]


# ---- what it says ----------------------------------------------------------------------------------------------------
def test_each_predictor_has_a_block(fake):
    explanation = explain(compile_module(Judges()))
    assert [report.name for report in explanation.predictors] == ["style", "logic", "sum"]
    assert str(explanation).startswith("Judges: 3 predictors\n\nstyle: essay -> verdict\n  shared by its calls: ")


def test_lengths_are_those_of_the_prompts_in_tokens(fake):
    compiled = compile_module(Questions())
    (report,) = explain(compiled).predictors
    compiled(context="c", questions=["Why?", "who?"])
    one, other = (request.input_ids for request in fake.requests)
    common = next(at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    assert explain(compiled).unit == "tokens"
    assert report.static_len == common


def test_without_an_lm_of_ours_lengths_are_characters():
    explanation = explain(Judges())
    assert explanation.unit == "characters"
    assert all(report.static_len > 100 for report in explanation.predictors)
    assert "characters" in str(explanation)


def test_demos_are_counted(fake):
    program = Questions()
    before = explain(program).predictors[0].static_len
    program.ask.demos = [dspy.Example(question="q", context="c", answer="a")]
    report = explain(program).predictors[0]
    assert report.num_demos == 1
    assert report.static_len > before
    assert "1 demo in it" in str(explain(program))


def test_predictors_that_read_the_same_input_are_told_to_hoist(fake):
    assert "style, logic all read 'essay'" in str(explain(Judges()))
    assert "hoist=['essay']" in str(explain(Judges()))


def test_hoisted_inputs_are_told_as_such(fake):
    text = str(explain(compile_module(Judges(), hoist=["essay"])))
    assert "'essay' stands first in the prompts of style, logic" in text
    assert "hoist=" not in text


def test_an_input_that_comes_again_behind_one_that_differs_is_told_to_go_first(fake):
    compiled = compile_module(Questions())
    compiled(context="A long context that all of the questions are asked about, again and again.", questions=["a", "b", "c"])
    (hint,) = explain(compiled).predictors[0].hints
    assert "'context' had 1 value in 3 calls" in hint
    assert "reorder_inputs=['context']" in hint
    reordered = compile_module(Questions(), reorder_inputs=["context"])
    reordered(context="A long context that all of the questions are asked about, again and again.", questions=["a", "b", "c"])
    report = explain(reordered).predictors[0]
    assert report.hints == ()
    assert report.inputs == ("context", "question")


def test_an_output_without_a_plan_is_named(fake):
    class Program(dspy.Module):
        def __init__(self):
            super().__init__()
            self.draw = dspy.Predict("idea -> picture: dspy.Image, title")

    (line,) = explain(compile_module(Program())).predictors[0].unplanned
    assert line.startswith("'picture' has no plan")
    assert "Image" in line


def test_an_adapter_that_is_left_alone_is_named(fake):
    with dspy.context(adapter=dspy.XMLAdapter()):
        assert "The adapter, XMLAdapter, is left alone" in str(explain(compile_module(Judges(), hoist=["essay"])))


def test_a_program_that_is_not_compiled_is_told_so(fake):
    assert "not compiled" in str(explain(Judges()))
    assert "not compiled" not in str(explain(compile_module(Judges())))


def test_what_is_no_module_is_refused():
    with pytest.raises(InvalidArgumentError, match="program"):
        explain("a program")


# ---- the first run ---------------------------------------------------------------------------------------------------
def test_the_first_run_is_counted(fake):
    compiled = compile_module(Judges(), hoist=["essay"])
    compiled(essay=ESSAY)
    assert "First run: 3 calls" in str(explain(compiled))


def test_a_run_that_fails_is_not_kept_and_the_next_one_is(fake):
    compiled = compile_module(Judges())
    with pytest.raises(TypeError):
        compiled(wrong=1)
    assert plan_of(compiled).first_run.recording is None
    compiled(essay=ESSAY)
    compiled(essay="Another one.")
    assert plan_of(compiled).first_run.recording.arguments == {"essay": ESSAY}


def test_the_graph_of_a_run_is_valid_and_has_its_forks_arguments_and_values(fake):
    compiled = compile_module(Judges(), hoist=["essay"])
    compiled(essay=ESSAY)
    graph = explain(compiled).graph
    verify(graph)
    assert [node.op.name for node in ops(graph, Gen)] == ["verdict", "verdict", "summary"]
    judges, fork = ops(graph, Gen)[:2], ops(graph, Fork)[-1]
    assert {graph.streams[node.stream].parent for node in judges} == {fork.stream}
    (argument,) = ops(graph, Argument)
    assert (argument.op.name, argument.stream) == ("essay", fork.stream)
    assert [node.op.source.node for node in ops(graph, Variable)] == [node.id for node in judges]


def test_copies_that_a_search_makes_are_known_by_their_task(fake):
    inner = dspy.Predict("question -> answer")
    compiled = compile_module(dspy.BestOfN(inner, N=2, reward_fn=lambda args, prediction: 0.0, threshold=1.0))
    compiled(question="Why?")
    assert [call.predictor for call in plan_of(compiled).first_run.recording.calls] == ["module", "module"]


def test_candidates_of_one_call_are_a_fork_and_a_join(fake):
    compiled = compile_module(Questions(n=3))
    compiled(context="c", questions=["Why?"])
    graph = explain(compiled).graph
    verify(graph)
    assert [node.op.number for node in ops(graph, Fork)] == [3]
    assert len(ops(graph, Join)) == 1
    assert len(ops(graph, Gen)) == 3


def test_identical_prompts_part_behind_their_end(fake):
    compiled = compile_module(Questions())
    compiled(context="c", questions=["Why?", "Why?", "Who?"])
    graph = explain(compiled).graph
    verify(graph)
    assert [node.op.number for node in ops(graph, Fork)] == [2, 2]
    assert [stream.kind for stream in graph.streams].count(StreamKind.FORK) == 4


def test_a_run_in_tasks_and_threads_is_recorded_too(fake):
    class Gathered(Judges):
        async def aforward(self, essay):
            judged = await asyncio.gather(self.style.acall(essay=essay), self.logic.acall(essay=essay))
            return await self.sum.acall(verdicts=[one.verdict for one in judged])

    class Threads(Judges):
        def forward(self, essay):
            pairs = [(judge, {"essay": essay}) for judge in (self.style, self.logic)]
            return dspy.Prediction(all=dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs))

    gathered, threads = compile_module(Gathered()), compile_module(Threads())
    asyncio.run(gathered.acall(essay=ESSAY))
    threads(essay=ESSAY)
    assert sorted(call.predictor for call in plan_of(gathered).first_run.recording.calls) == ["logic", "style", "sum"]
    assert sorted(call.predictor for call in plan_of(threads).first_run.recording.calls) == ["logic", "style"]


def test_the_picture_is_drawn_and_refused_before_the_first_run(fake):
    compiled = compile_module(Judges(), hoist=["essay"])
    with pytest.raises(InvalidArgumentError, match="has run"):
        explain(compiled).svg()
    compiled(essay=ESSAY)
    svg = explain(compiled).svg()
    assert svg.startswith("<svg")
    assert "Judges" in svg
