"""Tokens that complete an output: a start certificate per grammar, and a new one wherever a sampled token spoils the old. No torch.

``GrammarCompiler`` asks for the start, ``GrammarMatcher`` while it runs. Whatever is returned has been validated on the
automaton, so the searches may be greedy and wrong about what is shortest. They are bounded in masks computed, never in time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from sgl_core.runtime.grammar.json_scan import Scan
from sgl_core.runtime.grammar.token_tables import TokenTables
from sgl_core.runtime.grammar.vocabulary import Vocabulary

__all__ = ["closing", "completes", "shortest_completion"]

_START_MASKS = 2_000
_RUNNING_MASKS = 240
_MAX_START = 8_192
_START_BEAM = 8
_RUNNING_BEAM = 6
_LONGEST = 6
_OF_A_KIND = 6
_NEAR = 4
_SAME = 2
_MAX_HINTS = 32
_SUFFIXES = 24
_RESPELLED = 8
_RESUME = b'",}]'


def completes(matcher: LLMatcher, tokens: Sequence[int], eos: int) -> bool:
    """Whether the output is complete once ``tokens`` are appended. Changes nothing."""
    if matcher.is_stopped():
        return not tokens and not matcher.is_error()
    return matcher.validate_tokens([*tokens, eos]) == len(tokens) + 1


def shortest_completion(prototype: LLMatcher, vocabulary: Vocabulary, candidates: Iterable[bytes]) -> tuple[int, ...] | None:
    """The fewest tokens found that are a whole output of a grammar.

    Args:
        prototype: at its start; left as it is.
        vocabulary: of the model.
        candidates: texts worth trying; each is tried in its fewest tokens and in the tokenizer's own. Where none is an output,
            the search prefers their tokens.

    Returns:
        Validated tokens without end of text; None if none of the candidates is an output and the searches found none within
        their bounds.
    """
    search = _Search(vocabulary, _START_MASKS, _MAX_START)
    best: list[int] | None = None
    hints: dict[int, None] = {}
    for text in candidates:
        best = search.shorter(best, prototype, text)
        hints.update(dict.fromkeys(vocabulary.shortest_spelling(text) or ()))
    if best is not None:  # candidates are as short as can be; a search would only find odder ones
        return tuple(best)
    best = search.greedy(prototype, Scan(), _MAX_START)
    search = _Search(
        vocabulary, _START_MASKS, _MAX_START, tuple(hints)[:_MAX_HINTS]
    )  # a greedy walk in circles has used up the other
    wider = search.beam(prototype, Scan(), _MAX_START if best is None else len(best) - 1, _START_BEAM)
    best = best if wider is None else wider
    return None if best is None else tuple(search.shorter(best, prototype, vocabulary.text_bytes(best)) or best)


def closing(
    matcher: LLMatcher, vocabulary: Vocabulary, scan: Scan, limit: int, spoiled: tuple[int, ...] = ()
) -> tuple[int, ...] | None:
    """Tokens that complete a running output.

    Args:
        matcher: where the output stands; left as it is.
        vocabulary: of the model.
        scan: where the output stands as JSON text.
        limit: tokens at most.
        spoiled: what would have completed the output one token ago; its end often still fits.

    Returns:
        Validated tokens, at most ``limit``; None if none were found.
    """
    if completes(matcher, (), vocabulary.eos_ids[0]):
        return ()
    if limit <= 0:
        return None
    search = _Search(vocabulary, _RUNNING_MASKS, limit + _NEAR)
    found = search.resumed(matcher, spoiled, scan)
    if found is not None:
        if len(found) > limit:
            found = search.shorter(found, matcher, vocabulary.text_bytes(found))
        # Where the end of the spoiled one fits and is only too long, it was short for its place: measured, a search finds
        # a shorter one in 3 of 100 such places and takes half of all the time.
    else:
        found = search.greedy(matcher, scan, limit + _NEAR)
        if found is not None and len(found) > limit:
            found = search.shorter(found, matcher, vocabulary.text_bytes(found))
        if found is None or len(found) > limit:
            found = search.beam(matcher, scan, limit, _RUNNING_BEAM)
    return None if found is None or len(found) > limit else tuple(found)


@dataclass(slots=True)
class _Node:
    """A state of the search: where it stands, how it got there, and what may follow."""

    matcher: LLMatcher
    tokens: list[int]
    scan: Scan
    allowed: NDArray[np.uint64] | None = None
    rank: tuple[float, ...] = ()


class _Search:
    """One search; owns the count of masks that it may still compute.

    Args:
        limit: tokens beyond which no state is followed.
        hints: tokens that are always worth trying.
    """

    def __init__(self, vocabulary: Vocabulary, masks: int, limit: int, hints: tuple[int, ...] = ()) -> None:
        self._vocabulary = vocabulary
        self._tables = TokenTables.of(vocabulary)
        self._eos = vocabulary.eos_ids[0]
        self._ends = frozenset(vocabulary.eos_ids)
        self._masks_left = masks
        self._limit = limit
        self._hints = hints

    def shorter(self, best: list[int] | None, matcher: LLMatcher, text: bytes) -> list[int] | None:
        """The shortest of ``best`` and the spellings of ``text`` that complete the output."""
        for tokens in (self._vocabulary.shortest_spelling(text), self._vocabulary.canonical(text)):
            if tokens is not None and (best is None or len(tokens) < len(best)) and completes(matcher, tokens, self._eos):
                best = tokens
        return best

    def resumed(self, matcher: LLMatcher, spoiled: tuple[int, ...], scan: Scan) -> list[int] | None:
        """The end of the spoiled completion that still completes: cut between its tokens, or else inside them."""
        for start in reversed(range(min(len(spoiled), _SUFFIXES))):
            if completes(matcher, spoiled[start:], self._eos):
                return list(spoiled[start:])
        text = self._vocabulary.text_bytes(spoiled)
        places = [place for place, byte in enumerate(text) if byte in _RESUME][:_RESPELLED]
        for place in reversed(places):
            rest = text[place:]
            for respelled in (rest, b'"' + rest) if scan.in_string else (rest, b"}" + rest, b"]" + rest):
                tokens = self._vocabulary.shortest_spelling(respelled)
                if tokens is not None and completes(matcher, tokens, self._eos):
                    return tokens
        return None

    def greedy(self, matcher: LLMatcher, scan: Scan, limit: int) -> list[int] | None:
        """The best-looking step at a time until the output is complete."""
        node = _Node(matcher.deep_copy(), [], scan)
        while not completes(node.matcher, (), self._eos):
            following = next(iter(self._steps(node, 1)), None)
            if following is None or len(following.tokens) > limit:
                return None
            node = following
        return node.tokens

    def beam(self, matcher: LLMatcher, scan: Scan, limit: int, width: int) -> list[int] | None:
        """As ``greedy`` with the ``width`` best-looking states side by side, no more than two of them that allow the same."""
        level = [_Node(matcher.deep_copy(), [], scan)]
        while level:
            following = [one for node in level for one in self._steps(node, width) if len(one.tokens) <= limit]
            done = [node.tokens for node in following if completes(node.matcher, (), self._eos)]
            if done:
                return min(done, key=len)
            following.sort(key=lambda node: (*node.rank, len(node.tokens)))
            level = list(itertools.islice(_distinct(following), width))
        return None

    def _steps(self, node: _Node, width: int) -> list[_Node]:
        """Where to go on from ``node``, the best first; empty at a dead end and when no mask is left."""
        if self._masks_left <= 0 or node.matcher.is_error():
            return []
        forced = [token for token in node.matcher.compute_ff_tokens() if token not in self._ends]
        if len(node.tokens) + len(forced) > self._limit:  # following them would take long, and lead nowhere
            return []
        if forced:
            self._masks_left -= 1
            following = self._after(node, forced)
            return [] if following is None else [following]
        allowed = self._allowed(node)
        steps = [self._ranked(node, allowed, token) for token in self._choices(node.scan, allowed, width)]
        return sorted((step for step in steps if step is not None), key=lambda step: step.rank)[:width]

    def _choices(self, scan: Scan, allowed: NDArray[np.uint64], width: int) -> Iterator[int]:
        """Tokens to try: closing ones; where there are none (or several states are wanted), likely ones."""
        tables = self._tables
        closer = self._closer(scan, allowed)
        if closer is not None:
            yield closer
            if width == 1:
                return
        yield from (token for token in self._hints if _holds(allowed, token))
        if tables.empty_string is not None and _holds(allowed, tables.empty_string):
            yield tables.empty_string
        flags = np.unpackbits(allowed.view(np.uint8), bitorder="little")
        yield from itertools.islice(tables.longest_of(flags), _LONGEST)
        for kind in tables.printable:
            yield from itertools.islice((token for token in kind if flags[token]), _OF_A_KIND)

    def _closer(self, scan: Scan, allowed: NDArray[np.uint64]) -> int | None:
        closers = self._tables.string_closers if scan.in_string else self._tables.closers
        return next((token for token in closers if _holds(allowed, token)), None)

    def _ranked(self, node: _Node, allowed: NDArray[np.uint64], token: int) -> _Node | None:
        if self._masks_left <= 0:
            return None
        step = self._after(node, [token])
        if step is None:
            return None
        after = self._allowed(step)
        step.rank = (
            not completes(step.matcher, (), self._eos),
            step.scan.depth + step.scan.in_string,
            self._closer(step.scan, after) is None,
            np.array_equal(after, allowed),
            int(np.bitwise_count(after).sum()),
            -self._tables.lengths[token],
        )
        return step

    def _after(self, node: _Node, tokens: list[int]) -> _Node | None:
        matcher = node.matcher.deep_copy()
        if matcher.try_consume_tokens(tokens) != len(tokens) or matcher.is_error():
            return None
        return _Node(matcher, [*node.tokens, *tokens], node.scan.after(self._vocabulary.text_bytes(tokens)))

    def _allowed(self, node: _Node) -> NDArray[np.uint64]:
        """The state's mask without ends of text, as 64-bit words; nothing in a state of error or at the end."""
        if node.allowed is None:
            self._masks_left -= 1
            bits = np.zeros_like(self._tables.eos_words)
            if not node.matcher.is_stopped():
                node.matcher.unsafe_compute_mask_ptr(bits.ctypes.data, self._vocabulary.mask_bytes)
            if node.matcher.is_stopped():
                bits.fill(0)
            node.allowed = bits & ~self._tables.eos_words
        return node.allowed


def _distinct(nodes: Iterable[_Node]) -> Iterator[_Node]:
    """The nodes but the third and later ones of the same mask: a recursion that looks good must not crowd out its way out."""
    seen: Counter[bytes] = Counter()
    for node in nodes:
        key = b"" if node.allowed is None else node.allowed.tobytes()
        seen[key] += 1
        if seen[key] <= _SAME or not key:
            yield node


def _holds(mask: NDArray[np.uint64], token: int) -> bool:
    return bool(int(mask[token >> 6]) >> (token & 63) & 1)
