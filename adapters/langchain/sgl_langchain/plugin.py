"""The LangChain adapter as a plugin: what the host reads when it lists and loads adapters. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from sgl_core.plugins import API_VERSION, AdapterSpec, hookimpl

__all__ = ["sgl_adapter"]


@hookimpl
def sgl_adapter() -> AdapterSpec:
    """``create`` makes an ``sgl_langchain.ChatSgl``."""
    return AdapterSpec("langchain", API_VERSION, _create, requires=("langchain_core",), extra="langchain")


def _create(**options: Any) -> object:
    from sgl_langchain import ChatSgl

    return ChatSgl(**options)
