"""The DSPy adapter as a plugin: what the host reads when it lists and loads adapters. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from sgl_core.plugins import API_VERSION, AdapterSpec, hookimpl

__all__ = ["sgl_adapter"]


@hookimpl
def sgl_adapter() -> AdapterSpec:
    """``create`` makes an ``sgl_dspy.SglLM``."""
    return AdapterSpec("dspy", API_VERSION, _create, requires=("dspy",), extra="dspy")


def _create(**options: Any) -> object:
    from sgl_dspy import SglLM

    return SglLM(**options)
