"""The LangChain adapter as a plugin: what the host reads when it lists and loads adapters. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from sgl_core.plugins import API_VERSION, AdapterSpec, hookimpl

__all__ = ["sgl_adapter", "sgl_lower", "sgl_translate"]


@hookimpl
def sgl_adapter() -> AdapterSpec:
    """``create`` makes an ``sgl_langchain.ChatSgl``."""
    return AdapterSpec("langchain", API_VERSION, _create, requires=("langchain_core",), extra="langchain")


@hookimpl
def sgl_translate(target: object, options: Mapping[str, object]) -> object | None:
    """A Runnable as a program, with the argument ``input``; ``options`` are those of ``compile_runnable``."""
    if not _is_runnable(target):
        return None
    from sgl_langchain.compiled import compile_runnable

    runnable: Any = target
    return compile_runnable(runnable, **options).program()  # type: ignore[arg-type]  # checked by name there


@hookimpl(trylast=True)
def sgl_lower(node: object, builder: object) -> object | None:
    """The node of a Runnable of LangChain's own kinds or ours; a plugin that knows better has been asked before."""
    if not _is_runnable(node):
        return None
    from sgl_langchain.translate.builder import RunnableBuilder
    from sgl_langchain.translate.lower import is_own_kind

    runnable: Any = node
    if not isinstance(builder, RunnableBuilder) or not is_own_kind(runnable):
        return None  # ``lower`` would ask the plugins about it, and so this one again
    return builder.lower(runnable)


def _is_runnable(target: object) -> bool:
    """Whoever holds a Runnable has imported LangChain; others are not made to."""
    base = sys.modules.get("langchain_core.runnables.base")
    return base is not None and isinstance(target, base.Runnable)


def _create(**options: Any) -> object:
    from sgl_langchain import ChatSgl

    return ChatSgl(**options)
