"""The LangChain benchmark's programs and what is counted of them, without the embedded model."""

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from sgl_core.testing import ByteCodec, FakeBackend
from sgl_core.testing.optimum import LoggedRequest
from sgl_core.types import FinishReason, GenResult, TokenLogprob, Usage
from sgl_langchain import ChatSgl

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_langchain
from harness import measure
from langchain_systems import (
    COMPILED,
    HUGGING_FACE,
    OURS,
    LangChainOutcome,
    ModelCall,
    RecordingEngine,
    engine_system,
    margin,
)
from langchain_workloads import UNSHARED, WORKLOADS, build
from recording import most_at_once

SCALE = 0.34
TEMPLATE_OPENING = 16


def run(key, reply="The answer is 42."):
    """Prompts that reached the model, and what the program put out."""
    workload = build(key, scale=SCALE)
    with FakeBackend(lambda _ids, _params: reply) as backend:
        outputs = workload.drive(workload.build(lambda max_tokens: ChatSgl(engine=backend, max_tokens=max_tokens)))
        return [request.input_ids for request in backend.requests], outputs


def shared_len(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# ---- programs -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", WORKLOADS)
def test_a_program_makes_as_many_calls_as_it_says_and_puts_something_out(key):
    prompts, outputs = run(key)
    assert len(prompts) == build(key, scale=SCALE).num_calls
    assert outputs
    assert all(outputs)


@pytest.mark.parametrize("key", WORKLOADS)
def test_the_first_calls_are_those_whose_prompts_depend_on_no_answer(key):
    one, other = (Counter(run(key, reply)[0]) for reply in ("The answer is 42.", "It is not 41, I think."))
    assert (one & other).total() == build(key, scale=SCALE).num_first


@pytest.mark.parametrize("key", WORKLOADS)
def test_the_same_seed_gives_the_same_prompts(key):
    assert Counter(run(key)[0]) == Counter(run(key)[0])


def test_the_full_sizes_are_those_of_the_claims():
    assert {key: build(key).num_calls for key in ("few-shot", "judges", "self-consistency", "chat")} == {
        "few-shot": 24,
        "judges": 24,
        "self-consistency": 8,
        "chat": 6,
    }


def test_where_nothing_is_shared_prompts_have_the_opening_of_the_template_in_common_and_no_more():
    prompts, _ = run(UNSHARED)
    assert max(shared_len(a, b) for i, a in enumerate(prompts) for b in prompts[:i]) <= TEMPLATE_OPENING


def test_shots_are_most_of_a_few_shot_prompt():
    prompts, _ = run("few-shot")
    assert min(shared_len(prompts[0], other) / len(other) for other in prompts[1:]) > 0.8


# ---- systems ------------------------------------------------------------------------------------------------------------
def test_rounds_on_one_engine_begin_with_an_empty_cache_and_count_alike(tiny_llama):
    workload = build("chat", scale=SCALE)
    with RecordingEngine(str(tiny_llama), dtype="float32", cache_tokens=8_000) as engine:
        (ours,) = measure([engine_system(OURS, workload, engine, 2)], workload.num_calls)
    first, second = (outcome.details for outcome in ours.outcomes)
    assert first == second
    assert first["prompt_tokens"] == first["cache_read"] + first["computed_tokens"]
    assert [len(outcome.calls) for outcome in ours.outcomes] == [workload.num_calls] * 2


def test_requests_at_once_are_those_between_their_beginnings_and_ends():
    spans = [(0, 3), (1, 2), (4, 7), (5, 8), (6, 9)]
    assert most_at_once([LoggedRequest((1,), (), ready, finished) for ready, finished in spans]) == 3


def engine_that_says(text, gap):
    """Asked alone, every token of its answer is likelier than the next one by ``gap``, in tenths more at each."""
    codec = ByteCodec()
    ids = codec.encode(text)
    tops = [((token, -0.1), (0, -0.1 - gap - 0.1 * number)) for number, token in enumerate(ids)]
    logprobs = tuple(TokenLogprob(token, -0.1, top) for token, top in zip(ids, tops, strict=True))
    result = GenResult(text, ids, FinishReason.STOP, Usage(1, 0, len(ids)), logprobs=logprobs)
    return SimpleNamespace(codec=codec, generate=lambda _prompts, _params: [result])


def test_the_margin_of_two_answers_is_that_of_the_token_where_they_part():
    assert margin(engine_that_says("abcd", 0.001), (1,), ("abcd", "abxy")) == pytest.approx(0.201)


def test_answers_that_never_depart_from_the_engines_own_have_no_margin():
    assert margin(engine_that_says("ab", 0.001), (1,), ("abcd", "abxy")) is None


# ---- comparing ------------------------------------------------------------------------------------------------------------
def outcome_of(*calls):
    return LangChainOutcome((), {}, (), tuple(ModelCall(prompt, text) for prompt, text in calls))


def test_answers_are_compared_by_prompt_whatever_order_they_came_in():
    ours = outcome_of(((1,), "a"), ((2,), "b"), ((3,), "c"))
    theirs = outcome_of(((3,), "c"), ((1,), "x"), ((4,), "d"))
    same = bench_langchain.compared(ours, theirs, 3, engine_that_says("a", 0.001))
    assert {**same, "margins": len(same["margins"])} == {
        "calls": 3,
        "comparable": 2,
        "same_prompts": False,
        "identical": 1,
        "share": 0.5,
        "margins": 1,
    }


# ---- the report -----------------------------------------------------------------------------------------------------------
def result_of(key, *, compiled_tokens=100, ratio=6.0, share=1.0):
    """A program's part of the content, as good as asked, with what is given here."""
    system = {"over_optimum": 1.0, "cache_read_of_ideal": share, "computed_tokens": 90, "generated_tokens": 10}
    compiled = {**system, "computed_tokens": compiled_tokens - 10}
    return {
        "programs": {
            key: {
                "systems": {OURS: system, COMPILED: compiled},
                "times_as_fast": {OURS: ratio, COMPILED: ratio},
                "identical_outputs": True,
                "agreement": {HUGGING_FACE: {"same_prompts": True, "share": 1.0}},
            }
        }
    }


def missed(content, *, whole=True):
    return [bar["name"] for bar in bench_langchain.judge(content, whole=whole) if not bar["passed"]]


def test_a_result_that_is_as_good_as_asked_passes_every_bar():
    assert [missed(result_of(key)) for key in WORKLOADS] == [[]] * len(WORKLOADS)


def test_a_compiled_program_that_computes_a_token_more_where_nothing_is_shared_misses_its_bar():
    assert missed(result_of(UNSHARED, compiled_tokens=101)) == [f"{UNSHARED}: model tokens, compiled over plain"]


def test_cache_reads_below_the_share_asked_are_missed_bars():
    assert len(missed(result_of("chat", share=0.94))) == 2


def test_speed_is_judged_on_whole_programs_only():
    slow = result_of("judges", ratio=4.9)
    assert (len(missed(slow)), len(missed(slow, whole=False))) == (2, 0)


def test_processor_time_above_the_bar_is_missed():
    ways = {"plain": {"added_ms": 0.0}, "compiled, scope": {"added_ms": 0.31}}
    measured = {"identical": True, "ways": ways}
    content = {"programs": {}, "overhead": {"invoke": measured, "batch": {**measured, "identical": False}}}
    assert len(missed(content)) == 3


@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        ("", True),
        ("--quick", False),
        ("--programs few-shot,judges", False),
        ("--no-overhead", False),
        ("--no-baseline", False),
        ("--rounds 2", False),
    ],
)
def test_a_part_is_not_taken_for_the_whole(arguments, whole, tmp_path):
    (tmp_path / "langchain_huggingface").mkdir()
    options = bench_langchain.parse([*arguments.split(), "--packages", str(tmp_path)])
    assert bench_langchain.is_whole(options) is whole


def test_a_missing_baseline_is_an_error_that_says_where_it_comes_from(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench_langchain.parse(["--packages", str(tmp_path)])
    assert "make bench-langchain" in capsys.readouterr().err
