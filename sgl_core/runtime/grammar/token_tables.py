"""What the search for closings looks up about a vocabulary's tokens: made once per vocabulary. No torch."""

from __future__ import annotations

import string
from collections.abc import Iterator
from threading import Lock
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from sgl_core.runtime.grammar.vocabulary import Vocabulary

__all__ = ["TokenTables"]

_CLOSERS = b'"}]'
_CHUNK = 4_096


class TokenTables:
    """Immutable once made; thread-safe.

    Attributes:
        spellings: bytes of all tokens that spell any, ascending, each once.
        lengths: bytes of each id; 0 for control tokens.
        eos_words: the ids that end the text as a mask of 64-bit words, as long as any mask of this vocabulary.
        string_closers: ids that end a JSON string and perhaps what it stands in (``"``, ``"}``, ``"]}``), longest first.
        closers: ids that end objects and arrays (``}``, ``]}``), longest first.
        printable: ids of single ASCII characters, by kind: signs, digits, small letters, capitals, white space.
        empty_string: the id of ``""``; None if there is none.
    """

    _made: ClassVar[WeakKeyDictionary[Vocabulary, TokenTables]] = WeakKeyDictionary()
    _lock: ClassVar = Lock()

    def __init__(self, vocabulary: Vocabulary) -> None:
        spelled = [vocabulary.token_bytes(token) for token in range(vocabulary.size)]
        self.spellings = sorted(set(spelled) - {b""})
        self.lengths = [len(spelling) for spelling in spelled]
        self.eos_words = np.zeros((vocabulary.mask_bytes + 7) // 8, np.uint64)
        for token in vocabulary.eos_ids:
            self.eos_words[token >> 6] |= np.uint64(1 << (token & 63))
        closing = [token for token, spelling in enumerate(spelled) if spelling and not spelling.strip(_CLOSERS)]
        closing.sort(key=lambda token: (-len(spelled[token]), token))
        self.string_closers = tuple(t for t in closing if spelled[t][:1] == b'"' and b'"' not in spelled[t][1:])
        self.closers = tuple(t for t in closing if b'"' not in spelled[t])
        self.empty_string = next((token for token in closing if spelled[token] == b'""'), None)
        single = {spelling: token for token, spelling in enumerate(spelled) if len(spelling) == 1}
        self.printable = tuple(
            tuple(single[byte] for byte in (bytes([char]) for char in kind.encode()) if byte in single)
            for kind in (string.punctuation, string.digits, string.ascii_lowercase, string.ascii_uppercase, " \n")
        )
        self._by_length = np.array(sorted(range(vocabulary.size), key=lambda token: -len(spelled[token])), np.int64)

    def longest_of(self, flags: NDArray[np.uint8]) -> Iterator[int]:
        """Ids whose flag is set and that spell more than one byte, longest first. ``flags``: one byte an id."""
        for start in range(0, len(self._by_length), _CHUNK):
            ids = self._by_length[start : start + _CHUNK]
            for token in ids[flags[ids] != 0].tolist():
                if self.lengths[token] < 2:
                    return
                yield token

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> TokenTables:
        """The vocabulary's tables; made on the first call, gone with the vocabulary."""
        with cls._lock:
            tables = cls._made.get(vocabulary)
            if tables is None:
                tables = cls._made[vocabulary] = cls(vocabulary)
            return tables
