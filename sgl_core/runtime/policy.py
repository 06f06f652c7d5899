"""The order in which waiting requests are tried for admission. Pure functions of the queue and the tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sgl_core.runtime.radix_cache import RadixCache
from sgl_core.runtime.request import Request

__all__ = ["MAX_OVERTAKEN", "Policy", "fcfs", "longest_prefix_match", "make_policy"]

MAX_OVERTAKEN = 256
"""A request that so many later arrivals have overtaken goes first, so none starves under a stream of cache hits."""

Policy = Callable[[Iterable[Request], RadixCache], list[Request]]


def fcfs(waiting: Iterable[Request], _tree: RadixCache) -> list[Request]:
    """First come, first served."""
    return sorted(waiting, key=lambda r: (-r.priority, r.arrival))


def longest_prefix_match(waiting: Iterable[Request], tree: RadixCache) -> list[Request]:
    """Longest cached prefix first, which is depth-first order over the tree; starved requests before all."""

    def key(request: Request) -> tuple[int, bool, int, int]:
        starved = request.overtaken >= MAX_OVERTAKEN
        matched = tree.peek_prefix_len(request.ids, namespace=request.namespace) if request.use_tree and not starved else 0
        return (-request.priority, not starved, -matched, request.arrival)

    return sorted(waiting, key=key)


def make_policy(name: str) -> Policy:
    """The policy of that name; see ``sgl_core.config.POLICIES``."""
    return {"lpm": longest_prefix_match, "fcfs": fcfs}[name]
