"""Future-use hints: the requests whose prompt no later request of the program extends.

A ``Gen`` or ``Select`` is marked ``last_use`` if no request follows it in its stream, and none in a fork that starts behind it.
One that others are ``same_as`` counts with theirs, as they extend its very prompt. The hint reaches the backend with the request
and says that what the request adds to the cache is the first that can go. It is a hint about memory and changes no result, so
it would hold even where it is wrong. Gains room for prefixes that are needed again, which only a run can tell.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sgl_core.language.graph import Graph
from sgl_core.language.ir import Gen, Select
from sgl_core.language.passes.base import PassContext, PassReport, requested_behind

__all__ = ["NAME", "run"]

NAME: Final = "last use"


def run(graph: Graph, context: PassContext) -> tuple[Graph, PassReport]:  # noqa: ARG001 - passes are called alike
    """Mark last requests."""
    behind = requested_behind(graph)
    extended = behind | {node.same_as for node in graph.nodes if node.same_as is not None and node.id in behind}
    nodes = tuple(
        replace(node, last_use=node.id not in extended) if isinstance(node.op, Gen | Select) else node for node in graph.nodes
    )
    changes = sum(new.last_use != old.last_use for new, old in zip(nodes, graph.nodes, strict=True))
    num_requests = sum(isinstance(node.op, Gen | Select) for node in nodes)
    num_last = sum(node.last_use for node in nodes)
    notes = (f"Nothing extends the prompts of {num_last} of {num_requests} requests.",) if num_last else ()
    return (replace(graph, nodes=nodes) if changes else graph), PassReport(NAME, changes, None if num_last else 0, notes)
