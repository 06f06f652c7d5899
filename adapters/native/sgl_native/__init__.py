"""The native front end: ``import sgl_native as sgl``, write programs, run them on an ``sgl.Engine()``.

Importing it loads no torch: ``Engine`` is fetched on first use. It sets the default backend of the process, so that
programs run without ``backend=`` share one engine on the embedded model, which is made when the first of them runs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sgl_core import __version__
from sgl_core.config import EngineConfig
from sgl_core.errors import (
    ContextLengthError,
    DeadlineExceeded,
    EngineError,
    EngineShutdown,
    EngineStepError,
    GrammarError,
    GraphError,
    InvalidArgumentError,
    MissingExtraError,
    ModelError,
    ModelFormatError,
    ModelNotFoundError,
    MoveError,
    NotYetAvailableError,
    NumericsError,
    PoolExhaustedError,
    ProgramError,
    QueueFull,
    RequestAborted,
    RequestError,
    SglError,
    StreamClosedError,
    TemplateError,
    TraceError,
    UnknownOptionError,
    UnsupportedModelError,
    VariableNotFoundError,
    VerificationError,
)
from sgl_core.language import (
    CompiledFunction,
    Expr,
    ForkGroup,
    Graph,
    ProgramState,
    SglFunction,
    assistant,
    assistant_begin,
    assistant_end,
    call,
    commutative,
    flush_cache,
    function,
    gen,
    gen_int,
    gen_string,
    get_default_backend,
    get_server_info,
    greedy_token_selection,
    image,
    load_graph,
    raw,
    select,
    separate_reasoning,
    set_default_backend,
    system,
    system_begin,
    system_end,
    to_context,
    token_length_normalized,
    unconditional_likelihood_normalized,
    user,
    user_begin,
    user_end,
)
from sgl_core.runtime.metrics import EngineStats
from sgl_core.types import FinishReason, GenDelta, GenResult, SamplingParams, Usage
from sgl_native import engines

if TYPE_CHECKING:
    from sgl_core.runtime.engine import Engine

__all__ = [
    "CompiledFunction",
    "ContextLengthError",
    "DeadlineExceeded",
    "Engine",
    "EngineConfig",
    "EngineError",
    "EngineShutdown",
    "EngineStats",
    "EngineStepError",
    "Expr",
    "FinishReason",
    "ForkGroup",
    "GenDelta",
    "GenResult",
    "GrammarError",
    "Graph",
    "GraphError",
    "InvalidArgumentError",
    "MissingExtraError",
    "ModelError",
    "ModelFormatError",
    "ModelNotFoundError",
    "MoveError",
    "NotYetAvailableError",
    "NumericsError",
    "PoolExhaustedError",
    "ProgramError",
    "ProgramState",
    "QueueFull",
    "RequestAborted",
    "RequestError",
    "SamplingParams",
    "SglError",
    "SglFunction",
    "StreamClosedError",
    "TemplateError",
    "TraceError",
    "UnknownOptionError",
    "UnsupportedModelError",
    "Usage",
    "VariableNotFoundError",
    "VerificationError",
    "__version__",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "call",
    "commutative",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_default_backend",
    "get_server_info",
    "greedy_token_selection",
    "image",
    "load_graph",
    "raw",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "to_context",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
]

set_default_backend(engines.default_engine)


def __getattr__(name: str) -> Any:
    """Fetch ``Engine`` when somebody asks for it; it needs torch, which this package does not load."""
    if name == "Engine":
        from sgl_core.runtime.registry import engine_class

        return engine_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    """The names above, the lazy ones too."""
    return sorted({*globals(), *__all__})
