"""``verify=True``: a second computation, alone and without the cache, that confirms the first or says what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_core.errors import EngineShutdown, VerificationError
from sgl_core.runtime import intake
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.engine_loop import Machine
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.runtime.verification import Verifier
from sgl_core.types import FinishReason, GenDelta, GenRequest, GenResult, SamplingParams, Usage, Verification

WAIT_S = 60.0
PROMPT = list(range(20, 50))
GREEDY = SamplingParams(max_new_tokens=8, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=1.0, seed=4)
EQUAL = Verification(equal=True)


@pytest.fixture(scope="module")
def shared(loaded: LoadedModel) -> Iterator[Engine]:
    with Engine(loaded=loaded, cache_tokens=1_024, verify=True, prefill_chunk_tokens=64) as engine:
        yield engine


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    shared.flush_cache()
    shared.reset_stats()
    yield shared
    check(shared)


def check(engine: Engine) -> None:
    engine.check_invariants()
    stats = engine.stats()
    assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens, "a test left slots behind"
    assert (stats.num_running, stats.num_waiting) == (0, 0)


def run(engine: Engine, params: SamplingParams, *, heal: str = "") -> list[GenResult]:
    outcome: Any = engine.submit(GenRequest(tuple(PROMPT), params, heal=heal)).result(WAIT_S)
    return outcome if isinstance(outcome, list) else [outcome]


def corrupt(engine: Engine) -> None:
    """Write garbage over the KV of everything that is cached."""

    @torch.inference_mode()
    def overwrite(machine: Machine) -> None:
        slots = [slot for node in machine.scheduler.tree.walk() for slot in node.slots]
        assert slots, "nothing is cached"
        noise = torch.Generator().manual_seed(0)
        for keys, values in zip(machine.runner._pool.keys, machine.runner._pool.values, strict=True):
            for pool in (keys, values):
                pool[slots] = torch.randn(pool[slots].shape, generator=noise) * 5

    engine._loop.call(overwrite)


# ---- clean runs ------------------------------------------------------------------------------------------------------
CLEAN: dict[str, tuple[SamplingParams, str]] = {
    "greedy": (GREEDY, ""),
    "sampled": (SAMPLED, ""),
    "truncated": (replace(SAMPLED, top_p=0.8, top_k=12, min_p=0.01, repetition_penalty=1.2), ""),
    "hot": (replace(SAMPLED, temperature=50.0), ""),
    "one token": (replace(GREEDY, max_new_tokens=1), ""),
    "completions": (replace(SAMPLED, n=4), ""),
    "told": (replace(SAMPLED, logprobs=2, prompt_logprobs=True), ""),
    "a regex": (replace(SAMPLED, regex="abcdef (one|two) [a-z]{3}", max_new_tokens=30), ""),
    "a regex that the budget ends": (replace(SAMPLED, regex=r"[a-z]*\."), ""),
    "choices": (replace(GREEDY, choices=("the first", "the second"), max_new_tokens=20), ""),
    "a stop token": (replace(SAMPLED, max_new_tokens=60, stop_token_ids=tuple(range(0, 300, 3)), ignore_eos=False), ""),
    "a stop pattern": (replace(SAMPLED, max_new_tokens=60, stop_regex="[a-z]{2}"), ""),
    "healed": (SAMPLED, " t"),
    "healed completions": (replace(SAMPLED, n=3), "in"),
}


@pytest.mark.parametrize("case", CLEAN)
def test_what_is_right_is_confirmed_cold_and_warm(case: str, engine: Engine) -> None:
    params, heal = CLEAN[case]
    results = [*run(engine, params, heal=heal), *run(engine, params, heal=heal)]
    assert [result.verification for result in results] == [EQUAL] * len(results)
    assert [r.token_ids for r in results[: params.n]] == [r.token_ids for r in results[params.n :]]


def test_an_engine_that_does_not_verify_says_nothing(loaded: LoadedModel) -> None:
    with Engine(loaded=loaded, cache_tokens=256) as plain:
        assert run(plain, GREEDY)[0].verification is None
        assert plain.stats().recomputed_tokens == 0


def test_the_second_computation_is_not_streamed(engine: Engine) -> None:
    handle = engine.submit(PROMPT, replace(SAMPLED, n=2))
    tokens: list[list[int]] = [[], []]
    for delta in handle:
        tokens[delta.index] += delta.token_ids
    results: Any = handle.result(WAIT_S)
    assert [tuple(each) for each in tokens] == [result.token_ids for result in results]


def test_the_second_computation_is_counted_as_computed_again(engine: Engine) -> None:
    results = [*run(engine, GREEDY), *run(engine, replace(SAMPLED, n=3))]
    stats, length = engine.stats(), len(PROMPT)
    assert stats.prefilled_tokens == sum(r.usage.prompt_tokens - r.usage.cached_tokens for r in results) == length + 1
    assert stats.generated_tokens == 4 * 8
    assert stats.recomputed_tokens == 4 * (length + 7), "the last token of each is not run"
    assert stats.prompt_tokens == stats.cached_tokens + stats.prefilled_tokens
    assert stats.total_computed_tokens == stats.prefilled_tokens + stats.generated_tokens + stats.recomputed_tokens
    assert stats.num_finished == 4


def test_retracted_requests_are_confirmed(engine: Engine) -> None:
    handle = engine.submit(PROMPT, SAMPLED)
    seen: list[GenDelta] = []

    def retract(delta: GenDelta) -> None:
        seen.append(delta)
        if len(seen) in (2, 5):
            engine._loop.call(lambda machine: machine.scheduler.retract(handle.id))
            engine.flush_cache()

    handle.add_delta_callback(retract)
    assert handle.result(WAIT_S).verification == EQUAL
    assert engine.stats().num_retractions == 2


@pytest.mark.parametrize("options", [{"prefix_cache": False}, {"max_running": 1}, {"cache_tokens": 40}], ids=str)
def test_small_and_uncached_engines_confirm_too(options: dict[str, Any], loaded: LoadedModel) -> None:
    with Engine(loaded=loaded, **{"cache_tokens": 512, "verify": True, **options}) as small:
        assert [result.verification for result in run(small, replace(SAMPLED, n=3))] == [EQUAL] * 3
        check(small)


# ---- damage ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("params", [GREEDY, SAMPLED, replace(GREEDY, regex="[a-z]{8,}")], ids=["greedy", "sampled", "regex"])
def test_a_cache_that_holds_garbage_is_an_error(params: SamplingParams, engine: Engine) -> None:
    (before,) = run(engine, params)
    corrupt(engine)
    with pytest.raises(VerificationError, match=r"token \d+ of the output differs"):
        run(engine, params)
    engine.flush_cache()
    (after,) = run(engine, params)
    assert (after.token_ids, after.verification) == (before.token_ids, EQUAL)


def test_of_completions_one_that_differs_fails_them_all(engine: Engine) -> None:
    run(engine, GREEDY)
    corrupt(engine)
    with pytest.raises(VerificationError):
        run(engine, replace(SAMPLED, n=3))
    while engine.stats().num_running or engine.stats().num_waiting:
        engine.submit([5], replace(GREEDY, max_new_tokens=1)).result(WAIT_S)


def test_a_difference_within_the_tolerance_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (right,) = run(engine, SAMPLED)
    corrupt(engine)
    monkeypatch.setitem(intake._TOLERANCE, "float32", 1e9)
    (wrong,) = run(engine, SAMPLED)
    index = next(i for i, (a, b) in enumerate(zip(wrong.token_ids, right.token_ids, strict=True)) if a != b)
    assert wrong.verification is not None
    assert (wrong.verification.equal, wrong.verification.first_difference) == (False, index)
    assert wrong.verification.gap is not None
    assert 0.0 <= wrong.verification.gap < 1e9


def test_a_deterministic_engine_allows_no_difference(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(intake._TOLERANCE, "float32", 1e9)
    with Engine(loaded=loaded, cache_tokens=512, verify=True, deterministic=True) as exact:
        assert [r.verification for r in (*run(exact, GREEDY), *run(exact, replace(SAMPLED, n=3)))] == [EQUAL] * 4
        corrupt(exact)
        with pytest.raises(VerificationError, match="at most 0 is explained"):
            run(exact, GREEDY)
        check(exact)


# ---- ends ------------------------------------------------------------------------------------------------------------
def when_replaying(engine: Engine, act: Callable[[Any], object]) -> Any:
    """The handle of a request, on which ``act`` is called while its second computation runs."""
    seen: list[GenDelta] = []
    handles: list[Any] = []

    def tick(delta: GenDelta) -> None:
        seen.append(delta)
        if len(seen) == 12:
            names = engine._loop.call(lambda machine: list(machine.scheduler._running))
            assert f"{handles[0].id}-replay" in names, "the second computation does not run now"
            acted.append(act(handles[0]))

    def submit() -> Any:
        clock = engine.submit([7, 8], replace(GREEDY, max_new_tokens=30))
        clock.add_delta_callback(tick)
        handles.append(engine.submit(PROMPT, GREEDY))
        return clock

    acted: list[object] = []
    clock = engine._loop.call(lambda machine: submit())
    clock.result(WAIT_S)
    assert acted, "nothing was done"
    return handles[0]


def test_an_abort_during_the_second_computation_leaves_the_first_unconfirmed(engine: Engine) -> None:
    result = when_replaying(engine, lambda handle: handle.abort()).result(WAIT_S)
    assert (result.finish_reason, len(result.token_ids)) == (FinishReason.LENGTH, 8)
    assert result.verification is None
    stats = engine.stats()
    assert (stats.num_finished, stats.num_aborted, stats.num_failed) == (2, 0, 0)


def test_an_abort_with_the_last_token_of_the_first_ends_the_second_before_it_runs(engine: Engine) -> None:
    handle = engine.submit(PROMPT, GREEDY)
    seen: list[GenDelta] = []

    def last(delta: GenDelta) -> None:
        seen.append(delta)
        if len(seen) == 8:
            handle.abort()

    handle.add_delta_callback(last)
    result = handle.result(WAIT_S)
    assert (result.finish_reason, result.verification) == (FinishReason.LENGTH, None)
    assert engine.stats().recomputed_tokens == 0


def test_an_abort_of_the_first_is_not_computed_again(engine: Engine) -> None:
    handle = engine.submit(PROMPT, replace(GREEDY, max_new_tokens=200))
    handle.add_delta_callback(lambda delta: handle.abort())
    result = handle.result(WAIT_S)
    assert (result.finish_reason, result.verification) == (FinishReason.ABORT, None)
    assert engine.stats().recomputed_tokens == 0


def test_a_second_computation_that_is_sent_back_confirms(engine: Engine) -> None:
    def retract(handle: Any) -> bool:
        return engine._loop.call(lambda machine: machine.scheduler.retract(f"{handle.id}-replay"))

    assert when_replaying(engine, retract).result(WAIT_S).verification == EQUAL
    assert engine.stats().prefilled_tokens == len(PROMPT) + 2


def test_closing_during_the_second_computation_ends_the_wait(loaded: LoadedModel) -> None:
    engine = Engine(loaded=loaded, cache_tokens=512, verify=True)
    handle = engine.submit(PROMPT, replace(GREEDY, max_new_tokens=20))
    for count, _ in enumerate(handle, 1):
        if count == 20:
            break
    engine.close()
    try:
        result = handle.result(WAIT_S)
    except EngineShutdown:
        return
    assert result.verification == EQUAL, "it was done before the engine was closed"


# ---- the comparison itself -------------------------------------------------------------------------------------------
class Receiver:
    def __init__(self) -> None:
        self.results: list[GenResult] = []
        self.errors: list[BaseException] = []

    def push(self, delta: GenDelta) -> None:
        raise NotImplementedError

    def finish(self, result: GenResult) -> None:
        self.results.append(result)

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)


def result_of(*ids: int, reason: FinishReason = FinishReason.STOP, healed: tuple[int, ...] = ()) -> GenResult:
    return GenResult("", ids, reason, Usage(1, 0, len(ids)), healed_ids=healed)


def compare(first: GenResult, second: GenResult, gaps: list[float], *, tolerance: float = 0.1) -> Receiver:
    receiver, seconds = Receiver(), []

    def replay(second_receiver: Any) -> Any:
        seconds.append(second_receiver)
        return SimpleNamespace(gaps=gaps)

    Verifier(receiver, replay, tolerance).finish(first)
    seconds[0].finish(second)
    return receiver


def verdict(receiver: Receiver) -> Verification | None:
    (result,) = receiver.results
    assert not receiver.errors
    return result.verification


def test_the_gap_is_that_of_the_first_difference() -> None:
    receiver = compare(result_of(1, 2, 3), result_of(1, 5, 3), [9.0, 0.05, 9.0])
    assert verdict(receiver) == Verification(False, 1, 0.05)
    assert compare(result_of(1, 2, 3), result_of(1, 5, 3), [0.01, 0.2, 0.01]).errors


def test_healed_tokens_are_compared_first() -> None:
    receiver = compare(result_of(2, healed=(1,)), result_of(2, healed=(5,)), [0.05, 9.0])
    assert verdict(receiver) == Verification(False, 0, 0.05)
    assert verdict(compare(result_of(2, healed=(1,)), result_of(1, 2), [9.0, 9.0])) == EQUAL


def test_one_that_ends_where_the_other_goes_on_differs_there() -> None:
    assert verdict(compare(result_of(1), result_of(1, 2), [9.0, 0.05])) == Verification(False, 1, 0.05)
    assert verdict(compare(result_of(1, 2), result_of(1), [9.0, 0.05])) == Verification(False, 1, 0.05)


def test_another_reason_to_end_is_a_difference() -> None:
    receiver = compare(result_of(1), result_of(1, reason=FinishReason.LENGTH), [0.0])
    assert [type(error) for error in receiver.errors] == [VerificationError]


def test_no_tolerance_allows_not_even_a_tie() -> None:
    assert compare(result_of(1), result_of(2), [0.0], tolerance=0.0).errors


def test_a_second_computation_that_cannot_be_queued_or_fails_is_the_answer() -> None:
    failed, refused = Receiver(), Receiver()
    seconds: list[Any] = []

    def queue(receiver: Any) -> Any:
        seconds.append(receiver)
        return SimpleNamespace(gaps=[])

    def refuse(receiver: Any) -> Any:
        raise EngineShutdown("planted")

    Verifier(failed, queue, 0.1).finish(result_of(1))
    seconds[0].fail(KeyError("planted"))
    Verifier(refused, refuse, 0.1).finish(result_of(1))
    assert [type(error) for error in (*failed.errors, *refused.errors)] == [KeyError, EngineShutdown]
    assert not failed.results
    assert not refused.results
