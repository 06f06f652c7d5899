"""Which prefixes of one batch are worth attending together. A pure function of tree paths; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgl_core.runtime.plan import SharedPrefix
from sgl_core.runtime.radix_cache import TreeNode

__all__ = ["MIN_SAVED_TOKENS", "find_shared_prefixes"]

MIN_SAVED_TOKENS = 256
"""Reads saved per step and layer below which one more attention call and merge cost more than they save."""


@dataclass(slots=True)
class _Run:
    start: int
    end: int
    members: list[int]


def find_shared_prefixes(
    ends: Sequence[tuple[TreeNode | None, int]],
) -> tuple[tuple[SharedPrefix, ...], list[int]]:
    """Group a batch by the tree nodes that its members have in common.

    Args:
        ends: per member the locked end of its tree path (None: shares nothing), and the first position that it computes;
            only nodes that end at or before that position count, as later ones hold this step's own tokens.

    Returns:
        Shared prefixes by increasing start, and per member how many leading tokens they cover. A member's runs follow one
        another without a gap from 0.
    """
    runs: dict[int, _Run] = {}
    order: list[_Run] = []
    readers: dict[int, tuple[TreeNode, int, list[int]]] = {}
    for member, (end_node, first) in enumerate(ends):
        if end_node is None:
            continue
        position = 0
        for node in end_node.path():
            start, position = position, position + len(node.key)
            if position > first:
                break
            readers.setdefault(node.id, (node, start, []))[2].append(member)
    for node, start, members in sorted(readers.values(), key=lambda entry: entry[1]):
        if len(members) < 2:
            continue
        run = runs.get(node.parent.id) if node.parent is not None else None
        if run is not None and run.end == start and run.members == members:
            run.end = start + len(node.key)
        else:
            run = _Run(start, start + len(node.key), members)
            order.append(run)
        runs[node.id] = run
    covered = [0] * len(ends)
    shared = []
    for run in order:
        saved = (len(run.members) - 1) * (run.end - run.start)
        if saved >= MIN_SAVED_TOKENS and all(covered[m] == run.start for m in run.members):
            shared.append(SharedPrefix(run.start, run.end, tuple(run.members)))
            for member in run.members:
                covered[member] = run.end
    return tuple(shared), covered
