"""Fixtures of this room: DSPy without its disk cache, a fake behind the adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15

from sgl_core.config import EngineConfig
from sgl_core.runtime import registry
from sgl_core.testing import FakeBackend


@pytest.fixture(autouse=True)
def fresh_dspy() -> Iterator[None]:
    """An empty answer cache in memory, and default settings again afterwards."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    dspy.configure(lm=None, adapter=None, track_usage=False)


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    with FakeBackend() as fake:
        yield fake


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """Files that look like a model to everybody who does not load it."""
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16"}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


class FakeEngine(FakeBackend):
    """What the registry makes here instead of an engine."""

    made: list[FakeEngine]

    def __init__(self, config: EngineConfig) -> None:
        super().__init__()
        self.config = config
        self.is_closed = False

    @classmethod
    def from_config(cls, config: EngineConfig) -> FakeEngine:
        cls.made.append(cls(config))
        return cls.made[-1]

    def close(self) -> None:
        self.is_closed = True
        super().close()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """The engines that the registry has made during this test, in order."""
    monkeypatch.setattr(FakeEngine, "made", [], raising=False)
    monkeypatch.setattr(registry, "engine_class", lambda: FakeEngine)
    monkeypatch.setattr(registry, "_entries", {})
    return FakeEngine.made


@pytest.fixture
def ask() -> Any:
    """A typed request: ``ask("text", temperature=1.0)``."""

    def make(text: str = "Hello", *, model: str = "sgl/x", system: str | None = None, **config: Any) -> lm15.Request:
        return lm15.Request(model, (lm15.Message.user(text),), system=system, config=lm15.Config(**config))

    return make
