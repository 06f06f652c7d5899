"""A pattern that ends a generation, matched while the text streams.

``GrammarCompiler`` compiles it, ``Intake`` takes one matcher per generation, and ``StreamDecoder`` feeds that. The automata are
llguidance's over bytes, so a caller's pattern never reaches a backtracking engine.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer, regex_to_lark

from sgl_core.errors import GrammarError
from sgl_core.runtime.grammar.caps import check_regex
from sgl_core.runtime.grammar.compiled import mask_of, open_matcher

__all__ = ["StopRegex", "StopRegexMatcher"]

_ARGUMENT = "stop_regex"
_TOO_COMPLEX = "it is too complex to follow through this text"
_CURE = "Use a simpler pattern."
_MAX_MATCH_CHARS = 1024
_BYTES = LLTokenizer("byte")
"""A vocabulary of the 256 bytes and a few control tokens."""
_END = _BYTES.eos_token


class StopRegex:
    r"""A compiled pattern. Immutable, so thread-safe.

    Args:
        pattern: in the syntax of Rust's ``regex`` crate; ``\d`` is ASCII.

    Raises:
        GrammarError: it is malformed, too large, impossible, or matches the empty text.
    """

    def __init__(self, pattern: str) -> None:
        check_regex(_ARGUMENT, pattern)
        pattern = regex_to_lark(pattern, use_ascii="d")
        self._anchored = _grammar(pattern)
        self._anywhere = _grammar(f"(?s:.*)(?:{pattern})")
        matcher = self.open_anchored()  # alone first: inside the group an unbalanced pattern could be a valid one
        if matcher.is_accepting():
            raise GrammarError(
                _ARGUMENT, "it matches the empty text, which is everywhere", "Let it match one character at least."
            )
        firsts = np.unpackbits(mask_of(matcher, _BYTES.vocab_size), bitorder="little")[:256]
        self.first_bytes = frozenset(int(byte) for byte in np.flatnonzero(firsts))
        """Bytes that a match can begin with."""
        self.open_anywhere()

    def open_anchored(self) -> LLMatcher:
        """An automaton of the pattern alone."""
        return open_matcher(_ARGUMENT, _BYTES, self._anchored)

    def open_anywhere(self) -> LLMatcher:
        """An automaton that accepts whenever a match ends."""
        return open_matcher(_ARGUMENT, _BYTES, self._anywhere)

    def matcher(self) -> StopRegexMatcher:
        """The matcher of one generation."""
        return StopRegexMatcher(self)


def _grammar(pattern: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": f"start: /{pattern}/"}]})


class StopRegexMatcher:
    """Looks for the match whose end comes first; among those that end there, the one that starts first. One owner.

    One automaton reads everything and tells that a match ends. A second one tries places where a match may have begun. It is
    asked about the earliest place only, until that is given up for the next, so over a whole text each character costs at most
    two readings of the 1,024 before it (0.1 us a byte), and hardly anything where nothing looks like a match.

    Copies of an automaton share its states, and all fail when these are used up; so each generation has automata of its own.
    """

    def __init__(self, compiled: StopRegex) -> None:
        self.stop = ""
        """The text that matched; empty before."""
        self._compiled = compiled
        self._anywhere = compiled.open_anywhere()
        self._anchored = compiled.open_anchored()
        self._window: deque[bytes] = deque(maxlen=_MAX_MATCH_CHARS)  # the last characters, UTF-8
        self._tail: deque[bytes] = deque(maxlen=_MAX_MATCH_CHARS)  # those of them that may belong to a match

    @property
    def matched(self) -> int:
        """Characters at the end of the text so far that may belong to a match."""
        return len(self._tail)

    def feed(self, char: str) -> bool:
        """Take one character; True when a match ends with it.

        Raises:
            GrammarError: the automaton met a limit, and a new one met it too.
        """
        data = char.encode()
        self._window.append(data)
        self._tail.append(data)
        if self._ends_with(data) and self._is_match():
            return True
        while self._tail and not self._begins(self._tail, complete=False):
            self._tail.popleft()
        return False

    def _ends_with(self, data: bytes) -> bool:
        """Whether some match, of any length, ends with the character ``data``."""
        if self._anywhere.try_consume_tokens(list(data)) != len(data):
            self._anywhere = self._compiled.open_anywhere()
            window = list(b"".join(self._window))
            if self._anywhere.try_consume_tokens(window) != len(window):
                raise GrammarError(_ARGUMENT, _TOO_COMPLEX, _CURE)
        return self._anywhere.is_accepting()

    def _is_match(self) -> bool:
        """Whether an end of the tail is a match, and not a longer text that has left it; notes the longest."""
        tail = list(self._tail)
        start = next((start for start in range(len(tail)) if self._begins(tail[start:], complete=True)), None)
        if start is None:
            return False
        self.stop = b"".join(tail[start:]).decode()
        return True

    def _begins(self, chars: Sequence[bytes], *, complete: bool) -> bool:
        """Whether a match begins with ``chars``, or is ``chars``."""
        return chars[0][0] in self._compiled.first_bytes and self._reads(b"".join(chars), complete=complete)

    def _reads(self, text: bytes, *, complete: bool) -> bool:
        """Whether a match begins with ``text``, or is ``text``."""
        wanted = [*text, _END] if complete else list(text)
        if self._anchored.validate_tokens(wanted) == len(wanted):
            return True
        # An automaton that has used up its states does not say so here: it refuses everything.
        probe = [min(self._compiled.first_bytes)]
        if self._anchored.validate_tokens(probe) == 1:
            return False
        self._anchored = self._compiled.open_anchored()
        read = self._anchored.validate_tokens(wanted)
        if read != len(wanted) and self._anchored.validate_tokens(probe) != 1:
            raise GrammarError(_ARGUMENT, _TOO_COMPLEX, _CURE)
        return read == len(wanted)
