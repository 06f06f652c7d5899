"""Log-probabilities of outputs and prompts against full forward passes; asking for them does not undo the cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sgl_core.runtime import sharing
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.testing.references import full_forward, reference_logprobs
from sgl_core.types import FinishReason, GenDelta, GenRequest, GenResult, SamplingParams

WAIT_S = 60.0
CLOSE = 1e-4
PROMPT = random.Random(4).choices(range(3, 280), k=30)
PLAIN = SamplingParams(max_new_tokens=6, ignore_eos=True)
TOP = replace(PLAIN, logprobs=3)
BOTH = replace(PLAIN, logprobs=2, prompt_logprobs=True)
PROMPTS_ONLY = replace(PLAIN, prompt_logprobs=True)


class Bench:
    """An engine, and every result it gave, checked against the model's own forward pass."""

    def __init__(self, engine: Engine, reference: Any) -> None:
        self.engine = engine
        self._reference = reference
        self.results: list[GenResult] = []

    def run(self, prompt: Sequence[int], params: SamplingParams, *, heal: str = "") -> GenResult:
        """One result (of several the first), its log-probabilities right."""
        return self.await_right(self.engine.submit(GenRequest(tuple(prompt), params, heal=heal)), prompt, params)[0]

    def await_right(self, handle: Any, prompt: Sequence[int], params: SamplingParams) -> list[GenResult]:
        outcome = handle.result(WAIT_S)
        results = outcome if isinstance(outcome, list) else [outcome]
        for result in results:
            self._check(result, list(prompt), params)
        self.results += results
        return results

    def _check(self, result: GenResult, prompt: list[int], params: SamplingParams) -> None:
        rows = full_forward(self._reference, [*prompt, *result.healed_ids, *result.token_ids])
        if params.prompt_logprobs:
            assert result.prompt_logprobs is not None
            assert result.prompt_logprobs[0] is None
            told = [entry for entry in result.prompt_logprobs[1:] if entry is not None]
            assert [entry.token_id for entry in told] == prompt[1:]
            assert [e.logprob for e in told] == pytest.approx(reference_logprobs(self._reference, prompt), abs=CLOSE)
        else:
            assert result.prompt_logprobs is None
        if params.logprobs is None:
            assert result.logprobs is None
            return
        assert result.logprobs is not None
        assert [entry.token_id for entry in result.logprobs] == list(result.token_ids)
        before = len(prompt) + len(result.healed_ids) - 1
        for row, entry in zip(rows[before:], result.logprobs, strict=False):
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=CLOSE)
            assert [value for _, value in entry.top] == pytest.approx(row.topk(params.logprobs).values.tolist(), abs=CLOSE)
            assert [value for _, value in entry.top] == pytest.approx([float(row[t]) for t, _ in entry.top], abs=CLOSE)

    def check_accounts(self) -> None:
        self.engine.check_invariants()
        stats = self.engine.stats()
        assert stats.prompt_tokens == stats.cached_tokens + stats.prefilled_tokens
        assert stats.prefilled_tokens == sum(r.usage.prompt_tokens - r.usage.cached_tokens for r in self.results)
        assert stats.generated_tokens + stats.jumped_tokens == sum(r.usage.completion_tokens for r in self.results)
        computed = stats.prefilled_tokens + stats.generated_tokens + stats.jumped_tokens + stats.recomputed_tokens
        assert stats.total_computed_tokens == computed + stats.scored_tokens + stats.prefetched_tokens
        assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens, "a test left slots behind"


@pytest.fixture
def make_bench(loaded: LoadedModel, reference: Any) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**options: Any) -> Bench:
        benches.append(Bench(Engine(loaded=loaded, **{"cache_tokens": 2_048, **options}), reference))
        return benches[-1]

    yield make
    for bench in benches:
        bench.check_accounts()
        bench.engine.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


# ---- outputs ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_tokens_have_the_models_own_log_probabilities(temperature: float, bench: Bench) -> None:
    params = replace(TOP, temperature=temperature, seed=5, repetition_penalty=1.3, logit_bias={40: 3.0}, top_k=20)
    result = bench.run(PROMPT, params)
    assert result.logprobs is not None
    assert len(result.logprobs) == 6
    assert all(len(entry.top) == 3 for entry in result.logprobs)


def test_zero_alternatives_are_none(bench: Bench) -> None:
    result = bench.run(PROMPT, replace(PLAIN, logprobs=0))
    assert result.logprobs is not None
    assert [entry.top for entry in result.logprobs] == [()] * 6


def test_completions_each_have_their_own(bench: Bench) -> None:
    params = replace(BOTH, n=4, temperature=1.0, seed=3)
    handle = bench.engine.submit(PROMPT, params)
    results = bench.await_right(handle, PROMPT, params)
    assert len(results) == 4
    assert bench.engine.stats().prefilled_tokens == len(PROMPT)


def test_where_a_stop_string_cuts_they_end_with_the_ids(bench: Bench) -> None:
    text = bench.run(PROMPT, replace(TOP, max_new_tokens=24)).text
    cut = 0
    for start in range(2, len(text) - 3):
        stop = text[start : start + 3]
        if "\ufffd" in stop:
            continue
        result = bench.run(PROMPT, replace(TOP, max_new_tokens=24, stop=(stop,)))
        assert result.finish_reason is FinishReason.STOP
        assert result.logprobs is not None
        assert len(result.logprobs) == len(result.token_ids) < result.usage.completion_tokens
        cut += bool(result.text_behind_ids)
    assert cut, "no stop string cut through a token"


def test_a_stop_token_has_none(bench: Bench) -> None:
    stop = bench.run(PROMPT, TOP).token_ids[3]
    result = bench.run(PROMPT, replace(TOP, stop_token_ids=(stop,)))
    assert result.matched_stop == stop
    assert result.logprobs is not None
    assert len(result.logprobs) == len(result.token_ids) <= 3


@pytest.mark.parametrize("constraint", [{"regex": "abcdef (one|two) [a-z]{4}"}, {"choices": ("the first", "the second")}])
def test_under_a_grammar_every_token_is_drawn_and_told(constraint: dict[str, Any], bench: Bench) -> None:
    forced = bench.run(PROMPT, SamplingParams(max_new_tokens=40, **constraint))
    assert bench.engine.stats().jumped_tokens > 0, "this grammar forces nothing"
    jumped = bench.engine.stats().jumped_tokens
    told = bench.run(PROMPT, SamplingParams(max_new_tokens=40, logprobs=2, **constraint))
    assert told.text == forced.text
    assert bench.engine.stats().jumped_tokens == jumped


def test_a_token_that_the_budget_chose_has_its_own(bench: Bench) -> None:
    result = bench.run(PROMPT, SamplingParams(max_new_tokens=8, regex=r"[a-z]*\.", logprobs=1))
    assert result.finish_reason is FinishReason.GRAMMAR
    assert result.grammar_cut is not None
    assert result.text.endswith(".")


@pytest.mark.parametrize("heal", [" ", " t", "in"])
def test_behind_healed_text_they_begin_with_the_output(heal: str, bench: Bench) -> None:
    params = replace(BOTH, n=3, temperature=1.0, seed=9)
    handle = bench.engine.submit(GenRequest(tuple(PROMPT), params, heal=heal))
    for result in bench.await_right(handle, PROMPT, params):
        assert len(result.token_ids) == 6
        assert bench.engine.codec.decode([*result.healed_ids, *result.token_ids]) == heal + result.text


# ---- prompts and the cache -------------------------------------------------------------------------------------------
def test_a_prompt_that_was_told_once_is_told_again_from_the_cache(bench: Bench) -> None:
    cold = bench.run(PROMPT, BOTH)
    warm = bench.run(PROMPT, BOTH)
    assert (cold.usage.cached_tokens, warm.usage.cached_tokens) == (0, len(PROMPT) - 1)
    assert warm.prompt_logprobs == cold.prompt_logprobs
    assert bench.engine.stats().prefilled_tokens == len(PROMPT) + 1


def test_a_prompt_that_was_cached_and_never_told_is_computed(bench: Bench) -> None:
    bench.run(PROMPT, PLAIN)
    assert bench.run(PROMPT, PROMPTS_ONLY).usage.cached_tokens == 0
    assert bench.run(PROMPT, PROMPTS_ONLY).usage.cached_tokens == len(PROMPT) - 1
    assert bench.run(PROMPT, PLAIN).usage.cached_tokens == len(PROMPT) - 1


def test_what_is_known_of_a_prompts_beginning_is_used(bench: Bench) -> None:
    bench.run([*PROMPT, 5, 6, 7], PROMPTS_ONLY)
    other = bench.run([*PROMPT, 8, 9], PROMPTS_ONLY)
    assert other.usage.cached_tokens == len(PROMPT) - 1, "the last known token runs again, for what follows it"
    bench.run([*PROMPT, 8, 9, 10, 11], PLAIN)
    longer = bench.run([*PROMPT, 8, 9, 10, 11], PROMPTS_ONLY)
    assert longer.usage.cached_tokens == len(PROMPT) + 1
    assert bench.run(PROMPT[:12], PROMPTS_ONLY).usage.cached_tokens == 11


def test_an_output_is_another_requests_prompt_and_nobody_told_it(bench: Bench) -> None:
    first = bench.run(PROMPT, BOTH)
    longer = [*PROMPT, *first.token_ids]
    assert bench.run(longer, PROMPTS_ONLY).usage.cached_tokens == len(PROMPT) - 1
    assert bench.run(longer, PROMPTS_ONLY).usage.cached_tokens == len(longer) - 1


def test_a_prompt_of_one_token_has_nothing_to_tell(bench: Bench) -> None:
    assert bench.run([5], BOTH).prompt_logprobs == (None,)


def test_a_slot_forgets_what_it_held_for_another_prompt(bench: Bench) -> None:
    other = random.Random(6).choices(range(3, 280), k=len(PROMPT))
    bench.run(PROMPT, PROMPTS_ONLY)
    bench.engine.flush_cache()
    bench.run(other, PLAIN)
    assert bench.run(other, PROMPTS_ONLY).usage.cached_tokens == 0


def test_in_a_pool_that_evicts_all_the_time_they_stay_right(make_bench: Callable[..., Bench]) -> None:
    bench, draw = make_bench(cache_tokens=100, prefill_chunk_tokens=16), random.Random(7)
    trunk = PROMPT[:15]
    prompts = [[*trunk, *draw.choices(range(3, 280), k=25)] for _ in range(4)]
    prompts += [draw.choices(range(3, 280), k=45) for _ in range(2)]
    reused = 0
    for _ in range(40):
        prompt, params = draw.choice(prompts), draw.choice([PLAIN, BOTH, PROMPTS_ONLY])
        result = bench.run(prompt, params)
        reused += params.prompt_logprobs and result.usage.cached_tokens > 0
    assert bench.engine.stats().evicted_tokens > 200
    assert reused > 5


@pytest.mark.parametrize(
    "options", [{"prefill_chunk_tokens": 7}, {"prefix_cache": False}, {"in_flight_sharing": False}], ids=str
)
def test_chunks_and_sharing_change_none(options: dict[str, Any], make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(**options)
    for params in (PLAIN, BOTH, BOTH):
        bench.run(PROMPT, params)
    handles = [bench.engine.submit([*PROMPT, token], BOTH) for token in (5, 5, 6)]
    for handle, token in zip(handles, (5, 5, 6), strict=True):
        bench.await_right(handle, [*PROMPT, token], BOTH)


def test_a_long_prompt_is_told_in_parts(bench: Bench) -> None:
    prompt = random.Random(8).choices(range(3, 280), k=400)
    bench.run(prompt, PROMPTS_ONLY)
    assert bench.engine.stats().num_steps > 6, "the logits of a whole prompt were held at once"
    assert bench.run(prompt, PROMPTS_ONLY).usage.cached_tokens == 399


def test_prompts_in_one_batch_that_attend_to_a_prefix_together_are_told_right(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MIN_SAVED_TOKENS", 1)
    prompts = [[*PROMPT, token, 9] for token in (5, 6, 7, 5)]
    bench.run(PROMPT, PROMPTS_ONLY)
    handles = bench.engine._loop.call(lambda machine: [bench.engine.submit(p, BOTH) for p in prompts])
    for handle, prompt in zip(handles, prompts, strict=True):
        bench.await_right(handle, prompt, BOTH)


@pytest.mark.parametrize("loses_kv", [False, True])
def test_a_prompt_that_is_sent_back_midway_is_told_once(loses_kv: bool, make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(prefill_chunk_tokens=6)
    engine, moved = bench.engine, []
    handles: list[Any] = []

    def retract(delta: GenDelta) -> None:
        ticks.extend(delta.token_ids)
        if len(ticks) in (3, 5) and handles:
            moved.append(engine._loop.call(lambda machine: machine.scheduler.retract(handles[0].id)))
            if loses_kv:
                engine.flush_cache()

    ticks: list[int] = []
    clock_params = replace(PLAIN, max_new_tokens=30)

    def submit() -> Any:
        clock = engine.submit([7, 8], clock_params)
        clock.add_delta_callback(retract)
        handles.append(engine.submit(PROMPT, BOTH))
        return clock

    bench.await_right(engine._loop.call(lambda machine: submit()), [7, 8], clock_params)
    bench.await_right(handles[0], PROMPT, BOTH)
    assert moved == [True, True]


def test_a_deterministic_engine_tells_them_to_the_last_bit(make_bench: Callable[..., Bench]) -> None:
    cold = make_bench(deterministic=True).run(PROMPT, BOTH)
    chunked = make_bench(deterministic=True, prefill_chunk_tokens=7)
    mate = chunked.engine.submit([*PROMPT, 5], PLAIN)
    for _ in range(2):
        again = chunked.run(PROMPT, BOTH)
        assert (again.logprobs, again.prompt_logprobs) == (cold.logprobs, cold.prompt_logprobs)
    chunked.await_right(mate, [*PROMPT, 5], PLAIN)
