"""Waiting requests by their token ids: which of them share a prefix, without looking at each.

Policies keep one and ask it where to go on. It owns its nodes and nothing else: the queue owns the requests, the radix
tree the KV. Every operation costs a few steps per node of one path, and nodes are where waiting prompts part. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sgl_core.runtime.radix_node import common_prefix_len
from sgl_core.runtime.ranking import Ranking
from sgl_core.runtime.request import Request

__all__ = ["TrieNode", "WaitingTrie"]


@dataclass(slots=True, eq=False, repr=False)
class TrieNode:
    """An edge of ids and the requests that end with it. A split leaves the object at the lower end, as in the radix tree."""

    key: tuple[int, ...]
    start: int
    """Tokens before the edge."""
    parent: TrieNode | None = None
    children: dict[int, TrieNode] = field(default_factory=dict)
    """By the first token of their edge, oldest first."""
    heavy: Ranking[TrieNode] = field(default_factory=Ranking)
    """The children by weight, heaviest first; empty unless the trie keeps weights."""
    requests: dict[str, Request] = field(default_factory=dict)
    """Those whose ids end here, oldest first."""
    count: int = 0
    """Requests here and below: its weight."""

    @property
    def end(self) -> int:
        """Tokens from the start to the end of the edge."""
        return self.start + len(self.key)

    def first(self) -> Request:
        """The oldest request of the oldest branch, those that end here before those below. There must be one."""
        node = self
        while not node.requests:
            node = next(iter(node.children.values()))
        return next(iter(node.requests.values()))


class WaitingTrie:
    """The waiting requests of one policy: a trie a namespace, and one place for all that share nothing.

    Args:
        by_weight: keep the order that ``heaviest`` needs.
    """

    def __init__(self, *, by_weight: bool = False) -> None:
        """Start empty."""
        self._roots: dict[tuple[str | None, bool], TrieNode] = {}
        self._ends: dict[str, TrieNode] = {}
        self._by_weight = by_weight
        self._heavy_roots: Ranking[TrieNode] = Ranking()

    def __len__(self) -> int:
        """Requests in it."""
        return len(self._ends)

    def add(self, request: Request) -> None:
        """File a request under its ids as they are now."""
        ids = tuple(request.ids) if request.use_tree else ()
        node = self._roots.get((request.namespace, request.use_tree))
        if node is None:
            node = self._roots[request.namespace, request.use_tree] = TrieNode((), 0)
        while node.end < len(ids):
            node = self._child_towards(node, ids)
        node.requests[request.id] = request
        self._ends[request.id] = node
        for part in _path_up(node):
            part.count += 1
            self._weigh(part)

    def remove(self, request: Request) -> list[TrieNode]:
        """Take a request out; returns the nodes that went with it, lowest first. They keep their ``parent``."""
        node = self._ends.pop(request.id)
        del node.requests[request.id]
        gone = []
        for part in _path_up(node):
            part.count -= 1
            if part.count == 0:
                gone.append(part)
                if part.parent is not None:
                    del part.parent.children[part.key[0]]
                else:
                    del self._roots[request.namespace, request.use_tree]
            self._weigh(part)
        return gone

    def descend(self, ids: Sequence[int], namespace: str | None) -> tuple[TrieNode, int] | None:
        """Follow ``ids`` as far as any waiting request goes.

        Returns:
            The first node that ends at the last shared token or behind it, and the number of shared tokens; None if nobody
            waits in that namespace.
        """
        node = self._roots.get((namespace, True))
        if node is None:
            return None
        key = tuple(ids)
        shared = 0
        while shared == node.end and shared < len(key):
            child = node.children.get(key[shared])
            if child is None:
                break
            node = child
            shared += common_prefix_len(child.key, key[child.start : child.end])
        return node, shared

    def shares(self, ids: Sequence[int], at_least: int, namespace: str | None) -> bool:
        """Whether a request has ``at_least`` so many leading tokens in common with ``ids``."""
        found = self.descend(ids, namespace)
        return found is not None and found[1] >= at_least

    def covering(self, request: Request, length: int) -> TrieNode:
        """The first node on a filed request's path that ends at ``length`` or behind it."""
        node = self._ends[request.id]
        while node.parent is not None and node.parent.end >= length:
            node = node.parent
        return node

    def heaviest(self, after: Sequence[int], namespace: str | None) -> Request:
        """The next request of a depth-first walk that takes the branch first where most wait. There must be one.

        Args:
            after: the walk goes on below the last of these ids that anybody shares, or with the heaviest namespace.
            namespace: of ``after``.
        """
        found = self.descend(after, namespace)
        node = found[0] if found is not None else self._heavy_roots.first()
        while node is not None and not node.requests:
            node = node.heavy.first()
        assert node is not None, "a node without requests has a child with some"
        return next(iter(node.requests.values()))

    # ---- private -----------------------------------------------------------------------------------------------------
    def _child_towards(self, node: TrieNode, ids: tuple[int, ...]) -> TrieNode:
        """The next node on the way to ``ids``, made by adding or splitting where there is none."""
        child = node.children.get(ids[node.end])
        if child is None:
            child = node.children[ids[node.end]] = TrieNode(ids[node.end :], node.end, node)
            return child
        shared = common_prefix_len(child.key, ids[child.start : child.end])
        return child if shared == len(child.key) else self._split(child, shared)

    def _split(self, node: TrieNode, at: int) -> TrieNode:
        """Put a node above ``node`` that takes its first ``at`` ids, in the same place among its siblings; returns it."""
        parent = node.parent
        assert parent is not None
        upper = TrieNode(node.key[:at], node.start, parent, {node.key[at]: node}, count=node.count)
        parent.children[node.key[0]] = upper  # the same first token, so the dict keeps the place
        parent.heavy.discard(node)
        node.key, node.start, node.parent = node.key[at:], node.start + at, upper
        self._weigh(node)
        self._weigh(upper)
        return upper

    def _weigh(self, node: TrieNode) -> None:
        if not self._by_weight:
            return
        order = self._heavy_roots if node.parent is None else node.parent.heavy
        if node.count:
            order.put(node, -node.count)
        else:
            order.discard(node)


def _path_up(node: TrieNode) -> list[TrieNode]:
    path = [node]
    while node.parent is not None:
        node = node.parent
        path.append(node)
    return path
