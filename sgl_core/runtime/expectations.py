"""Prefixes that programs announced further uses of, so that the tree keeps them a little longer than their turn.

Called by ``RadixCache`` alone. It owns the announcements, their counts and their deadlines; what a standing one means for
eviction is the tree's to say. An announcement is a hint: it runs out after a number of stamps, since its program may die.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from sgl_core.runtime.radix_node import TreeNode

__all__ = ["EXPECTATION_STAMPS", "Expectation", "Expectations"]

EXPECTATION_STAMPS = 4096
"""Matches and inserts, of anything in the tree, that an announcement outlives. A request makes about three."""


@dataclass(slots=True, eq=False)
class Expectation:
    """Uses to come of one prefix."""

    node: TreeNode
    """Ends the prefix."""
    uses: int
    """Matches still to come, at least 1."""
    last_stamp: int
    """It stands up to and including this one."""


class Expectations:
    """The announcements that stand, at most one a node, in the order in which they run out."""

    def __init__(self) -> None:
        """Expect nothing."""
        self._standing: OrderedDict[Expectation, None] = OrderedDict()  # a set, ordered by last_stamp
        self._num_stamps = 0

    def add(self, node: TreeNode, uses: int) -> None:
        """Expect ``uses`` matches through ``node``, or as many as before if that is more; the deadline starts anew."""
        before = node.expectation
        if before is not None:
            uses = max(uses, before.uses)
            del self._standing[before]
        node.expectation = Expectation(node, uses, self._num_stamps + EXPECTATION_STAMPS)
        self._standing[node.expectation] = None

    def count_stamp(self) -> None:
        """Let time pass by one match or insert."""
        self._num_stamps += 1

    def count_match(self, node: TreeNode) -> list[TreeNode]:
        """Count one match that ended at ``node``; returns the nodes on its path of which no further use is expected."""
        met: list[TreeNode] = []
        part: TreeNode | None = node if self._standing else None
        while part is not None:
            if part.expectation is not None:
                part.expectation.uses -= 1
                if not part.expectation.uses:
                    del self._standing[part.expectation]
                    part.expectation = None
                    met.append(part)
            part = part.parent
        return met

    def run_out(self) -> list[TreeNode]:
        """Drop what is past its deadline; returns the nodes that lost their announcement."""
        gone: list[TreeNode] = []
        while self._standing:
            oldest = next(iter(self._standing))
            if oldest.last_stamp >= self._num_stamps:
                break
            del self._standing[oldest]
            oldest.node.expectation = None
            gone.append(oldest.node)
        return gone

    def move_up(self, node: TreeNode, parent: TreeNode) -> None:
        """``node`` goes: what was expected of it is now expected of the prefix that is left, unless nothing is left.

        Where both are expected, the larger number of uses and the later deadline hold.
        """
        moved, other = node.expectation, parent.expectation
        if moved is None:
            return
        node.expectation = None
        if parent.parent is None:
            del self._standing[moved]
        elif other is None:
            moved.node, parent.expectation = parent, moved
        else:
            first, last = sorted((moved, other), key=lambda expectation: expectation.last_stamp)
            last.uses = max(first.uses, last.uses)
            last.node, parent.expectation = parent, last
            del self._standing[first]

    def check(self, nodes: Iterable[TreeNode]) -> None:
        """Compare the announcements with the marks on all nodes of the tree.

        Raises:
            AssertionError: names the node, what is expected of it and what should be.
        """
        announced = {expectation.node.id: expectation for expectation in self._standing}
        if len(announced) != len(self._standing):
            raise AssertionError(f"expectations: {len(self._standing)} stand for {len(announced)} nodes, expected one each")
        for node in nodes:
            if node.expectation is not announced.pop(node.id, None):
                raise AssertionError(f"{node}: its mark and the announcement that stands for it are not the same")
        if announced:
            raise AssertionError(f"expectations: announcements stand for nodes {sorted(announced)}, not in the tree")
        last_stamp = 0
        for expectation in self._standing:
            if expectation.uses < 1:
                raise AssertionError(f"{expectation.node}: {expectation.uses} uses expected, at least 1 while that stands")
            if not last_stamp <= expectation.last_stamp <= self._num_stamps + EXPECTATION_STAMPS:
                where = f"stamp {expectation.last_stamp}, out of the order of deadlines"
                raise AssertionError(f"{expectation.node}: expected until {where}")
            last_stamp = expectation.last_stamp
