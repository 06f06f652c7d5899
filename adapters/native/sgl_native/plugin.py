"""The native front end as a plugin: what the host reads when it lists and loads adapters. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from sgl_core.plugins import API_VERSION, AdapterSpec, hookimpl

__all__ = ["sgl_adapter"]


@hookimpl
def sgl_adapter() -> AdapterSpec:
    """``create`` makes an ``sgl_native.Engine``."""
    return AdapterSpec("native", API_VERSION, _create, requires=("torch", "transformers"), extra="runtime")


def _create(**options: Any) -> object:
    import sgl_native

    return sgl_native.Engine(**options)
