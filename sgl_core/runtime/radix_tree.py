"""The shape of the radix tree: one tree of token sequences for each namespace, and the ways to go down, split and prune.

Called by ``RadixCache`` alone. It owns the roots, the links between nodes and their edges; locks, stamps and the order of
eviction mean nothing here. Prefixes are compared token by token (no hashes, so no collisions), never across namespaces,
and in C: a descent costs a few steps of Python per node on the path, none per token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from sgl_core.runtime.radix_node import TreeNode, check_node, common_prefix_len

__all__ = ["MAX_CONTINUATIONS", "Descent", "RadixTree"]

MAX_CONTINUATIONS = 4
"""Tokens of what follows that a descent tells."""


@dataclass(slots=True)
class Descent:
    """How far some ids lead into the tree."""

    path: list[TreeNode]
    """Nodes that share at least a token with the ids, root first; all but the last shared whole."""
    matched_len: int
    """Tokens shared on the path."""
    shared_in_last: int
    """Tokens of ``path[-1].key`` that are shared."""

    def continuations(self) -> tuple[int, ...]:
        """First tokens behind what is shared, at most ``MAX_CONTINUATIONS``; to be asked before the last node is split."""
        last = self.path[-1]
        if self.shared_in_last < len(last.key):
            return (last.key[self.shared_in_last],)
        return tuple(itertools.islice(last.children, MAX_CONTINUATIONS))


class RadixTree:
    """Nodes and how they hang together."""

    def __init__(self) -> None:
        """Start empty."""
        self._node_ids = itertools.count()
        self._roots: dict[str | None, TreeNode] = {}  # a namespace has a root while it holds tokens
        self._num_nodes = 0

    @property
    def num_nodes(self) -> int:
        """Nodes in the tree, roots not counted."""
        return self._num_nodes

    def namespaces(self) -> list[str | None]:
        """Namespaces that hold tokens."""
        return list(self._roots)

    def walk(self) -> Iterator[TreeNode]:
        """Yield every node, parents before children, roots left out. The tree must not change meanwhile."""
        for root in self._roots.values():
            stack = list(root.children.values())
            while stack:
                node = stack.pop()
                yield node
                stack.extend(node.children.values())

    def descend(self, ids: tuple[int, ...], namespace: str | None, max_levels: int | None = None) -> Descent:
        """Follow ``ids`` from the root through at most ``max_levels`` nodes; changes nothing."""
        node = self._roots.get(namespace) or self._new_root(namespace)
        path = [node]
        position = shared = 0
        while shared == len(node.key) and position < len(ids) and (max_levels is None or len(path) <= max_levels):
            child = node.children.get(ids[position])
            if child is None:
                break
            node = child
            path.append(node)
            shared = common_prefix_len(node.key, ids[position : position + len(node.key)])
            position += shared
        return Descent(path, position, shared)

    def end_of(self, descent: Descent) -> TreeNode:
        """The node that ends where the descent does; splits the last one where it goes on."""
        last = descent.path[-1]
        return last if descent.shared_in_last == len(last.key) else self._split(last, descent.shared_in_last)

    def add_leaf(self, parent: TreeNode, key: tuple[int, ...], slots: list[int]) -> TreeNode:
        """Hang a new node below ``parent``, of whose children none starts with the same token."""
        leaf = TreeNode(next(self._node_ids), parent.namespace, key, slots, parent)
        parent.children[key[0]] = leaf
        if parent.parent is None:
            self._roots[parent.namespace] = parent
        self._num_nodes += 1
        return leaf

    def remove_leaf(self, leaf: TreeNode) -> TreeNode:
        """Cut a leaf off and return its parent; a root goes with its last child."""
        parent = leaf.parent
        assert parent is not None  # roots are never removed by themselves
        del parent.children[leaf.key[0]]
        leaf.parent = None
        self._num_nodes -= 1
        if parent.parent is None and not parent.children:
            del self._roots[parent.namespace]
        return parent

    def _new_root(self, namespace: str | None) -> TreeNode:
        """A root outside the tree: it joins ``_roots`` with its first child, so asking about a namespace costs nothing."""
        return TreeNode(next(self._node_ids), namespace)

    def _split(self, node: TreeNode, at: int) -> TreeNode:
        """Put a new node above ``node`` that takes its first ``at`` tokens, and return it.

        Both parts carry every lock: a handle on ``node`` or below protects the whole path. What is expected stays with
        the end of the ids, which is the lower part's; being its parent, the upper part outlives it anyway.
        """
        parent = node.parent
        assert parent is not None  # only an edge with tokens is ever split
        upper = TreeNode(
            id=next(self._node_ids),
            namespace=node.namespace,
            key=node.key[:at],
            slots=node.slots[:at],
            parent=parent,
            children={node.key[at]: node},
            lock_ref=node.lock_ref,
            last_access=node.last_access,
        )
        parent.children[upper.key[0]] = upper
        node.parent = upper
        node.key = node.key[at:]
        del node.slots[:at]
        self._num_nodes += 1
        return upper

    def join(self, node: TreeNode) -> TreeNode:
        """Take back a split: ``node`` gets the edge of its parent, whose only child it is. Returns the parent, cut off."""
        upper = node.parent
        assert upper is not None
        assert upper.parent is not None  # a root has no edge to give
        upper.parent.children[upper.key[0]] = node
        node.key, node.slots, node.parent = upper.key + node.key, upper.slots + node.slots, upper.parent
        upper.parent, upper.children = None, {}
        self._num_nodes -= 1
        return upper

    def check(self, now: int) -> list[TreeNode]:
        """Check every node by itself and against its children, and count them.

        Args:
            now: the last stamp that was given.

        Returns:
            All nodes, roots left out.

        Raises:
            AssertionError: names the node, what it holds and what was expected.
        """
        for namespace, root in self._roots.items():
            if root.parent is not None or root.key or not root.children or root.namespace != namespace:
                raise AssertionError(f"root of namespace {namespace!r}: {root} is no root, is empty or is another's")
            if root.last_access > now:
                raise AssertionError(f"{root}: stamped {root.last_access}, in the future of {now}")
            check_node(root)
        nodes: dict[int, TreeNode] = {}
        for node in self.walk():  # a parent is checked before its children are reached, so this ends whatever is wrong
            if node.id in nodes:
                raise AssertionError(f"{node}: another node has its id")
            nodes[node.id] = node
            check_node(node)
        if self._num_nodes != len(nodes):
            raise AssertionError(f"num_nodes is {self._num_nodes}, the tree holds {len(nodes)}")
        return list(nodes.values())
