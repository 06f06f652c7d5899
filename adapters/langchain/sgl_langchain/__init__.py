"""LangChain on sgl-core: a chat model and a text model that run in this process and share one prefix cache.

``ChatSgl`` and ``SglLLM`` are ordinary LangChain models: put them into chains, batches, streams and graphs. Importing this
package loads neither torch nor LangChain's models; a class is fetched when somebody asks for it.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sgl_core import errors as core_errors

if TYPE_CHECKING:
    from sgl_langchain.chat import ChatSgl
    from sgl_langchain.llm import SglLLM

__all__ = ["ChatSgl", "SglLLM"]

_HOMES = {"ChatSgl": "sgl_langchain.chat", "SglLLM": "sgl_langchain.llm"}
_LATER = {
    "SglDecisions": "use select in a program of sgl_native",
    "compile_runnable": "run the chain as it is: what its prompts share is computed once all the same",
}


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


if not _is_installed("langchain_core"):
    raise core_errors.MissingExtraError("langchain", "langchain_core")


def __getattr__(name: str) -> Any:
    """Fetch a class on first use, and say what to use instead of a name that comes later."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _LATER:
        raise core_errors.NotYetAvailableError(f"sgl_langchain.{name} is not available yet; {_LATER[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)


def __dir__() -> list[str]:
    """The names above, the lazy ones too."""
    return sorted({*globals(), *__all__})
