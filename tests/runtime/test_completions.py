"""``n`` completions of one prompt: one prefill, one handle, each with noise of its own, and none that outlives the others' end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from sgl_core.errors import DeadlineExceeded, EngineShutdown, NumericsError, QueueFull
from sgl_core.runtime import reading
from sgl_core.runtime.detokenizer import StreamDecoder
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.grammar.matcher import GrammarMatcher
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.runtime.sampler import Pick, sample
from sgl_core.types import FinishReason, GenDelta, GenRequest, GenResult, SamplingParams

WAIT_S = 60.0
PROMPT = "one prompt and many ways to go on from here"
EIGHT = SamplingParams(max_new_tokens=10, temperature=1.0, seed=7, n=8, ignore_eos=True)
ENDLESS = replace(EIGHT, max_new_tokens=300)


@pytest.fixture(scope="module")
def shared(loaded: LoadedModel) -> Iterator[Engine]:
    with Engine(loaded=loaded, cache_tokens=4_096) as engine:
        yield engine


def settle(engine: Engine) -> None:
    """Wait until nothing runs or waits, by other requests' ends."""
    for _ in range(200):
        stats = engine.stats()
        if not stats.num_running and not stats.num_waiting:
            return
        engine.submit([5], SamplingParams(max_new_tokens=1)).result(WAIT_S)
    pytest.fail("something goes on")


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    shared.flush_cache()
    shared.reset_stats()
    yield shared
    settle(shared)
    check(shared)


def check(engine: Engine) -> None:
    engine.check_invariants()
    stats = engine.stats()
    assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens, "a test left slots behind"
    assert stats.prompt_tokens == stats.cached_tokens + stats.prefilled_tokens


def complete(engine: Engine, params: SamplingParams = EIGHT, prompt: str = PROMPT) -> list[GenResult]:
    results: Any = engine.submit(prompt, params).result(WAIT_S)
    return list(results) if isinstance(results, list) else [results]


def ids(results: list[GenResult]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in results]


def prompt_len(engine: Engine) -> int:
    return len(engine.codec.begin() + engine.codec.encode(PROMPT))


def together(engine: Engine, submit: Callable[[], Any]) -> Any:
    """Whatever is submitted in ``submit`` starts in one step."""
    return engine._loop.call(lambda machine: submit())


# ---- one prefill -----------------------------------------------------------------------------------------------------
def test_the_prompt_is_computed_once_and_the_first_result_carries_it(engine: Engine) -> None:
    results, length = complete(engine), prompt_len(engine)
    assert [(r.usage.prompt_tokens, r.usage.cached_tokens) for r in results] == [(length, 0)] + [(length, length)] * 7
    assert [r.usage.completion_tokens for r in results] == [10] * 8
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.prefilled_tokens, stats.cached_tokens) == (8 * length, length, 7 * length)
    assert (stats.generated_tokens, stats.recomputed_tokens, stats.num_finished) == (80, 0, 8)
    assert stats.num_steps == 10, "the completions did not run side by side"
    assert stats.total_computed_tokens == length + 80


def test_a_warm_prompt_is_carried_by_the_first_result_alone(engine: Engine) -> None:
    before, length = complete(engine), prompt_len(engine)
    again = complete(engine)
    assert ids(again) == ids(before)
    assert [r.usage.cached_tokens for r in again] == [length - 1] + [length] * 7
    assert engine.stats().prefilled_tokens == length + 1


def test_deltas_say_which_completion_they_belong_to(engine: Engine) -> None:
    handle = engine.submit(PROMPT, EIGHT)
    texts = [""] * 8
    tokens: list[tuple[int, ...]] = [()] * 8
    for delta in handle:
        texts[delta.index] += delta.text
        tokens[delta.index] += delta.token_ids
    results: Any = handle.result(WAIT_S)
    assert texts == [result.text for result in results]
    assert tokens == ids(results)


def test_completions_of_one_token_end_with_the_prefill(engine: Engine) -> None:
    results = complete(engine, replace(EIGHT, max_new_tokens=1))
    assert [len(result.token_ids) for result in results] == [1] * 8
    stats = engine.stats()
    length = prompt_len(engine)
    assert (stats.num_steps, stats.generated_tokens) == (1, 8)
    assert (stats.prompt_tokens, stats.prefilled_tokens, stats.cached_tokens) == (8 * length, length, 7 * length)
    assert ids(results) == [tokens[:1] for tokens in ids(complete(engine))]


def test_a_hundred_and_twenty_eight_come_from_one_prefill(engine: Engine) -> None:
    results = complete(engine, replace(EIGHT, n=128, max_new_tokens=6))
    assert len(set(ids(results))) == 128
    assert engine.stats().prefilled_tokens == prompt_len(engine)
    assert [tokens[:6] for tokens in ids(complete(engine))] == ids(results)[:8], "fewer are not the first of more"


@pytest.mark.parametrize(
    "options",
    [
        {"max_running": 3},
        {"max_running": 1},
        {"prefill_chunk_tokens": 5},
        {"cache_tokens": 90},
        {"in_flight_sharing": False},
        {"policy": "fcfs", "max_running": 2},
    ],
    ids=str,
)
def test_rows_chunks_and_slots_change_no_text(options: dict[str, Any], engine: Engine, loaded: LoadedModel) -> None:
    expected = complete(engine)
    with Engine(loaded=loaded, **{"cache_tokens": 2_048, **options}) as small:
        assert ids(complete(small)) == ids(expected)
        assert small.stats().prefilled_tokens == prompt_len(engine)
        check(small)


def test_without_a_cache_each_computes_its_prompt_and_says_the_same(engine: Engine, loaded: LoadedModel) -> None:
    expected, length = complete(engine), prompt_len(engine)
    with Engine(loaded=loaded, cache_tokens=2_048, prefix_cache=False) as plain:
        results = complete(plain)
        assert ids(results) == ids(expected)
        assert [r.usage.cached_tokens for r in results] == [0] * 8
        assert plain.stats().prefilled_tokens == 8 * length
        assert plain.stats().free_tokens == plain.stats().pool_tokens


# ---- seeds -----------------------------------------------------------------------------------------------------------
def test_one_seed_gives_the_same_completions_again_and_all_of_them_differ(engine: Engine) -> None:
    first, again = complete(engine), complete(engine)
    assert ids(first) == ids(again)
    assert len(set(ids(first))) == 8
    assert first[0].seed == 7
    assert len({result.seed for result in first}) == 8
    assert ids(complete(engine, replace(EIGHT, n=1))) == ids(first)[:1]
    assert ids(complete(engine, replace(EIGHT, seed=8))) != ids(first)


def test_the_seed_of_a_result_gives_that_result_alone(engine: Engine) -> None:
    for result in complete(engine)[3:5]:
        assert ids(complete(engine, replace(EIGHT, n=1, seed=result.seed))) == [result.token_ids]


def test_greedy_completions_are_all_the_same(engine: Engine) -> None:
    results = complete(engine, replace(EIGHT, temperature=0.0, seed=None))
    assert len(set(ids(results))) == 1
    assert {result.seed for result in results} == {None}


# ---- ends ------------------------------------------------------------------------------------------------------------
class After:
    """Does something once so many tokens have come, on the engine's thread."""

    def __init__(self, tokens: int, event: Callable[[], object]) -> None:
        self._left = tokens
        self._event = event

    def __call__(self, delta: GenDelta) -> None:
        before, self._left = self._left, self._left - len(delta.token_ids)
        if before > 0 >= self._left:
            self._event()


def test_an_abort_midway_ends_all_with_what_they_have(engine: Engine) -> None:
    handle = engine.submit(PROMPT, ENDLESS)
    handle.add_delta_callback(After(40, handle.abort))
    results: Any = handle.result(WAIT_S)
    assert [result.finish_reason for result in results] == [FinishReason.ABORT] * 8
    assert all(1 <= len(result.token_ids) < 300 for result in results)
    stats = engine.stats()
    assert (stats.num_finished, stats.num_aborted, stats.num_failed) == (8, 8, 0)


def test_an_abort_before_the_first_token_counts_all(engine: Engine) -> None:
    def submit() -> Any:
        handle = engine.submit(PROMPT, ENDLESS)
        handle.abort()
        return handle

    results: Any = together(engine, submit).result(WAIT_S)
    assert [(result.finish_reason, result.text) for result in results] == [(FinishReason.ABORT, "")] * 8
    stats = engine.stats()
    assert (stats.num_finished, stats.num_aborted, stats.prefilled_tokens) == (8, 8, 0)


def test_a_completion_that_has_ended_keeps_its_end_when_the_others_are_aborted(engine: Engine) -> None:
    expected = complete(engine, replace(EIGHT, max_new_tokens=30))
    stop = expected[2].token_ids[4]
    params = replace(ENDLESS, stop_token_ids=(stop,))
    handle = engine.submit(PROMPT, params)
    handle.add_delta_callback(After(100, handle.abort))
    results: Any = handle.result(WAIT_S)
    assert results[2].finish_reason is FinishReason.STOP
    assert results[2].matched_stop == stop
    assert FinishReason.ABORT in [result.finish_reason for result in results]
    for result, full in zip(results, expected, strict=True):
        common = min(len(result.token_ids), len(full.token_ids))
        assert result.token_ids[:common] == full.token_ids[:common]


def follower_commit(monkeypatch: pytest.MonkeyPatch) -> tuple[SamplingParams, type[Exception]]:
    plain, calls = GrammarMatcher.commit, []

    def failing(self: GrammarMatcher, verdict: Any) -> None:
        calls.append(self)
        if len(calls) == 3:
            raise KeyError("planted")
        plain(self, verdict)

    monkeypatch.setattr(GrammarMatcher, "commit", failing)
    return replace(ENDLESS, regex="[a-z ]+", n=4), KeyError


def follower_text(monkeypatch: pytest.MonkeyPatch) -> tuple[SamplingParams, type[Exception]]:
    plain, calls = StreamDecoder.push, []

    def failing(self: StreamDecoder, token: int) -> str:
        calls.append(self)
        if len(calls) == 6:
            raise KeyError("planted")
        return plain(self, token)

    monkeypatch.setattr(StreamDecoder, "push", failing)
    return replace(ENDLESS, n=4), KeyError


def follower_numbers(monkeypatch: pytest.MonkeyPatch) -> tuple[SamplingParams, type[Exception]]:
    plain = sample

    def failing(logits: Any, draws: Any) -> list[Pick]:
        picks = plain(logits, draws)
        bad = [draw.request.id.endswith("-2") and draw.request.num_generated == 3 for draw in draws]
        return [Pick(None, NumericsError("planted")) if b else pick for b, pick in zip(bad, picks, strict=True)]

    monkeypatch.setattr(reading, "sample", failing)
    return replace(ENDLESS, n=4), NumericsError


@pytest.mark.parametrize("damage", [follower_commit, follower_text, follower_numbers])
def test_one_that_fails_fails_the_handle_and_ends_the_others(
    damage: Callable[[pytest.MonkeyPatch], tuple[SamplingParams, type[Exception]]],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = complete(engine, replace(EIGHT, n=1))
    engine.reset_stats()
    params, kind = damage(monkeypatch)
    handle = engine.submit(PROMPT, params)
    with pytest.raises(kind, match="planted"):
        handle.result(WAIT_S)
    settle(engine)
    monkeypatch.undo()
    stats = engine.stats()
    assert (stats.num_failed, stats.num_aborted) == (1, 3)
    assert ids(complete(engine, replace(EIGHT, n=1))) == ids(alone)


def test_a_deadline_before_the_first_token_is_everybodys(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded):
        engine.submit(PROMPT, ENDLESS, timeout_s=1e-6).result(WAIT_S)
    settle(engine)
    assert engine.stats().num_failed == 8
    assert engine.stats().num_aborted == 0


def test_closing_ends_completions_in_flight(loaded: LoadedModel) -> None:
    engine = Engine(loaded=loaded, cache_tokens=2_048, max_running=3)
    handle, started = engine.submit(PROMPT, ENDLESS), threading.Event()
    handle.add_delta_callback(lambda delta: started.set())
    waiting = engine.submit(PROMPT, ENDLESS)
    assert started.wait(WAIT_S)
    engine.close()
    for each in (handle, waiting):
        with pytest.raises(EngineShutdown):
            each.result(WAIT_S)


def test_a_full_queue_refuses_completions_and_loses_none_it_took(engine: Engine, loaded: LoadedModel) -> None:
    expected = complete(engine)
    with Engine(loaded=loaded, cache_tokens=2_048, max_running=1, max_queued=2) as small:
        taken: list[Any] = []

        def overload() -> None:
            for _ in range(20):
                taken.append(small.submit(PROMPT, EIGHT))

        with pytest.raises(QueueFull, match="max_queued=2"):
            together(small, overload)
        assert taken
        for handle in taken:
            assert ids(handle.result(WAIT_S)) == ids(expected)
        check(small)


# ---- retraction ------------------------------------------------------------------------------------------------------
def test_a_prompt_that_is_sent_back_before_its_first_token_is_still_everybodys(engine: Engine, loaded: LoadedModel) -> None:
    expected = complete(engine)
    with Engine(loaded=loaded, cache_tokens=2_048, prefill_chunk_tokens=4) as chunked:
        moved: list[bool] = []
        handles: list[Any] = []

        def retract() -> None:
            moved.append(chunked._loop.call(lambda machine: machine.scheduler.retract(handles[0].id)))

        def submit() -> Any:
            clock = chunked.submit([5, 6], replace(EIGHT, n=1, max_new_tokens=30))
            clock.add_delta_callback(After(3, retract))
            handles.append(chunked.submit(PROMPT, EIGHT))
            return clock

        together(chunked, submit).result(WAIT_S)
        assert ids(handles[0].result(WAIT_S)) == ids(expected)
        assert moved == [True]
        assert chunked.stats().num_retractions == 1
        check(chunked)


@pytest.mark.parametrize("loses_kv", [False, True])
def test_completions_that_are_sent_back_say_the_same(loses_kv: bool, engine: Engine) -> None:
    expected = complete(engine)
    engine.reset_stats()
    handle = engine.submit(PROMPT, EIGHT)

    def retract() -> None:
        names = [handle.id, *(f"{handle.id}-{i}" for i in range(1, 8))]
        engine._loop.call(lambda machine: [machine.scheduler.retract(name) for name in names])
        if loses_kv:
            engine.flush_cache()

    for tokens in (1, 20, 41):
        handle.add_delta_callback(After(tokens, retract))
    assert ids(handle.result(WAIT_S)) == ids(expected)  # type: ignore[arg-type]
    stats = engine.stats()
    assert stats.num_retractions >= 8
    assert (stats.recomputed_tokens > 0) or not loses_kv
    assert stats.generated_tokens == 80


# ---- healing ---------------------------------------------------------------------------------------------------------
def test_healed_completions_share_their_prompt_and_the_first_is_the_lone_one(engine: Engine) -> None:
    prompt = engine.codec.encode("The answer is")
    request = GenRequest(prompt, replace(EIGHT, n=6, max_new_tokens=6), heal=" t")
    results: Any = engine.submit(request).result(WAIT_S)
    again: Any = engine.submit(request).result(WAIT_S)
    alone = engine.submit(replace(request, params=replace(request.params, n=1))).result(WAIT_S)
    assert [(r.healed_ids, r.token_ids, r.text) for r in results] == [(r.healed_ids, r.token_ids, r.text) for r in again]
    assert (results[0].healed_ids, results[0].token_ids) == (alone.healed_ids, alone.token_ids)
    for result in results:
        whole = engine.codec.decode([*result.healed_ids, *result.token_ids])
        assert whole == " t" + result.text
        assert len(result.token_ids) == result.usage.completion_tokens == 6
        assert result.usage.prompt_tokens == len(prompt) + len(result.healed_ids)
    stats = engine.stats()
    parts = [*results, *again, alone]
    assert stats.prefilled_tokens == sum(r.usage.prompt_tokens - r.usage.cached_tokens for r in parts)
