"""The benchmarks' workloads and drivers, without the embedded model: programs, execution, replays, and both systems."""

import json
import random
import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from sgl_core.testing import ByteCodec
from sgl_core.testing.optimum import optimal_prefill_tokens

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import ablations
import bench_engine
import prose
import systems
from execution import Execution
from harness import Outcome, System, agreement, measure, write_json
from replay import answers_of, replay
from workloads import WORKLOADS, Call, all_at_once, build

SCALE = 0.25
BIG = 1_000_000


def any_answer(prompt, count):
    """Letters that depend on the whole prompt, as a model's would."""
    return tuple(random.Random(repr(prompt)).choices(range(97, 123), k=count))


def built(key, scale=SCALE):
    return build(key, ByteCodec(), scale=scale)


def run(key, **options):
    return replay(built(key), any_answer, pool_tokens=BIG, **options)


# ---- workloads ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", WORKLOADS)
def test_a_workload_makes_as_many_calls_as_it_says(key):
    workload = built(key)
    assert len(replay(workload, any_answer, pool_tokens=BIG).record) == workload.num_calls


@pytest.mark.parametrize("key", WORKLOADS)
def test_the_same_seed_gives_the_same_prompts(key):
    assert [a.request.prompt for a in run(key).record] == [a.request.prompt for a in run(key).record]


def test_another_seed_gives_other_prompts():
    first, second = (next(build("W6", ByteCodec(), scale=SCALE, seed=seed).start()[0])[0] for seed in (0, 1))
    assert first.prompt != second.prompt


def test_the_full_sizes_are_those_of_the_claims():
    sizes = {key: built(key, scale=1.0).num_calls for key in WORKLOADS}
    assert sizes == {"W1": 64, "W2": 8 * 5, "W3": 8 * 4, "W4": 4 * (3 + 9 + 27) * 2, "W5": 1, "W6": 32}


@pytest.mark.parametrize("key", ["W2", "W3", "W4"])
def test_later_prompts_depend_on_earlier_answers(key):
    def other_answer(prompt, count):
        return tuple(token - 32 for token in any_answer(prompt, count))  # capitals

    other = replay(built(key), other_answer, pool_tokens=BIG).record
    changed = [a.label for a, b in zip(run(key).record, other, strict=True) if a.request.prompt != b.request.prompt]
    assert (
        set(changed)
        == {
            "W2": {"join"},
            "W3": {"turn 2", "turn 3", "turn 4"},
            "W4": {"score 1", "thought 2", "score 2", "thought 3", "score 3"},
        }[key]
    )


def test_a_chat_goes_on_behind_its_own_ids():
    turns = [a.request for a in run("W3").record if a.key[0] == 0]
    assert all(later.prompt[: len(r.prompt + r.output)] == r.prompt + r.output for r, later in pairwise(turns))


def test_texts_of_one_subject_differ():
    essays = {prose.essay(random.Random(seed)) for seed in range(50)}
    assert len(essays) == 50


# ---- execution ----------------------------------------------------------------------------------------------------------
def call(label):
    return Call((1, 2), 1, label)


def labels(pending):
    return [p.call.label for p in pending]


def nested():
    """Two branches, one of them a program of two steps; then a last call that says what it got."""

    def inner():
        (first,) = yield [call("inner 1")]
        (second,) = yield [call("inner 2")]
        return first + second

    outer, both = yield [call("outer"), inner()]
    yield [call(f"last {outer} {both}")]


def test_a_call_is_ready_when_those_it_depends_on_have_ended_and_no_later():
    execution = Execution([nested()])
    outer, inner = execution.take_ready()
    assert labels([outer, inner]) == ["outer", "inner 1"]
    execution.finish([(inner, (7,))])
    (second,) = execution.take_ready()
    assert labels([second]) == ["inner 2"]
    execution.finish([(second, (8,))])
    assert execution.take_ready() == []
    assert not execution.is_done
    execution.finish([(outer, (6,))])
    (last,) = execution.take_ready()
    assert labels([last]) == ["last (6,) (7, 8)"]
    execution.finish([(last, (9,))])
    assert execution.is_done


def test_the_record_is_in_the_order_of_the_programs_however_calls_ended():
    execution = Execution(all_at_once("", "", [call("a"), call("b"), call("c")]).start())
    for pending in reversed(execution.take_ready()):
        execution.finish([(pending, (0,))])
    assert [answered.label for answered in execution.record] == ["a", "b", "c"]


def test_answers_that_came_together_have_ended_before_anything_becomes_ready():
    execution = Execution([nested()])
    execution.finish([(pending, (0,)) for pending in execution.take_ready()])
    (pending,) = execution.take_ready()
    assert pending.ready > max(answered.request.finished for answered in execution.record)


def test_one_at_a_time_gives_out_one_call_of_every_program():
    execution = Execution([nested(), nested()], one_at_a_time=True)
    first = execution.take_ready()
    assert labels(first) == ["outer", "outer"]
    assert execution.take_ready() == []
    execution.finish([(first[0], (0,))])
    assert labels(execution.take_ready()) == ["inner 1"]


# ---- replays ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", WORKLOADS)
def test_the_scheduler_computes_hardly_more_than_the_optimum(key):
    done = run(key)
    assert done.computed_tokens <= bench_engine.MOST_OVER_OPTIMUM * optimal_prefill_tokens(ablations.log_of(done.record))


def test_a_recorded_run_is_replayed_with_its_own_answers():
    recorded = run("W4").record
    again = replay(built("W4"), answers_of(recorded), pool_tokens=BIG, options={"policy": "random"}).record
    assert [a.request.output for a in again] == [a.request.output for a in recorded]


def test_answers_do_not_depend_on_fork_parallelism():
    assert agreement(run("W4").record, run("W4", fork_parallelism=False).record).identical == built("W4").num_calls


@pytest.mark.parametrize("key", ["W1", "W2", "W4"])
def test_a_quarter_pool_reaches_the_optimum_where_the_queue_is_known(key):
    rows = [row for row in ablations.small_pools(built(key), run(key).record) if row["held_to"] == "optimum"]
    assert len(rows) == 1
    assert rows[0]["hit_rate"]["ours"] >= bench_engine.LEAST_OF_OPTIMUM * rows[0]["hit_rate"]["optimum"]


@pytest.mark.parametrize("key", ["W2", "W3", "W4"])
def test_a_quarter_pool_is_never_used_worse_than_first_come_first_served(key):
    rows = [row for row in ablations.small_pools(built(key), run(key).record) if row["held_to"] == "fcfs"]
    assert len(rows) == 1
    assert rows[0]["hit_rate"]["ours"] >= rows[0]["hit_rate"]["fcfs"]


def test_counts_are_taken_of_every_variant_in_both_pools():
    rows = {(row["name"], row["pool"]): row for row in ablations.counted(built("W2"), run("W2").record)}
    assert rows["no cache", "whole"]["over_optimum"] > 2 * rows["full", "whole"]["over_optimum"]
    assert rows["no in-flight sharing", "whole"]["over_optimum"] > rows["full", "whole"]["over_optimum"]
    assert {pool for _, pool in rows} == {"whole", "quarter"}


def test_a_hit_rate_counts_what_ran_again():
    done = run("W2")
    stats = replace(done.stats, prompt_tokens=100, prefilled_tokens=30, recomputed_tokens=20)
    assert replace(done, stats=stats).hit_rate == pytest.approx(0.5)


def test_a_small_pool_that_one_request_fills_by_more_than_half_is_named_so():
    workload = all_at_once("W1", "one", [Call(tuple(range(100)), 4, "question")])
    (row, *_) = ablations.small_pools(workload, replay(workload, any_answer, pool_tokens=BIG).record)
    assert row["name"].endswith("(one request fills 100% of the pool)")


# ---- the report ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        ("", True),
        ("--rounds 5", True),
        ("--rounds 2", False),
        ("--slow-rounds 1", False),
        ("--no-baseline", False),
        ("--no-ablations", False),
        ("--scale 0.5", False),
        ("--quick", False),
        ("--workloads W1,W2,W3,W6", False),
        ("--dtype bfloat16 --no-ablations --workloads W1,W2,W3,W6 --rounds 2", True),
        ("--dtype bfloat16 --no-ablations --workloads W1,W2,W3,W6 --rounds 1", False),
        ("--dtype bfloat16 --no-ablations --workloads W1,W2,W3", False),
        ("--dtype bfloat16 --no-baseline", False),
    ],
)
def test_a_part_is_not_taken_for_the_whole(arguments, whole):
    assert bench_engine.is_whole(bench_engine.parse(arguments.split())) is whole


def test_bars_are_judged_before_rounding(tmp_path):
    result = {"times_ours": {"generate": 1.0999999}, "over_optimum": 1.0200001, "agreement": {}, "small_pools": []}
    bars = bench_engine.judge({"W6": result}, dtype="float32", whole=True)
    assert [bar["passed"] for bar in bars] == [False, False]
    write_json(tmp_path / "bars.json", {"bars": bars})
    assert [bar["value"] for bar in json.loads((tmp_path / "bars.json").read_text())["bars"]] == [1.1, 1.02]


def test_a_slow_system_gets_no_further_round_and_the_others_go_on():
    @contextmanager
    def session():
        yield lambda _: Outcome((), {})

    systems_ = [System("ours", session, 3), System("slow", session, 2, patience_s=0.0)]
    assert [run.as_json()["rounds"] for run in measure(systems_, 1)] == [3, 1]


# ---- systems ------------------------------------------------------------------------------------------------------------
def test_engine_and_generate_answer_alike(tiny_llama):
    calls = [Call(any_answer(seed, 20 + 9 * seed), 6 + seed % 2, "") for seed in range(5)]
    workload = all_at_once("tiny", "five calls", calls)
    options = {"model": str(tiny_llama), "dtype": "float32", "cache_tokens": 2000}
    ours, theirs = measure(
        [
            systems.engine_system("ours", workload, options, 1),
            systems.generate_system(workload, tiny_llama, "float32", None, 1),
        ],
        workload.num_calls,
    )
    same = agreement(ours.outcome.record, theirs.outcome.record)
    assert (same.comparable, same.identical) == (5, 5)
    assert [len(a.request.output) for a in theirs.outcome.record] == [c.new_tokens for c in calls]
    assert ours.outcome.details["prefilled_tokens"] + ours.outcome.details["recomputed_tokens"] >= optimal_prefill_tokens(
        ablations.log_of(ours.outcome.record)
    )


def test_a_baseline_batch_holds_calls_of_one_length_of_answer_shortest_first():
    calls = [Call((1,) * length, new, "") for length, new in ((3, 8), (2, 4), (1, 8))]
    waiting = Execution(all_at_once("", "", calls).start()).take_ready()
    assert [len(p.call.prompt) for p in systems._next_batch(waiting)] == [1, 3]


def test_every_timed_variant_exists_and_every_timed_workload_too():
    names = {row["name"] for row in ablations.counted(built("W5"), run("W5").record)} | {"no cascade"}
    timed = [name for _, group in ablations.TIMED.values() for name in group]
    timed += [name for group in ablations.TIMED_IN_QUARTER_POOL.values() for name in group]
    assert set(timed) <= names
    assert set(ablations.TIMED_IN_QUARTER_POOL) <= set(ablations.TIMED) <= set(WORKLOADS)
