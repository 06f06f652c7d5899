"""The scheduler under random traffic and bad luck: one seed is one run, everything is checked after every operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import pytest

import sgl_core.testing.simulation.script as script_module
from sgl_core.runtime.scheduler import Scheduler, SchedulerOptions
from sgl_core.testing.simulation.script import Retract, Script, Setup, Step, Submit, run_script
from sgl_core.testing.simulation.shrink import run_seed, shrink
from sgl_core.testing.simulation.traffic import draw_script
from sgl_core.types import Hints

STEPS = 300
SEEDS_IN_A_BLOCK = 20

EVENTS = ("hits", "retractions", "forced retractions", "aborted", "failed", "failed steps", "bad rows", "evicted", "pins")


Figure = Callable[[str, Mapping[str, int]], None]


def run_block(first: int, figure: Figure) -> None:
    """Run some seeds, which check everything; asserts that the interesting things happened."""
    seen: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_IN_A_BLOCK):
        seen += run_seed(seed, STEPS)
    figure("R2 the scheduler in simulation", {"seeds": SEEDS_IN_A_BLOCK, "violations": 0, **seen})
    assert all(seen[event] > 0 for event in EVENTS), seen


@pytest.mark.parametrize("first", range(0, 200, SEEDS_IN_A_BLOCK))
def test_random_traffic_is_right_and_leaks_nothing(first: int, figure: Figure) -> None:
    run_block(first, figure)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(1_000, 2_500, SEEDS_IN_A_BLOCK))
def test_much_random_traffic_is_right_and_leaks_nothing(first: int, figure: Figure) -> None:
    run_block(first, figure)


REGRESSIONS = {
    "output that a sibling had computed was counted as computed again when it ran for the first time": Script(
        Setup(num_slots=40, chunk_tokens=16, policy="dfs_weight", options=SchedulerOptions(seed=97)),
        (
            Submit(name="r0", pieces=((3, 7),), new=20, n=4, run=3),
            *(Step(),) * 6,
            Submit(name="r6", pieces=((2, 12), (1006, 2)), new=20, priority=1),
        ),
    ),
    "KV that a failed step never computed was kept, because a program had announced further uses of it": Script(
        Setup(num_slots=48),
        (
            Submit(name="leader", pieces=((2, 8), (201, 1)), hints=Hints("p", siblings=3, shared_len=8)),
            Submit(name="rider", pieces=((2, 8), (202, 2))),
            Step(raising=True),
        ),
    ),
    "output was kept below KV that another request of the failed step had never computed": Script(
        Setup(),
        (
            Submit(name="first", pieces=((2, 20),), new=12),
            Submit(name="short", pieces=((2, 20),), new=1),
            *(Step(),) * 4,
            Submit(name="next", pieces=((3, 6),), after="short"),
            Step(raising=True),
        ),
    ),
    "the namespace's quota evicted the end of what a failed step never computed, and so its beginning was kept": Script(
        Setup(num_slots=96, options=SchedulerOptions(namespace_quota_tokens=24)),
        (
            Submit(name="leader", pieces=((2, 24), (201, 1))),
            Submit(name="rider", pieces=((2, 24), (202, 2)), poisoned=True),
        ),
    ),
}
"""Short scripts that once failed, by what was wrong."""


@pytest.mark.parametrize("script", REGRESSIONS.values(), ids=REGRESSIONS)
def test_what_once_failed_stays_right(script: Script) -> None:
    run_script(script)


# ---- the simulation itself -------------------------------------------------------------------------------------------
def test_a_seed_is_one_script_and_another_seed_is_another() -> None:
    assert draw_script(3, 40) == draw_script(3, 40) != draw_script(4, 40)


def test_a_run_repeats_itself_to_the_last_count() -> None:
    assert run_script(draw_script(5, 60)) == run_script(draw_script(5, 60))


def test_a_script_is_printed_as_the_code_that_builds_it() -> None:
    script = draw_script(6, 30)
    assert eval(str(script), vars(script_module).copy()) == script


def test_a_failure_says_its_seed_and_a_script_of_a_few_operations_that_fails_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Scheduler, request_id: str) -> bool:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Scheduler, "retract", broken)
    with pytest.raises(AssertionError, match="seed 7, 60 steps: ZeroDivisionError: planted") as caught:
        run_seed(7, 60)
    code = str(caught.value).partition("fails so too:\n")[2]
    short = eval(code, vars(script_module).copy())
    assert [type(operation) for operation in short.operations] == [Retract]
    with pytest.raises(ZeroDivisionError):
        run_script(short)


def test_only_what_fails_can_be_shrunk() -> None:
    with pytest.raises(ValueError, match="expected one that fails"):
        shrink(Script(Setup(), (Step(),)))
