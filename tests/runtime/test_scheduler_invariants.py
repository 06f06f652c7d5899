"""Every invariant of scheduler, memory and oracle, broken once on purpose: the check finds it, and none goes without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sgl_core.runtime.memory import KVMemory
from sgl_core.runtime.plan import SharedPrefix, StepPlan
from sgl_core.runtime.request import Request, State
from sgl_core.runtime.scheduler import Scheduler
from sgl_core.testing.perturbation import Place, assertions_of, place_of
from sgl_core.testing.simulation import OracleRunner, Simulation, tokens


def busy() -> Simulation:
    """Two that run on a common prefix and have tokens of their own, one that waits for a row, and a pin."""
    sim = Simulation(num_slots=100, max_running=2)
    for name in ("one", "two", "three"):
        sim.submit([*tokens(20), *tokens(3, seed=len(name))], new=8, name=name)
    sim.step()
    sim.step()
    sim.pin(tokens(10), 1_000.0)
    assert [sim.requests[name].state for name in ("one", "two", "three")] == [State.RUNNING, State.RUNNING, State.WAITING]
    assert all(len(sim.requests[name].slots) > sim.requests[name].tree_len > 20 for name in ("one", "two"))
    return sim


def running(sim: Simulation, name: str = "one") -> Request:
    return sim.requests[name]


def waiting(sim: Simulation) -> Request:
    return sim.requests["three"]


# ---- the scheduler's own state ---------------------------------------------------------------------------------------
def suspect_the_dead(sim: Simulation) -> None:
    sim.abort("three")
    sim.scheduler._suspects["three"] = (sim.requests["three"], 1)


def lock_too_little(sim: Simulation) -> None:
    request = running(sim)
    assert request.node is not None
    request.node = request.node.parent


def swap_slots(request: Request) -> None:
    request.slots[0], request.slots[1] = request.slots[1], request.slots[0]


def free_a_slot_in_use(sim: Simulation) -> None:
    sim.scheduler.memory.allocator.free([running(sim).slots[-1]])
    sim.scheduler.memory.allocator.check_invariants()


Damage = Callable[[Simulation], object]
DAMAGE: dict[str, tuple[Damage, str]] = {
    "two requests own a slot": (
        lambda sim: running(sim).slots.append(running(sim, "two").slots[-1]),
        "a slot has two owners",
    ),
    "a request owns a slot of the tree": (
        lambda sim: running(sim).slots.append(running(sim).slots[0]),
        "a slot has two owners",
    ),
    "a slot in use is freed": (free_a_slot_in_use, "a slot in use is free"),
    "a slot is forgotten": (lambda sim: running(sim).slots.pop(), "a slot has no owner"),
    "a slot is allocated to nobody": (lambda sim: sim.scheduler.memory.allocator.allocate(1), "a slot has no owner"),
    "a request locks too little": (lock_too_little, "a request's locked prefix is not its slot table's"),
    "a slot table is out of order": (lambda sim: swap_slots(running(sim)), "a slot table differs from the tree"),
    "a lock has no holder": (
        lambda sim: sim.scheduler.tree.inc_lock_ref(running(sim).node),  # type: ignore[arg-type]
        "a node is locked by nobody, or not by all who hold it",
    ),
    "a holder has no lock": (
        lambda sim: sim.scheduler.tree.dec_lock_ref(running(sim).node),  # type: ignore[arg-type]
        "a node is locked by nobody, or not by all who hold it",
    ),
    "a pin has gone, its lock has not": (
        lambda sim: sim.scheduler.memory.pins.clear(),
        "a node is locked by nobody, or not by all who hold it",
    ),
    "a running request thinks that it waits": (
        lambda sim: setattr(running(sim), "state", State.WAITING),
        "a running request is in another state",
    ),
    "a waiting request thinks that it has ended": (
        lambda sim: setattr(waiting(sim), "state", State.FINISHED),
        "a waiting request is in another state",
    ),
    "a waiting request holds slots": (lambda sim: waiting(sim).slots.append(0), "a waiting request holds slots"),
    "a waiting request locks a prefix": (
        lambda sim: setattr(waiting(sim), "node", running(sim).node),
        "a waiting request locks a prefix",
    ),
    "two requests have one id": (lambda sim: setattr(waiting(sim), "id", "one"), "a request runs and waits"),
    "a suspect has ended": (suspect_the_dead, "a suspect has ended"),
    "a row is lost": (lambda sim: setattr(running(sim), "row", -1), "rows leaked"),
    "two requests have one row": (lambda sim: setattr(running(sim), "row", running(sim, "two").row), "rows leaked"),
    "a row in use is free": (lambda sim: sim.scheduler._free_rows.append(running(sim).row), "rows leaked"),
}


def failure(damage: Damage) -> AssertionError:
    sim = busy()
    sim.scheduler.check_invariants()
    damage(sim)
    with pytest.raises(AssertionError) as caught:
        sim.scheduler.check_invariants()
    return caught.value


@pytest.mark.parametrize(("damage", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_the_check_notices_damage(damage: Damage, complaint: str) -> None:
    assert str(failure(damage)).partition("\n")[0] == complaint


def test_no_invariant_is_without_damage_that_sets_it_off() -> None:
    everything = assertions_of(Scheduler.check_invariants, KVMemory.check_invariants, KVMemory._check_locks)
    assert everything == {place_of(failure(damage)) for damage, _ in DAMAGE.values()}


# ---- the oracle ------------------------------------------------------------------------------------------------------
def planned() -> tuple[Simulation, StepPlan]:
    """The third step of two requests on one long prefix, which they share in its plan; not run yet."""
    sim = Simulation(num_slots=800, chunk_tokens=700)
    for name in ("one", "two"):
        sim.submit([*tokens(300), *tokens(3, seed=len(name)), len(sim.requests)], new=8, name=name)
    sim.step()
    sim.step()
    plan = sim.scheduler.schedule(3.0)
    assert plan is not None
    assert [(prefix.start, prefix.end) for prefix in plan.shared] == [(0, 303)]
    return sim, plan


def with_work(plan: StepPlan, index: int, **changes: Any) -> StepPlan:
    works = list(plan.works)
    works[index] = replace(works[index], **changes)
    return replace(plan, works=tuple(works))


def with_shared(plan: StepPlan, *shared: SharedPrefix) -> StepPlan:
    return replace(plan, shared=shared)


def wrong_kv(sim: Simulation, plan: StepPlan) -> StepPlan:
    slot = plan.works[0].request.slots[5]
    sim.oracle.digests[slot] = b"of another"
    return plan


def kv_never_written(sim: Simulation, plan: StepPlan) -> StepPlan:
    sim.oracle.digests[plan.works[1].request.slots[2]] = None
    return plan


def neighbours_swapped(sim: Simulation, plan: StepPlan) -> StepPlan:
    digests, slots = sim.oracle.digests, plan.works[0].request.slots
    digests[slots[0]], digests[slots[1]] = digests[slots[1]], digests[slots[0]]
    return plan


def double_owned_slot(_: Simulation, plan: StepPlan) -> StepPlan:
    first, second = (work.request for work in plan.works)
    second.slots[-1] = first.slots[-1]
    return plan


def wrong_row(_: Simulation, plan: StepPlan) -> StepPlan:
    plan.works[0].request.row = 5
    return plan


def rows_in_common(_: Simulation, plan: StepPlan) -> StepPlan:
    first, second = plan.works
    second.request.row = first.request.row
    return with_work(with_work(plan, 0, table_start=0), 1, table_start=0)


def another_history(_: Simulation, plan: StepPlan) -> StepPlan:
    plan.works[0].request.ids[3] += 1
    return plan


def lost_slots(_: Simulation, plan: StepPlan) -> StepPlan:
    plan.works[0].request.slots.pop()
    return plan


def other_slots_for_a_member(sim: Simulation, plan: StepPlan) -> StepPlan:
    """As if the prefix had been computed twice: the content is right, the place is not the others'."""
    slots = plan.works[1].request.slots
    sim.oracle.digests[700], slots[4] = sim.oracle.digests[slots[4]], 700
    return with_work(plan, 1, table_start=0)


PlanDamage = Callable[[Simulation, StepPlan], StepPlan]
PLAN_DAMAGE: dict[str, tuple[PlanDamage, str]] = {
    "a plan that runs nothing": (lambda _, plan: replace(plan, works=()), "a plan runs nothing"),
    "wrong KV": (wrong_kv, "a slot holds another prefix"),
    "KV that was never written": (kv_never_written, "a slot holds another prefix"),
    "neighbours swapped": (neighbours_swapped, "a slot holds another prefix"),
    "a slot with two owners": (double_owned_slot, "two tokens are written to one slot"),
    "a start behind the request's": (
        lambda _, plan: with_work(plan, 0, start=plan.works[0].start + 1),
        "work does not start where the request stands",
    ),
    "no tokens": (
        lambda _, plan: with_work(plan, 0, end=plan.works[0].start),
        "work runs nothing, or tokens that are not there",
    ),
    "tokens that are not there": (
        lambda _, plan: with_work(plan, 0, end=plan.works[0].end + 1),
        "work runs nothing, or tokens that are not there",
    ),
    "a token without a slot": (lost_slots, "a token has no slot"),
    "a row that nobody filled": (wrong_row, "the slot table is stale"),
    "a table that is brought up to date too late": (
        lambda _, plan: with_work(plan, 0, table_start=plan.works[0].end),
        "the slot table is stale",
    ),
    "one row for two": (rows_in_common, "two works have one row"),
    "a prompt that changed": (another_history, "a request's ids changed"),
    "a prefix shared by one": (
        lambda _, plan: with_shared(plan, SharedPrefix(0, 303, (0,))),
        "a prefix is shared by one",
    ),
    "a shared prefix that is not computed yet": (
        lambda _, plan: with_shared(plan, SharedPrefix(0, 306, (0, 1))),
        "a shared prefix covers tokens of this step",
    ),
    "a prefix that is not shared": (
        lambda _, plan: with_shared(plan, SharedPrefix(0, 304, (0, 1))),
        "members of a shared prefix have different slots",
    ),
    "a prefix that was computed twice": (other_slots_for_a_member, "members of a shared prefix have different slots"),
    "a shared prefix with a gap": (
        lambda _, plan: with_shared(plan, SharedPrefix(0, 100, (0, 1)), SharedPrefix(101, 303, (0, 1))),
        "a member's shared prefixes leave a gap",
    ),
    "a shared prefix that nobody covers": (
        lambda _, plan: with_shared(plan),
        "shared_len is not what the shared prefixes cover",
    ),
}


def plan_failure(damage: PlanDamage) -> AssertionError:
    sim, plan = planned()
    plan = damage(sim, plan)
    with pytest.raises(AssertionError) as caught:
        sim.oracle.run(plan)
    return caught.value


@pytest.mark.parametrize(("damage", "complaint"), PLAN_DAMAGE.values(), ids=PLAN_DAMAGE)
def test_the_oracle_notices_wrong_kv_and_wrong_plans(damage: PlanDamage, complaint: str) -> None:
    assert str(plan_failure(damage)).partition("\n")[0] == complaint


def test_no_assertion_of_the_oracle_is_without_damage_that_sets_it_off() -> None:
    methods = [method for name, method in vars(OracleRunner).items() if callable(method) and name != "__init__"]
    everything: set[Place] = assertions_of(*methods)
    assert everything == {place_of(plan_failure(damage)) for damage, _ in PLAN_DAMAGE.values()}


def test_an_undamaged_plan_runs() -> None:
    sim, plan = planned()
    result = sim.oracle.run(plan)
    assert [len(sim.scheduler.update(plan, result, 3.0)), result.errors] == [2, (None, None)]


def test_a_forward_pass_that_raises_leaves_garbage_where_it_was_to_write() -> None:
    sim, plan = planned()
    sim.oracle.spoil(plan)
    for work in plan.works:
        written = [sim.oracle.digests[slot] for slot in work.request.slots[work.start : work.end]]
        kept = [sim.oracle.digests[slot] for slot in work.request.slots[: work.start]]
        assert set(written) == {b"garbage"}
        assert b"garbage" not in kept
