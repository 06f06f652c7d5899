"""The LangChain examples on the embedded model: they run to their end, and what they say about the cache is so."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
RunExample = Callable[[str], str]


@pytest.fixture
def engine(cold_engine: Any) -> Any:
    """The engine that the examples lease."""
    return cold_engine


@pytest.fixture
def run_example(engine: Any, capsys: pytest.CaptureFixture[str]) -> RunExample:
    def run(name: str) -> str:
        spec = importlib.util.spec_from_file_location(f"example_langchain_{name}", EXAMPLES / f"langchain_{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main()
        return capsys.readouterr().out

    return run


def cached_share(engine: Any) -> float:
    stats = engine.stats()
    return stats.cached_tokens / stats.prompt_tokens


def cached_counts(output: str) -> list[tuple[int, int]]:
    return [(int(cached), int(total)) for cached, total in re.findall(r"(\d+) of (\d+) prompt tokens cached", output)]


def test_there_is_a_test_for_every_example():
    names = {path.stem.removeprefix("langchain_") for path in EXAMPLES.glob("langchain_*.py")}
    tested = set(re.findall(r'run_example\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert names == tested


def test_a_chain_answers_a_batch_and_streams(run_example, engine):
    assert "The same chain, streamed:" in run_example("chain")
    assert cached_share(engine) > 0.6


def test_a_few_shot_batch_computes_its_examples_once(run_example, engine):
    rows = re.findall(r"^(keep it|send it back) +\d+ of \d+ prompt tokens cached", run_example("few_shot_batch"), re.MULTILINE)
    assert len(rows) == 8
    assert cached_share(engine) > 0.7


def test_three_judges_and_a_verdict_compute_their_essay_once(run_example, engine):
    output = run_example("three_judges")
    assert all(re.search(rf"^{name}: \S", output, re.MULTILINE) for name in ("clarity", "evidence", "style", "verdict"))
    assert cached_share(engine) > 0.7


def test_a_document_that_is_retrieved_again_is_cached(run_example):
    counts = cached_counts(run_example("rag"))
    assert len(counts) == 5
    assert all(cached > 0.8 * total for cached, total in counts[2:4])  # the ferry's document, for the second and third time
    assert all(cached < 0.5 * total for cached, total in (counts[0], counts[1], counts[4]))


def test_map_and_reduce_share_their_instructions(run_example, engine):
    output = run_example("map_reduce")
    assert output.count("part: ") == 5
    assert re.search(r"^summary: \S", output, re.MULTILINE)
    assert engine.stats().cached_tokens >= 5 * 40


def test_eight_samples_of_one_question_compute_it_once(run_example, engine):
    counts = cached_counts(run_example("self_consistency"))
    assert len(counts) == 8
    assert engine.stats().prefilled_tokens <= counts[0][1] + 7


def test_an_agent_calls_its_tool_and_finds_its_own_history_in_the_cache(run_example):
    first, second = run_example("agent").split("human: ")[1:]
    assert "ai: calls timetable with {'place': 'harbour'}" in first
    assert "ai: calls timetable with {'place': 'airport'}" in second
    for talk in (first, second):
        before, after, *_ = cached_counts(talk)
        assert after[0] >= before[1]
    assert cached_counts(second)[0][0] > 0.8 * cached_counts(second)[0][1]


def test_a_graph_streams_both_nodes_and_the_second_finds_the_first(run_example):
    output = run_example("graph_streaming")
    assert output.index("draft: ") < output.index("shorten: ")
    first, second = cached_counts(output)
    assert second[0] > first[1]
