"""Fixtures of the integration tests: the engine that everything leases by default, and a model for tests that only count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sgl_core.config import EngineConfig
from sgl_core.runtime.registry import acquire

if TYPE_CHECKING:
    from sgl_core.runtime.model_loader import LoadedModel

_CONTEXT_TOKENS = 2048


@pytest.fixture(scope="session")
def default_engine(embedded_folder: Path) -> Iterator[Any]:
    """The engine that models and examples lease by default, held so that its weights are loaded once for all files."""
    del embedded_folder  # converted before anybody waits for it
    with acquire(EngineConfig()) as lease:
        yield lease.engine


@pytest.fixture
def cold_engine(default_engine: Any) -> Iterator[Any]:
    """The same with nothing in its cache and nothing counted; a test leaves no request and no lock behind."""
    default_engine.flush_cache()
    default_engine.reset_stats()
    yield default_engine
    default_engine.check_invariants()
    stats = default_engine.stats()
    assert stats.num_running == stats.num_waiting == stats.protected_tokens == 0


@pytest.fixture(scope="session")
def one_layer_model(embedded_folder: Path) -> LoadedModel:
    """The embedded model's tokenizer on one layer of random weights: what is prefilled and cached depends on ids alone."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from sgl_core.runtime.model_loader import LoadedModel

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder, local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=_CONTEXT_TOKENS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    eos = frozenset({int(tokenizer.eos_token_id)})
    return LoadedModel(model, tokenizer, config, eos, _CONTEXT_TOKENS, "one-layer", "one layer", Path())
