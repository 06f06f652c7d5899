"""The language: programs of prompts, generations, choices and forks, run on any ``Backend``.

``primitives`` build expressions (``ir``), ``program`` and ``state`` are what users hold, ``stream`` runs the nodes in order on
the ``dispatcher``'s thread, ``position`` keeps token ids as truth beside the text. Imports neither torch nor a runtime.
"""

from sgl_core.language.compiled import CompiledFunction
from sgl_core.language.defaults import get_default_backend, set_default_backend
from sgl_core.language.graph import Graph
from sgl_core.language.group import ForkGroup
from sgl_core.language.ir import Expr
from sgl_core.language.primitives import (
    assistant,
    assistant_begin,
    assistant_end,
    call,
    commutative,
    gen,
    gen_int,
    gen_string,
    greedy_token_selection,
    image,
    raw,
    select,
    separate_reasoning,
    system,
    system_begin,
    system_end,
    token_length_normalized,
    unconditional_likelihood_normalized,
    user,
    user_begin,
    user_end,
)
from sgl_core.language.program import SglFunction, function
from sgl_core.language.sampling import to_context
from sgl_core.language.saved import load_graph
from sgl_core.language.services import flush_cache, get_server_info
from sgl_core.language.state import ProgramState

__all__ = [
    "CompiledFunction",
    "Expr",
    "ForkGroup",
    "Graph",
    "ProgramState",
    "SglFunction",
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
