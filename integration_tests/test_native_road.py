"""The native road on the embedded model: the examples, and errors that leave others alone."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sgl_native as sgl
from sgl_core.runtime.model_loader import LoadedModel

EXAMPLES = Path(__file__).parents[1] / "examples"
WAIT_S = 600.0


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shared(embedded_model: LoadedModel) -> Iterator[Any]:
    with sgl.Engine(loaded=embedded_model, cache_tokens=16_384) as engine:
        yield engine


@pytest.fixture
def engine(shared: Any) -> Iterator[Any]:
    shared.flush_cache()
    shared.reset_stats()
    yield shared
    shared.check_invariants()
    stats = shared.stats()
    assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens


def test_the_essay_judge_computes_every_shared_prefix_once(one_layer_model: LoadedModel) -> None:
    """What is computed depends on ids alone; in ``make demo`` the embedded model judges."""
    judge = example("essay_judge")
    with sgl.Engine(loaded=one_layer_model, cache_tokens=16_384) as engine:
        essay_tokens = len(engine.codec.encode(judge.ESSAY))
        state = judge.essay_judge.run(backend=engine)
        metas = [*state.get_meta_info("judgement"), state.get_meta_info("summary"), state.get_meta_info("grade")]
        engine.check_invariants()
        stats = engine.stats()
    assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens
    assert essay_tokens >= 900
    assert len(state["judgement"]) == 3
    assert all(state["judgement"])
    assert state["summary"]
    assert state["grade"] in {"A", "B", "C", "D"}
    assert stats.prefilled_tokens < essay_tokens + 400, "the essay was computed more than once"
    assert stats.prefilled_tokens == sum(meta["prompt_tokens"] - meta["cached_tokens"] for meta in metas)
    assert stats.prompt_tokens > 5 * essay_tokens


def test_a_stream_hits_all_of_its_own_history_but_the_last_sampled_token(engine: Any) -> None:
    @sgl.function
    def chat(s: Any) -> None:
        for index, question in enumerate(["Name a colour.", "Name a fruit of that colour.", "And a flower?"]):
            s += sgl.user(question) + sgl.assistant(sgl.gen(f"a{index}", max_tokens=12, temperature=0))

    state = chat.run(backend=engine)
    before = state.get_meta_info("a0")
    for index in (1, 2):
        meta = state.get_meta_info(f"a{index}")
        history = before["prompt_tokens"] + before["completion_tokens"]
        # The last sampled token has no KV; an end-of-text token is sampled, but is the template's own closing token here.
        assert history - 1 <= meta["cached_tokens"] + (before["finish_reason"] == "stop") <= history
        before = meta


def test_select_picks_what_the_model_believes(engine: Any) -> None:
    @sgl.function
    def capital(s: Any, country: str) -> None:
        s += f"France: Paris. Spain: Madrid. Japan: Tokyo. {country}: " + sgl.select(
            "city", ["Rome", "Berlin", "Cairo", "Oslo"]
        )

    cities = [capital.run(country=c, backend=engine)["city"] for c in ("Italy", "Germany", "Egypt", "Norway")]
    assert cities == ["Rome", "Berlin", "Cairo", "Oslo"]


def test_a_batch_of_few_shot_prompts_computes_its_examples_once(engine: Any) -> None:
    reviews = example("few_shot_classification")
    states = reviews.classify.run_batch([{"review": review} for review in reviews.REVIEWS], backend=engine)
    assert {state["label"] for state in states} <= set(reviews.LABELS)
    stats = engine.stats()
    assert stats.cached_tokens > 0.7 * stats.prompt_tokens


def test_bad_requests_are_clear_errors_and_those_in_flight_finish(engine: Any, tmp_path: Path) -> None:
    flying = [engine.submit(f"Request {i} goes on", sgl.SamplingParams(max_new_tokens=24, ignore_eos=True)) for i in range(4)]

    @sgl.function
    def program(s: Any, text: str) -> None:
        s += text + sgl.gen("out", max_tokens=4)

    with pytest.raises(sgl.ModelNotFoundError, match="no-model"):
        sgl.Engine(str(tmp_path / "no-model"))
    with pytest.raises(sgl.InvalidArgumentError, match="choices"):
        sgl.select("x", [])
    with pytest.raises(sgl.InvalidArgumentError, match="temperature"):
        program.run(text="x", temperature=float("nan"), backend=engine)
    with pytest.raises(sgl.ContextLengthError, match="Shorten the prompt"):
        program.run(text="word " * 9_000, backend=engine)
    with pytest.raises(sgl.UnknownOptionError, match="Did you mean 'temperature'"):
        program.run(text="x", temprature=0, backend=engine)
    with pytest.raises(sgl.UnknownOptionError, match="Did you mean 'max_running'"):
        sgl.Engine(max_runing=1)
    assert all(len(handle.result(WAIT_S).token_ids) == 24 for handle in flying)
