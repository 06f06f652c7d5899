"""A model's tokens as grammars see them: bytes.

The engine makes one ``Vocabulary`` per model; compiler, closing search and matchers share it. It owns llguidance's copy of the
tokenizer, which costs a quarter of a second and is therefore built when the first grammar comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock

from llguidance import LLTokenizer

from sgl_core.errors import UnsupportedModelError

__all__ = ["Vocabulary", "mask_bytes"]


def mask_bytes(size: int) -> int:
    """Bytes of a mask over ``size`` tokens: one bit a token, in whole 32-bit words."""
    return (size + 31) // 32 * 4


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Everything that is derived from the tokenizer.

    Args:
        tokenizer: llguidance's copy.
        spellings: bytes of each id, ``[size]``; empty for control tokens, ends of text and padding rows.
        ids: bytes to the one id that spells them.
        longest: the first two bytes of a token of at least two bytes, to the length of the longest such token.
    """

    tokenizer: LLTokenizer
    spellings: tuple[bytes, ...]
    ids: dict[bytes, int]
    longest: dict[bytes, int]


class Vocabulary:
    """Tokens, their bytes, and texts spelled in them. Thread-safe; nothing but the lazy tables ever changes.

    Byte-level vocabularies and those of SentencePiece's kind (a space marker, bytes for what has no piece) look the same from
    here. A byte may have no token at all: then there are texts without a spelling.

    Args:
        serialised: the tokenizer as JSON text, control tokens marked special (``LocalCodec.serialised``).
        size: rows of the model's output, which may exceed the tokenizer's tokens.
        eos_ids: the ids that end a text, at least one.
    """

    def __init__(self, serialised: str, size: int, eos_ids: Iterable[int]) -> None:
        self._serialised = serialised
        self._size = size
        self._eos_ids = tuple(sorted(set(eos_ids)))
        self._lock = Lock()
        self._tokens: _Tokens | None = None

    @property
    def size(self) -> int:
        """Rows of the model's output: ids are below it."""
        return self._size

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text, ascending."""
        return self._eos_ids

    @property
    def mask_bytes(self) -> int:
        """Bytes of a mask, see the function of this name."""
        return mask_bytes(self._size)

    @property
    def tokenizer(self) -> LLTokenizer:
        """What llguidance's matchers run on.

        Raises:
            UnsupportedModelError: llguidance cannot read this kind of tokenizer.
        """
        return self._table().tokenizer

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to the text: nothing for control tokens, ends of text and padding rows."""
        return self._table().spellings[token]

    def text_bytes(self, tokens: Iterable[int]) -> bytes:
        """What the tokens spell together."""
        spellings = self._table().spellings
        return b"".join([spellings[token] for token in tokens])

    def canonical(self, text: bytes) -> list[int] | None:
        """The tokens that the tokenizer itself makes of ``text`` inside a longer one; None where they do not spell it.

        They do not where a byte has no token, where a normaliser rewrites the text, and where a vocabulary knows the spelling
        of a control token as a word.
        """
        table = self._table()
        tokens = table.tokenizer.tokenize_bytes(text)
        if any(token >= self._size for token in tokens) or self.text_bytes(tokens) != text:
            return None
        return tokens

    def shortest_spelling(self, text: bytes) -> list[int] | None:
        """The fewest tokens that spell ``text``, the longest first where several do; None if there are none.

        Dynamic programming from the end: ``len(text)`` times the length of the longest token that begins alike.
        """
        table = self._table()
        ids, longest = table.ids, table.longest
        unreachable = len(text) + 1
        counts = [unreachable] * len(text) + [0]
        sizes = [0] * len(text)
        for start in reversed(range(len(text))):
            for size in range(min(longest.get(text[start : start + 2], 1), len(text) - start), 0, -1):
                count = counts[start + size] + 1
                if count < counts[start] and text[start : start + size] in ids:
                    counts[start], sizes[start] = count, size
        if counts[0] >= unreachable:
            return None
        spelled, start = [], 0
        while start < len(text):
            spelled.append(ids[text[start : start + sizes[start]]])
            start += sizes[start]
        return spelled

    def _table(self) -> _Tokens:
        if self._tokens is None:
            with self._lock:
                if self._tokens is None:
                    self._tokens = self._read()
        return self._tokens

    def _read(self) -> _Tokens:
        try:
            tokenizer = LLTokenizer(self._serialised, n_vocab=self._size, eos_token=list(self._eos_ids))
        except ValueError:
            raise UnsupportedModelError(
                "grammars: this model's tokenizer cannot be used for constrained output or healing. "
                "Use a model with a byte-level or SentencePiece tokenizer, or generate without a constraint."
            ) from None
        silent = set(self._eos_ids)
        spellings = tuple(
            b"" if token in silent or tokenizer.is_special_token(token) else tokenizer.decode_bytes([token])
            for token in range(self._size)
        )
        # Where two tokens spell the same, the later: bytes stand before pieces in SentencePiece vocabularies.
        ids = {spelling: token for token, spelling in enumerate(spellings) if spelling}
        longest: dict[bytes, int] = {}
        for spelling in ids:
            longest[spelling[:2]] = max(longest.get(spelling[:2], 1), len(spelling))
        return _Tokens(tokenizer, spellings, ids, longest)
