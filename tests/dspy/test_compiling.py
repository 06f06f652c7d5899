"""Compiled modules: the same class, the same files, and what changes inside."""

import asyncio
import copy
import inspect
import json
import threading

import dspy
import pytest
from dspy.teleprompt import BootstrapFewShot, BootstrapFewShotWithRandomSearch

from sgl_core.errors import InvalidArgumentError, UnknownOptionError
from sgl_core.testing import FakeBackend
from sgl_dspy import plugin
from sgl_dspy.adapters import ChatAdapter, JSONAdapter
from sgl_dspy.compiled.compiling import adapter_like, compile_module, plan_of
from sgl_dspy.formats.hoisting import current_layout
from sgl_dspy.lm import SglLM

WAIT_S = 60.0


class Judges(dspy.Module):
    def __init__(self):
        super().__init__()
        self.judges = [dspy.Predict(dspy.Signature("essay -> verdict", f"Judge the {topic}.")) for topic in ("style", "logic")]
        self.verdict = dspy.Predict("verdicts: list[str] -> summary")

    def forward(self, essay):
        return self.verdict(verdicts=[judge(essay=essay).verdict for judge in self.judges])

    async def aforward(self, essay):
        judged = await asyncio.gather(*(judge.acall(essay=essay) for judge in self.judges))
        return await self.verdict.acall(verdicts=[one.verdict for one in judged])


class OneShot(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question):
        return self.ask(question=question)


class Holding(Judges):
    """Cannot be deep-copied as a whole, so DSPy copies it attribute by attribute."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.fixture
def fake():
    with FakeBackend(reply=lambda ids, params: "fine") as backend:
        dspy.configure(lm=SglLM(backend=backend, cache=False))
        yield backend


def prompts(fake):
    return [fake.codec.decode(request.input_ids) for request in fake.requests]


def is_hoisted(prompt):
    return prompt.index("[[ ## essay ## ]]\nIt was") < prompt.index("Your input fields are")


# ---- what it is ------------------------------------------------------------------------------------------------------
def test_a_compiled_module_is_a_copy_of_the_same_class(fake):
    module = Judges()
    compiled = compile_module(module, hoist=["essay"])
    assert type(compiled) is Judges
    assert compiled is not module
    assert [name for name, _ in compiled.named_predictors()] == [name for name, _ in module.named_predictors()]
    assert "forward" not in module.__dict__
    assert inspect.getsource(type(compiled)) == inspect.getsource(Judges)
    assert str(inspect.signature(object.__getattribute__(compiled, "forward"))) == "(essay)"


def test_state_files_are_those_of_the_module_itself(fake, tmp_path):
    module = Judges()
    compiled = compile_module(module, hoist=["essay"])
    module.save(tmp_path / "plain.json")
    compiled.save(tmp_path / "compiled.json")
    assert json.loads((tmp_path / "compiled.json").read_text()) == json.loads((tmp_path / "plain.json").read_text())
    loaded = compile_module(Judges(), hoist=["essay"])
    loaded.load(tmp_path / "plain.json")
    loaded(essay="It was.")
    assert is_hoisted(prompts(fake)[0])


def test_a_predictor_alone_can_be_compiled(fake):
    compiled = compile_module(dspy.Predict("question, context -> answer"), reorder_inputs=["context"])
    assert type(compiled) is dspy.Predict
    assert compiled(question="why?", context="c").answer == "fine"
    assert prompts(fake)[0].index("[[ ## context ## ]]\nc") < prompts(fake)[0].index("[[ ## question ## ]]\nwhy?")


def test_a_listener_hears_a_field_of_a_compiled_module(fake):
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    streaming = dspy.streamify(compile_module(OneShot()), stream_listeners=[listener])

    async def collect():
        return [item async for item in streaming(question="why?")]

    items = asyncio.run(asyncio.wait_for(collect(), WAIT_S))
    chunks = [item.chunk for item in items if isinstance(item, dspy.streaming.StreamResponse)]
    assert "".join(chunks).strip() == "fine"


def test_callbacks_of_modules_stay(fake):
    heard = []

    class Listening(dspy.utils.callback.BaseCallback):
        def on_module_start(self, call_id, instance, inputs):
            heard.append(instance)

    module = Judges()
    module.callbacks = [Listening()]
    compiled = compile_module(module)
    compiled(essay="It was.")
    assert heard == [compiled]


def test_each_call_leaves_one_trace_with_the_predictor_itself(fake):
    compiled = compile_module(Judges(), hoist=["essay"])
    with dspy.context(trace=[]):
        compiled(essay="It was.")
        trace = list(dspy.settings.trace)
    assert [step[0] for step in trace] == [*compiled.judges, compiled.verdict]
    assert trace[0][1] == {"essay": "It was."}


# ---- copies ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        copy.copy,
        lambda module: module.deepcopy(),
        lambda module: module.reset_copy(),
    ],
    ids=["deepcopy", "copy", "module.deepcopy", "reset_copy"],
)
def test_a_copy_runs_its_own_predictors(fake, copied):
    compiled = compile_module(Judges(), hoist=["essay"])
    other = copied(compiled)
    other.verdict = dspy.Predict(dspy.Signature("verdicts: list[str] -> summary", "The other one."))
    other(essay="It was.")
    assert is_hoisted(prompts(fake)[0])
    assert "The other one." in prompts(fake)[2]
    fake.requests.clear()
    compiled(essay="It was.")
    assert "The other one." not in prompts(fake)[2]


def test_a_module_that_dspy_copies_piece_by_piece_runs_its_own_predictors(fake):
    compiled = compile_module(Holding(), hoist=["essay"])
    other = compiled.deepcopy()
    other.judges[0].signature = other.judges[0].signature.with_instructions("Judge otherwise.")
    other(essay="It was.")
    assert "Judge otherwise." in prompts(fake)[0]
    assert is_hoisted(prompts(fake)[0])


def test_a_saved_program_is_still_compiled(fake, tmp_path):
    compile_module(Judges(), hoist=["essay"]).save(str(tmp_path / "program"), save_program=True)
    loaded = dspy.load(str(tmp_path / "program"), allow_pickle=True)
    loaded.verdict = dspy.Predict(dspy.Signature("verdicts: list[str] -> summary", "The loaded one."))
    loaded(essay="It was.")
    assert is_hoisted(prompts(fake)[0])
    assert "The loaded one." in prompts(fake)[2]


def test_compiling_twice_adds_up(fake):
    class Two(dspy.Module):
        def __init__(self):
            super().__init__()
            self.one = dspy.Predict("question, essay -> a")
            self.two = dspy.Predict("hint, essay -> b")

        def forward(self, essay):
            return self.two(hint="h", essay=self.one(question="q", essay=essay) and essay)

    once = compile_module(Two(), reorder_inputs=["essay"])
    twice = compile_module(once, hoist=["essay"])
    assert plan_of(once).layout.hoisted == ()
    assert plan_of(twice).layout.first == ("essay",)
    twice(essay="It was.")
    assert all(map(is_hoisted, prompts(fake)))
    assert len(fake.requests) == 2


def test_a_forward_that_an_instance_has_already_is_kept(fake):
    module = OneShot()
    asked = []

    def forward(self, question):
        asked.append(self)
        return self.ask(question=question.upper())

    module.forward = forward.__get__(module)
    compiled = compile_module(module)
    compiled(question="why?")
    assert asked == [compiled]
    assert "[[ ## question ## ]]\nWHY?" in prompts(fake)[0]


# ---- settings --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ambient", "expected"), [(None, ChatAdapter), (dspy.ChatAdapter(), ChatAdapter), (dspy.JSONAdapter(), JSONAdapter)]
)
def test_the_ambient_adapter_becomes_ours_of_the_same_kind(ambient, expected):
    assert type(adapter_like(ambient)) is expected


def test_settings_of_the_ambient_adapter_keep_their_effect():
    ours = adapter_like(dspy.ChatAdapter(use_json_adapter_fallback=False, use_native_function_calling=True))
    assert (ours.use_json_adapter_fallback, ours.use_native_function_calling, ours.structure) == (False, True, "fields")


def test_our_own_and_strange_adapters_are_left_alone():
    for adapter in (ChatAdapter(structure="off"), dspy.XMLAdapter()):
        assert adapter_like(adapter) is adapter


def test_nothing_is_left_in_the_settings_afterwards(fake):
    compile_module(Judges(), hoist=["essay"])(essay="It was.")
    assert current_layout() is None
    assert dspy.settings.adapter is None


def test_what_runs_in_threads_of_dspy_is_laid_out_too(fake):
    class Threads(Judges):
        def forward(self, essay):
            pairs = [(judge, {"essay": essay}) for judge in self.judges]
            return dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)

    compile_module(Threads(), hoist=["essay"])(essay="It was.")
    assert [is_hoisted(prompt) for prompt in prompts(fake)] == [True, True]


def test_awaited_and_gathered_calls_are_laid_out_too(fake):
    compiled = compile_module(Judges(), hoist=["essay"])
    asyncio.run(asyncio.wait_for(compiled.acall(essay="It was."), WAIT_S))
    assert [is_hoisted(prompt) for prompt in prompts(fake)[:2]] == [True, True]


def test_a_compiled_module_inside_another_keeps_its_wishes_and_has_the_outer_ones(fake):
    class Outer(dspy.Module):
        def __init__(self):
            super().__init__()
            self.inner = compile_module(Judges(), hoist=["essay"])
            self.first = dspy.Predict("essay, topic -> start")
            self.second = dspy.Predict("topic, essay -> end")

        def forward(self, essay):
            self.first(essay=essay, topic="trees")
            self.inner(essay=essay)
            return self.second(essay=essay, topic="trees")

    compile_module(Outer(), hoist=["topic"])(essay="It was.")
    texts = prompts(fake)
    assert [texts[0].index("[[ ## topic ## ]]\ntrees") < texts[0].index("Your input fields are")] == [True]
    assert not is_hoisted(texts[0])
    assert is_hoisted(texts[1])
    assert not is_hoisted(texts[-1])


# ---- optimisers ------------------------------------------------------------------------------------------------------
def examples(count):
    return [dspy.Example(question=f"q{number}", answer="fine").with_inputs("question") for number in range(count)]


def is_right(example, prediction, trace=None):
    return prediction.answer == example.answer


def test_evaluate_runs_a_compiled_module(fake):
    evaluate = dspy.Evaluate(devset=examples(6), metric=is_right, num_threads=3)
    assert evaluate(compile_module(OneShot())).score == 100.0


def test_bootstrapping_gives_a_compiled_module_its_demos(fake):
    optimised = BootstrapFewShot(metric=is_right, max_bootstrapped_demos=2).compile(
        compile_module(OneShot()), trainset=examples(3)
    )
    assert type(optimised) is OneShot
    assert plan_of(optimised) is not None
    fake.requests.clear()
    optimised(question="why?")
    assert prompts(fake)[0].count("[[ ## answer ## ]]\nfine") >= 2


def test_a_random_search_finds_programs_that_are_compiled(fake):
    search = BootstrapFewShotWithRandomSearch(
        metric=is_right, max_bootstrapped_demos=1, max_labeled_demos=1, num_candidate_programs=1, num_threads=2
    )
    best = search.compile(compile_module(OneShot()), trainset=examples(3))
    assert plan_of(best) is not None
    assert best(question="why?").answer == "fine"


# ---- speculation -----------------------------------------------------------------------------------------------------
def test_attempts_of_a_best_of_n_inside_run_side_by_side():
    together = threading.Barrier(3)

    def reply(ids, params):
        together.wait(WAIT_S)
        return f"drawn with {params.seed}"

    with FakeBackend(reply=reply) as fake:
        dspy.configure(lm=SglLM(backend=fake, cache=False))
        module = dspy.BestOfN(OneShot(), N=3, reward_fn=lambda args, prediction: 0.0, threshold=1.0)
        compiled = compile_module(module, speculate=3)
        assert type(compiled) is dspy.BestOfN
        assert compiled(question="why?").answer.startswith("drawn with")
        assert len(fake.requests) == 3


def test_speculation_without_a_best_of_n_is_refused():
    with pytest.raises(InvalidArgumentError, match="BestOfN"):
        compile_module(OneShot(), speculate=2)


# ---- arguments -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("given", [OneShot, "a module", None, lambda question: question])
def test_what_is_no_module_is_refused(given):
    with pytest.raises(InvalidArgumentError, match="module"):
        compile_module(given)


def test_a_misspelt_input_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownOptionError, match="'essay'"):
        compile_module(Judges(), hoist=["esay"])
    with pytest.raises(UnknownOptionError, match="'essay'"):
        compile_module(Judges(), reorder_inputs=["essey"])


def test_a_misspelt_option_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownOptionError, match="'hoist'"):
        compile_module(Judges(), hosit=["essay"])


@pytest.mark.parametrize("given", ["essay", [1], 5])
def test_hoist_takes_a_list_of_names(given):
    with pytest.raises(InvalidArgumentError, match="hoist"):
        compile_module(Judges(), hoist=given)


def test_an_input_of_one_predictor_is_not_hoisted():
    with pytest.raises(InvalidArgumentError, match="two predictors"):
        compile_module(OneShot(), hoist=["question"])


def test_pictures_are_not_hoisted():
    class Pictures(dspy.Module):
        def __init__(self):
            super().__init__()
            self.one = dspy.Predict("picture: dspy.Image -> a")
            self.two = dspy.Predict("picture: dspy.Image -> b")

    with pytest.raises(InvalidArgumentError, match="plain data"):
        compile_module(Pictures(), hoist=["picture"])


@pytest.mark.parametrize("given", [0, True, "2", 1.5])
def test_speculate_is_a_positive_number(given):
    with pytest.raises(InvalidArgumentError, match="speculate"):
        compile_module(OneShot(), speculate=given)


# ---- the plugin ------------------------------------------------------------------------------------------------------
def test_the_plugin_translates_modules_and_nothing_else():
    compiled = plugin.sgl_translate(Judges(), {"hoist": ["essay"]})
    assert plan_of(compiled).layout.hoisted[0][0] == "essay"
    assert plugin.sgl_translate("essay", {}) is None
    with pytest.raises(UnknownOptionError):
        plugin.sgl_translate(Judges(), {"hosit": ["essay"]})
