"""Passes over the graph of a program, each with a legality rule and a report, and the order in which they run.

Called by ``SglFunction.compile``. Every pass makes a new graph, which is verified; none changes what a run gives.
"""

from __future__ import annotations

from typing import Final

from sgl_core.language.graph import Graph
from sgl_core.language.passes import dead_streams, dedupe, folding, fork_commit, last_use, prefetch, prefixes
from sgl_core.language.passes.base import Pass, PassContext, PassReport
from sgl_core.language.verifier import verify

__all__ = ["PASSES", "Pass", "PassContext", "PassReport", "run_passes"]

PASSES: Final = (
    # What goes, goes first: nothing below looks at text or streams that no run has.
    Pass(folding.NAME, folding.run),
    Pass(dead_streams.NAME, dead_streams.run),
    # Marks and insertions. Equal gens come before last uses: the first of them is not the last to use its prompt if another
    # one's is extended. The others do not look at one another.
    Pass(dedupe.NAME, dedupe.run),
    Pass(fork_commit.NAME, fork_commit.run),
    Pass(prefetch.NAME, prefetch.run),
    Pass(last_use.NAME, last_use.run),
    # Measures what all of that leaves.
    Pass(prefixes.NAME, prefixes.run),
)


def run_passes(graph: Graph, context: PassContext | None = None) -> tuple[Graph, tuple[PassReport, ...]]:
    """Run all passes.

    Args:
        graph: a verified graph; it stays as it is. Code movement belongs before this, as folding leaves less to move.
        context: what is known besides; by default nothing.

    Returns:
        The new graph, and a report of each pass in order.

    Raises:
        GraphError: a pass broke a rule of graphs.
    """
    context = context or PassContext()
    reports = []
    for one in PASSES:
        graph, report = one.run(graph, context)
        verify(graph)
        reports.append(report)
    return graph, tuple(reports)
