"""LangChain on sgl-core: models that run in this process and share one prefix cache, and chains as fork/join programs.

``ChatSgl`` and ``SglLLM`` are ordinary LangChain models: put them into chains, batches, streams and graphs. ``compile_runnable``
makes the batches and branches of a chain share every prefix. Importing this package loads neither torch nor LangChain's models; a
name is fetched when somebody asks for it.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_core import errors as core_errors

if TYPE_CHECKING:
    from sgl_langchain.chat import ChatSgl
    from sgl_langchain.compiled import CompiledRunnable, compile_runnable
    from sgl_langchain.decisions import SglDecisions
    from sgl_langchain.llm import SglLLM
    from sgl_langchain.registration import register_with_langchain

__all__ = ["ChatSgl", "CompiledRunnable", "SglLLM", "compile_runnable", "register_with_langchain"]

_HOMES = {
    "ChatSgl": "sgl_langchain.chat",
    "CompiledRunnable": "sgl_langchain.compiled",
    "SglDecisions": "sgl_langchain.decisions",
    "SglLLM": "sgl_langchain.llm",
    "compile_runnable": "sgl_langchain.compiled",
    "register_with_langchain": "sgl_langchain.registration",
}


def _is_in(module: str, part: str) -> bool:
    """Whether an installed package has a part; asking for its own spec would import the package."""
    spec = find_spec(module)
    if spec is None:
        raise core_errors.MissingExtraError("langchain", module)
    return any(Path(folder, part).is_dir() for folder in spec.submodule_search_locations or ())


if _is_in("langchain_core", "decisions"):  # since langchain-core 1.8; before, asking for the class says so
    __all__ += ["SglDecisions"]
    __all__.sort()


def __getattr__(name: str) -> Any:
    """Fetch a name on first use."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)


def __dir__() -> list[str]:
    """The names above, the lazy ones too."""
    return sorted({*globals(), *_HOMES})
