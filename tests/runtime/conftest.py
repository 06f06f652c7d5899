"""Fixtures that several rooms of the runtime's tests share: one tiny model for all their engines, and one to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sgl_core.testing.tiny_models import load_tiny_model

if TYPE_CHECKING:
    from sgl_core.runtime.model_loader import LoadedModel


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    """A tiny Llama for ``Engine(loaded=...)``."""
    return load_tiny_model("llama")


@pytest.fixture(scope="session")
def reference() -> Any:
    """The same model without our attention, for plain forward passes."""
    return load_tiny_model("llama").model
