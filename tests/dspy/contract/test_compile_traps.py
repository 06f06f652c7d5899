"""A compiled module is the same program: same class, same names, same files, same traces; only its calls are laid out otherwise."""

import asyncio
import inspect
import json
import types
from multiprocessing.reduction import ForkingPickler

import dspy
import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_dspy.adapters import ChatAdapter
from sgl_dspy.best_of_n import BestOfN
from sgl_dspy.compiled.batching import run_batch
from sgl_dspy.compiled.compiling import compile_module
from sgl_dspy.compiled.explaining import explain
from sgl_dspy.formats.reply_program import PROGRAM_KEY
from sgl_dspy.lm import SglLM


class Judges(dspy.Module):
    """Three opinions on one essay, and a verdict."""

    def __init__(self):
        super().__init__()
        self.style = dspy.Predict("essay -> style")
        self.logic = dspy.Predict("essay -> logic")
        self.verdict = dspy.Predict("essay, opinions: list[str] -> answer")

    def forward(self, essay):
        opinions = [self.style(essay=essay).style, self.logic(essay=essay).logic]
        return self.verdict(essay=essay, opinions=opinions)

    async def aforward(self, essay):
        found = await asyncio.gather(self.style.acall(essay=essay), self.logic.acall(essay=essay))
        return await self.verdict.acall(essay=essay, opinions=[found[0].style, found[1].logic])


class Qa(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.ChainOfThought("question -> answer")

    def forward(self, question):
        return self.answer(question=question)


@pytest.fixture
def ready(lm, fake, echo):
    fake.script.update(
        answer=lambda prompt, params: echo(prompt, params) if "## question ##" in prompt else "so", reasoning="because"
    )
    return lm


def has_plan(lm):
    return [PROGRAM_KEY in (entry["kwargs"].get("metadata") or {}) for entry in lm.history]


# ---- the same program ------------------------------------------------------------------------------------------------
def test_class_names_and_source_are_the_same():
    compiled = compile_module(Judges(), hoist=["essay"])
    assert type(compiled) is Judges
    assert isinstance(compiled, Judges)
    assert [name for name, _ in compiled.named_predictors()] == ["style", "logic", "verdict"]
    assert "Three opinions" in inspect.getsource(type(compiled))


def test_the_module_itself_stays_as_it_was(ready):
    module = Qa()
    compiled = compile_module(module)
    assert "forward" not in vars(module)
    assert compiled is not module
    assert compiled.answer.predict is not module.answer.predict


def test_states_are_those_of_the_plain_program(ready, tmp_path):
    module, compiled = Judges(), compile_module(Judges(), hoist=["essay"])
    assert compiled.dump_state() == module.dump_state()
    for program, name in ((module, "plain.json"), (compiled, "compiled.json")):
        program.save(str(tmp_path / name))
    plain, other = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("plain.json", "compiled.json"))
    assert plain == other


def test_a_compiled_programs_state_is_loaded_by_a_plain_one_and_back(ready, tmp_path):
    compiled = compile_module(Qa())
    compiled.answer.predict.demos = [dspy.Example(question="a", reasoning="b", answer="c")]
    compiled.save(str(tmp_path / "state.json"))
    plain = Qa()
    plain.load(str(tmp_path / "state.json"))
    assert plain(question="why").answer == "re: why"
    again = compile_module(Qa())
    again.load(str(tmp_path / "state.json"))
    assert len(again.answer.predict.demos) == 1
    assert again(question="how").answer == "re: how"


def test_no_warning_of_dspy_about_direct_forward_calls(ready, caplog):
    compile_module(Qa())(question="why")
    assert not any("forward" in record.getMessage() for record in caplog.records)


def test_a_forward_that_stood_in_the_instance_is_called(ready):
    module = Qa()
    module.forward = types.MethodType(lambda self, question: dspy.Prediction(answer=f"own {question}"), module)
    assert compile_module(module)(question="why").answer == "own why"


# ---- copies ----------------------------------------------------------------------------------------------------------
def test_a_deep_copy_calls_its_own_predictors(ready):
    compiled = compile_module(Qa())
    twin = compiled.deepcopy()
    twin.answer.predict.signature = twin.answer.predict.signature.with_instructions("Be brief, twin.")
    with dspy.context(trace=[]):
        twin(question="why")
        (entry,) = dspy.settings.trace
    assert entry[0] is twin.answer.predict


def test_it_goes_through_cloudpickle_and_still_has_its_plan(ready):
    compiled = compile_module(Judges(), hoist=["essay"])
    thawed = ForkingPickler.loads(pytest.importorskip("cloudpickle").dumps(compiled))
    with dspy.context(trace=[]):
        thawed(essay="long")
        assert [entry[0] for entry in dspy.settings.trace] == [thawed.style, thawed.logic, thawed.verdict]
    assert all(has_plan(ready))


def test_a_plan_holds_no_lm(ready):
    module = Qa()
    module.set_lm(ready)
    compiled = compile_module(module)
    compiled(question="why")
    assert not any(isinstance(value, dspy.BaseLM) for value in vars(compiled._plan).values())
    assert b"SglLM" not in bytes(ForkingPickler.dumps(compiled._plan))


def test_it_is_saved_whole_and_loaded(ready, tmp_path):
    compile_module(dspy.ChainOfThought("question -> answer")).save(str(tmp_path / "whole"), save_program=True)
    assert dspy.load(str(tmp_path / "whole"), allow_pickle=True)(question="why").answer == "re: why"


# ---- calls -----------------------------------------------------------------------------------------------------------
def test_answers_traces_and_histories_are_those_of_the_plain_program(ready):
    plain, compiled = Qa(), compile_module(Qa())
    for program in (plain, compiled):
        with dspy.context(trace=[]):
            prediction = program(question="why")
            trace = list(dspy.settings.trace)
        assert prediction.answer == "re: why"
        assert [(entry[0], entry[1]) for entry in trace] == [(program.answer.predict, {"question": "why"})]
        assert trace[0][2].answer == prediction.answer
    assert len(ready.history) == 2


def test_its_calls_have_plans_of_our_adapter_without_any_setting(ready):
    compile_module(Qa())(question="why")
    Qa()(question="how")
    assert has_plan(ready) == [True, False]


def test_an_adapter_of_the_kind_that_is_configured_is_used(ready, fake):
    with dspy.context(adapter=dspy.JSONAdapter()):
        compile_module(Qa())(question="why")
    assert "JSON object" in fake.prompts()[0]


def test_an_adapter_that_is_neither_is_left_alone(scripted):
    fake = scripted()
    fake._reply = lambda ids, params: "<reasoning>so</reasoning><answer>yes</answer>"
    with dspy.context(lm=SglLM(backend=fake), adapter=dspy.XMLAdapter()):
        assert compile_module(Qa())(question="why").answer == "yes"


def test_it_runs_on_an_lm_that_is_not_ours():
    class Other:
        def complete(self, request):
            text = "[[ ## reasoning ## ]]\nso\n\n[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"
            assert PROGRAM_KEY not in repr(request)
            return dspy.lm15.Response("id", request.model, dspy.lm15.Message.assistant(text), "stop", dspy.lm15.Usage())

    with dspy.context(lm=dspy.LM("other/model", engine=Other())):
        assert compile_module(Qa())(question="why").answer == "yes"


def test_it_works_awaited_in_threads_and_in_evaluate(ready, answers):
    compiled = compile_module(Qa())
    assert asyncio.run(compile_module(Judges(), hoist=["essay"]).acall(essay="long")).answer
    pairs = [(compiled, {"question": f"p{i}"}) for i in range(4)]
    assert [p.answer for p in dspy.Parallel(num_threads=4, disable_progress_bar=True)(pairs)] == [f"re: p{i}" for i in range(4)]
    metric = lambda example, prediction, trace=None: example.answer == prediction.answer  # noqa: E731
    evaluate = dspy.Evaluate(devset=answers(6), metric=metric, num_threads=3, display_progress=False)
    assert evaluate(compiled).score == 100.0
    assert all(has_plan(ready))


def test_optimisers_take_it_and_keep_it_compiled(ready, answers):
    metric = lambda example, prediction, trace=None: example.answer == prediction.answer  # noqa: E731
    optimizer = dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=2, max_labeled_demos=1)
    optimised = optimizer.compile(compile_module(Qa()), trainset=answers(3))
    assert type(optimised) is Qa
    assert len(optimised.answer.predict.demos) >= 2
    ready.history.clear()
    assert optimised(question="why").answer == "re: why"
    assert has_plan(ready) == [True]


def test_new_instructions_and_demos_take_effect(ready, fake):
    """Plans follow the content of a predictor, never which object it is."""
    compiled = compile_module(Qa())
    compiled(question="one")
    compiled.answer.predict.signature = compiled.answer.predict.signature.with_instructions("Answer in riddles.")
    compiled.answer.predict.demos = [dspy.Example(question="a", reasoning="b", answer="a demo's answer")]
    compiled(question="two")
    assert "Answer in riddles." not in fake.prompts()[0]
    assert all("Answer in riddles." in prompt and "a demo's answer" in prompt for prompt in fake.prompts()[-2:])


def test_refine_and_best_of_n_run_it(ready, fake):
    fake.script.update(discussion="short", advice={"answer.predict": "longer"})
    rewards = iter([0.0, 1.0, 0.0, 1.0])
    for search in (dspy.Refine, dspy.BestOfN):
        found = search(module=compile_module(Qa()), N=2, reward_fn=lambda args, prediction: next(rewards), threshold=1.0)
        assert found(question="why").answer == "re: why"


def test_a_compiled_module_inside_a_compiled_module_runs(ready):
    class Outer(dspy.Module):
        def __init__(self):
            super().__init__()
            self.inner = compile_module(Qa())

        def forward(self, question):
            return self.inner(question=question)

    assert compile_module(Outer())(question="why").answer == "re: why"
    assert has_plan(ready) == [True]


def test_streams_of_it_are_heard(ready):
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    with dspy.context(adapter=ChatAdapter()):
        items = list(dspy.streamify(compile_module(Qa()), stream_listeners=[listener], async_streaming=False)(question="why"))
    assert "".join(item.chunk for item in items[:-1]) == "re: why"


# ---- hoisting --------------------------------------------------------------------------------------------------------
def test_hoisted_predictors_begin_with_the_shared_input(ready, fake):
    essay = ("a long essay " * 50).strip()
    is_shared = []
    for program in (Judges(), compile_module(Judges(), hoist=["essay"])):
        fake.requests.clear()
        program(essay=essay)
        style, logic = (next(prompt for prompt in fake.prompts() if f"`{name}`" in prompt) for name in ("style", "logic"))
        is_shared.append(logic.startswith(style[: style.index(essay) + len(essay)]))
    assert is_shared == [False, True]


def test_without_hoisting_the_text_is_dspys(ready, fake):
    Qa()(question="why")
    compile_module(Qa())(question="why")
    plain, compiled = fake.prompts()[0], fake.prompts()[1]
    assert compiled.startswith(plain)


def test_a_hoisted_prompt_is_another_entry_of_the_answer_cache(ready, fake):
    with dspy.context(adapter=ChatAdapter()):
        Judges()(essay="long")
        before = len(fake.requests)
        compile_module(Judges(), hoist=["essay"])(essay="long")
    assert len(fake.requests) > before


@pytest.mark.parametrize(
    "bad", [{"hoist": ["esay"]}, {"hoist": ["opinions"]}, {"hoist": "essay"}, {"speculate": 0}, {"hoits": []}]
)
def test_wrong_options_are_refused(bad):
    with pytest.raises((InvalidArgumentError, TypeError)):
        compile_module(Judges(), **bad)


def test_what_is_no_module_is_refused():
    with pytest.raises(InvalidArgumentError, match="module"):
        compile_module(lambda question: question)


# ---- batches, searches, explanations ---------------------------------------------------------------------------------
def test_a_batch_gives_what_parallel_gives(ready, answers):
    examples = answers(5)
    parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)([(Qa(), example) for example in examples])
    batch = run_batch(compile_module(Qa()), examples, progress=False)
    assert [p.answer for p in batch] == [p.answer for p in parallel] == [f"re: q{i}" for i in range(5)]


def test_a_batch_inside_a_running_loop_works_too(ready, answers):
    async def inside():
        return run_batch(Qa(), answers(3), progress=False)

    assert [p.answer for p in asyncio.run(inside())] == [f"re: q{i}" for i in range(3)]


def reward(args, prediction):
    return float(prediction.answer.endswith("7"))


@pytest.mark.parametrize("speculate", [1, 3, 6])
def test_our_best_of_n_predicts_what_dspys_does_and_traces_the_winner_only(ready, fake, speculate):
    fake.script["answer"] = lambda prompt, params: f"number {(params.seed or 0) % 5 + 4}"
    found = {}
    for make in (dspy.BestOfN, BestOfN):
        extra = {"speculate": speculate} if make is BestOfN else {}
        module = Qa()
        best = make(module=module, N=6, reward_fn=reward, threshold=1.0, **extra)
        with dspy.context(lm=ready.copy(seed=11, cache=False), trace=[]):
            prediction = best(question="why")
            trace = list(dspy.settings.trace)
        found[make] = (prediction.answer, best.fail_count, [(entry[1], entry[2].answer) for entry in trace])
    assert found[BestOfN] == found[dspy.BestOfN]
    assert len(found[BestOfN][2]) == 1


@pytest.mark.parametrize("num_failing", [1, 3])
def test_failing_attempts_count_down_as_in_dspys_loop(ready, num_failing):
    found = []
    for make in (dspy.BestOfN, BestOfN):
        left = [None] * num_failing

        def fails_first(args, prediction, left=left):
            if left:
                left.pop()
                raise ValueError("no reward")
            return 1.0

        best = make(module=Qa(), N=4, reward_fn=fails_first, threshold=1.0)
        with dspy.context(lm=ready.copy(seed=11, cache=False)):
            found.append((best(question="why").answer, best.fail_count))
    assert found[0] == found[1] == ("re: why", 4 - num_failing)


def test_attempts_that_are_thrown_away_are_counted_as_usage(ready):
    lm = ready.copy(cache=False)
    dspy.configure(track_usage=True)
    best = BestOfN(module=Qa(), N=3, reward_fn=lambda args, prediction: 0.0, threshold=1.0, speculate=3)
    with dspy.context(lm=lm), dspy.utils.usage_tracker.track_usage() as tracker:
        best(question="why")
    with dspy.context(lm=lm), dspy.utils.usage_tracker.track_usage() as once:
        Qa()(question="why")
    assert tracker.get_total_tokens()[lm.model]["prompt_tokens"] == 3 * once.get_total_tokens()[lm.model]["prompt_tokens"]


def test_an_explanation_names_what_blocks_sharing_and_the_cure(ready):
    told = str(explain(Judges()))
    assert all(name in told for name in ("style", "logic", "verdict"))
    assert "hoist" in told
