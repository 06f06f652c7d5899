"""Tool calls in the text of a reply, read as it comes. Pure; the adapters feed a reader per reply.

A reply that was made to be a call begins inside one; a free reply may hold calls between ``<tool_call>`` marks, which trained
models write by themselves. Nothing a model writes raises here: what is no call is an ``InvalidCall`` that says why.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sgl_core.chat.call_scan import CallScan

__all__ = ["CallPiece", "InvalidCall", "ParsedCall", "ParsedReply", "ReplyPiece", "ReplyReader", "read_reply"]

_OPENER: Final = "<tool_call>"
_CLOSER: Final = "</tool_call>"


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call. The first has the name and the id, and none of the arguments; those that follow have neither.

    Args:
        index: which call of the reply.
        name: of the tool.
        id: fresh for each call.
        arguments: JSON text; the pieces of one call concatenate to a JSON object.
    """

    index: int
    name: str | None
    id: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class InvalidCall:
    """What looks like a call and is none.

    Args:
        id: that of the pieces already handed out, or a fresh one.
        name: of the tool, if it could be read.
        arguments: the whole of it as the model wrote it, from its mark on, so that no lenient reader of JSON takes a call that
            was cut off for a whole one.
        error: what is wrong, in words that hold none of its text.
    """

    id: str
    name: str | None
    arguments: str
    error: str


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call.

    Args:
        id: fresh for each call.
        name: of the tool, as the model wrote it; nobody has checked that there is such a tool.
        arguments: by name.
    """

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReplyPiece:
    """What became known with a piece of text.

    Args:
        text: of the answer, outside of calls.
        calls: pieces of calls, in order.
        invalid: what turned out to be no call.
    """

    text: str = ""
    calls: tuple[CallPiece, ...] = ()
    invalid: tuple[InvalidCall, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A whole reply, see ``read_reply``."""

    text: str
    calls: tuple[ParsedCall, ...]
    invalid: tuple[InvalidCall, ...]


@dataclass(slots=True)
class _Found:
    """What one call of ``feed`` has found so far."""

    text: list[str] = field(default_factory=list)
    calls: list[CallPiece] = field(default_factory=list)
    invalid: list[InvalidCall] = field(default_factory=list)

    def piece(self) -> ReplyPiece:
        return ReplyPiece("".join(self.text), tuple(self.calls), tuple(self.invalid))


class ReplyReader:
    """Reads one reply. One owner.

    However the text is cut into pieces, what comes out adds up to the same. White space around a call is not text; texts
    before and behind one are told apart by a newline.

    Args:
        is_call: the text begins inside a call, as it was made to. Its arguments are handed out as they come, since a grammar
            has them end; a call in a free reply is held until it is whole, for a piece cannot be taken back.
    """

    def __init__(self, is_call: bool) -> None:
        self._streams = is_call
        self._place: Literal["text", "behind", "call"] = "call" if is_call else "text"
        self._held = ""
        self._call = _Call(0, streams=is_call)
        self._count = 0
        self._has_text = False

    def feed(self, text: str) -> ReplyPiece:
        """What is known with ``text`` behind all the text before."""
        found = _Found()
        self._held += text
        while self._held and self._step(found):
            pass
        return found.piece()

    def finish(self) -> ReplyPiece:
        """What is left when no more text comes."""
        found = _Found()
        if self._place == "call":
            self._end_call(found)
        elif self._held:  # the beginning of a mark, or of nothing
            if self._place == "behind" and self._has_text:
                found.text.append("\n")
            self._emit(self._held, found)
        self._held = ""
        return found.piece()

    def _step(self, found: _Found) -> bool:
        """Read on; False where the rest has to wait for more text."""
        if self._place == "call":
            return self._read_call(found)
        if self._place == "behind":
            return self._read_space()
        return self._read_text(found)

    def _read_space(self) -> bool:
        self._held = self._held.lstrip()
        if not self._held or (len(self._held) < len(_OPENER) and _OPENER.startswith(self._held)):
            return False
        self._place = "text"
        if self._has_text and not self._held.startswith(_OPENER):
            self._held = "\n" + self._held
        return True

    def _read_text(self, found: _Found) -> bool:
        at = self._held.find(_OPENER)
        if at >= 0:
            self._emit(self._held[:at].rstrip(), found)
            self._held = self._held[at + len(_OPENER) :]
            self._call = _Call(self._count, streams=self._streams)
            self._place = "call"
            return True
        end = len(self._held) - _overlap(self._held, _OPENER)
        end = len(self._held[:end].rstrip())
        self._emit(self._held[:end], found)
        self._held = self._held[end:]
        return False

    def _emit(self, text: str, found: _Found) -> None:
        self._has_text = self._has_text or bool(text)
        found.text.append(text)

    def _read_call(self, found: _Found) -> bool:
        rest = self._call.read(self._held, found)
        if rest is None:
            self._held = ""
            return False
        self._held = rest
        self._end_call(found)
        self._place = "behind"
        return True

    def _end_call(self, found: _Found) -> None:
        self._call.end(found)
        self._count += self._call.is_begun


class _Call:
    """One call: what stands between two marks.

    Args:
        index: which call of the reply it will be.
        streams: hand out its arguments as they come.
    """

    def __init__(self, index: int, *, streams: bool) -> None:
        self._index = index
        self._streams = streams
        self._id = f"call_{secrets.token_hex(6)}"
        self._text = ""
        self._scan = CallScan()
        self._sent = 0
        self.is_begun = False

    def read(self, text: str, found: _Found) -> str | None:
        """Take what belongs to the call; the text behind its closing mark, or None if that has not come."""
        before = len(self._text)
        self._text += text
        end = self._closing_mark(before)
        inside = self._text if end is None else self._text[:end]
        rest = None if end is None else self._text[end + len(_CLOSER) :]
        self._text = inside
        if self._streams:
            self._hand_out(found)
        return rest

    def _closing_mark(self, start: int) -> int | None:
        """Where the closing mark stands: behind the object, or anywhere once this is no object any more."""
        self._scan.read(self._text, start)
        if self._scan.end is None:
            return None
        at = self._text.find(_CLOSER, self._scan.end)
        return None if at < 0 else at

    def _hand_out(self, found: _Found) -> None:
        scan = self._scan
        if scan.name is None:
            return
        if not self.is_begun:
            self.is_begun = True
            found.calls.append(CallPiece(self._index, scan.name, self._id, ""))
        if scan.arguments_start is not None:
            stop = scan.arguments_end or scan.end or len(self._text)
            start = scan.arguments_start + self._sent
            if stop > start:
                found.calls.append(CallPiece(self._index, None, None, self._text[start:stop]))
                self._sent = stop - scan.arguments_start

    def end(self, found: _Found) -> None:
        """The text is whole: hand out what was held, or say what is wrong."""
        read = _parsed(_without_cut_mark(self._text, self._scan.end), self._scan)
        if isinstance(read, str):
            found.invalid.append(InvalidCall(self._id, self._scan.name, f"{_OPENER}{self._text}".rstrip(), read))
            return
        name, arguments = read
        if not self.is_begun:
            self.is_begun = True
            found.calls.append(CallPiece(self._index, name, self._id, ""))
        if not self._sent:
            found.calls.append(CallPiece(self._index, None, None, arguments))


def read_reply(text: str, *, is_call: bool) -> ParsedReply:
    """A whole reply: what a ``ReplyReader`` that is fed ``text`` once has to say.

    Args:
        text: of the reply.
        is_call: the text begins inside a call.
    """
    reader = ReplyReader(is_call)
    pieces = (reader.feed(text), reader.finish())
    invalid = tuple(one for piece in pieces for one in piece.invalid)
    calls = _joined(one for piece in pieces for one in piece.calls)
    spoiled = {one.id for one in invalid}
    return ParsedReply("".join(piece.text for piece in pieces), tuple(one for one in calls if one.id not in spoiled), invalid)


def _joined(pieces: Iterable[CallPiece]) -> Iterator[ParsedCall]:
    """Whole calls from their pieces; one that turned out to be none has whatever was handed out, or no arguments."""
    heads: dict[int, CallPiece] = {}
    texts: dict[int, str] = {}
    for piece in pieces:
        head = heads.setdefault(piece.index, piece)
        texts[head.index] = texts.get(head.index, "") + piece.arguments
    for index, head in heads.items():
        assert head.name is not None, "the first piece of a call has its name"
        assert head.id is not None, "and its id"
        arguments = _loaded(texts[index])
        yield ParsedCall(head.id, head.name, arguments if isinstance(arguments, dict) else {})


def _parsed(text: str, scan: CallScan) -> tuple[str, str] | str:
    """Name and arguments of a call, the latter as JSON text; or what is wrong with it."""
    call = _loaded(text)
    if isinstance(call, _Unreadable):
        return call.reason
    if not isinstance(call, dict):
        return "a call is a JSON object, and this is another JSON value"
    if scan.name is None:
        return "it has no name: a call is an object of 'name' and 'arguments'"
    arguments = call.get("arguments", {})
    if scan.arguments_end is not None:
        return scan.name, text[scan.arguments_start : scan.arguments_end]
    if arguments == {}:
        return scan.name, "{}"
    if isinstance(arguments, str) and isinstance(_loaded(arguments), dict):
        return scan.name, arguments
    return "its 'arguments' are no JSON object"


@dataclass(frozen=True, slots=True)
class _Unreadable:
    reason: str


def _loaded(text: str) -> Any:
    """The JSON value of a text, or why there is none."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            return _Unreadable("it is cut off")
        return _Unreadable(f"it is no valid JSON: {error.msg} at character {error.pos}")
    except RecursionError:
        return _Unreadable("it is nested too deep")
    except ValueError:
        return _Unreadable("it holds a number that JSON does not know or that is too long")


def _refuse_constant(_: str) -> float:
    raise ValueError


def _without_cut_mark(text: str, end: int | None) -> str:
    """The text without a closing mark that was cut off behind the object."""
    if end is not None and _CLOSER.startswith(text[end:].strip()):
        return text[:end]
    return text


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of ``text`` that may be the beginning of ``mark``."""
    return next(size for size in range(min(len(text), len(mark)), -1, -1) if text.endswith(mark[:size]))
