"""The slot allocator against its contract, against a plain set of free slots, and against deliberate damage."""

from __future__ import annotations

import random

import pytest

from sgl_core.errors import InvalidArgumentError, SglError
from sgl_core.runtime.allocator import OutOfSlotsError, SlotAllocator
from sgl_core.testing.perturbation import assertions_of, place_of


def fragmented(num_slots: int, hole_every: int) -> tuple[SlotAllocator, list[int]]:
    """All slots taken, then every ``hole_every``-th given back: the free list is all crumbs."""
    allocator = SlotAllocator(num_slots)
    slots = allocator.allocate(num_slots)
    holes = slots[::hole_every]
    allocator.free(holes)
    return allocator, holes


def test_a_new_pool_is_free_and_the_padding_slot_lies_behind_it():
    allocator = SlotAllocator(8)
    assert (allocator.num_slots, allocator.free_count, allocator.padding_slot) == (8, 8, 8)
    assert all(allocator.is_free(slot) for slot in range(8))


@pytest.mark.parametrize("num_slots", [0, -1, 1.5, True, "8", None])
def test_a_pool_needs_a_positive_int(num_slots):
    with pytest.raises(InvalidArgumentError, match="num_slots"):
        SlotAllocator(num_slots)


def test_allocation_is_ascending_and_contiguous_in_a_fresh_pool():
    allocator = SlotAllocator(8)
    assert allocator.allocate(3) == [0, 1, 2]
    assert allocator.allocate(2) == [3, 4]
    assert allocator.free_count == 3


def test_the_whole_pool_can_be_taken_and_the_padding_slot_is_not_in_it():
    allocator = SlotAllocator(5)
    assert allocator.allocate(5) == [0, 1, 2, 3, 4]
    assert allocator.free_count == 0
    assert not allocator.is_free(allocator.padding_slot)


def test_nothing_comes_of_asking_for_nothing_even_when_nothing_is_free():
    allocator = SlotAllocator(1)
    allocator.allocate(1)
    assert allocator.allocate(0) == []


@pytest.mark.parametrize("n", [-1, 1.0, True, None])
def test_the_count_must_be_a_non_negative_int(n):
    with pytest.raises(InvalidArgumentError, match="n: got"):
        SlotAllocator(4).allocate(n)


def test_asking_for_too_many_says_both_numbers_and_takes_nothing():
    allocator = SlotAllocator(4)
    allocator.allocate(1)
    with pytest.raises(OutOfSlotsError, match="wanted 4 slots, 3 are free") as caught:
        allocator.allocate(4)
    assert isinstance(caught.value, SglError)
    assert (caught.value.wanted, caught.value.free) == (4, 3)
    assert allocator.free_count == 3
    assert allocator.allocate(3) == [1, 2, 3]


def test_freed_slots_are_handed_out_again():
    allocator = SlotAllocator(4)
    allocator.allocate(4)
    allocator.free([2])
    assert allocator.is_free(2)
    assert not allocator.is_free(1)
    assert allocator.allocate(1) == [2]


def test_free_takes_any_iterable_in_any_order():
    allocator = SlotAllocator(6)
    allocator.allocate(6)
    allocator.free(slot for slot in (4, 0, 5, 1))
    allocator.free(set())
    assert allocator.free_count == 4
    assert [allocator.is_free(slot) for slot in range(6)] == [True, True, False, False, True, True]


def test_a_gap_heals_when_its_neighbours_come_back():
    allocator = SlotAllocator(9)
    allocator.allocate(9)
    for slots in ([0, 1, 2], [6, 7, 8], [5], [3]):  # apart, apart, joins its right, joins its left
        allocator.free(slots)
        allocator.check_invariants()
    allocator.free([4])  # joins both
    allocator.check_invariants()
    assert allocator.allocate(9) == list(range(9))


def test_a_contiguous_range_is_preferred_over_lower_crumbs():
    allocator = SlotAllocator(10)
    allocator.allocate(10)
    allocator.free([0, 2, 5, 6, 7])
    assert allocator.allocate(3) == [5, 6, 7]
    assert allocator.allocate(1) == [0]


def test_crumbs_are_gathered_lowest_first_when_no_run_is_long_enough():
    allocator = SlotAllocator(10)
    allocator.allocate(10)
    allocator.free([1, 3, 4, 8, 9])
    assert allocator.allocate(4) == [1, 3, 4, 8]
    allocator.check_invariants()
    assert allocator.allocate(1) == [9]


@pytest.mark.parametrize("n", [150, 200])
def test_the_untouched_end_of_the_pool_is_found_behind_any_number_of_crumbs(n):
    allocator, _ = fragmented(1000, 2)
    allocator.free(range(801, 1000, 2))
    assert allocator.allocate(n) == list(range(800, 800 + n))
    allocator.check_invariants()


def test_every_crumb_of_a_fragmented_pool_can_be_taken_at_once():
    allocator, holes = fragmented(1000, 3)
    assert allocator.allocate(len(holes)) == holes
    assert allocator.free_count == 0
    allocator.check_invariants()


@pytest.mark.parametrize(
    ("slots", "complaint"),
    [
        ([0, 5], "got 5, expected allocated slots"),
        ([3, 4], "got 4, expected allocated slots"),
        ([0, 1, 1], "got 1, expected each slot once"),
        ([0, 8], "got 8, expected slots of this pool, 0 to 7"),
        ([0, -1], "got -1, expected slots of this pool, 0 to 7"),
    ],
    ids=["free already", "run into a free one", "twice in one call", "padding slot", "negative"],
)
def test_a_bad_free_is_refused_and_changes_nothing(slots, complaint):
    allocator = SlotAllocator(8)
    allocator.allocate(4)
    with pytest.raises(InvalidArgumentError, match=complaint):
        allocator.free(slots)
    assert allocator.free_count == 4
    assert not any(allocator.is_free(slot) for slot in range(4))
    allocator.check_invariants()


@pytest.mark.parametrize("slot", [-1, 4, 100])
def test_a_foreign_slot_is_never_free(slot):
    assert not SlotAllocator(4).is_free(slot)


@pytest.mark.parametrize("seed", range(5))
def test_random_use_agrees_with_a_plain_set(seed):
    rng = random.Random(seed)
    allocator = SlotAllocator(100)
    free, held = set(range(100)), []
    refusals = 0
    for _ in range(2_000):
        if rng.random() < 0.55:
            n = rng.randrange(25)
            if n > len(free):
                refusals += 1
                with pytest.raises(OutOfSlotsError):
                    allocator.allocate(n)
            else:
                taken = allocator.allocate(n)
                assert taken == sorted(taken)
                assert len(taken) == n
                assert set(taken) <= free
                free -= set(taken)
                held += taken
        else:
            rng.shuffle(held)
            cut = rng.randrange(25)
            returned, held = held[:cut], held[cut:]
            allocator.free(returned)
            free |= set(returned)
        allocator.check_invariants()
        assert allocator.free_count == len(free)
        assert {slot for slot in range(-1, 102) if allocator.is_free(slot)} == free
    assert refusals > 0


DAMAGE = {
    "counter": (lambda a: setattr(a, "_free_count", 3), "free_count is 3, the free runs hold 4"),
    "ragged": (lambda a: a._ends.append(9), "2 run starts but 3 run ends"),
    "touching": (lambda a: a._ends.__setitem__(0, 5), "touches the run that ends at 5"),
    "overlapping": (lambda a: a._ends.__setitem__(0, 6), "touches the run that ends at 6"),
    "empty run": (lambda a: a._ends.__setitem__(0, 1), "is empty"),
    "below the pool": (lambda a: a._starts.__setitem__(0, -1), "is empty, or touches"),
    "above the pool": (lambda a: a._ends.__setitem__(1, 9), "beyond the pool's 8 slots"),
}


def failure(damage):
    allocator = SlotAllocator(8)
    allocator.allocate(8)
    allocator.free([1, 2, 5, 6])
    allocator.check_invariants()
    damage(allocator)
    with pytest.raises(AssertionError) as caught:
        allocator.check_invariants()
    return caught.value


@pytest.mark.parametrize(("damage", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_the_check_notices_damage(damage, complaint):
    assert complaint in str(failure(damage))


def test_no_invariant_is_without_damage_that_sets_it_off():
    assert assertions_of(SlotAllocator.check_invariants) == {place_of(failure(damage)) for damage, _ in DAMAGE.values()}
