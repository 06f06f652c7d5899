"""DSPy on sgl-core: ``dspy.configure(lm=SglLM())``, and everything else stays as it is.

DSPy keeps its modules, optimisers, answer cache and history; ``SglEngine`` and ``SglAsyncEngine`` stand where it would call
a server, and run each request on a RadixAttention engine in this process. Importing this package loads neither torch nor
DSPy's modules: a class is fetched when somebody asks for it, and weights are loaded by the first call.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sgl_core import errors

if TYPE_CHECKING:
    from sgl_dspy.engine import SglAsyncEngine, SglEngine
    from sgl_dspy.lm import SglLM

__all__ = ["SglAsyncEngine", "SglEngine", "SglLM"]

_HOMES = {"SglAsyncEngine": "sgl_dspy.engine", "SglEngine": "sgl_dspy.engine", "SglLM": "sgl_dspy.lm"}
_LATER = {
    "BestOfN": "use dspy.BestOfN",
    "ChatAdapter": "use dspy.ChatAdapter",
    "JSONAdapter": "use dspy.JSONAdapter",
    "compile_module": "run the module as it is: what its prompts share is computed once all the same",
}


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


if not _is_installed("dspy"):
    raise errors.MissingExtraError("dspy", "dspy")


def __getattr__(name: str) -> Any:
    """Fetch a class on first use, and say what to use instead of a name that comes later."""
    if name in _HOMES:
        if not _is_installed("dspy.lm15"):  # engines came with 3.4, and this module with them
            raise errors.MissingExtraError("dspy", "dspy 3.4")
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _LATER:
        raise errors.NotYetAvailableError(f"sgl_dspy.{name} is not available yet; {_LATER[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)


def __dir__() -> list[str]:
    """The names above, the lazy ones too."""
    return sorted({*globals(), *__all__})
