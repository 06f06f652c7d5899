"""Token ids to text, one token at a time, cut before a stop string or a match of a stop pattern.

The engine makes one ``StreamDecoder`` per generation (``LocalCodec.stream_decoder``) and pushes every sampled token. The
decoder owns the bytes of a character that is not complete yet and the text that may turn out to be the start of a
stop; everything else is handed out at once. Each token is decoded once: the cost of a push does not grow with the
length of the output.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer, decoders

from sgl_core.errors import InvalidArgumentError

__all__ = ["StopMatcher", "StreamDecoder"]

_REPLACEMENT = "\ufffd"
_REPLACEMENT_BYTES = ("<0xEF>", "<0xBF>", "<0xBD>")
"""Its tokens in vocabularies that fall back to bytes."""
_MAX_CHAR_TOKENS = 4
"""No UTF-8 character has more bytes, so text that still ends in U+FFFD after this many tokens is damaged, not incomplete."""
_CONTEXT_TOKENS = 4
"""Prompt tokens a decoder looks back at, to know that the output does not begin a text."""


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level vocabularies use for each byte (GPT-2's table), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_BYTES = _byte_alphabet()


class _TextSource(Protocol):
    """Tokens in, text out as soon as it is certain."""

    def push(self, token: int) -> str:
        """New complete characters."""

    def is_complete(self) -> bool:
        """Whether no character is under way."""

    def flush(self) -> str:
        """What is under way, as U+FFFD."""


class _ByteLevelSource:
    """Byte-level vocabularies: a token is a run of bytes, so the output is one incremental UTF-8 decoding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        spelling = self._tokenizer.id_to_token(token)
        if spelling is None:  # a padding row of the embedding: no text, as in a full decode
            return ""
        try:
            data = bytes([_BYTES[char] for char in spelling])
        except KeyError:  # an added token is spelled in plain text
            data = spelling.encode()
        return self._utf8.decode(data)

    def is_complete(self) -> bool:
        return not self._utf8.getstate()[0]

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowSource:
    """Any other vocabulary: decode a short window and take what lies behind its known part.

    SentencePiece decoders drop the first space of a text. The window keeps the tokens before the new ones as context, and
    starts with the end of the prompt, so that only a space that really begins a text is dropped.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(context)
        self._known_tokens = len(self._window)
        self._known = self._decode(self._window)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def push(self, token: int) -> str:
        if self._tokenizer.id_to_token(token) is None:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        fresh = len(self._window) - self._known_tokens
        if text.endswith(_REPLACEMENT) and fresh < _MAX_CHAR_TOKENS and not self._spells_replacement():
            return ""
        return self._settle(text)

    def _spells_replacement(self) -> bool:
        """Whether U+FFFD is what the last bytes mean, not what they lack: it is a character of its own, and complete."""
        return tuple(map(self._tokenizer.id_to_token, self._window[-3:])) == _REPLACEMENT_BYTES

    def _settle(self, text: str) -> str:
        fresh = self._window[self._known_tokens :]
        # Bytes that do not continue the known text change its decoding; then the fresh tokens speak for themselves.
        new = text[len(self._known) :] if text.startswith(self._known) else self._decode(fresh)
        if new:
            self._window = fresh
            self._known = self._decode(fresh)
        self._known_tokens = len(self._window)
        return new

    def is_complete(self) -> bool:
        return len(self._window) == self._known_tokens

    def flush(self) -> str:
        return "" if self.is_complete() else self._settle(self._decode(self._window))


class StopMatcher(Protocol):
    """Looks for one stop in a text that comes character by character."""

    @property
    def matched(self) -> int:
        """Characters at the end of the text so far that may belong to a match."""

    @property
    def stop(self) -> str:
        """The text that matched, once ``feed`` has said so."""

    def feed(self, char: str) -> bool:
        """Take one character; True when a match ends with it."""


class _StopString:
    """Knuth-Morris-Pratt over one stop string; ``matched`` is how much of it the text so far ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = [0] * len(stop)
        length = 0
        for index in range(1, len(stop)):
            length = self._advance(length, stop[index])
            self._fallback[index] = length

    def _advance(self, length: int, char: str) -> int:
        while length and self.stop[length] != char:
            length = self._fallback[length - 1]
        return length + 1 if self.stop[length] == char else 0

    def feed(self, char: str) -> bool:
        """Take one character; True when the stop string ends with it."""
        self.matched = self._advance(self.matched, char)
        return self.matched == len(self.stop)


class StreamDecoder:
    """The text of one generation. Not thread-safe: one owner pushes.

    The stop (string or pattern) whose **end** comes first wins; among several that end at the same character, the one that
    starts first (the longest). What ``push`` and ``finish`` return concatenates to ``text``. Without stops ``text`` is
    ``codec.decode(ids)`` of everything pushed; control tokens have no text.

    Args:
        tokenizer: read only; may be shared.
        stops: stop strings, none empty.
        stop_regex: the matcher of a stop pattern, for this generation alone.
        prompt_ids: what the tokens continue. It decides only whether a SentencePiece vocabulary keeps the space of its
            first word; empty means that the output begins a text.
        control_ids: tokens without text.
        skip: text that the tokens spell first and that is none of the output: healed text of the prompt.

    Raises:
        InvalidArgumentError: a stop string is empty or no str.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        stop_regex: StopMatcher | None = None,
        prompt_ids: Sequence[int] = (),
        control_ids: frozenset[int] = frozenset(),
        skip: str = "",
    ) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise InvalidArgumentError("stops", stops, "a sequence of non-empty strings")
        self._control_ids = control_ids
        self._left_to_skip = len(skip)
        self._matchers: list[StopMatcher] = [_StopString(stop) for stop in stops]
        if stop_regex is not None:
            self._matchers.append(stop_regex)
        self._source: _TextSource
        if isinstance(tokenizer.decoder, decoders.ByteLevel):
            self._source = _ByteLevelSource(tokenizer)
        else:
            context = [token for token in prompt_ids[-4 * _CONTEXT_TOKENS :] if token not in control_ids]
            self._source = _WindowSource(tokenizer, context[-_CONTEXT_TOKENS:])
        self._emitted: list[str] = []
        self._held = ""
        self._chars = 0  # characters seen, held ones included
        self._boundaries: list[int | None] = []  # per token: characters up to its end; None inside a character
        self._matched_stop: str | None = None
        self._kept_tokens: int | None = None
        self._behind = ""

    @property
    def text(self) -> str:
        """Everything handed out so far; after the end, the output cut before the stop string."""
        return "".join(self._emitted)

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text, or what the stop pattern matched, or None."""
        return self._matched_stop

    @property
    def kept_tokens(self) -> int:
        """How many of the pushed tokens lie wholly before the cut (all of them when nothing was cut)."""
        return len(self._boundaries) if self._kept_tokens is None else self._kept_tokens

    @property
    def text_behind_ids(self) -> str:
        """The rest of ``text`` after the kept tokens; not empty only where a stop string cuts through a token."""
        return self._behind

    def push(self, token: int) -> str:
        """Take one token and return the text that is certain now. After a match tokens are ignored.

        Raises:
            GrammarError: the stop pattern is too complex to follow through this text.
        """
        if self._matched_stop is not None:
            return ""
        text = "" if token in self._control_ids else self._behind_skipped(self._source.push(token))
        self._boundaries.append(self._chars + len(text) if self._source.is_complete() else None)
        return self._take(text)

    def finish(self) -> str:
        """Hand out what was held back: the generation has ended. Incomplete bytes become U+FFFD. Idempotent."""
        if self._matched_stop is not None:
            return ""
        out = self._take(self._behind_skipped(self._source.flush()))
        if self._matched_stop is None:
            self._emitted.append(self._held)
            out, self._held = out + self._held, ""
        return out

    def _behind_skipped(self, text: str) -> str:
        skipped = min(self._left_to_skip, len(text))
        self._left_to_skip -= skipped
        return text[skipped:]

    def _take(self, text: str) -> str:
        """Look for stops in ``text`` and hand out what no stop can still claim."""
        buffer = self._held + text
        before = self._chars - len(self._held)  # characters handed out already
        for index, char in enumerate(text, start=1):
            ended = [matcher.stop for matcher in self._matchers if matcher.feed(char)]
            if ended:
                self._matched_stop = max(ended, key=len)
                cut = len(self._held) + index - len(self._matched_stop)
                self._held = ""
                self._emitted.append(buffer[:cut])
                self._chars = before + cut
                self._keep_whole_tokens(self._chars)
                return buffer[:cut]
        self._chars += len(text)
        hold = max((matcher.matched for matcher in self._matchers), default=0)
        out = buffer[: len(buffer) - hold]
        self._held = buffer[len(buffer) - hold :]
        self._emitted.append(out)
        return out

    def _keep_whole_tokens(self, cut: int) -> None:
        """Keep the tokens that end at a character boundary at or before ``cut``."""
        kept = len(self._boundaries)
        end: int | None = None
        while kept:
            end = self._boundaries[kept - 1]
            if end is not None and end <= cut:
                break
            kept -= 1
        self._kept_tokens = kept
        covered = end if kept and end is not None else 0
        self._behind = self.text[covered:] if covered < cut else ""
