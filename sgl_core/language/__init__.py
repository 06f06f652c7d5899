"""The language: programs of prompts, generations, choices and forks, run on any ``Backend``.

``primitives`` build expressions (``ir``), ``program`` and ``state`` are what users hold, ``stream`` runs the nodes in order on
the ``dispatcher``'s thread, ``position`` keeps token ids as truth beside the text. Imports neither torch nor a runtime.
"""

from sgl_core.language.defaults import get_default_backend, set_default_backend
from sgl_core.language.group import ForkGroup
from sgl_core.language.ir import Expr
from sgl_core.language.primitives import (
    assistant,
    assistant_begin,
    assistant_end,
    call,
    gen,
    gen_int,
    gen_string,
    raw,
    select,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
)
from sgl_core.language.program import SglFunction, function
from sgl_core.language.state import ProgramState

__all__ = [
    "Expr",
    "ForkGroup",
    "ProgramState",
    "SglFunction",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "call",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_default_backend",
    "raw",
    "select",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "user",
    "user_begin",
    "user_end",
]
