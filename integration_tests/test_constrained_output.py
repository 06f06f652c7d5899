"""Constrained outputs of an engine are complete at every budget, greedy and hot, or refused because they cannot fit.

In ``make test`` a random model with the embedded model's vocabulary writes: it has no sense at all of where an output should end.
The embedded model itself writes a third of them in the soak.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sgl_core.errors import GrammarError
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.testing.grammars import CASES, SCHEMAS, Case, fewest_tokens, spellings_of
from sgl_core.types import FinishReason, GenResult, SamplingParams

if TYPE_CHECKING:
    from sgl_core.runtime.model_loader import LoadedModel

Figure = Callable[[str, Mapping[str, int]], None]
Run = tuple[Case, int, float]

BUDGETS = (20, 60, 100)
TEMPERATURES = (0.0, 1.5)
WAIT_S = 800.0
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
ALL_RUNS: list[Run] = [(case, budget, heat) for case in CASES for budget in BUDGETS for heat in TEMPERATURES]
ALTERNATING: list[Run] = [run for turn, run in enumerate(ALL_RUNS) if (turn // 2 + turn) % 2]


@pytest.fixture(scope="module")
def babbler(embedded_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model and the embedded model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("babbler")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (embedded_folder / name).exists():
            shutil.copy(embedded_folder / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def babbling(babbler: Path) -> Iterator[Engine]:
    with Engine(str(babbler), dtype="float32", cache_tokens=16_384) as engine:
        yield engine


def run_all(engine: Engine, runs: list[Run], spellings: frozenset[bytes], figure: Figure, who: str) -> None:
    """Submit everything at once, check every output, and that every refusal had to be."""
    handles: list[tuple[Run, Any]] = []
    refused: dict[int, set[str]] = {budget: set() for budget in BUDGETS}
    for case, budget, temperature in runs:
        params = SamplingParams(max_new_tokens=budget, temperature=temperature, seed=budget, **case.options)
        try:
            handles.append(((case, budget, temperature), engine.submit("The record is: ", params)))
        except GrammarError:
            fewest = fewest_tokens(case.smallest_text.encode(), spellings)
            refused[budget].add(case.name)
            figure(f"grammars, {who}: refused at {budget} tokens, with the tokens needed", {case.name: fewest})
            if fewest <= budget:
                raise
    counts = {"outputs complete": 0, "of them closed by the budget": 0, "ended by themselves": 0}
    for (case, budget, temperature), handle in handles:
        result: GenResult = handle.result(WAIT_S)
        try:
            case.check(result.text)
        except Exception as error:
            raise AssertionError(f"{case.name}, {budget} tokens, temperature {temperature}: {error}") from error
        assert result.usage.completion_tokens <= budget
        assert (result.finish_reason is FinishReason.GRAMMAR) <= (result.grammar_cut is not None)
        counts["outputs complete"] += 1
        counts["of them closed by the budget"] += result.finish_reason is FinishReason.GRAMMAR
        counts["ended by themselves"] += result.finish_reason is FinishReason.STOP
    figure(f"grammars, {who}", counts)
    assert len(refused[100] & {case.name for case in SCHEMAS}) <= 5
    assert counts["of them closed by the budget"] > 0
    engine.check_invariants()


def spellings(engine: Engine) -> frozenset[bytes]:
    return spellings_of(Vocabulary(engine.codec.serialised, engine.facts.vocab_size, sorted(engine.facts.eos_ids)))


def test_a_model_without_sense_completes_every_output(babbling: Engine, figure: Figure) -> None:
    """Each case meets each budget at one temperature, its neighbour at the other; all pairs are in the soak."""
    run_all(babbling, ALTERNATING, spellings(babbling), figure, "random model")


@pytest.mark.soak
def test_a_model_without_sense_completes_every_output_at_every_temperature(babbling: Engine, figure: Figure) -> None:
    run_all(babbling, ALL_RUNS, spellings(babbling), figure, "random model")


@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
def test_the_embedded_model_completes_its_outputs(part: int, embedded_model: LoadedModel, figure: Figure) -> None:
    with Engine(loaded=embedded_model, cache_tokens=16_384) as engine:
        run_all(engine, ALL_RUNS[part::30], spellings(engine), figure, "embedded model")
