"""DSPy on sgl-core: ``dspy.configure(lm=SglLM())``, and everything else stays as it is.

DSPy keeps its modules, optimisers, answer cache and history; ``SglEngine`` and ``SglAsyncEngine`` stand where it would call
a server, and run each request on a RadixAttention engine in this process. The adapters make small models obey formats, and
``compile_module`` lets a program's calls share their prefixes. Importing this package loads neither torch nor DSPy's modules: a
name is fetched when somebody asks for it, and weights are loaded by the first call.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sgl_core import errors

if TYPE_CHECKING:
    from sgl_dspy.adapters import ChatAdapter, JSONAdapter, configure
    from sgl_dspy.best_of_n import BestOfN
    from sgl_dspy.compiled.batching import run_batch
    from sgl_dspy.compiled.compiling import compile_module
    from sgl_dspy.compiled.explaining import explain
    from sgl_dspy.decisions import SglDecisions
    from sgl_dspy.engine import SglAsyncEngine, SglEngine
    from sgl_dspy.lm import SglLM

__all__ = [
    "BestOfN",
    "ChatAdapter",
    "JSONAdapter",
    "SglAsyncEngine",
    "SglDecisions",
    "SglEngine",
    "SglLM",
    "compile_module",
    "configure",
    "explain",
    "run_batch",
]

_HOMES = {
    "BestOfN": "best_of_n",
    "ChatAdapter": "adapters",
    "JSONAdapter": "adapters",
    "SglAsyncEngine": "engine",
    "SglDecisions": "decisions",
    "SglEngine": "engine",
    "SglLM": "lm",
    "compile_module": "compiled.compiling",
    "configure": "adapters",
    "explain": "compiled.explaining",
    "run_batch": "compiled.batching",
}


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


if not _is_installed("dspy"):
    raise errors.MissingExtraError("dspy", "dspy")


def __getattr__(name: str) -> Any:
    """Fetch a name on first use."""
    if name in _HOMES:
        if not _is_installed("dspy.lm15"):  # engines came with 3.4, and this module with them
            raise errors.MissingExtraError("dspy", "dspy 3.4")
        return getattr(importlib.import_module(f"sgl_dspy.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)


def __dir__() -> list[str]:
    """The names above, the lazy ones too."""
    return sorted({*globals(), *__all__})
