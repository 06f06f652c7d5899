"""The engine and its codec do what every backend and every codec must do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.engine import Engine
from sgl_core.testing import BackendContract, CodecContract


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    with Engine(str(tiny_llama), dtype="float32", cache_tokens=4_096) as engine:
        yield engine


class TestEngine(BackendContract):
    @pytest.fixture
    def backend(self, engine: Engine) -> Engine:
        return engine

    @pytest.fixture
    def closable_backend(self, tiny_llama: Path) -> Iterator[Engine]:
        with Engine(str(tiny_llama), dtype="float32", cache_tokens=1_024) as engine:
            yield engine


class TestLocalCodec(CodecContract):
    @pytest.fixture
    def codec(self, engine: Engine) -> LocalCodec:
        return engine.codec
