"""Copies, pickles and files of programs with an LM: the engine is shared, everything else is one's own."""

import copy
import json
from multiprocessing.reduction import ForkingPickler

import dspy
import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_dspy.engine import SglAsyncEngine, SglEngine
from sgl_dspy.lm import SglLM


class Judge(dspy.Module):
    def __init__(self):
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")
        self.verdict = dspy.Predict("answer -> verdict")

    def forward(self, question):
        return self.verdict(answer=self.think(question=question).answer)


@pytest.fixture
def program(fake):
    program = Judge()
    program.set_lm(SglLM(backend=fake))
    return program


def test_a_deep_copied_program_runs_on_the_same_engine_with_an_lm_of_its_own(program, fake):
    twin = program.deepcopy()
    assert twin.get_lm() is not program.get_lm()
    assert twin.get_lm().engine is program.get_lm().engine
    assert twin(question="why?").verdict == program(question="why?").verdict
    assert len(twin.get_lm().history) == len(program.get_lm().history) == 2


def test_a_reset_copy_forgets_its_lm_as_dspy_has_it(program):
    program.think.predict.demos = [dspy.Example(question="a", answer="b")]
    fresh = program.reset_copy()
    assert fresh.think.predict.demos == []
    assert fresh.think.predict.lm is None
    assert len(program.think.predict.demos) == 1


def test_copying_with_a_rollout_keeps_the_engine_and_starts_a_history(program):
    lm = program.get_lm()
    lm("Hello")
    twin = lm.copy(rollout_id=3, temperature=1.0)
    assert (twin.engine, twin.history, twin.kwargs["rollout_id"]) == (lm.engine, [], 3)
    assert "rollout_id" not in lm.kwargs


def test_a_deep_copy_takes_the_history_along_and_it_is_small(program):
    lm = program.get_lm()
    lm("Hello")
    twin = copy.deepcopy(lm)
    assert [entry["uuid"] for entry in twin.history] == [entry["uuid"] for entry in lm.history]
    assert len(bytes(ForkingPickler.dumps(lm.history))) < 20_000


def test_an_lm_in_use_can_be_deep_copied(fake):
    """Locks of the LM are left out, and the engine is itself."""
    lm = SglLM(backend=fake, callbacks=[], seed=7, prompt_cache=dspy.lm15.CacheConfig(key="mine"))
    lm("Hello", n=2, temperature=1.0)
    twin = copy.deepcopy(lm)
    assert twin("Hello again") == lm("Hello again")
    assert twin.engine is lm.engine


def test_copies_of_a_pair_stay_a_pair(fake):
    engine = SglEngine(fake)
    one, two = copy.deepcopy((engine, SglAsyncEngine(engine)))
    assert one is engine
    assert two.shares_backend_with(one)


def test_loading_a_state_twice_over_takes_handles_and_no_weights(engines, model_folder, tmp_path):
    """DSPy applies a state to a trial copy first."""
    program = Judge()
    program.set_lm(SglLM(str(model_folder), temperature=0.5))
    program.save(str(tmp_path / "program.json"))
    loaded = Judge()
    loaded.load(str(tmp_path / "program.json"), allow_unsafe_lm_state=True)
    assert engines == []
    assert loaded.verdict.lm.model == loaded.think.predict.lm.model == program.get_lm().model
    assert loaded.verdict.lm("Hello") == loaded.think.predict.lm("Hello")
    assert len(engines) == 1


def test_a_program_with_our_lm_is_not_loaded_unasked(engines, model_folder, tmp_path):
    program = Judge()
    program.set_lm(SglLM(str(model_folder)))
    program.save(str(tmp_path / "program.json"))
    with pytest.raises(ValueError, match="unsafe"):
        Judge().load(str(tmp_path / "program.json"))
    assert engines == []


def test_a_saved_lm_holds_no_secret_and_no_path_of_a_runtime(model_folder):
    state = SglLM(str(model_folder), engine_options={"max_running": 4}, seed=3).dump_state()
    assert json.loads(json.dumps(state)) == state
    assert state["engine"]["state"] == {"options": {"model": str(model_folder), "max_running": 4}}
    assert {"model", "model_type", "cache", "num_retries", "seed", "temperature", "max_tokens"} <= state.keys()
    assert state["engine"]["class"] == "sgl_dspy.engine:SglEngine"


def test_every_key_of_a_state_is_taken_back_by_the_constructor(engines, model_folder):
    lm = SglLM(
        str(model_folder),
        cache=False,
        num_retries=2,
        finetuning_model="other",
        launch_kwargs={"a": 1},
        train_kwargs={"b": 2},
        top_p=0.5,
        stop=["x"],
        n=2,
    )
    loaded = SglLM.load_state(lm.dump_state(), allow_custom_lm_class=True)
    assert loaded.dump_state() == lm.dump_state()


def test_a_prompt_cache_setting_survives_saving(engines, model_folder):
    lm = SglLM(str(model_folder), prompt_cache=dspy.lm15.CacheConfig(key="mine"))
    state = json.loads(json.dumps(lm.dump_state()))
    assert SglLM.load_state(state, allow_custom_lm_class=True).kwargs["prompt_cache"].key == "mine"


def test_a_plain_lm_with_our_engine_is_saved_and_loaded_too(engines, model_folder):
    engine = SglEngine(model=str(model_folder))
    plain = dspy.LM("sgl/any", engine=engine, async_engine=SglAsyncEngine(engine))
    loaded = dspy.BaseLM.load_state(plain.dump_state(), allow_custom_lm_class=True)
    assert type(loaded) is dspy.LM
    assert loaded("Hello")
    assert len(engines) == 1
    with pytest.raises(ValueError, match="custom"):
        dspy.BaseLM.load_state(plain.dump_state())


def test_a_program_on_a_borrowed_backend_says_what_to_do_instead_of_saving(program, tmp_path):
    with pytest.raises(InvalidArgumentError, match="engine_options"):
        program.save(str(tmp_path / "program.json"))


def test_whole_programs_with_an_open_model_go_through_cloudpickle(engines, model_folder, tmp_path):
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(SglLM(str(model_folder)))
    program.get_lm()("Hello")
    program.save(str(tmp_path / "folder"), save_program=True)
    loaded = dspy.load(str(tmp_path / "folder"), allow_pickle=True)
    loaded.get_lm()("Hello again", cache=False)
    assert len(engines) == 1
