"""The same engine on every device: random weights made there, a byte-level tokenizer, nothing read from disk.

The CUDA half runs from a source tree wherever torch sees a GPU: ``python -m pytest -m gpu``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime.engine import Engine
from sgl_core.testing.tiny_models import load_tiny_model
from sgl_core.types import SamplingParams

GO_ON = SamplingParams(max_new_tokens=16, ignore_eos=True)
PREFIX = "A prefix that is long enough for several requests to share it in one step. " * 5


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["llama", "gpt2", "gemma2"])
def engine(request: pytest.FixtureRequest, device: str) -> Iterator[Engine]:
    with Engine(loaded=load_tiny_model(request.param, device=device), cache_tokens=4_096) as engine:
        yield engine


def test_cached_batched_and_alone_equal_the_models_own_generate(engine: Engine, device: str) -> None:
    prompts = [engine.codec.encode(PREFIX + tail) for tail in ("one", "two two", "three three three", "four")]
    results = engine.generate(prompts, GO_ON)
    again = engine.generate(prompts, GO_ON)
    assert engine.stats().cached_tokens > 2 * len(prompts[0])
    reference = load_tiny_model(engine.facts.architecture, device=device)
    for prompt, result, warm in zip(prompts, results, again, strict=True):
        ids = torch.tensor([prompt], device=device)
        out = reference.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert list(result.token_ids) == list(warm.token_ids) == out[0, len(prompt) :].tolist()
    engine.check_invariants()


def test_scores_sum_to_probabilities_on_every_device(engine: Engine) -> None:
    vocab = engine.facts.vocab_size
    total = torch.tensor(engine.score("x", [[token] for token in range(vocab)])).double().exp().sum()
    assert abs(float(total) - 1.0) < 1e-4


def test_a_device_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgumentError, match=r"device.*a device that torch sees here"):
        Engine(device="cuda")
