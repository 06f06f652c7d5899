"""A picture of the radix tree at one moment: frozen nodes that outlive it, for people who want to look at the cache.

``Engine.tree`` takes one on its own thread, between two steps; whoever draws or inspects it may do so at leisure. Owns
nothing, changes nothing (not even the LRU order), and holds no KV. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sgl_core.runtime.radix_cache import RadixCache

__all__ = ["NodeSnapshot", "TreeSnapshot", "take_snapshot"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NodeSnapshot:
    """One edge of the tree with everything below it.

    Args:
        namespace: the one it is shared in; None is the default one.
        token_ids: of the edge alone.
        start: tokens between the root and the edge.
        lock_ref: running requests that hold it, here or further down; 0 means that it may be evicted.
        last_access: rank by last use among the nodes of the snapshot, 0 for the longest unused. A node is used with
            every node below it and then shares the rank of the most recent.
        num_leaves: ends of sequences at or below it; where there are several, they share its tokens.
        children: in the order in which they came.
    """

    namespace: str | None
    token_ids: tuple[int, ...]
    start: int
    lock_ref: int
    last_access: int
    num_leaves: int
    children: tuple[NodeSnapshot, ...]

    @property
    def num_tokens(self) -> int:
        """Length of the edge."""
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """Tokens from the root to its end."""
        return self.start + len(self.token_ids)

    def __repr__(self) -> str:
        """Positions and counts; no tokens, they are prompt text."""
        return f"NodeSnapshot([{self.start}, {self.end}), lock_ref={self.lock_ref}, num_children={len(self.children)})"


@dataclass(frozen=True, slots=True, eq=False)
class TreeSnapshot:
    """The whole tree.

    Args:
        top: the first nodes of all namespaces, those of one namespace together.
    """

    top: tuple[NodeSnapshot, ...]

    def walk(self) -> Iterator[NodeSnapshot]:
        """Every node, a parent before its children and a child's whole subtree before its next sibling."""
        stack = list(reversed(self.top))
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    @property
    def num_nodes(self) -> int:
        """Nodes in all."""
        return sum(1 for _ in self.walk())

    @property
    def num_tokens(self) -> int:
        """Tokens held; each takes one slot of the KV pool."""
        return sum(node.num_tokens for node in self.walk())

    @property
    def num_leaves(self) -> int:
        """Ends of sequences; a sequence that another one continues has none of its own."""
        return sum(node.num_leaves for node in self.top)

    @property
    def unshared_tokens(self) -> int:
        """Tokens that the same sequences would take if each was held on its own."""
        return sum(node.end for node in self.walk() if not node.children)


def take_snapshot(tree: RadixCache) -> TreeSnapshot:
    """Copy the tree's shape; token ids are shared with it, as they never change.

    The tree must not change meanwhile.
    """
    nodes = list(tree.walk())
    rank = {stamp: index for index, stamp in enumerate(sorted({node.last_access for node in nodes}))}
    starts: dict[int, int] = {}
    for node in nodes:  # parents come before children
        parent = node.parent
        starts[node.id] = starts[parent.id] + len(parent.key) if parent is not None and parent.id in starts else 0
    taken: dict[int, NodeSnapshot] = {}
    for node in reversed(nodes):  # and children before parents: no recursion, a tree may be deep
        children = tuple(taken[child.id] for child in node.children.values())
        taken[node.id] = NodeSnapshot(
            namespace=node.namespace,
            token_ids=node.key,
            start=starts[node.id],
            lock_ref=node.lock_ref,
            last_access=rank[node.last_access],
            num_leaves=sum(child.num_leaves for child in children) or 1,
            children=children,
        )
    roots = {node.parent.id: node.parent for node in nodes if node.parent is not None and node.parent.id not in starts}
    return TreeSnapshot(tuple(taken[child.id] for root in roots.values() for child in root.children.values()))
