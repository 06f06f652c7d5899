"""DSPy's answer cache in front of the engine: what it holds apart, and what a hit is."""

import asyncio

import dspy
import pytest
from dspy import lm15

from sgl_dspy.engine import SglEngine
from sgl_dspy.formats.reply_program import PROGRAM_KEY, Choice, Forced, ReplyProgram
from sgl_dspy.lm import SglLM


def test_a_hit_runs_no_engine_and_has_no_usage(lm, fake):
    assert lm("Hello") == lm("Hello")
    assert len(fake.requests) == 1
    assert (lm.history[0]["usage"] != {}, lm.history[1]["usage"]) == (True, {})


def test_a_hit_adds_nothing_to_tracked_usage(lm):
    dspy.configure(track_usage=True)
    predict = dspy.Predict("question -> answer")
    assert predict(question="why?").get_lm_usage() != {}
    assert predict(question="why?").get_lm_usage() == {}


def test_a_hit_of_n_candidates_brings_all_of_them(lm, fake):
    texts = lm("Hello", n=3, temperature=1.0)
    assert lm("Hello", n=3, temperature=1.0) == texts
    assert len(fake.requests) == 3


@pytest.mark.parametrize(
    "other", [{"temperature": 0.5}, {"max_tokens": 7}, {"stop": ["x"]}, {"top_p": 0.5}, {"metadata": {"run": 1}}]
)
def test_other_options_are_other_entries(lm, fake, other):
    lm("Hello")
    lm("Hello", **other)
    assert len(fake.requests) == 2


def test_a_rollout_is_an_entry_of_its_own_and_comes_again(lm, fake):
    texts = [lm("Hello", temperature=1.0, rollout_id=rollout)[0] for rollout in (None, 1, 2, 1, 2)]
    assert texts[1:3] == texts[3:]
    assert len(set(texts)) == len(fake.requests) == 3


def test_a_plain_call_never_warms_an_awaited_one(lm, fake):
    lm("Hello")
    asyncio.run(lm.acall("Hello"))
    asyncio.run(lm.acall("Hello"))
    assert len(fake.requests) == 2


def test_a_typed_request_has_entries_of_its_own(lm, fake, ask):
    lm("Hello", temperature=0.0, max_tokens=1000)
    for _ in range(2):
        lm(ask("Hello", model=lm.model, temperature=0.0, max_tokens=1000))
    assert len(fake.requests) == 2


def test_the_key_does_not_know_the_engine_but_our_label_does(scripted):
    """Two engines under one name answer for each other, which is why the name holds a hash of the weights."""
    first, second = scripted({"": "from one"}), scripted({"": "from two"})
    assert dspy.LM("sgl/same", engine=SglEngine(first))("Hello") == ["from one"]
    assert dspy.LM("sgl/same", engine=SglEngine(second))("Hello") == ["from one"]
    assert second.requests == []


def test_two_plans_never_share_an_entry(lm, fake):
    plans = [ReplyProgram((Forced("It is "), Choice("colour", choices))) for choices in (("red", "blue"), ("old", "new"))]
    texts = [lm("What?", metadata={PROGRAM_KEY: plan.to_json()})[0] for plan in plans]
    assert texts[0] in {"It is red", "It is blue"}
    assert texts[1] in {"It is old", "It is new"}
    assert lm("What?", metadata={PROGRAM_KEY: plans[0].to_json()}) == texts[:1]
    assert len(fake.requests) == 2


def test_a_plan_stands_in_the_historys_options(lm):
    plan = ReplyProgram((Choice("colour", ("red",)),)).to_json()
    lm("What?", metadata={"run": "7", PROGRAM_KEY: plan})
    assert lm.history[0]["kwargs"]["metadata"] == {"run": "7", PROGRAM_KEY: plan}


def test_prompt_cache_options_are_part_of_the_key(lm, fake):
    for key in ("a", "b", "a"):
        lm("Hello", prompt_cache=lm15.CacheConfig(key=key))
    assert [request.namespace for request in fake.requests] == ["a", "b"]


def test_cache_false_asks_the_engine_every_time(fake):
    lm = SglLM(backend=fake, cache=False)
    assert lm("Hello") == lm("Hello")
    assert len(fake.requests) == 2


def test_cache_false_of_one_call_neither_reads_nor_writes(lm, fake):
    lm("Hello", cache=False)
    lm("Hello")
    lm("Hello", cache=False)
    assert len(fake.requests) == 3


def test_a_failure_is_not_kept(scripted):
    outcomes = iter([RuntimeError("once"), None])
    lm = SglLM(backend=scripted(fail=lambda request: next(outcomes)))
    with pytest.raises(dspy.LMUnexpectedError):
        lm("Hello")
    assert lm("Hello")


def test_entries_on_disk_serve_a_new_process(tmp_path, scripted):
    """What a restart would find: another backend of the same label, an empty memory, the same folder."""
    fakes = scripted({"": "kept"}), scripted({"": "new"})
    for fake in fakes:
        dspy.configure_cache(enable_disk_cache=True, enable_memory_cache=True, disk_cache_dir=str(tmp_path))
        assert SglLM(backend=fake)("Hello") == ["kept"]
    assert [len(fake.requests) for fake in fakes] == [1, 0]
