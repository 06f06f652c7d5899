"""Programs as files: a graph written as JSON, and run where the program's source is not.

``load_graph`` makes a program of a graph alone. Nothing can be traced again there, so an argument whose value a trace would have
to know (None, True, False) has to be static in the graph that was saved.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from sgl_core.backend import Backend
from sgl_core.errors import ProgramError
from sgl_core.language.compiled import CompiledFunction, CompileOptions
from sgl_core.language.defaults import checked_backend
from sgl_core.language.graph import Graph
from sgl_core.language.graph_json import from_json
from sgl_core.language.program import SglFunction

__all__ = ["load_graph"]


def load_graph(
    text: str, *, functions: Mapping[str, Callable[..., Any]] | None = None, backend: Backend | None = None
) -> CompiledFunction:
    """Make a program of a graph that ``sgl_core.language.graph_json.to_json`` wrote.

    Args:
        text: the JSON.
        functions: host code by its name in the file, "module:qualname"; beside the methods of str and some harmless builtins
            nothing else is ever called, so a file cannot choose what is run.
        backend: whose tokens ``explain`` counts, as for ``SglFunction.compile``.

    Returns:
        The program; ``run``, ``arun`` and ``run_batch`` work as on the one that was saved.

    Raises:
        GraphError: the text is no graph, breaks a rule of graphs, or calls host code that ``functions`` does not have.
    """
    graph = from_json(text, functions=functions)
    codec = None if backend is None else checked_backend(backend).codec
    return CompiledFunction(SglFunction(_stand_in(graph)), CompileOptions(codec=codec), graph=graph)


def _stand_in(graph: Graph) -> Callable[..., Any]:
    """A function with the graph's name and parameters, as its own is not here."""

    def body(*_: Any, **__: Any) -> NoReturn:
        raise ProgramError(f"{graph.name} was loaded from a graph; it has no body to be interpreted or traced")

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = (
        inspect.Parameter(parameter.name, kind, default=parameter.default if parameter.has_default else inspect.Parameter.empty)
        for parameter in graph.parameters
    )
    body.__name__ = graph.name
    body.__signature__ = inspect.Signature([inspect.Parameter("s", kind), *own])  # type: ignore[attr-defined]
    return body
