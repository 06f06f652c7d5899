"""The order in which waiting requests are admitted.

Each policy keeps its order up to date at a cost that depends on what changes, never on how many wait. The waiting queue
owns the policies; they own their orders. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from sgl_core.runtime.radix_cache import RadixCache
from sgl_core.runtime.ranking import Ranking
from sgl_core.runtime.request import Request
from sgl_core.runtime.waiting_trie import TrieNode, WaitingTrie

__all__ = ["POLICY_MAKERS", "DepthFirstByWeight", "FirstComeFirstServed", "LongestPrefixMatch", "Policy", "RandomOrder"]


class Policy(Protocol):
    """An order over waiting requests."""

    follows_cache: bool
    """Whether ``prefix_cached`` matters to it."""

    def add(self, request: Request) -> None:
        """A request waits."""

    def remove(self, request: Request, *, admitted: bool) -> None:
        """It does not wait any more."""

    def best(self) -> Request:
        """The one to admit next. There must be one."""

    def prefix_cached(self, ids: Sequence[int], namespace: str | None) -> None:
        """The tree has got these ids."""

    def wants(self, ids: Sequence[int], at_least: int, namespace: str | None) -> bool:
        """Whether a waiting request has ``at_least`` so many leading tokens in common with ``ids``; False where nobody looks."""


class FirstComeFirstServed:
    """By arrival."""

    follows_cache = False

    def __init__(self) -> None:
        """Start empty."""
        self._order: Ranking[Request] = Ranking()

    def add(self, request: Request) -> None:
        """A request waits."""
        self._order.put(request, request.arrival)

    def remove(self, request: Request, *, admitted: bool) -> None:
        """It does not wait any more."""
        del admitted
        self._order.discard(request)

    def best(self) -> Request:
        """The one that came first."""
        first = self._order.first()
        assert first is not None, "asked an empty queue"
        return first

    def prefix_cached(self, ids: Sequence[int], namespace: str | None) -> None:
        """Changes nothing."""

    def wants(self, ids: Sequence[int], at_least: int, namespace: str | None) -> bool:
        """It does not look at prefixes."""
        del ids, at_least, namespace
        return False


class RandomOrder(FirstComeFirstServed):
    """In an order drawn from a seed; for comparisons.

    Args:
        seed: the order depends on it and on the arrivals alone.
    """

    def __init__(self, seed: int) -> None:
        """Start empty."""
        super().__init__()
        self._random = random.Random(seed)  # noqa: S311 - an order, not a secret

    def add(self, request: Request) -> None:
        """A request waits."""
        self._order.put(request, self._random.random())


class LongestPrefixMatch:
    """The request with the longest cached prefix, which is depth-first order over the tree; equals by arrival.

    A *claim* says of a trie node that all requests below have at least so many tokens cached. There is one where the cache
    ends on a path that a waiting request or a fresh tree entry took; claims are raised when the tree grows along a path,
    handed to the parent when a branch is used up, and found out to be too high (after eviction) when they come up. So the
    top claim, once checked, is the longest match of all.

    Args:
        tree: looked at, never changed.
    """

    follows_cache = True

    def __init__(self, tree: RadixCache) -> None:
        """Start empty."""
        self._tree = tree
        self._trie = WaitingTrie()
        self._claims: Ranking[TrieNode] = Ranking()

    def add(self, request: Request) -> None:
        """A request waits."""
        self._trie.add(request)
        self._raise_claim(request, self._matched(request), request.arrival)

    def remove(self, request: Request, *, admitted: bool) -> None:
        """It does not wait any more."""
        del admitted
        for node in self._trie.remove(request):
            rank = self._claims.rank(node)
            self._claims.discard(node)
            if rank is not None and node.parent is not None:
                self._claim(node.parent, min(-rank[0], node.parent.end), rank[1])

    def best(self) -> Request:
        """The longest match."""
        while True:
            node = self._claims.first()
            assert node is not None, "asked an empty queue"
            claim, arrival = self._claims.rank(node)
            request = node.first()
            matched = self._matched(request)
            if matched >= -claim:
                return request
            self._claims.discard(node)
            self._raise_claim(request, matched, arrival)

    def prefix_cached(self, ids: Sequence[int], namespace: str | None) -> None:
        """Raise the claim of whoever shares the most with ``ids``."""
        found = self._trie.descend(ids, namespace)
        if found is not None and found[1] > 0:
            node, shared = found
            self._claim(node, shared, node.first().arrival)

    def wants(self, ids: Sequence[int], at_least: int, namespace: str | None) -> bool:
        """Whether a waiting request has ``at_least`` so many leading tokens in common with ``ids``."""
        return self._trie.shares(ids, at_least, namespace)

    def _matched(self, request: Request) -> int:
        return self._tree.peek_prefix_len(request.ids, namespace=request.namespace) if request.use_tree else 0

    def _raise_claim(self, request: Request, matched: int, arrival: int) -> None:
        self._claim(self._trie.covering(request, matched), matched, arrival)

    def _claim(self, node: TrieNode, length: int, arrival: int) -> None:
        rank = self._claims.rank(node)
        if rank is None or -rank[0] < length:
            self._claims.put(node, (-length, arrival))


class DepthFirstByWeight:
    """Depth-first over the waiting requests' common prefixes, the branch where most wait before its siblings."""

    follows_cache = False

    def __init__(self) -> None:
        """Start empty."""
        self._trie = WaitingTrie(by_weight=True)
        self._last: tuple[tuple[int, ...], str | None] = ((), None)

    def add(self, request: Request) -> None:
        """A request waits."""
        self._trie.add(request)

    def remove(self, request: Request, *, admitted: bool) -> None:
        """It does not wait any more; the walk goes on from where one was admitted."""
        self._trie.remove(request)
        if admitted:
            self._last = (tuple(request.ids), request.namespace)

    def best(self) -> Request:
        """The next of the walk."""
        return self._trie.heaviest(*self._last)

    def prefix_cached(self, ids: Sequence[int], namespace: str | None) -> None:
        """Changes nothing: the walk follows the requests, not the cache."""

    def wants(self, ids: Sequence[int], at_least: int, namespace: str | None) -> bool:
        """Whether a waiting request has ``at_least`` so many leading tokens in common with ``ids``."""
        return self._trie.shares(ids, at_least, namespace)


POLICY_MAKERS: dict[str, Callable[[RadixCache, int], Policy]] = {
    "lpm": lambda tree, _: LongestPrefixMatch(tree),
    "dfs_weight": lambda _tree, _seed: DepthFirstByWeight(),
    "fcfs": lambda _tree, _seed: FirstComeFirstServed(),
    "priority": lambda _tree, _seed: FirstComeFirstServed(),
    "random": lambda _, seed: RandomOrder(seed),
}
"""By name: a policy over the tree and a seed."""
