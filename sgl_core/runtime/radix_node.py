"""One node of the radix tree: an edge of token ids with their KV slots, and what holds for a node seen alone.

Only ``RadixCache`` and the parts that it owns (the tree's shape, the eviction queue, the expectations) write its fields. The
scheduler keeps nodes as handles: it locks and unlocks them and reads their path, no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_core.runtime.eviction import QueueEntry
    from sgl_core.runtime.expectations import Expectation

__all__ = ["TreeNode", "check_node", "common_prefix_len"]

_FIRST_STEP = 16
"""Tokens in the first comparison; it doubles with each that is equal."""


@dataclass(slots=True, eq=False, repr=False)
class TreeNode:
    """An edge of the tree and the node at its end; a root has an empty edge and no parent.

    When a node is split, the object stays the lower part and a new node becomes its parent: whoever holds it as a handle
    still holds the end of the same ids.
    """

    id: int
    """Unique and rising in the order of creation."""
    namespace: str | None
    key: tuple[int, ...] = ()
    """Token ids of the edge."""
    slots: list[int] = field(default_factory=list)
    """``slots[i]`` holds the KV of ``key[i]``."""
    parent: TreeNode | None = None
    """None for a root, and for a node that was evicted."""
    children: dict[int, TreeNode] = field(default_factory=dict)
    """By the first token of their edge."""
    lock_ref: int = 0
    """Handles on this node and below it; what is locked is not evicted."""
    last_access: int = 0
    """Stamp of the last match or insert that went through; never below a child's."""
    entry: QueueEntry | None = None
    """Its place in the eviction queue, which alone writes this."""
    expectation: Expectation | None = None
    """Uses that programs announced for exactly the ids that end here; ``Expectations`` alone writes this."""
    holds: int = 0
    """Who asked that exactly the ids that end here be kept while there is room."""

    @property
    def is_evicted(self) -> bool:
        """Whether the handle is stale: the tree let go of this node."""
        return self.parent is None and bool(self.key)

    @property
    def is_wanted(self) -> bool:
        """Whether eviction takes it only when no other leaf is left."""
        return self.expectation is not None or self.holds > 0

    @property
    def path_len(self) -> int:
        """Tokens from the root to the end of this node; walks the parents."""
        return sum(len(node.key) for node in self.path())

    @property
    def is_unlocked_leaf(self) -> bool:
        """Whether eviction may take it; never true of a root."""
        return not self.children and self.lock_ref == 0 and self.parent is not None

    def path(self) -> list[TreeNode]:
        """Nodes from below the root down to this one; empty for a root."""
        nodes: list[TreeNode] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def path_slots(self) -> list[int]:
        """Slots of all tokens from the root to the end of this node, in a new list."""
        return list(chain.from_iterable(node.slots for node in self.path()))

    def __repr__(self) -> str:
        """Ids, lengths and counts; no tokens, they are prompt text."""
        return f"TreeNode(id={self.id}, key_len={len(self.key)}, lock_ref={self.lock_ref}, num_children={len(self.children)})"


def common_prefix_len(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the leading tokens that ``a`` and ``b`` share.

    Compares slices that double in length, then halves the one that differs, so Python runs a number of steps
    logarithmic in the answer and C does the rest.
    """
    if type(a) is not type(b):  # a list never equals a tuple
        a, b = tuple(a), tuple(b)
    end = min(len(a), len(b))
    equal, step = 0, _FIRST_STEP  # the first ``equal`` tokens are
    while equal < end:
        stop = min(equal + step, end)
        if a[equal:stop] != b[equal:stop]:
            return _first_difference(a, b, equal, stop)
        equal = stop
        step *= 2
    return end


def _first_difference(a: Sequence[int], b: Sequence[int], start: int, stop: int) -> int:
    """Position of the first difference, known to lie in ``[start, stop)``."""
    while stop - start > 1:
        middle = (start + stop) // 2
        if a[start:middle] == b[start:middle]:
            start = middle
        else:
            stop = middle
    return start


def check_node(node: TreeNode) -> None:
    """Check ``node`` against its children, and its edge against its slots.

    Raises:
        AssertionError: names the node, what holds and what should.
    """
    if node.lock_ref < 0:
        raise AssertionError(f"{node}: lock_ref is below zero")
    child_locks = sum(child.lock_ref for child in node.children.values())
    if child_locks > node.lock_ref:
        raise AssertionError(f"{node}: its children are locked {child_locks} times, more often than itself")
    for token, child in node.children.items():
        if child.parent is not node:
            raise AssertionError(f"{child}: its parent is {child.parent}, expected {node}")
        if child.namespace != node.namespace:
            raise AssertionError(f"{child}: its namespace is not its parent's")
        if not child.key or len(child.key) != len(child.slots):
            raise AssertionError(
                f"{child}: {len(child.key)} tokens with {len(child.slots)} slots, expected as many, at least 1"
            )
        if child.key[0] != token:
            raise AssertionError(f"{child}: filed under another token than its edge's first, so siblings may share one")
        if child.last_access > node.last_access:
            raise AssertionError(f"{child}: stamped {child.last_access}, after its parent's {node.last_access}")
