"""The DSPy examples on the embedded model: they run to their end, and what they say about the cache is so."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_core.config import EngineConfig
from sgl_core.runtime.registry import acquire

EXAMPLES = Path(__file__).parents[2] / "examples"
RunExample = Callable[[str], str]


@pytest.fixture(scope="module")
def shared(embedded_folder: Path) -> Iterator[Any]:
    """The engine that the examples lease, held so that its weights are loaded once."""
    del embedded_folder  # converted before anybody waits for it
    with acquire(EngineConfig()) as lease:
        yield lease.engine


@pytest.fixture
def engine(shared: Any) -> Iterator[Any]:
    shared.flush_cache()
    shared.reset_stats()
    yield shared
    shared.check_invariants()
    stats = shared.stats()
    assert stats.num_running == stats.num_waiting == stats.protected_tokens == 0


@pytest.fixture
def run_example(engine: Any, capsys: pytest.CaptureFixture[str]) -> RunExample:
    def run(name: str) -> str:
        spec = importlib.util.spec_from_file_location(f"example_dspy_{name}", EXAMPLES / f"dspy_{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main()
        return capsys.readouterr().out

    return run


def cached_counts(output: str) -> list[tuple[int, int]]:
    found = re.findall(r"([\d,]+) of ([\d,]+) prompt tokens cached", output)
    return [(int(cached.replace(",", "")), int(total.replace(",", ""))) for cached, total in found]


def test_there_is_a_test_for_every_example():
    names = {path.stem.removeprefix("dspy_") for path in EXAMPLES.glob("dspy_*.py")}
    tested = set(re.findall(r'run_example\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert names == tested


def test_a_document_that_is_retrieved_again_is_cached(run_example):
    counts = cached_counts(run_example("rag"))
    assert len(counts) == 5
    assert all(cached > 0.8 * total for cached, total in counts[2:4])  # the ferry's document, for the second and third time
    assert all(cached < 0.8 * total for cached, total in (counts[0], counts[1], counts[4]))


def test_an_agent_calls_its_tool_and_each_step_finds_those_before_it(run_example):
    first, second = run_example("react").split("When does ")[1:]
    for talk in (first, second):
        assert re.search(r"^  timetable\(\{'place': '.+'\}\) says: \S", talk, re.MULTILINE)
        assert re.search(r"^  answer: \S", talk, re.MULTILINE)
    (_, asked), (again, _), *_ = cached_counts(first)
    assert again > 0.8 * asked
    assert cached_counts(second)[0][0] > 0.8 * cached_counts(second)[0][1]


def test_eight_chains_of_thought_compute_their_problem_once(run_example):
    output = run_example("self_consistency")
    assert len(re.findall(r"^ +-?\d+  ['\"]", output, re.MULTILINE)) == 8
    assert re.search(r"^-?\d+, say \d of 8$", output, re.MULTILINE)
    ((cached, total),) = cached_counts(output)
    assert cached >= 7 / 8 * total - 8


def test_hoisting_lets_five_judges_share_their_essay(run_example):
    output = run_example("five_judges")
    plain, hoisted = (cached / total for cached, total in cached_counts(output))
    assert plain < 0.4
    assert hoisted > 0.6
    assert len(re.findall(r"structure (?:excellent|good|fair|poor), ", output)) == 2


def test_the_attempts_of_best_of_n_share_their_prompt(run_example):
    output = run_example("best_of_n")
    assert len(re.findall(r": '.+', reward [01]\.\d\d$|: \".+\", reward [01]\.\d\d$", output, re.MULTILINE)) == 2
    second = cached_counts(output)[1]
    assert second[0] > 0.8 * second[1]


def test_an_evaluation_computes_its_demonstrations_once(run_example, engine):
    output = run_example("few_shot_evaluate")
    assert len(re.findall(r"^(?:positive|negative) +\w", output, re.MULTILINE)) == 8
    ((cached, total),) = cached_counts(output)
    assert cached > 0.7 * total
    headers = 8 * 8  # of the replies, computed as they are written
    assert engine.stats().prefilled_tokens < total - cached + headers


def test_an_optimised_program_is_saved_loaded_and_cached(run_example):
    output = run_example("bootstrap")
    assert re.search(r"^4 demonstrations, [12] of them with the model's own reasoning$", output, re.MULTILINE)
    assert re.search(r"^loaded again: (science|art)$", output, re.MULTILINE)
    assert cached_counts(output)[-1][0] > 0
