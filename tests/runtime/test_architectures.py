"""Every architecture that the documentation names, from a folder of tiny random weights to greedy text, and those refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_core.errors import UnsupportedModelError
from sgl_core.runtime.engine import Engine
from sgl_core.testing.tiny_models import TINY_KINDS
from sgl_core.types import SamplingParams

SERVED = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "gpt2", "mixtral")
REFUSED = ("falcon", "bloom", "mamba")
NEW_TOKENS = 12
GO_ON = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
PREFIX = "Several requests begin with these words, more of them than a sliding window of the tiny models holds. "
TAILS = ("one", "two two", "three three three")

ModelFolder = Callable[[str], Path]


@pytest.fixture(scope="module", params=SERVED)
def folder(request: pytest.FixtureRequest, tiny_model_folder: ModelFolder) -> Path:
    return tiny_model_folder(request.param)


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(str(folder), device="cpu", dtype="float32", cache_tokens=2_048) as engine:
        yield engine
        engine.check_invariants()


@pytest.fixture(scope="module")
def generate(folder: Path) -> Callable[[tuple[int, ...]], list[int]]:
    """Greedy tokens of the model's own ``generate``: no packing, no paged cache, no prefix cache."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()

    def tokens(prompt: tuple[int, ...]) -> list[int]:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return list(map(int, out[0, len(prompt) :]))

    return tokens


def test_cold_and_warm_greedy_tokens_are_those_of_transformers(engine: Engine, generate: Any) -> None:
    prompt = engine.codec.encode(PREFIX + TAILS[0])
    cold = engine.submit(prompt, GO_ON).result(120)
    warm = engine.submit(prompt, GO_ON).result(120)
    assert cold.usage.cached_tokens == 0
    assert warm.usage.cached_tokens == len(prompt) - 1
    assert list(cold.token_ids) == list(warm.token_ids) == generate(prompt)


def test_greedy_tokens_of_a_batch_that_shares_a_prefix_are_those_of_transformers(engine: Engine, generate: Any) -> None:
    prompts = [engine.codec.encode(PREFIX + tail) for tail in TAILS]
    results = engine.generate(prompts, GO_ON)
    assert [list(result.token_ids) for result in results] == [generate(prompt) for prompt in prompts]
    shared = len(engine.codec.encode(PREFIX.rstrip()))
    assert sum(result.usage.cached_tokens for result in results) >= shared * (len(prompts) - 1)


@pytest.mark.parametrize("kind", REFUSED)
def test_other_architectures_are_refused_by_name_with_those_that_work(kind: str, tiny_model_folder: ModelFolder) -> None:
    with pytest.raises(UnsupportedModelError, match=f"model type '{kind}'") as refused:
        Engine(str(tiny_model_folder(kind)), device="cpu", cache_tokens=256)
    assert [name for name in SERVED if name not in str(refused.value)] == []


def test_every_tiny_kind_is_served_or_refused_here() -> None:
    assert sorted(TINY_KINDS) == sorted((*SERVED, *REFUSED))
