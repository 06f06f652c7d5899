"""``run_batch``: results, errors and what is computed first."""

import asyncio
import logging
import threading

import dspy
import pytest

from sgl_core.backend import Capabilities
from sgl_core.errors import InvalidArgumentError, RequestAborted
from sgl_core.testing import FakeBackend
from sgl_dspy.compiled.batching import run_batch
from sgl_dspy.compiled.compiling import compile_module
from sgl_dspy.lm import SglLM

WAIT_S = 60.0


class Echo(dspy.Module):
    """Awaitable; fails for the questions that say so."""

    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    async def aforward(self, question):
        if question.startswith("fail"):
            raise ValueError("no such question")
        prediction = await self.ask.acall(question=question)
        return dspy.Prediction(question=question, answer=prediction.answer)


class Blocking(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question):
        return self.ask(question=question)


@pytest.fixture
def fake():
    with FakeBackend(reply=lambda ids, params: "fine") as backend:
        dspy.configure(lm=SglLM(backend=backend, cache=False))
        yield backend


def quiet(module, examples, **options):
    return run_batch(compile_module(module), examples, progress=False, **options)


def questions(*texts):
    return [{"question": text} for text in texts]


def test_results_are_in_the_order_of_the_examples(fake):
    results = quiet(Echo(), questions(*(f"q{number}" for number in range(20))))
    assert [result.question for result in results] == [f"q{number}" for number in range(20)]


def test_no_examples_give_no_results(fake):
    assert quiet(Echo(), []) == []
    assert quiet(Echo(), [], return_failed_examples=True) == ([], [], [])


def test_examples_of_dspy_give_their_inputs(fake):
    example = dspy.Example(question="Why?", answer="gold").with_inputs("question")
    assert quiet(Echo(), [example])[0].question == "Why?"


def test_tuples_are_positional_arguments(fake):
    assert quiet(Echo(), [("Why?",)])[0].question == "Why?"


def test_a_module_that_is_not_compiled_runs_as_well(fake):
    dspy.configure(adapter=dspy.JSONAdapter())
    with FakeBackend(reply=lambda ids, params: '{"answer": "42"}') as json_fake, dspy.context(lm=SglLM(backend=json_fake)):
        assert [one.answer for one in run_batch(Echo(), questions("a", "b"), progress=False)] == ["42", "42"]


def test_all_examples_are_under_way_at_once():
    together = threading.Barrier(6)

    def reply(ids, params):
        together.wait(WAIT_S)
        return "fine"

    with FakeBackend(reply=reply) as fake:
        dspy.configure(lm=SglLM(backend=fake, cache=False))
        for module in (Echo(), Blocking()):
            assert len(quiet(module, questions(*"abcdef"))) == 6


def test_max_concurrency_bounds_what_is_under_way(fake):
    under_way, most = [], []

    class Counting(Echo):
        async def aforward(self, question):
            under_way.append(question)
            most.append(len(under_way))
            await asyncio.sleep(0)
            prediction = await super().aforward(question)
            under_way.remove(question)
            return prediction

    quiet(Counting(), questions(*"abcdefgh"), max_concurrency=2)
    assert max(most) == 2


def test_a_module_without_aforward_keeps_settings_in_its_threads(fake):
    class Reading(Blocking):
        def forward(self, question):
            return dspy.Prediction(mark=dspy.settings.my_mark)

    with dspy.context(my_mark="here"):
        assert [one.mark for one in quiet(Reading(), questions("a", "b"))] == ["here", "here"]


def test_it_runs_inside_a_running_loop_too(fake):
    async def inside():
        with dspy.context(my_mark="here"):
            return quiet(Echo(), questions("a", "b"))

    assert [one.question for one in asyncio.run(inside())] == ["a", "b"]


# ---- errors ----------------------------------------------------------------------------------------------------------
def test_failed_examples_are_none_and_come_with_their_errors(fake):
    examples = questions("a", "fail 1", "b", "fail 2")
    results, failed, errors = quiet(Echo(), examples, return_failed_examples=True)
    assert [result and result.question for result in results] == ["a", None, "b", None]
    assert failed == [examples[1], examples[3]]
    assert [type(error) for error in errors] == [ValueError, ValueError]
    assert quiet(Echo(), examples)[1] is None


def test_results_and_errors_are_those_of_dspys_parallel(fake):
    class Both(Echo):
        def forward(self, question):
            if question.startswith("fail"):
                raise ValueError("no such question")
            return dspy.Prediction(question=question, answer=self.ask(question=question).answer)

    examples, module = questions("a", "fail 1", "b"), compile_module(Both())
    parallel = dspy.Parallel(num_threads=1, return_failed_examples=True, disable_progress_bar=True)
    expected, failed, errors = parallel([(module, example) for example in examples])
    results, ours_failed, ours_errors = run_batch(module, examples, return_failed_examples=True, progress=False)
    assert [one and one.toDict() for one in results] == [one and one.toDict() for one in expected]
    assert (ours_failed, list(map(repr, ours_errors))) == (failed, list(map(repr, errors)))


def test_max_errors_end_the_batch(fake):
    with pytest.raises(RequestAborted, match="2 examples failed") as caught:
        quiet(Echo(), questions("fail 1", "fail 2", "a"), max_errors=2)
    assert isinstance(caught.value.__cause__, ValueError)


def test_dspys_setting_is_the_default_of_max_errors(fake):
    with dspy.context(max_errors=1), pytest.raises(RequestAborted):
        quiet(Echo(), questions("fail 1", "a"))


@pytest.mark.parametrize("with_traceback", [True, False])
def test_errors_are_logged_without_the_prompt(fake, caplog, with_traceback):
    with caplog.at_level(logging.ERROR, logger="sgl_dspy.compiled.batching"):
        quiet(Echo(), questions("fail secretly"), provide_traceback=with_traceback)
    (record,) = caplog.records
    assert record.getMessage() == "run_batch: example 0 failed: ValueError: no such question"
    assert (record.exc_info is not None) == with_traceback


@pytest.mark.parametrize("example", ["text", 5, ["a list"]])
def test_an_example_of_another_kind_is_refused_before_anything_runs(fake, example):
    with pytest.raises(InvalidArgumentError, match=r"examples\[1\]"):
        quiet(Echo(), [{"question": "a"}, example])
    assert fake.requests == []


@pytest.mark.parametrize("options", [{"max_errors": 0}, {"max_concurrency": 0}, {"max_concurrency": True}])
def test_options_out_of_range_are_refused(fake, options):
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        quiet(Echo(), questions("a"), **options)


@pytest.mark.parametrize("examples", [5, {"question": "a"}, "text", dspy.Example(question="a").with_inputs("question")])
def test_one_example_instead_of_a_list_is_refused(fake, examples):
    with pytest.raises(InvalidArgumentError, match=r"^examples: "):
        quiet(Echo(), examples)
    assert fake.requests == []


def test_what_is_no_module_is_refused():
    with pytest.raises(InvalidArgumentError, match="module"):
        run_batch(print, [])


def test_progress_goes_to_stderr(fake, capsys):
    run_batch(compile_module(Echo()), questions("a", "b"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "examples" in captured.err


# ---- what is computed first ------------------------------------------------------------------------------------------
class TwoSteps(dspy.Module):
    def __init__(self):
        super().__init__()
        self.second = dspy.Predict("draft -> answer")
        self.first = dspy.Predict("question -> draft")

    async def aforward(self, question):
        draft = (await self.first.acall(question=question)).draft
        return await self.second.acall(draft=draft)


def test_static_prefixes_are_prefetched_and_begin_the_prompts(fake):
    quiet(TwoSteps(), questions("Who?", "why?"))
    assert [request.when_idle for request in fake.prefetches] == [False, True]
    for prefetch in fake.prefetches:
        begun = [request for request in fake.requests if request.input_ids[: len(prefetch.input_ids)] == prefetch.input_ids]
        assert begun


def test_the_predictor_that_was_asked_first_is_prefetched_first(fake):
    module = compile_module(TwoSteps())
    asyncio.run(module.acall(question="Who?"))
    run_batch(module, questions("a", "b"), progress=False)
    first = fake.prefetches[0]
    assert not first.when_idle
    assert "`draft` (str)" in fake.codec.decode(first.input_ids).partition("Your output fields are")[2]


def test_one_example_alone_is_not_worth_a_prefetch(fake):
    quiet(TwoSteps(), questions("a"))
    assert fake.prefetches == []


def test_an_engine_that_shares_in_flight_computes_the_first_prefix_by_itself():
    class Sharing(FakeBackend):
        capabilities = Capabilities(cached_tokens=False, heal=True, shares_in_flight=True)

    with Sharing(reply=lambda ids, params: "fine") as fake:
        dspy.configure(lm=SglLM(backend=fake, cache=False))
        quiet(TwoSteps(), questions("a", "b"))
        assert [request.when_idle for request in fake.prefetches] == [True]


def test_what_is_computed_first_stays_in_the_namespace_of_the_lm():
    fake = FakeBackend(reply=lambda ids, params: "fine")
    dspy.configure(lm=SglLM(backend=fake, namespace="ours"))
    quiet(Echo(), [{"question": text} for text in ("one", "two")])
    assert {request.namespace for request in fake.prefetches} == {"ours"}
