"""The offline optimum and its bounds, against brute force on small cases and by hand on speaking ones."""

import itertools
import random

import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_core.testing.optimum import (
    LoggedRequest,
    OfflineTrie,
    belady_hit_tokens,
    distinct_tokens,
    lru_hit_tokens,
    optimal_prefill_tokens,
    unshared_tokens,
)


def one_after_another(*requests):
    """A log in which each request becomes ready when the one before has finished."""
    return [LoggedRequest(tuple(p), tuple(o), 2 * i, 2 * i + 1) for i, (p, o) in enumerate(requests)]


def at_once(*requests):
    """A log in which all are ready before the first has finished."""
    return [LoggedRequest(tuple(p), tuple(o), i, len(requests) + i) for i, (p, o) in enumerate(requests)]


def random_log(rng, *, tokens=2, longest=4, requests=5):
    events = list(range(2 * requests))
    rng.shuffle(events)
    log = []
    for pair in zip(events[::2], events[1::2], strict=True):
        prompt = tuple(rng.choices(range(tokens), k=rng.randint(1, longest)))
        output = tuple(rng.choices(range(tokens), k=rng.randint(0, 2)))
        log.append(LoggedRequest(prompt, output, min(pair), max(pair)))
    return log


def test_nothing_is_known_before_the_first_request():
    assert optimal_prefill_tokens(at_once(([1, 2, 3], [4]))) == 3


def test_an_empty_log_computes_nothing():
    assert optimal_prefill_tokens([]) == distinct_tokens([]) == belady_hit_tokens([], 1) == lru_hit_tokens([], 1) == 0


def test_a_repeated_prompt_still_computes_its_last_token():
    assert optimal_prefill_tokens(at_once(([1, 2, 3], []), ([1, 2, 3], []), ([1, 2], []))) == 3 + 1 + 1


def test_a_finished_output_counts_without_its_last_token():
    answer = ([1, 2], [3, 4, 5])
    follow_up = ([1, 2, 3, 4, 5, 6], [])
    assert optimal_prefill_tokens(one_after_another(answer, follow_up)) == 2 + 2


def test_an_output_counts_only_once_its_request_has_finished():
    answer = ([1, 2], [3, 4, 5])
    follow_up = ([1, 2, 3, 4, 5, 6], [])
    assert optimal_prefill_tokens(at_once(answer, follow_up)) == 2 + 4


def test_requests_count_in_the_order_in_which_they_became_ready_not_as_listed():
    answer = LoggedRequest((1, 2), (3, 4), 0, 1)
    follow_up = LoggedRequest((1, 2, 3, 9), (), 2, 3)
    assert optimal_prefill_tokens([follow_up, answer]) == 2 + 1


@pytest.mark.parametrize("seed", range(100))
def test_the_optimal_prefill_is_what_counting_known_prefixes_gives(seed):
    log = random_log(random.Random(seed), longest=6, requests=6)
    total = 0
    for request in log:
        known = [r.prompt for r in log if r.ready < request.ready]
        known += [r.prompt + r.output[:-1] for r in log if r.finished < request.ready]
        prefixes = {ids[:length] for ids in known for length in range(len(ids) + 1)}
        unknown = [end for end in range(1, len(request.prompt) + 1) if request.prompt[:end] not in prefixes]
        total += max(1, len(unknown))
    assert optimal_prefill_tokens(log) == total


@pytest.mark.parametrize("seed", range(50))
def test_distinct_tokens_are_the_distinct_prefixes(seed):
    log = random_log(random.Random(seed), longest=6, requests=6)
    whole = [r.prompt + r.output[:-1] for r in log]
    assert distinct_tokens(log) == len({ids[:end] for ids in whole for end in range(1, len(ids) + 1)})


def test_the_trie_finds_the_longest_prefix_of_what_was_put_in():
    trie = OfflineTrie()
    first, second = trie.insert([5, 6, 7]), trie.insert([5, 6, 8, 9])
    assert first[:2] == second[:2]
    assert len(trie) == 5
    assert [trie.prefix_len(ids) for ids in ([5, 6, 8, 1], [5, 6, 7, 7], [6], [])] == [3, 3, 0, 0]


def test_the_trie_tells_large_ids_of_different_nodes_apart():
    trie = OfflineTrie()
    trie.insert([0, 2**32 - 1])
    assert trie.prefix_len([2**32 - 1]) == 0
    assert trie.prefix_len([0, 2**32 - 1, 0]) == 2


def most_hits(log, capacity, *, closed):
    """The best of all ways to choose what stays, by trying them; ``closed`` keeps a token only with all before it."""

    def prefixes(ids):
        return frozenset(ids[:end] for end in range(1, len(ids) + 1))

    best = {frozenset(): 0}
    for request in log:
        path = prefixes(request.prompt + request.output[:-1])
        reachable = {}
        for held, hits in best.items():
            cached = next((d for d in range(len(request.prompt)) if request.prompt[: d + 1] not in held), len(request.prompt))
            hits += min(cached, len(request.prompt) - 1)
            others = sorted(held - path)
            for count in range(min(len(others), capacity - len(path)) + 1):
                for kept in itertools.combinations(others, count):
                    after = path | frozenset(kept)
                    if not closed or all(ids[:-1] in after or len(ids) == 1 for ids in after):
                        reachable[after] = max(reachable.get(after, 0), hits)
        best = reachable
    return max(best.values())


@pytest.mark.parametrize("seed", range(150))
def test_belady_is_the_best_choice_there_is_and_a_bound_for_every_tree(seed):
    rng = random.Random(seed)
    log = random_log(rng, requests=6)
    capacity = max(len(r.prompt + r.output[:-1]) for r in log) + rng.randint(0, 3)
    belady = belady_hit_tokens(log, capacity)
    assert belady == most_hits(log, capacity, closed=False)
    assert lru_hit_tokens(log, capacity) <= most_hits(log, capacity, closed=True) <= belady


@pytest.mark.parametrize("seed", range(50))
def test_lru_is_what_dropping_the_oldest_token_by_token_gives(seed):
    rng = random.Random(seed)
    log = random_log(rng, tokens=3, longest=6, requests=8)
    capacity = max(len(r.prompt + r.output[:-1]) for r in log) + rng.randint(0, 6)
    last_use, hits = {}, 0
    for turn, request in enumerate(log):
        whole = request.prompt + request.output[:-1]
        cached = next((d for d in range(len(whole)) if whole[: d + 1] not in last_use), len(whole))
        hits += min(cached, len(request.prompt) - 1)
        last_use.update({whole[:end]: turn for end in range(1, len(whole) + 1)})
        while len(last_use) > capacity:
            del last_use[min(last_use, key=lambda ids: (last_use[ids], -len(ids)))]
    assert lru_hit_tokens(log, capacity) == hits


def test_a_pool_that_holds_everything_reuses_all_that_one_after_another_can_reuse():
    log = one_after_another(([1, 2, 3], [4, 5]), ([1, 2, 3, 4, 6], [7]), ([8, 9], []), ([1, 2, 3, 4, 6, 1], []))
    everything = distinct_tokens(log)
    computed = sum(len(r.prompt) for r in log) - belady_hit_tokens(log, everything)
    assert computed == optimal_prefill_tokens(log)
    assert lru_hit_tokens(log, everything) == belady_hit_tokens(log, everything)


def test_belady_keeps_the_prefix_that_comes_back_where_lru_drops_it():
    hot, cold = [1, 2, 3, 4], [[5, 6, 7, 8], [9, 10, 11, 12]]
    log = one_after_another((hot, []), *((ids, []) for ids in cold), (hot, []))
    assert belady_hit_tokens(log, 8) == 3
    assert lru_hit_tokens(log, 8) == 0


@pytest.mark.parametrize("bound", [belady_hit_tokens, lru_hit_tokens])
def test_a_pool_too_small_for_one_request_is_an_error_with_the_number(bound):
    with pytest.raises(InvalidArgumentError, match="at least 3"):
        bound(one_after_another(([1, 2], [3, 4])), 2)


def test_a_request_without_a_prompt_is_an_error():
    with pytest.raises(InvalidArgumentError, match="prompt"):
        LoggedRequest((), (1,), 0, 1)


def test_a_request_that_ends_before_it_is_ready_is_an_error():
    with pytest.raises(InvalidArgumentError, match="finished"):
        LoggedRequest((1,), (1,), 3, 3)


def test_a_log_of_a_million_tokens_is_no_trouble():
    shared = tuple(range(1000))
    log = one_after_another(*((shared + (1000 + i,), ()) for i in range(1000)))
    assert optimal_prefill_tokens(log) == 1001 + 999


def test_unshared_tokens_count_every_shared_prefix_once():
    assert unshared_tokens([(1, 2, 3), (1, 2, 4), (1, 2), (2, 2)]) == 6
    assert unshared_tokens([]) == 0


def test_unshared_tokens_are_what_requests_one_after_another_compute():
    rng = random.Random(3)
    for _ in range(50):
        prompts = [(*rng.choices(range(2), k=rng.randint(1, 5)), 9) for _ in range(5)]  # 9 ends each: none begins another
        distinct = list(dict.fromkeys(prompts))
        assert unshared_tokens(prompts) == optimal_prefill_tokens(one_after_another(*((prompt, [0]) for prompt in distinct)))
