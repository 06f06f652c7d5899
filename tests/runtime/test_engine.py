"""The engine on tiny random weights: requests from any thread, errors that name the cure, ends that leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_core.backend import Backend
from sgl_core.errors import (
    ContextLengthError,
    DeadlineExceeded,
    EngineError,
    EngineShutdown,
    EngineStepError,
    InvalidArgumentError,
    ModelNotFoundError,
    PoolExhaustedError,
    QueueFull,
    UnknownOptionError,
)
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.model_runner import ModelRunner
from sgl_core.runtime.scheduler import Scheduler
from sgl_core.types import FinishReason, GenDelta, GenRequest, Hints, SamplingParams, ScoreRequest

WAIT_S = 60.0
GO_ON = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def shared(tiny_llama: Path) -> Iterator[Engine]:
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=4_096) as engine:
        yield engine


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    shared.flush_cache()
    shared.reset_stats()
    yield shared
    shared.check_invariants()
    stats = shared.stats()
    assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens, "a test left slots behind"
    assert (stats.num_running, stats.num_waiting) == (0, 0)


def test_it_is_a_backend(engine: Engine) -> None:
    assert isinstance(engine, Backend)
    assert engine.width == 64


def test_a_prompt_can_be_waited_for_awaited_and_iterated(engine: Engine) -> None:
    waited = engine.submit("one two three", GO_ON).result(WAIT_S)

    async def awaited() -> str:
        return (await engine.submit("one two three", GO_ON)).text

    async def iterated() -> str:
        return "".join([delta.text async for delta in engine.submit("one two three", GO_ON)])

    deltas = "".join(delta.text for delta in engine.submit("one two three", GO_ON))
    assert waited.text == asyncio.run(awaited()) == asyncio.run(iterated()) == deltas
    assert len(waited.token_ids) == waited.usage.completion_tokens == 12
    assert waited.finish_reason is FinishReason.LENGTH


def test_usage_adds_up_with_the_stats(engine: Engine) -> None:
    prefix = "a shared prefix of some length, " * 4
    results = engine.generate([f"{prefix}{i}" for i in range(20)], GO_ON)
    results += engine.generate([f"{prefix}{i}" for i in range(20)], GO_ON)
    stats = engine.stats()
    assert stats.prefilled_tokens == sum(r.usage.prompt_tokens - r.usage.cached_tokens for r in results)
    assert stats.cached_tokens == sum(r.usage.cached_tokens for r in results)
    assert stats.generated_tokens == sum(r.usage.completion_tokens for r in results)
    one = results[0].usage.prompt_tokens
    assert stats.prefilled_tokens < 2 * one + 40 * 4, "the shared prefix was computed more than once"


def test_the_cache_changes_work_and_not_text(engine: Engine, tiny_llama: Path) -> None:
    prompts = [f"the quick brown fox {i % 3} jumps over {i}" for i in range(12)]
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=4_096, prefix_cache=False) as plain:
        expected = [r.token_ids for r in plain.generate(prompts, GO_ON)]
        assert plain.stats().cached_tokens == 0
    assert [r.token_ids for r in engine.generate(prompts, GO_ON)] == expected
    assert [r.token_ids for r in engine.generate(prompts, GO_ON)] == expected
    assert engine.stats().cached_tokens > 0


def test_a_small_chunk_and_a_small_pool_change_nothing(engine: Engine, tiny_llama: Path) -> None:
    prompts = [("lorem ipsum " * 12) + str(i % 4) for i in range(16)]
    expected = [r.token_ids for r in engine.generate(prompts, GO_ON)]
    options = {"dtype": "float32", "cache_tokens": 400, "prefill_chunk_tokens": 16, "max_running": 3, "policy": "fcfs"}
    with Engine(str(tiny_llama), **options) as small:
        assert [r.token_ids for r in small.generate(prompts, GO_ON)] == expected
        small.check_invariants()


def test_a_seed_gives_one_text_alone_and_in_a_batch(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=10, temperature=1.0, seed=5, ignore_eos=True)
    alone = engine.submit("seeded", params).result(WAIT_S)
    others = [SamplingParams(max_new_tokens=10, temperature=1.0, seed=s, ignore_eos=True) for s in range(6, 20)]
    batch = engine.generate(["seeded"] * 15, [*others, params])
    assert batch[-1].token_ids == alone.token_ids
    assert alone.seed == 5
    assert len({r.token_ids for r in batch}) > 1


def test_engines_with_one_seed_draw_the_same_seeds(tiny_llama: Path) -> None:
    drawn = []
    for seed in (3, 3, 4):
        with Engine(str(tiny_llama), dtype="float32", cache_tokens=256, seed=seed) as engine:
            drawn.append([engine.new_seed() for _ in range(4)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_scores_equal_the_models_own_log_probabilities(engine: Engine, tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    reference: Any = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, local_files_only=True).eval()
    prompt = engine.codec.encode("Which of these is it? ")
    spans = tuple(engine.codec.encode(c) for c in ("this", "that one", "this", "t", "neither of them"))
    result = engine.score(ScoreRequest(prompt, spans)).result(WAIT_S)
    for span, got in zip(spans, result.token_logprobs, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([[*prompt, *span]])).logits[0].float().log_softmax(-1)
        expected = [float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(span)]
        assert got == pytest.approx(expected, abs=1e-4)
    stats = engine.stats()
    assert stats.prefilled_tokens == result.usage.prompt_tokens == len(prompt)
    assert 0 < stats.scored_tokens < 2 * sum(map(len, spans)), "the shared prompt was computed per choice"


def test_scores_without_a_cache_compute_the_prompt_once_and_keep_nothing(tiny_llama: Path, engine: Engine) -> None:
    texts = ["yes", "no", "maybe"]
    expected = engine.score("A question with a long prompt, is it so? ", texts)
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=512, prefix_cache=False) as plain:
        for _ in range(2):
            assert plain.score("A question with a long prompt, is it so? ", texts) == pytest.approx(expected, abs=1e-4)
        stats = plain.stats()
        assert stats.cached_tokens == 0
        assert stats.scored_tokens < stats.prefilled_tokens
        assert stats.free_tokens == stats.pool_tokens, "without a cache nothing is kept"


def test_a_prefetched_prompt_is_cached_for_the_next(engine: Engine) -> None:
    ids = engine.codec.encode("prefetch this please")
    engine.prefetch(ids).result(WAIT_S)
    result = engine.submit([*ids, *engine.codec.encode(" now")], GO_ON).result(WAIT_S)
    assert result.usage.cached_tokens == len(ids)
    engine.flush_cache()
    assert engine.submit([*ids, 1], GO_ON).result(WAIT_S).usage.cached_tokens == 0


def test_bad_arguments_name_the_cure_and_others_finish(engine: Engine) -> None:
    flying = [engine.submit(f"in flight {i}", GO_ON) for i in range(4)]
    vocab = engine.facts.vocab_size
    bad: list[tuple[type[Exception], str, Any]] = [
        (InvalidArgumentError, "at least one token", lambda: engine.submit("")),
        (InvalidArgumentError, rf"\[0, {vocab}\)", lambda: engine.submit([1, vocab])),
        (InvalidArgumentError, "token ids", lambda: engine.submit([1, -1])),
        (InvalidArgumentError, "token ids", lambda: engine.submit([True])),
        (InvalidArgumentError, "SamplingParams", lambda: engine.submit("x", {"temperature": 1})),
        (InvalidArgumentError, "GenRequest", lambda: engine.submit(GenRequest((1,)), SamplingParams())),
        (InvalidArgumentError, "timeout_s", lambda: engine.submit("x", timeout_s=-1)),
        (InvalidArgumentError, "prompt: got 'NoneType'", lambda: engine.submit(None)),
        (InvalidArgumentError, "prompt: got 'bytes'", lambda: engine.submit(b"abc")),
        (InvalidArgumentError, "namespace", lambda: engine.submit("x", namespace=["a"])),
        (InvalidArgumentError, "priority", lambda: engine.submit("x", priority=None)),
        (InvalidArgumentError, "stop_token_ids", lambda: engine.submit("x", SamplingParams(stop_token_ids=(vocab,)))),
        (InvalidArgumentError, "logit_bias", lambda: engine.submit("x", SamplingParams(logit_bias={vocab: 1.0}))),
        (InvalidArgumentError, "temperature", lambda: engine.submit("x", SamplingParams(temperature=float("nan")))),
        (InvalidArgumentError, "a list of prompts", lambda: engine.generate("x")),
        (InvalidArgumentError, "params", lambda: engine.generate(["x"], [GO_ON, GO_ON])),
        (InvalidArgumentError, "continuations", lambda: engine.score("x", [])),
        (InvalidArgumentError, "at least one token", lambda: engine.score("x", [""])),
        (ContextLengthError, "Shorten the prompt", lambda: engine.submit([5] * 10_000)),
        (ContextLengthError, "max_new_tokens=100000", lambda: engine.submit("x", SamplingParams(max_new_tokens=100_000))),
    ]
    for kind, text, call in bad:
        with pytest.raises(kind, match=text):
            call()
    assert all(len(handle.result(WAIT_S).token_ids) == 12 for handle in flying)


def test_a_default_budget_is_clipped_to_what_fits(engine: Engine) -> None:
    limit = engine.capabilities.context_tokens
    result = engine.submit([5] * (limit - 3), SamplingParams(ignore_eos=True)).result(WAIT_S)
    assert result.finish_reason is FinishReason.LENGTH
    assert len(result.token_ids) == 3


def test_unknown_options_and_models_name_the_nearest(tiny_llama: Path) -> None:
    with pytest.raises(UnknownOptionError, match="Did you mean 'max_running'"):
        Engine(str(tiny_llama), max_runing=3)
    with pytest.raises(InvalidArgumentError, match="policy"):
        Engine(str(tiny_llama), policy="best")
    with pytest.raises(ModelNotFoundError, match="no-such-folder"):
        Engine("./no-such-folder")
    with pytest.raises(InvalidArgumentError, match=r"cache_tokens.*at most"):
        Engine(str(tiny_llama), cache_tokens=10**12)


def test_an_aborted_request_keeps_what_it_has(engine: Engine) -> None:
    handle = engine.submit("abort me", SamplingParams(max_new_tokens=400, ignore_eos=True))
    next(iter(handle))
    handle.abort()
    result = handle.result(WAIT_S)
    assert result.finish_reason is FinishReason.ABORT
    assert 1 <= len(result.token_ids) < 400
    handle.abort()
    assert engine.stats().num_aborted == 1


def test_a_deadline_ends_a_request_with_its_own_error(engine: Engine) -> None:
    fine = engine.submit("fine", GO_ON)
    late = engine.submit("late", SamplingParams(max_new_tokens=400, ignore_eos=True), timeout_s=1e-6)
    with pytest.raises(DeadlineExceeded):
        late.result(WAIT_S)
    assert len(fine.result(WAIT_S).token_ids) == 12


def test_a_full_queue_refuses_at_once_and_loses_nothing(tiny_llama: Path) -> None:
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=512, max_running=1, max_queued=3) as engine:
        accepted = []

        def overload() -> None:
            for i in range(50):
                accepted.append(engine.submit(f"{i}", SamplingParams(max_new_tokens=64, ignore_eos=True)))

        with pytest.raises(QueueFull, match="max_queued=3"):
            overload()
        assert 3 <= len(accepted) < 50
        assert all(len(handle.result(WAIT_S).token_ids) == 64 for handle in accepted)


def test_a_forward_that_raises_fails_its_batch_and_the_engine_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine.submit("before", GO_ON).result(WAIT_S).text
    plain = ModelRunner.forward
    armed = threading.Event()
    armed.set()

    def failing(self: ModelRunner, batch: Any) -> Any:
        if armed.is_set():
            armed.clear()
            raise RuntimeError("planted")
        return plain(self, batch)

    monkeypatch.setattr(ModelRunner, "forward", failing)
    with pytest.raises(EngineStepError, match="planted") as caught:
        engine.submit("before and more", GO_ON).result(WAIT_S)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert engine.submit("before", GO_ON).result(WAIT_S).text == expected


def test_sixty_four_threads_get_their_own_answers(engine: Engine) -> None:
    prompts = [f"thread {i} says its number {i}" for i in range(64)]
    alone = {p: engine.submit(p, GO_ON).result(WAIT_S).token_ids for p in prompts}
    engine.flush_cache()

    def ask(prompt: str) -> bool:
        if hash(prompt) % 3 == 0:
            engine.submit(prompt, SamplingParams(max_new_tokens=300, ignore_eos=True)).abort()
        return engine.submit(prompt, GO_ON).result(WAIT_S).token_ids == alone[prompt]

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(ask, prompts * 2, timeout=WAIT_S))
    while engine.stats().num_running or engine.stats().num_waiting:
        engine.submit("let the aborted ones end", GO_ON).result(WAIT_S)


def test_closing_ends_every_waiter_and_the_thread(tiny_llama: Path) -> None:
    engine = Engine(str(tiny_llama), dtype="float32", cache_tokens=4_096)
    handles = [engine.submit(f"{i}", SamplingParams(max_new_tokens=1_000 % 400, ignore_eos=True)) for i in range(64)]
    engine.close()
    engine.close()
    ends = [handle.error() for handle in handles]
    assert all(handle.done() for handle in handles)
    assert any(isinstance(error, EngineShutdown) for error in ends)
    with pytest.raises(EngineShutdown):
        engine.submit("x")
    with pytest.raises(EngineShutdown):
        engine.flush_cache()
    assert not any(t.name == "sgl-engine" and t.is_alive() for t in threading.enumerate() if t is engine._loop._thread)


def test_a_dropped_engine_ends_its_thread(tiny_llama: Path) -> None:
    engine = Engine(str(tiny_llama), dtype="float32", cache_tokens=256)
    thread = engine._loop._thread
    engine.submit("x", GO_ON).result(WAIT_S)
    del engine
    gc.collect()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_a_bug_in_the_engine_thread_reaches_every_waiter(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=256) as engine:
        scheduler = engine._loop._running_machine.scheduler

        def broken(now: float) -> None:
            raise ZeroDivisionError("planted")

        monkeypatch.setattr(scheduler, "schedule", broken)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            engine.submit("x", GO_ON).result(WAIT_S)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            engine.submit("x", GO_ON)


def test_a_bug_at_a_requests_end_reaches_its_own_waiter_too(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=256, prefix_cache=False) as engine:
        monkeypatch.setattr(Scheduler, "flush", lambda scheduler: 1 / 0)
        handle = engine.score(ScoreRequest((5, 6), ((7,), (8, 9))))
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            handle.result(WAIT_S)


def test_a_batch_with_a_bad_prompt_leaves_nothing_running(engine: Engine) -> None:
    with pytest.raises(InvalidArgumentError):
        engine.generate(["good " * 20, ""], SamplingParams(max_new_tokens=300, ignore_eos=True))
    engine.submit("after", GO_ON).result(WAIT_S)
    assert engine.stats().num_aborted == 1


def test_a_callback_may_use_the_engine(engine: Engine) -> None:
    seen: list[int] = []
    handle = engine.submit("callback", GO_ON)
    handle.add_done_callback(lambda: (engine.flush_cache(), seen.append(engine.stats().num_finished)))  # type: ignore[func-returns-value]
    handle.result(WAIT_S)
    engine.submit("next", GO_ON).result(WAIT_S)
    assert seen == [1]


def test_choices_that_merge_with_all_of_the_text_before_them_are_scored(engine: Engine) -> None:
    assert len(engine.score("t", ["he", "hy"])) == 2  # "the" is one token of this vocabulary


def test_a_score_may_fill_the_context_exactly(engine: Engine) -> None:
    limit = engine.capabilities.context_tokens
    assert len(engine.score([5] * (limit - 3), [[6, 7, 8]])) == 1
    with pytest.raises(ContextLengthError):
        engine.score([5] * (limit - 3), [[6, 7, 8, 9]])


def test_a_listener_that_raises_harms_no_request(engine: Engine) -> None:
    def failing(_: object) -> None:
        raise SystemExit(3)

    handles = [engine.submit(f"listener {i}", GO_ON) for i in range(3)]
    handles[0].add_delta_callback(failing)
    handles[1].add_done_callback(lambda: failing(None))
    assert all(len(handle.result(WAIT_S).token_ids) == 12 for handle in handles)


def test_a_forked_child_gets_a_clear_error(engine: Engine) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # the child: no pytest machinery, leave by _exit
        try:
            engine.submit("x", GO_ON)
        except EngineError as error:
            os.write(write, b"clear" if "os.fork" in str(error) else b"other error")
        finally:
            engine.close()
            os._exit(0)
    os.close(write)
    assert os.read(read, 100) == b"clear"
    os.waitpid(pid, 0)
    assert len(engine.submit("parent", GO_ON).result(WAIT_S).token_ids) == 12


def test_a_pin_reports_what_it_keeps_and_ends_with_its_block(engine: Engine) -> None:
    engine.flush_cache()
    prompt = list(range(3, 60))
    with engine.pin(prompt) as pin:
        assert (pin.pinned_tokens, pin.cached_tokens) == (57, 0)
        engine.flush_cache()
        assert engine.submit([*prompt, 7], SamplingParams(max_new_tokens=1)).result(60).usage.cached_tokens == 57
        assert engine.stats().pinned_tokens == 57
    assert engine.stats().pinned_tokens == 0
    assert not pin.unpin()
    with pytest.raises(InvalidArgumentError, match="ttl_s"):
        engine.pin(prompt, ttl_s=-1.0)
    with pytest.raises(PoolExhaustedError, match="half of the KV pool"):
        engine.pin([5] * (engine.facts.pool_tokens // 2 + 1))


def test_stats_explain_a_miss_as_text_that_no_repr_shows(engine: Engine) -> None:
    engine.flush_cache()
    engine.reset_stats()
    words = engine.codec.encode("the red house and the blue house")
    other = engine.codec.encode("the red house and the green house")
    for prompt in (words, other):
        engine.submit(prompt, SamplingParams(max_new_tokens=1)).result(60)
    miss = engine.stats().misses[-1]
    differs = next(i for i, (a, b) in enumerate(zip(words, other, strict=False)) if a != b)
    assert miss.cached_tokens == differs
    assert miss.prompt_text == engine.codec.decode([other[differs]])
    assert miss.cache_texts == (engine.codec.decode([words[differs]]),)
    assert repr(miss.prompt_text) in str(miss)
    assert "miss" not in repr(engine.stats())


def test_the_engine_reports_the_time_of_its_own_decisions(engine: Engine) -> None:
    engine.reset_stats()
    engine.submit([5, 6, 7], SamplingParams(max_new_tokens=8)).result(60)
    stats = engine.stats()
    assert stats.scheduling_s > 0.0
    assert stats.model_s > 0.0


@pytest.mark.parametrize(
    ("hints", "named"),
    [
        (Hints(program_id=3), "program_id"),  # type: ignore[arg-type]
        (Hints(siblings=-1), "siblings"),
        (Hints(siblings=True), "siblings"),
        (Hints(shared_len=1.5), "shared_len"),  # type: ignore[arg-type]
        ("siblings", "hints"),
    ],
)
def test_hints_that_cannot_be_used_are_refused_at_submit(engine: Engine, hints: Hints, named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        engine.submit(GenRequest((5, 6), hints=hints))


def test_what_waits_for_a_request_inside_a_callback_is_an_error_and_not_a_deadlock(engine: Engine) -> None:
    outcomes: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    other = engine.submit([7, 8, 9], SamplingParams(max_new_tokens=400, ignore_eos=True))
    waits: list[Callable[[], object]] = [
        lambda: engine.pin([7, 8, 9]),
        lambda: engine.generate([[7, 8]]),
        lambda: engine.score([7, 8], [[9]]),
        lambda: other.result(),
        lambda: list(other),
    ]
    for wait in waits:

        def callback(wait: Callable[[], object] = wait) -> None:
            try:
                wait()
            except EngineError as error:
                outcomes.put(error)

        engine.submit([5, 6], GO_ON).add_done_callback(callback)
        assert "hand it to another thread" in str(outcomes.get(timeout=WAIT_S))
    other.abort()
    other.result(WAIT_S)
    assert engine.submit([5, 6], GO_ON).result(WAIT_S).token_ids


def test_a_late_listener_that_calls_the_engine_holds_nobody_up(engine: Engine) -> None:
    handle = engine.submit([5, 6], SamplingParams(max_new_tokens=200, ignore_eos=True))
    first = threading.Event()
    handle.add_delta_callback(lambda _: first.set())
    assert first.wait(WAIT_S)
    seen: list[int] = []

    def late(delta: GenDelta) -> None:
        seen.extend(delta.token_ids)
        engine.tree()

    handle.add_delta_callback(late)
    assert handle.result(WAIT_S).token_ids[: len(seen)] == tuple(seen)


def test_closing_twice_waits_twice(tiny_llama: Path) -> None:
    engine = Engine(str(tiny_llama), dtype="float32", cache_tokens=512)
    for _ in range(20):
        engine.submit([5, 6], GO_ON)
    closers = [threading.Thread(target=engine.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    engine.close()
    assert not [t for t in threading.enumerate() if t is engine._loop._thread]
    for closer in closers:
        closer.join(WAIT_S)


def test_pinning_without_a_cache_is_refused(tiny_llama: Path) -> None:
    with (
        Engine(str(tiny_llama), dtype="float32", cache_tokens=512, prefix_cache=False) as engine,
        pytest.raises(InvalidArgumentError, match="prefix_cache"),
    ):
        engine.pin([5, 6, 7])
