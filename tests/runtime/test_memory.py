"""Pins, hints and quotas: what stays in the cache when something has to go."""

from __future__ import annotations

import pytest

from sgl_core.errors import PoolExhaustedError
from sgl_core.runtime.request import Kind, PinOrder
from sgl_core.runtime.scheduler import SchedulerOptions
from sgl_core.testing.simulation import Simulation, tokens
from sgl_core.types import Hints


def prefetch(sim: Simulation, ids: list[int], **options: object) -> None:
    sim.submit(ids, new=0, kind=Kind.PREFETCH, sink=None, **options)
    sim.drain()


def cached(sim: Simulation, ids: list[int], namespace: str | None = None) -> int:
    return sim.scheduler.tree.peek_prefix_len(ids, namespace=namespace)


def pin(sim: Simulation, ids: list[int], expires_at: float | None = None) -> int:
    """Bring a prefix in and pin it."""
    order = PinOrder(expires_at)
    sim.scheduler.check_pin(len(ids), sim.now)
    prefetch(sim, ids, pin=order)
    assert order.number is not None
    return order.number


def test_a_pinned_prefix_outlives_what_fills_the_pool() -> None:
    sim = Simulation(num_slots=100)
    prefix = tokens(30, seed=1)
    number = pin(sim, prefix)
    assert sim.scheduler.stats().pinned_tokens == 30
    for i in range(6):
        sim.submit(tokens(40, seed=10 + i), new=1)
    sim.drain()
    assert cached(sim, prefix) == 30
    assert sim.scheduler.unpin(number, sim.now)
    assert not sim.scheduler.unpin(number, sim.now)
    for i in range(6):
        sim.submit(tokens(40, seed=20 + i), new=1)
    sim.drain()
    assert cached(sim, prefix) < 30


def test_a_pin_expires() -> None:
    sim = Simulation()
    number = pin(sim, tokens(30), expires_at=5.0)
    for _ in range(2):
        sim.step()
    assert sim.scheduler.stats().pinned_tokens == 30
    for _ in range(4):
        sim.step()
    assert sim.scheduler.stats().pinned_tokens == 0
    assert not sim.scheduler.unpin(number, sim.now)
    sim.assert_nothing_leaked()


def test_a_pin_that_expired_in_an_idle_engine_is_in_nobodys_way() -> None:
    sim = Simulation(num_slots=100)
    number = pin(sim, tokens(40), expires_at=sim.now + 2.0)
    sim.scheduler.check_pin(40, now=sim.now + 9.0)
    assert not sim.scheduler.unpin(number, now=sim.now + 9.0)


def test_a_pin_is_whole_under_a_quota() -> None:
    sim = Simulation(num_slots=400, options=SchedulerOptions(namespace_quota_tokens=20))
    pin(sim, tokens(90))
    assert cached(sim, tokens(90)) == 90


def test_pins_hold_at_most_half_of_the_pool() -> None:
    sim = Simulation(num_slots=100)
    pin(sim, tokens(30, seed=1))
    with pytest.raises(PoolExhaustedError, match="30 tokens on top of the 30 pinned ones exceed 50"):
        pin(sim, tokens(30, seed=2))
    refused = PinOrder(None)
    prefetch(sim, tokens(30, seed=2), pin=refused)
    assert refused.number is None
    sim.scheduler.check_invariants()


def test_a_pin_gives_way_to_the_only_request_that_is_left() -> None:
    sim = Simulation(num_slots=100, chunk_tokens=200)
    pin(sim, tokens(40, seed=1))
    big = sim.submit(tokens(80, seed=2), new=21)
    sim.drain()
    assert big.num_generated == 21
    assert sim.scheduler.stats().pinned_tokens == 0
    sim.assert_right(big)


def test_what_siblings_will_ask_for_is_kept_until_they_came() -> None:
    for siblings, kept in ((0, False), (2, True)):
        sim = Simulation(num_slots=110, max_running=1)
        common = tokens(30, seed=1)
        hints = Hints(program_id="p", siblings=siblings, shared_len=30)
        sim.submit([*common, 1], new=1, hints=hints)
        for i in range(5):
            sim.submit(tokens(34, seed=10 + i), new=1)
        sim.drain()
        assert (cached(sim, common) == 30) is kept, f"{siblings} siblings were announced"


def test_a_last_use_leaves_nothing_of_its_own_behind() -> None:
    sim = Simulation()
    sim.submit(tokens(20), new=2)
    sim.drain()
    before = sim.scheduler.tree.total_size
    sim.submit([*tokens(20), *tokens(15, seed=2)], new=5, hints=Hints(last_use=True))
    sim.drain()
    assert sim.scheduler.tree.total_size == before
    assert cached(sim, tokens(20)) == 20


def test_what_a_waiting_request_shares_is_evicted_last() -> None:
    sim = Simulation(num_slots=100, max_running=1, policy="lpm")
    old, new = tokens(30, seed=1), tokens(30, seed=2)
    for ids in (old, new):
        prefetch(sim, ids)
    running = sim.submit(tokens(20, seed=3), new=41, priority=1)  # needs 60 slots: one of the two must go
    waiting = sim.submit([*old, 1], new=1)
    sim.drain()
    assert waiting.cached_len == 30
    assert cached(sim, new) < 30, "the one used last went first, as nobody waited for it"
    sim.assert_right(running)


def test_a_tenant_over_its_quota_evicts_itself() -> None:
    sim = Simulation(num_slots=300, options=SchedulerOptions(namespace_quota_tokens=100))
    guest = tokens(60, seed=1)
    sim.submit(guest, new=1, namespace="guest")
    sim.drain()
    for i in range(12):
        sim.submit(tokens(50, seed=10 + i), new=1, namespace="host")
    sim.drain()
    assert cached(sim, guest, "guest") == 60
    assert sim.scheduler.tree.namespace_evictable("host") <= 100
    sim.assert_nothing_leaked()


def test_a_last_use_spares_what_somebody_waits_for() -> None:
    sim = Simulation(num_slots=2_000, max_running=1)
    hints = Hints(last_use=True)
    requests = [sim.submit([*tokens(100), i], new=1, hints=hints) for i in range(8)]
    sim.drain()
    assert sim.scheduler.counters.prefilled_tokens == 100 + len(requests)


def test_a_last_use_leaves_nothing_behind_after_a_retraction_either() -> None:
    sim = Simulation()
    request = sim.submit(tokens(40), new=6, hints=Hints(last_use=True))
    for _ in range(3):
        sim.step()
    sim.retract(request.id)
    sim.drain()
    assert sim.scheduler.tree.total_size == 0


@pytest.mark.parametrize("how", ["chunked", "computed first", "cached whole"])
def test_siblings_are_announced_however_the_prompt_comes_in(how: str) -> None:
    options = SchedulerOptions(in_flight_sharing=how != "computed first")
    sim = Simulation(chunk_tokens=10 if how == "chunked" else 64, options=options)
    if how == "cached whole":
        prefetch(sim, tokens(30))
    sim.submit([*tokens(30)], new=1, hints=Hints(siblings=3, shared_len=30))
    sim.drain()
    node = sim.scheduler.tree.locate(tokens(30))
    assert node is not None
    assert node.expectation is not None


def test_a_blocked_request_uses_no_announcement_up() -> None:
    sim = Simulation(num_slots=100, max_running=4)
    sim.submit([*tokens(30), 1], new=1, hints=Hints(siblings=3, shared_len=30))
    sim.drain()
    running = sim.submit(tokens(20, seed=3), new=50)
    sim.step()
    sim.submit([*tokens(30), *tokens(40, seed=5)], new=5)  # has no room beside the other
    for _ in range(10):
        sim.step()
    assert sim.scheduler.num_waiting == 1
    node = sim.scheduler.tree.locate(tokens(30))
    assert node is not None
    assert node.expectation is not None
    assert node.expectation.uses == 3
    sim.drain()
    sim.assert_right(running)
