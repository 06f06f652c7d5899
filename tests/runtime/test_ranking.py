"""A priority queue whose members move, against a sorted list."""

from __future__ import annotations

import random

from sgl_core.runtime.ranking import Ranking


def test_the_first_is_the_least_after_any_sequence_of_moves() -> None:
    rng = random.Random(0)
    ranking: Ranking[int] = Ranking()
    model: dict[int, tuple[int, int]] = {}
    for number in range(5_000):
        item = rng.randrange(30)
        if rng.random() < 0.6:
            rank = rng.randrange(10)
            ranking.put(item, rank)
            model[item] = (rank, number)
        else:
            ranking.discard(item)
            model.pop(item, None)
        assert len(ranking) == len(model)
        assert ranking.first() == (min(model, key=model.__getitem__) if model else None)
        assert ranking.rank(item) == (model[item][0] if item in model else None)


def test_entries_that_moved_do_not_pile_up() -> None:
    ranking: Ranking[str] = Ranking()
    for number in range(10_000):
        ranking.put("a", -number)
        ranking.put("b", number)
    assert len(ranking._heap) < 100
