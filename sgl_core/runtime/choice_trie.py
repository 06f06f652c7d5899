"""The choices of one scoring as a trie: what they have in common is run once, and the last token of each is not run at all.

A node is a token that some continuation goes on behind; its row of logits scores all tokens that follow it. The prompt's
last token is the row before the first node. Pure data; intake builds it, the scheduler runs its nodes behind the prompt, the
ticket reads the scores back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ChoiceTrie", "build_tries"]


@dataclass(frozen=True, slots=True)
class ChoiceTrie:
    """Some continuations of one prompt.

    Args:
        tokens: of each node, depth first: a node comes after its parent and before its siblings' subtrees end.
        parents: index of each node's parent; -1 is the prompt.
        depths: of each node; 0 follows the prompt.
        children: tokens that each row scores: ``children[0]`` follow the prompt, ``children[j + 1]`` node ``j``.
        continuations: indices of the continuations in the request that the trie was built from.
        places: for each of them, where its tokens' scores stand among all scores in the order of ``children``.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]
    continuations: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]

    def path(self, node: int) -> list[int]:
        """Nodes from the first behind the prompt down to ``node``, itself included."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        path.reverse()
        return path


class _Builder:
    """A trie under construction; continuations come in lexicographic order, so each shares a path with the one before."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._children: list[list[int]] = [[]]
        self._path: list[int] = []  # the last continuation's nodes
        self._before: tuple[int, ...] = ()
        self._cells: list[tuple[int, list[tuple[int, int]]]] = []  # per continuation: index, its (row, place in the row)

    def cost(self, continuation: tuple[int, ...]) -> int:
        """Nodes that adding it would add."""
        return len(continuation) - 1 - min(self._shared(continuation), len(self._path))

    def add(self, index: int, continuation: tuple[int, ...]) -> None:
        """Add the next one in order."""
        del self._path[min(self._shared(continuation), len(continuation) - 1) :]
        for token in continuation[len(self._path) : -1]:
            parent = self._path[-1] if self._path else -1
            self._path.append(len(self.tokens))
            self.tokens.append(token)
            self._parents.append(parent)
            self._depths.append(len(self._path) - 1)
            self._children.append([])
        rows = [0, *(node + 1 for node in self._path)]
        self._cells.append((index, [(row, self._cell(row, token)) for row, token in zip(rows, continuation, strict=True)]))
        self._before = continuation

    def build(self) -> ChoiceTrie:
        """What was added."""
        starts = [0]
        for row in self._children:
            starts.append(starts[-1] + len(row))
        return ChoiceTrie(
            tuple(self.tokens),
            tuple(self._parents),
            tuple(self._depths),
            tuple(map(tuple, self._children)),
            tuple(index for index, _ in self._cells),
            tuple(tuple(starts[row] + place for row, place in cells) for _, cells in self._cells),
        )

    def _shared(self, continuation: tuple[int, ...]) -> int:
        """Leading tokens that it has in common with the one before."""
        pairs = zip(continuation, self._before, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(continuation), len(self._before)))

    def _cell(self, row: int, token: int) -> int:
        """Place of a token among those that a row scores; only the last can be the same, as they come in order."""
        scored = self._children[row]
        if not scored or scored[-1] != token:
            scored.append(token)
        return len(scored) - 1


def build_tries(continuations: Sequence[tuple[int, ...]], max_nodes: int) -> list[ChoiceTrie]:
    """As few tries as possible, each of at most ``max_nodes`` nodes unless one continuation alone has more.

    Args:
        continuations: each at least one token; equal ones, and prefixes of each other, share their nodes.
    """
    tries: list[_Builder] = []
    for index in sorted(range(len(continuations)), key=continuations.__getitem__):
        continuation = continuations[index]
        if not tries or (tries[-1].tokens and len(tries[-1].tokens) + tries[-1].cost(continuation) > max_nodes):
            tries.append(_Builder())
        tries[-1].add(index, continuation)
    return [builder.build() for builder in tries]
