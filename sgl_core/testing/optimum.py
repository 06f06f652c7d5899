"""What any prefix cache could have reused, computed afterwards from a log: the yardsticks for the engine's hit rate.

Called by benchmarks and tests with the token ids of real requests. Three figures:

- ``optimal_prefill_tokens``: prompt tokens that must be computed even if nothing is ever dropped.
- ``belady_hit_tokens``: the most that a pool of a given size can reuse when requests are served one by one in one order.
- ``lru_hit_tokens``: what the same pool reuses when it drops the least recently used tokens.

The last two hold for their order only. A scheduler that reorders the queue may do better, up to the first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sgl_core.errors import InvalidArgumentError

__all__ = [
    "LoggedRequest",
    "OfflineTrie",
    "belady_hit_tokens",
    "distinct_tokens",
    "lru_hit_tokens",
    "optimal_prefill_tokens",
    "unshared_tokens",
]

_TOKEN_BITS = 32


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request that was served.

    Args:
        prompt: its token ids, at least one.
        output: the generated ids. The last one was sampled but never run, so it has no KV to reuse.
        ready: number of the event that made it ready to be served; events are counted, not timed.
        finished: number of the event that ended it, above ``ready``.
    """

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    ready: int
    finished: int

    def __post_init__(self) -> None:
        """Check what the figures rest on.

        Raises:
            InvalidArgumentError: the prompt is empty, or the request ended before it was ready.
        """
        if not self.prompt:
            raise InvalidArgumentError("prompt", "no tokens", "at least one token")
        if self.finished <= self.ready:
            raise InvalidArgumentError("finished", self.finished, f"an event after ready={self.ready}")

    @property
    def computed(self) -> tuple[int, ...]:
        """Every token that has KV once it is finished."""
        return self.prompt + self.output[:-1]


class OfflineTrie:
    """All prefixes of the sequences put in, a node a token, numbered from 1 in order of creation; 0 is the root.

    One flat dictionary from (node, token) to node: about 150 bytes for each distinct token and a microsecond for each token
    looked up, so a log of a million tokens takes about a second.
    """

    def __init__(self) -> None:
        """Start with the root."""
        self._child: dict[int, int] = {}

    def __len__(self) -> int:
        """Nodes, the root not counted."""
        return len(self._child)

    def prefix_len(self, ids: Sequence[int]) -> int:
        """Leading tokens of ``ids`` that are in the trie."""
        child, node = self._child, 0
        for depth, token in enumerate(ids):
            found = child.get(node << _TOKEN_BITS | token)
            if found is None:
                return depth
            node = found
        return len(ids)

    def insert(self, ids: Sequence[int]) -> list[int]:
        """Put ``ids`` in and return its nodes, first token first.

        Args:
            ids: each in [0, 2**32).
        """
        child, node = self._child, 0
        path = []
        for token in ids:
            node = child.setdefault(node << _TOKEN_BITS | token, len(child) + 1)
            path.append(node)
        return path


def unshared_tokens(prompts: Iterable[Sequence[int]]) -> int:
    """Tokens of all ``prompts`` together, every shared prefix once: what a cache that drops nothing has to compute.

    Exactly so if no prompt is the beginning of another one; of such a prompt an engine computes the last token again.
    """
    trie = OfflineTrie()
    for prompt in prompts:
        trie.insert(prompt)
    return len(trie)


def distinct_tokens(log: Sequence[LoggedRequest]) -> int:
    """Slots that hold all KV of ``log`` at once, every shared prefix once."""
    return unshared_tokens(request.computed for request in log)


def optimal_prefill_tokens(log: Sequence[LoggedRequest]) -> int:
    """Prompt tokens that have to be computed when everything that was computed once is kept.

    The sum over requests, in the order in which they became ready, of the prompt tokens that begin neither an earlier prompt
    nor the KV of a request finished by then; at least one each, as the logits behind a prompt are always computed.
    """
    trie = OfflineTrie()
    finished = sorted(log, key=lambda request: request.finished, reverse=True)
    total = 0
    for request in sorted(log, key=lambda request: request.ready):
        while finished[-1].finished < request.ready:
            trie.insert(finished.pop().computed)
        total += max(1, len(request.prompt) - trie.prefix_len(request.prompt))
        trie.insert(request.prompt)
    return total


def belady_hit_tokens(log: Sequence[LoggedRequest], capacity: int) -> int:
    """The most prompt tokens that ``capacity`` slots can reuse when ``log`` is served one by one in the given order.

    While a request is served all its tokens are held. Between requests the tokens are dropped whose next use is farthest
    away, deepest first (Belady 1966). A use is a residence that saves work: in a prompt, before its last token, which is
    always computed again. Whoever must hold a token without gain makes it free to drop before.

    Args:
        log: in order of service. ``capacity``: slots, one token each.

    Raises:
        InvalidArgumentError: one request alone does not fit.
    """
    paths = _paths(log, capacity)
    next_use: dict[int, float] = {}
    ranks: list[list[float]] = []
    for turn in range(len(log) - 1, -1, -1):
        reusable = len(log[turn].prompt) - 1
        ranks.append([-next_use.get(node, float("inf")) for node in paths[turn]])
        next_use.update((node, turn if depth < reusable else float("inf")) for depth, node in enumerate(paths[turn]))
    ranks.reverse()
    return _hit_tokens(log, paths, capacity, lambda turn, depth: ranks[turn][depth])


def lru_hit_tokens(log: Sequence[LoggedRequest], capacity: int) -> int:
    """As ``belady_hit_tokens``, but the least recently used tokens are dropped, deepest first."""
    return _hit_tokens(log, _paths(log, capacity), capacity, lambda turn, _depth: turn)


def _paths(log: Sequence[LoggedRequest], capacity: int) -> list[list[int]]:
    longest = max((len(request.computed) for request in log), default=0)
    if capacity < longest:
        raise InvalidArgumentError("capacity", capacity, f"at least {longest}, the tokens of the longest request")
    trie = OfflineTrie()
    return [trie.insert(request.computed) for request in log]


def _hit_tokens(
    log: Sequence[LoggedRequest],
    paths: Sequence[Sequence[int]],
    capacity: int,
    rank: Callable[[int, int], float],
) -> int:
    """Serve ``log`` from a pool.

    Args:
        paths: the nodes of every request's tokens.
        rank: of a token from its last residence, request and depth: lowest is dropped first, the deeper of equals.
    """
    hits = 0
    resident: set[int] = set()
    last_turn: dict[int, int] = {}  # of every node's last residence; an entry of the queue from an earlier one is stale
    queue: list[tuple[float, int, int, int]] = []  # (rank, -depth, node, turn)
    for turn, (request, path) in enumerate(zip(log, paths, strict=True)):
        missing = [node for node in path if node not in resident]
        cached = next((depth for depth, node in enumerate(path) if node not in resident), len(path))
        hits += min(cached, len(request.prompt) - 1)
        last_turn.update(dict.fromkeys(path, turn))
        while len(resident) + len(missing) > capacity:
            _, _, node, stamp = heapq.heappop(queue)
            if last_turn[node] == stamp:
                resident.remove(node)
        resident.update(missing)
        for depth, node in enumerate(path):
            heapq.heappush(queue, (rank(turn, depth), -depth, node, turn))
    return hits
