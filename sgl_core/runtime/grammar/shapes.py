"""Sets of short texts, as trees, and the text among them that a vocabulary spells in the fewest tokens. No torch.

``instance`` describes the shortest outputs of a schema or a regular expression as a ``Shape``: wherever several will do (members
of an enum, letters of a class) it names them all, because which is the shortest depends on the tokens. ``fewest_tokens`` settles
it by a breadth-first search over the shape's automaton whose edges are whole tokens. Shapes are values; nothing here is kept.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sgl_core.runtime.grammar.token_tables import TokenTables

__all__ = [
    "EMPTY",
    "AnyOf",
    "Chain",
    "Chars",
    "Literal",
    "Shape",
    "TooLargeError",
    "any_of",
    "fewest_tokens",
    "narrowed",
    "representative",
    "sequence",
]

_MAX_NODES = 4_096
_MAX_WEIGHT = 32_768
_MAX_STEPS = 600_000
_NICE = b"a0A .-_"


@dataclass(frozen=True, slots=True)
class Literal:
    """Exactly these bytes."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Chars:
    """One byte out of a set: bit ``b`` of ``members`` stands for byte ``b``."""

    members: int


@dataclass(frozen=True, slots=True)
class Chain:
    """One after the other. ``weight``: see ``weight_of``."""

    parts: tuple[Shape, ...]
    weight: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of several, at least one. ``weight``: see ``weight_of``."""

    options: tuple[Shape, ...]
    weight: int = field(compare=False)


Shape = Literal | Chars | Chain | AnyOf

EMPTY = Literal(b"")


class TooLargeError(Exception):
    """A description that no shortest output needs; whoever builds one does without."""


def weight_of(shape: Shape) -> int:
    """Bytes and classes in the whole tree, shared parts counted wherever they stand: what walking it costs."""
    match shape:
        case Literal(text):
            return 1 + len(text)
        case Chars():
            return 1
        case _:
            return shape.weight


def sequence(parts: Iterable[Shape]) -> Shape:
    """The parts in order; neighbouring constants become one.

    Raises:
        TooLargeError: the whole weighs more than 32,768.
    """
    pieces = list(parts)
    weight = _weighed(pieces)
    flat = itertools.chain.from_iterable(piece.parts if isinstance(piece, Chain) else (piece,) for piece in pieces)
    merged: list[Shape] = []
    for constant, group in itertools.groupby(flat, key=lambda piece: isinstance(piece, Literal)):
        if not constant:
            merged += group
        elif text := b"".join(piece.text for piece in group if isinstance(piece, Literal)):
            merged.append(Literal(text))
    if not merged:
        return EMPTY
    return merged[0] if len(merged) == 1 else Chain(tuple(merged), weight)


def any_of(options: Iterable[Shape]) -> Shape | None:
    """One of the options, duplicates dropped; None if there are none.

    Raises:
        TooLargeError: as ``sequence``.
    """
    given = list(options)
    weight = _weighed(given)
    distinct = tuple(dict.fromkeys(given))
    if not distinct:
        return None
    return distinct[0] if len(distinct) == 1 else AnyOf(distinct, weight)


def _weighed(shapes: list[Shape]) -> int:
    weight = sum(map(weight_of, shapes))
    if weight > _MAX_WEIGHT:
        raise TooLargeError
    return weight


def representative(shape: Shape) -> bytes:
    """A text of the shape with the fewest bytes; a common character wherever a class leaves the choice."""
    match shape:
        case Literal(text):
            return text
        case Chars(members):
            nice = next((byte for byte in _NICE if members >> byte & 1), None)
            return bytes([(members & -members).bit_length() - 1 if nice is None else nice])
        case Chain(parts):
            return b"".join(representative(part) for part in parts)
        case AnyOf(options):
            return min((representative(option) for option in options), key=len)


def narrowed(shape: Shape) -> Shape:
    """The same with one character for every class: cheap to search."""
    match shape:
        case Chars():
            return Literal(representative(shape))
        case Chain(parts):
            return sequence(narrowed(part) for part in parts)
        case AnyOf(options):
            return any_of(narrowed(option) for option in options) or EMPTY
        case _:
            return shape


def fewest_tokens(shape: Shape, tables: TokenTables) -> bytes | None:
    """The text of ``shape`` that takes the fewest tokens, whatever their cuts.

    Returns:
        The text; None where there is no spelling, or where the search would exceed its bounds (4,096 nodes, 600,000 bytes of
        tokens looked at).
    """
    graph = _Graph()
    start = graph.add(shape, graph.end)
    if start is None:
        return None
    walker = _Walker(graph, tables.spellings)
    if graph.accepts[start]:
        return b""
    came_from: dict[int, tuple[int, bytes]] = {}
    level = [start]
    while level:
        following: list[int] = []
        for node in sorted(level):  # the nearest to the end first: ids fall towards it
            for spelling, reached in walker.tokens_from(node):
                for target in reached:
                    if target != start and target not in came_from:
                        came_from[target] = (node, spelling)
                        following.append(target)
                        if graph.accepts[target]:
                            return _path(came_from, start, target)
            if walker.steps > _MAX_STEPS:
                return None
        level = following
    return None


def _path(came_from: dict[int, tuple[int, bytes]], start: int, node: int) -> bytes:
    pieces: list[bytes] = []
    while node != start:
        node, spelling = came_from[node]
        pieces.append(spelling)
    return b"".join(reversed(pieces))


@dataclass(slots=True)
class _Graph:
    """An acyclic automaton without empty edges, built from its end.

    Attributes:
        edges: per node, (set of bytes as bits, target).
        accepts: per node, whether the text may end there.
    """

    edges: list[tuple[tuple[int, int], ...]] = field(default_factory=lambda: [()])
    accepts: list[bool] = field(default_factory=lambda: [True])
    end: int = 0

    def add(self, shape: Shape, follow: int) -> int | None:
        """The node where ``shape`` begins if ``follow`` comes behind it; None beyond the bound on nodes."""
        match shape:
            case Literal(text):
                node = follow
                for byte in reversed(text):
                    node = self._node(((1 << byte, node),), False)
            case Chars(members):
                node = self._node(((members, follow),), False)
            case Chain(parts):
                found: int | None = follow
                for part in reversed(parts):
                    found = None if found is None else self.add(part, found)
                if found is None:
                    return None
                node = found
            case AnyOf(options):
                starts = [self.add(option, follow) for option in options]
                known = [one for one in starts if one is not None]
                if len(known) < len(starts):
                    return None
                node = self._node(tuple(edge for one in known for edge in self.edges[one]), any(self.accepts[i] for i in known))
        return node if len(self.edges) <= _MAX_NODES else None

    def _node(self, edges: tuple[tuple[int, int], ...], accepts: bool) -> int:
        if len(self.edges) <= _MAX_NODES:
            self.edges.append(edges)
            self.accepts.append(accepts)
        return len(self.edges) - 1


class _Walker:
    """Runs all tokens that can leave a node, in the order of their bytes, so that common beginnings are walked once."""

    def __init__(self, graph: _Graph, spellings: Sequence[bytes]) -> None:
        self._graph = graph
        self._spellings = spellings
        self.steps = 0

    def tokens_from(self, node: int) -> Iterator[tuple[bytes, frozenset[int]]]:
        """Each token that fits behind ``node``, with the nodes it leads to; ends early once far over the bound on steps."""
        spellings, edges = self._spellings, self._graph.edges
        reached = [frozenset((node,))]
        previous, index = b"", self._next(b"", reached[0], -1, 0)
        while index < len(spellings) and self.steps <= _MAX_STEPS:
            spelling = spellings[index]
            depth = min(_common(previous, spelling), len(reached) - 1)
            del reached[depth + 1 :]
            for byte in spelling[depth:]:
                self.steps += 1
                targets = frozenset([to for one in reached[-1] for members, to in edges[one] if members >> byte & 1])
                if not targets:
                    break
                reached.append(targets)
            depth = len(reached) - 1
            if depth == len(spelling):
                yield spelling, reached[-1]
                index += 1
            else:
                index = self._next(spelling[:depth], reached[-1], spelling[depth], index + 1)
            previous = spelling

    def _next(self, prefix: bytes, nodes: frozenset[int], failed: int, start: int) -> int:
        """Index of the next spelling that may fit: behind ``prefix`` and then a byte beyond ``failed``, or behind all of those."""
        allowed = 0
        for node in nodes:
            for members, _ in self._graph.edges[node]:
                allowed |= members
        allowed = allowed >> (failed + 1) << (failed + 1)
        if allowed:
            bound = prefix + bytes([(allowed & -allowed).bit_length() - 1])
        else:
            stem = prefix.rstrip(b"\xff")
            if not stem:
                return len(self._spellings)
            bound = stem[:-1] + bytes([stem[-1] + 1])
        return bisect_left(self._spellings, bound, start)


def _common(first: bytes, second: bytes) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
