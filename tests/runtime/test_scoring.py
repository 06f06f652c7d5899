"""Scoring against brute force: one full forward pass for each choice, with the model's own attention."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from sgl_core.errors import DeadlineExceeded, InvalidArgumentError, RequestAborted
from sgl_core.language import ProgramState, function, gen, select
from sgl_core.runtime import intake, scheduler, sharing
from sgl_core.runtime.choice_trie import build_tries
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.testing.references import reference_logprobs, reference_scores
from sgl_core.testing.tiny_models import load_tiny_model
from sgl_core.types import GenDelta, SamplingParams, ScoreRequest, ScoreResult

WAIT_S = 60.0
CLOSE = 1e-4
PROMPT = tuple(random.Random(1).choices(range(3, 280), k=40))
LONG = SamplingParams(max_new_tokens=40, ignore_eos=True)
Spans = Sequence[tuple[int, ...]]


def spans_of(count: int, longest: int, *, alphabet: int = 280, seed: int = 2) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.choices(range(3, alphabet), k=draw.randint(1, longest))) for _ in range(count)]


def close_to(scores: Spans | Sequence[tuple[float, ...]]) -> list[Any]:
    return [pytest.approx(row, abs=CLOSE) for row in scores]


def num_nodes(spans: Spans) -> int:
    return len({span[:length] for span in spans for length in range(1, len(span))})


@pytest.fixture
def make_engine(loaded: LoadedModel) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(**options: Any) -> Engine:
        engines.append(Engine(loaded=loaded, **{"cache_tokens": 4_096, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.check_invariants()
        stats = engine.stats()
        engine.close()
        assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens, "a test left slots behind"
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert stats.prompt_tokens == stats.cached_tokens + stats.prefilled_tokens


def score(engine: Engine, spans: Spans, prompt: Sequence[int] = PROMPT) -> ScoreResult:
    return engine.score(ScoreRequest(tuple(prompt), tuple(spans))).result(WAIT_S)


class Clock:
    """A generation that runs beside others, and what is to happen on the engine's thread when its tokens come."""

    def __init__(self, engine: Engine, events: dict[int, Callable[[], object]], prompt: Sequence[int] = (7, 8, 9)) -> None:
        self._events = events
        self._ticks = 0
        self.handle = engine.submit(list(prompt), LONG)
        self.handle.add_delta_callback(self._tick)

    def _tick(self, delta: GenDelta) -> None:
        self._ticks += len(delta.token_ids)
        event = self._events.pop(self._ticks, None)
        if event is not None:
            event()


def together(engine: Engine, submit: Callable[[], Any]) -> Any:
    """Whatever is submitted in ``submit`` starts in one step."""
    return engine._loop.call(lambda machine: submit())


# ---- brute force -----------------------------------------------------------------------------------------------------
def test_choices_of_every_shape_equal_brute_force_and_the_prompt_is_computed_once(
    make_engine: Callable[..., Engine], reference: Any
) -> None:
    long = tuple(random.Random(3).choices(range(3, 280), k=120))
    spans = [(5,), (5, 6), (5, 6, 7), (5, 6), (9,), long, long[:119], (*long[:60], 4), (9,), (5, 6, 7, 8, 9, 10)]
    engine = make_engine()
    result = score(engine, spans)
    assert list(result.token_logprobs) == close_to(reference_scores(reference, PROMPT, spans))
    assert result.token_logprobs[1] == result.token_logprobs[3]
    assert (result.usage.prompt_tokens, result.usage.cached_tokens, result.usage.completion_tokens) == (40, 0, 0)
    stats = engine.stats()
    assert (stats.prefilled_tokens, stats.scored_tokens) == (len(PROMPT), num_nodes(spans))
    assert stats.total_computed_tokens == len(PROMPT) + num_nodes(spans)
    again = score(engine, spans)
    assert again.usage.cached_tokens == len(PROMPT) - 1
    assert list(again.token_logprobs) == close_to(result.token_logprobs)


def test_a_thousand_choices_are_several_tries_and_several_steps(
    make_engine: Callable[..., Engine], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_MOST_NODES", 150)
    spans = spans_of(1_000, 4, alphabet=40)
    tries = build_tries(spans, 150)
    engine = make_engine(prefill_chunk_tokens=256)
    result = score(engine, spans)
    assert list(result.token_logprobs) == close_to(reference_scores(reference, PROMPT, spans))
    stats = engine.stats()
    assert len(tries) > 2
    assert stats.num_steps > 2
    assert stats.prefilled_tokens == len(PROMPT)
    # Each other trie runs the prompt's last token again, for its logits.
    assert stats.scored_tokens == sum(len(trie.tokens) for trie in tries) + len(tries) - 1
    assert stats.total_computed_tokens == stats.prefilled_tokens + stats.scored_tokens
    assert stats.num_finished == len(tries)


@pytest.mark.parametrize("tail", ["t", "Which one is th", "Answer: the", "in "])
def test_texts_are_scored_as_the_model_would_have_read_them(
    tail: str, make_engine: Callable[..., Engine], reference: Any
) -> None:
    engine, choices = make_engine(), ["he", "e", "ing", "hello there", " the", "1 2"]
    whole = [engine.codec.encode(tail + choice) for choice in choices]
    before = engine.codec.encode(tail)
    shared = next((i for i, column in enumerate(zip(before, *whole, strict=False)) if len(set(column)) > 1), len(before))
    shared = min(shared, *(len(ids) - 1 for ids in whole))
    begin = () if shared else engine.codec.encode("\n")
    expected = [math.fsum(reference_logprobs(reference, (*begin, *ids), max(shared, len(begin)))) for ids in whole]
    assert engine.score(tail, choices) == pytest.approx(expected, abs=CLOSE)


def test_a_small_pool_takes_the_choices_in_parts(make_engine: Callable[..., Engine], reference: Any) -> None:
    spans = spans_of(60, 6)
    engine = make_engine(cache_tokens=64, prefill_chunk_tokens=16)
    assert len(build_tries(spans, 64 - len(PROMPT))) > 5
    result = score(engine, spans)
    assert list(result.token_logprobs) == close_to(reference_scores(reference, PROMPT, spans))
    stats = engine.stats()
    assert stats.prefilled_tokens == len(PROMPT)
    assert stats.num_finished == len(build_tries(spans, 64 - len(PROMPT)))


# ---- in company ------------------------------------------------------------------------------------------------------
def test_scores_and_texts_are_right_where_they_attend_to_their_prompt_together(
    make_engine: Callable[..., Engine], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    plain = sharing.find_shared_prefixes

    def recording(ends: Any) -> Any:
        shared, covered = plain(ends)
        seen.extend(len(prefix.members) for prefix in shared)
        return shared, covered

    monkeypatch.setattr(sharing, "MIN_SAVED_TOKENS", 1)
    monkeypatch.setattr(scheduler, "find_shared_prefixes", recording)
    engine = make_engine(prefill_chunk_tokens=32)
    prompts = [[*PROMPT, token] for token in (5, 6, 7)]
    spans = spans_of(80, 5)
    alone = [result.token_ids for result in engine.generate(prompts, LONG)]
    results: list[Any] = []

    def submit() -> None:
        results.append(engine.score(ScoreRequest(PROMPT, tuple(spans))))

    clock = together(engine, lambda: Clock(engine, {3: submit}, prompts[0]))
    mates = [engine.submit(prompt, LONG) for prompt in prompts[1:]]
    texts = [handle.result(WAIT_S).token_ids for handle in (clock.handle, *mates)]
    assert list(results[0].result(WAIT_S).token_logprobs) == close_to(reference_scores(reference, PROMPT, spans))
    assert texts == alone
    assert max(seen) == 4, "the scoring and its mates never attended together"


def test_without_a_cache_the_prompt_is_computed_once_a_scoring_and_nothing_stays(
    make_engine: Callable[..., Engine], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_MOST_NODES", 40)
    spans = spans_of(60, 4)
    engine = make_engine(prefix_cache=False)
    for turn in (1, 2):
        result = score(engine, spans)
        assert list(result.token_logprobs) == close_to(reference_scores(reference, PROMPT, spans))
        assert engine.stats().prefilled_tokens == turn * len(PROMPT)
    stats = engine.stats()
    assert stats.cached_tokens == 0
    assert stats.free_tokens == stats.pool_tokens


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_scoring_that_is_aborted_midway_leaves_nothing(prefix_cache: bool, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(prefill_chunk_tokens=16, prefix_cache=prefix_cache)
    handles: list[Any] = []

    def submit() -> Clock:
        clock = Clock(engine, {6: lambda: handles[0].abort()})
        handles.append(engine.score(ScoreRequest(PROMPT, tuple(spans_of(200, 5)))))
        return clock

    clock = together(engine, submit)
    with pytest.raises(RequestAborted):
        handles[0].result(WAIT_S)
    clock.handle.result(WAIT_S)
    stats = engine.stats()
    assert stats.scored_tokens > 0, "it had not begun"
    assert (stats.num_finished, stats.num_aborted) == (2, 1)
    assert prefix_cache or stats.free_tokens == stats.pool_tokens


def test_a_scoring_in_parts_that_comes_too_late_ends_in_all_of_them(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_MOST_NODES", 20)
    engine = make_engine()
    handle = engine.score(ScoreRequest(PROMPT, tuple(spans_of(60, 4)), timeout_s=1e-6))
    with pytest.raises(DeadlineExceeded):
        handle.result(WAIT_S)
    engine.submit([5], SamplingParams(max_new_tokens=1)).result(WAIT_S)
    stats = engine.stats()
    assert stats.scored_tokens == 0
    assert stats.num_failed == len(build_tries(spans_of(60, 4), 20)) > 1


@pytest.mark.parametrize("bad", [None, 3, b"x", [1.5], [True], [], [-1], [10**6], ""])
def test_a_malformed_continuation_is_refused_by_name(bad: Any, make_engine: Callable[..., Engine]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"continuations|choices\[1\]"):
        make_engine(cache_tokens=64).score("of these", ["one", bad])


def test_a_scoring_that_is_retracted_midway_says_the_same(make_engine: Callable[..., Engine], reference: Any) -> None:
    engine, spans = make_engine(prefill_chunk_tokens=16), spans_of(100, 5)
    handles: list[Any] = []
    moved: list[bool] = []

    def retract() -> None:
        moved.append(engine._loop.call(lambda machine: machine.scheduler.retract(f"{handles[0].id}-0")))

    def submit() -> Clock:
        clock = Clock(engine, {2: retract, 6: retract})
        handles.append(engine.score(ScoreRequest(PROMPT, tuple(spans))))
        return clock

    clock = together(engine, submit)
    result = handles[0].result(WAIT_S)
    clock.handle.result(WAIT_S)
    assert list(result.token_logprobs) == close_to(reference_scores(reference, PROMPT, spans))
    assert moved == [True, True]
    stats = engine.stats()
    assert stats.recomputed_tokens > 0
    assert (stats.prefilled_tokens, stats.scored_tokens) == (len(PROMPT) + 3, num_nodes(spans))
    assert stats.total_computed_tokens == len(PROMPT) + 3 + num_nodes(spans) + 40 + stats.recomputed_tokens


# ---- exactness -------------------------------------------------------------------------------------------------------
def test_a_deterministic_engine_scores_to_the_last_bit_alone_and_beside_others(
    make_engine: Callable[..., Engine], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = spans_of(60, 5)
    engine = make_engine(deterministic=True, prefill_chunk_tokens=48)
    alone = score(engine, spans).token_logprobs
    assert list(alone) == close_to(reference_scores(reference, PROMPT, spans))
    handles: list[Any] = []
    moved: list[bool] = []

    def retract() -> None:
        moved.append(engine._loop.call(lambda machine: machine.scheduler.retract(f"{handles[0].id}-0")))

    def submit() -> Clock:
        clock = Clock(engine, {2: retract})
        mates = [engine.submit([*PROMPT, token], LONG) for token in (5, 6)]
        handles.extend([engine.score(ScoreRequest(PROMPT, tuple(spans))), *mates])
        return clock

    engine.flush_cache()
    together(engine, submit).handle.result(WAIT_S)
    assert moved == [True]
    assert handles[0].result(WAIT_S).token_logprobs == alone
    for mate in handles[1:]:
        mate.result(WAIT_S)
    monkeypatch.setattr(intake, "_MOST_NODES", 30)
    chunked = make_engine(deterministic=True, prefill_chunk_tokens=8)
    assert score(chunked, spans).token_logprobs == alone


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_model_with_sliding_windows_scores_like_itself(deterministic: bool) -> None:
    window = load_tiny_model("mistral")
    assert window.config.sliding_window < len(PROMPT)
    spans = [*spans_of(20, 6), spans_of(1, 1)[0] * 40]
    expected = reference_scores(load_tiny_model("mistral").model, PROMPT, spans)
    with Engine(loaded=window, cache_tokens=512, prefill_chunk_tokens=48, deterministic=deterministic) as engine:
        assert list(score(engine, spans).token_logprobs) == close_to(expected)
        engine.check_invariants()


# ---- select ----------------------------------------------------------------------------------------------------------
CHOICES = ["the", "there", "in", "another one", "12"]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def by_hand(method: str, rows: Sequence[Sequence[float]], alone: Sequence[Sequence[float]]) -> list[float]:
    """What a method makes of brute-force scores; spans of these choices first differ in their first token, or end there."""
    if method == "token_length_normalized":
        return [mean(row) for row in rows]
    assert method == "unconditional_likelihood_normalized"
    return [mean(row) - mean(bare) for row, bare in zip(rows, alone, strict=True)]


def walk(spans: Spans, rows: Sequence[Sequence[float]]) -> int:
    """Greedy token selection by hand: the likeliest token at each step; a span that has ended stands by its mean."""
    alive = list(range(len(spans)))
    for step in range(max(map(len, spans))):
        values = {i: rows[i][step] if step < len(spans[i]) else mean(rows[i]) for i in alive}
        best = max(alive, key=values.__getitem__)
        alive = [i for i in alive if spans[i][: step + 1] == spans[best][: step + 1]]
    return alive[0]


@function
def _choose(s: ProgramState, method: str, generated: bool) -> None:
    s += "Say one of the words:"
    if generated:
        s += gen("word", max_tokens=5, temperature=0)
    else:
        s += " "
    s += select("choice", CHOICES, choices_method=method)


@pytest.mark.parametrize("generated", [False, True])
@pytest.mark.parametrize("method", ["token_length_normalized", "unconditional_likelihood_normalized", "greedy_token_selection"])
def test_a_program_selects_as_brute_force_would(
    method: str, generated: bool, make_engine: Callable[..., Engine], reference: Any
) -> None:
    engine = make_engine()
    state = _choose.run(method=method, generated=generated, backend=engine)
    encode = engine.codec.encode
    if generated:  # a generated tail is ids, and what follows it is encoded alone
        written = engine.submit("Say one of the words:", SamplingParams(max_new_tokens=5)).result(WAIT_S)
        prompt = (*encode("Say one of the words:"), *written.token_ids)
        spans = [encode(choice) for choice in CHOICES]
    else:
        whole = [encode("Say one of the words: " + choice) for choice in CHOICES]
        shared = next(i for i, column in enumerate(zip(*whole, strict=False)) if len(set(column)) > 1)
        prompt, spans = whole[0][:shared], [ids[shared:] for ids in whole]
    rows = reference_scores(reference, prompt, spans)
    alone = reference_scores(reference, encode("\n"), [encode(choice) for choice in CHOICES])
    meta = state.get_meta_info("choice")
    assert list(meta["token_logprobs"]) == close_to(rows)
    if method == "greedy_token_selection":
        assert state["choice"] == CHOICES[walk(spans, rows)]
        return
    expected = by_hand(method, rows, alone)
    assert list(meta["scores"]) == pytest.approx(expected, abs=CLOSE)
    assert state["choice"] == CHOICES[max(range(len(CHOICES)), key=expected.__getitem__)]
