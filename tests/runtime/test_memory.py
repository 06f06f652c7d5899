"""Pins, hints and quotas: what stays in the cache when something has to go."""

from __future__ import annotations

import pytest

from sgl_core.errors import PoolExhaustedError
from sgl_core.runtime.request import Kind
from sgl_core.runtime.scheduler import SchedulerOptions
from sgl_core.testing.simulation import Simulation, tokens
from sgl_core.types import Hints


def prefetch(sim: Simulation, ids: list[int], **options: object) -> None:
    sim.submit(ids, new=0, kind=Kind.PREFETCH, sink=None, **options)
    sim.drain()


def cached(sim: Simulation, ids: list[int], namespace: str | None = None) -> int:
    return sim.scheduler.tree.peek_prefix_len(ids, namespace=namespace)


def test_a_pinned_prefix_outlives_what_fills_the_pool() -> None:
    sim = Simulation(num_slots=100)
    prefix = tokens(30, seed=1)
    prefetch(sim, prefix)
    number, pin = sim.scheduler.memory.pin(prefix, None, None)
    assert pin.num_tokens == sim.scheduler.stats().pinned_tokens == 30
    for i in range(6):
        sim.submit(tokens(40, seed=10 + i), new=1)
    sim.drain()
    assert cached(sim, prefix) == 30
    assert sim.scheduler.memory.unpin(number)
    assert not sim.scheduler.memory.unpin(number)
    for i in range(6):
        sim.submit(tokens(40, seed=20 + i), new=1)
    sim.drain()
    assert cached(sim, prefix) < 30


def test_a_pin_expires() -> None:
    sim = Simulation()
    prefetch(sim, tokens(30))
    sim.scheduler.memory.pin(tokens(30), None, sim.now + 3.0)
    for _ in range(2):
        sim.step()
    assert sim.scheduler.stats().pinned_tokens == 30
    for _ in range(2):
        sim.step()
    assert sim.scheduler.stats().pinned_tokens == 0
    sim.assert_nothing_leaked()


def test_pins_hold_at_most_half_of_the_pool() -> None:
    sim = Simulation(num_slots=100)
    for seed in (1, 2):
        prefetch(sim, tokens(30, seed=seed))
    sim.scheduler.memory.pin(tokens(30, seed=1), None, None)
    with pytest.raises(PoolExhaustedError, match="30 tokens on top of the 30 pinned ones exceed 50"):
        sim.scheduler.memory.pin(tokens(30, seed=2), None, None)
    sim.scheduler.check_invariants()


def test_a_pin_gives_way_to_the_only_request_that_is_left() -> None:
    sim = Simulation(num_slots=100, chunk_tokens=200)
    prefetch(sim, tokens(40, seed=1))
    sim.scheduler.memory.pin(tokens(40, seed=1), None, None)
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
