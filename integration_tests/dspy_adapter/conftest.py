"""Fixtures of this room: the embedded model behind DSPy, without DSPy's disk cache."""

from __future__ import annotations

from collections.abc import Iterator

import dspy
import pytest

from sgl_core.runtime.engine import Engine
from sgl_dspy import SglLM


@pytest.fixture(autouse=True)
def fresh_dspy() -> Iterator[None]:
    """No answer cache, so that every call is computed, and default settings again afterwards."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    yield
    dspy.configure(lm=None, adapter=None)


@pytest.fixture(scope="module")
def engine(embedded_gguf: object) -> Iterator[Engine]:
    with Engine(dtype="float32", cache_tokens=8192) as embedded:
        yield embedded


@pytest.fixture
def lm(engine: Engine) -> Iterator[SglLM]:
    """Short replies on an empty cache; afterwards nothing may be left over."""
    engine.flush_cache()
    engine.reset_stats()
    yield SglLM(backend=engine, max_tokens=8)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    engine.check_invariants()
