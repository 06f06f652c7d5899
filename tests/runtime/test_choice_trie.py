"""The trie of choices: everything in common once, every score findable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_core.runtime.choice_trie import ChoiceTrie, build_tries

CHOICES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=9)


def scored_cells(trie: ChoiceTrie) -> list[tuple[tuple[int, ...], int]]:
    """(tokens before, token) of every score in order."""
    cells = []
    for row, children in enumerate(trie.children):
        before = tuple(trie.tokens[node] for node in trie.path(row - 1))
        cells += [(before, token) for token in children]
    return cells


@given(CHOICES, st.sampled_from([1, 3, 100]))
def test_every_token_of_every_continuation_has_its_score(choices: list[tuple[int, ...]], max_nodes: int) -> None:
    found = {}
    for trie in build_tries(choices, max_nodes):
        cells = scored_cells(trie)
        for index, places in zip(trie.continuations, trie.places, strict=True):
            found[index] = [cells[place] for place in places]
    assert found == {i: [(c[:k], c[k]) for k in range(len(c))] for i, c in enumerate(choices)}


@given(CHOICES)
def test_every_inner_prefix_is_one_node_and_no_score_is_computed_twice(choices: list[tuple[int, ...]]) -> None:
    (trie,) = build_tries(choices, 100)
    paths = [tuple(trie.tokens[node] for node in trie.path(j)) for j in range(len(trie.tokens))]
    assert set(paths) == {c[:k] for c in choices for k in range(1, len(c))}
    assert len(set(paths)) == len(paths)
    assert [len(path) - 1 for path in paths] == list(trie.depths)
    cells = scored_cells(trie)
    assert len(set(cells)) == len(cells)


@given(CHOICES, st.integers(1, 4))
def test_a_trie_is_split_where_it_would_grow_too_large(choices: list[tuple[int, ...]], max_nodes: int) -> None:
    for trie in build_tries(choices, max_nodes):
        with_nodes = {choices[i] for i in trie.continuations if len(choices[i]) > 1}
        assert len(trie.tokens) <= max_nodes or len({c[:-1] for c in with_nodes}) == 1


def test_choices_of_one_token_need_no_node() -> None:
    (trie,) = build_tries([(5,), (3,), (5,)], 10)
    assert trie.tokens == ()
    assert trie.children == ((3, 5),)
    assert dict(zip(trie.continuations, trie.places, strict=True)) == {0: (1,), 1: (0,), 2: (1,)}


@pytest.mark.parametrize("max_nodes", [1, 2, 1000])
def test_a_long_continuation_is_never_cut(max_nodes: int) -> None:
    tries = build_tries([tuple(range(50)), tuple(range(49))], max_nodes)
    assert max(len(trie.tokens) for trie in tries) == 49
