"""Where a stream stands: token ids that are settled, text that is not yet, and how it came about.

A position is immutable, so a fork shares it and any thread may read one. The stream owns the variable that points to its
current position. Ids are the truth: text is encoded once, between two hard boundaries (control ids, generations, raw
literals), and what was generated is never encoded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TypeVar

from sgl_core.backend import TextCodec
from sgl_core.types import Segment, SegmentKind, TurnState

__all__ = ["Piece", "Position", "TokenRope", "Trail", "messages_of", "pieces_since", "segments_of", "text_of"]


PieceT = TypeVar("PieceT", int, int | str)


class TokenRope:
    """A sequence of token ids that grows by sharing: a parent and ids of its own.

    Args:
        own: ids behind the parent's.
        parent: what comes before.
    """

    __slots__ = ("_parts", "length")

    def __init__(self, own: tuple[int, ...] = (), parent: TokenRope | None = None) -> None:
        """Refer to the parent; nothing is copied."""
        self._parts: tuple[TokenRope | None, tuple[int, ...]] = (
            parent,
            own,
        )  # one attribute, so that flattening replaces both at once
        self.length: int = len(own) + (0 if parent is None else parent.length)

    def extend(self, ids: tuple[int, ...]) -> TokenRope:
        """This, then ``ids``."""
        return TokenRope(ids, self) if ids else self

    def flat(self) -> tuple[int, ...]:
        """All ids. The node keeps them and lets its parent go, so the next call is free and so are its children's."""
        parent, own = self._parts
        if parent is None:
            return own
        pieces = [own]
        while parent is not None:
            parent, part = parent._parts
            pieces.append(part)
        ids = tuple(chain.from_iterable(reversed(pieces)))
        self._parts = (None, ids)
        return ids


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of a stream's text.

    Args:
        kind: where it comes from.
        text: as ``state.text()`` shows it; for TURN the template's own text.
        role: of a TURN; empty for every other piece.
        opens: whether a TURN opens or closes.
    """

    kind: SegmentKind
    text: str
    role: str = ""
    opens: bool = False


class Trail:
    """A list of pieces that grows at its end by sharing everything before it."""

    __slots__ = ("parent", "piece")

    def __init__(self, piece: Piece, parent: Trail | None) -> None:
        """Put ``piece`` behind ``parent``."""
        self.piece = piece
        self.parent = parent


@dataclass(frozen=True, slots=True)
class Position:
    """A point in a stream; every method returns the next one.

    Args:
        ids: settled ids.
        tail: text since the last hard boundary, the template's own included.
        trail: every piece so far.
        turns: turns opened so far.
    """

    ids: TokenRope = field(default_factory=TokenRope)
    tail: str = ""
    trail: Trail | None = None
    turns: TurnState = field(default_factory=TurnState)

    def add_text(self, text: str) -> Position:
        """Program or user text."""
        if not text:
            return self
        return replace(self, tail=self.tail + text, trail=Trail(Piece(SegmentKind.TEXT, text), self.trail))

    def add_raw(self, text: str, codec: TextCodec) -> Position:
        """An author's literal; a hard boundary on both sides."""
        begun = self.settled(codec)
        ids = _without_second_begin(codec.encode_trusted(text), begun.ids, codec)
        return replace(self, ids=begun.ids.extend(ids), tail="", trail=Trail(Piece(SegmentKind.RAW, text), self.trail))

    def open_turn(self, role: str, codec: TextCodec) -> Position:
        """Open a turn of ``role``."""
        pieces = codec.open_turn(role, self.turns)
        base = self
        if self.tail or self.ids.length:
            base = self.begun(codec)
            pieces = _without_second_begin(pieces, base.ids, codec)
        turns = TurnState((*self.turns.roles, role), is_open=True)
        return base._add_template(pieces, turns, codec)

    def close_turn(self, role: str, codec: TextCodec) -> Position:
        """Close the open turn."""
        turns = replace(self.turns, is_open=False)
        return self._add_template(codec.close_turn(role, self.turns), turns, codec)

    def begun(self, codec: TextCodec) -> Position:
        """With the beginning of a prompt in place; a first turn brings its own."""
        if self.ids.length or self.turns.roles:
            return self
        return replace(self, ids=self.ids.extend(codec.begin()))

    def settled(self, codec: TextCodec) -> Position:
        """The same point with its tail encoded: the prompt of a request."""
        begun = self.begun(codec)
        return replace(begun, ids=begun.ids.extend(codec.encode(self.tail)), tail="") if self.tail else begun

    def stable_ids(self, codec: TextCodec) -> tuple[int, ...]:
        """The ids that every continuation of this point begins with: text may still merge with what follows it."""
        if not self.tail:
            return self.ids.flat()  # not even a beginning is certain while there is nothing: a first turn brings its own
        return self.begun(codec).ids.flat() + codec.encode(self.tail)[: codec.stable_len(self.tail)]

    def add_generated(self, prompt: TokenRope, token_ids: tuple[int, ...], text: str, text_behind_ids: str = "") -> Position:
        """What a model or a choice put behind ``prompt``."""
        trail = Trail(Piece(SegmentKind.GENERATED, text), self.trail)
        return replace(self, ids=prompt.extend(token_ids), tail=text_behind_ids, trail=trail)

    def _add_template(self, pieces: Sequence[int | str], turns: TurnState, codec: TextCodec) -> Position:
        ids: list[int] = []
        tail = self.tail
        for piece in pieces:
            if isinstance(piece, str):
                tail += piece
            else:
                ids.extend(codec.encode(tail) if tail else ())
                ids.append(piece)
                tail = ""
        text = "".join(piece if isinstance(piece, str) else codec.spell(piece) for piece in pieces)
        trail = Trail(Piece(SegmentKind.TURN, text, turns.roles[-1], turns.is_open), self.trail)
        return Position(self.ids.extend(tuple(ids)), tail, trail, turns)


def _without_second_begin(pieces: tuple[PieceT, ...], before: TokenRope, codec: TextCodec) -> tuple[PieceT, ...]:
    """A prompt begins once, even where a template or a literal writes the beginning itself."""
    begin = codec.begin()
    if begin and before.length and pieces[: len(begin)] == begin:
        return pieces[len(begin) :]
    return pieces


def pieces_since(trail: Trail | None, mark: Trail | None = None) -> list[Piece]:
    """Pieces behind ``mark`` in order; all of them without one."""
    pieces: list[Piece] = []
    while trail is not None and trail is not mark:
        pieces.append(trail.piece)
        trail = trail.parent
    pieces.reverse()
    return pieces


def text_of(pieces: Sequence[Piece]) -> str:
    """Their text, the template's included."""
    return "".join(piece.text for piece in pieces)


def messages_of(pieces: Sequence[Piece]) -> list[dict[str, str]]:
    """Turns as ``{"role", "content"}``; text outside turns belongs to none."""
    messages: list[dict[str, str]] = []
    is_open = False
    for piece in pieces:
        if piece.kind is SegmentKind.TURN:
            is_open = piece.opens
            if is_open:
                messages.append({"role": piece.role, "content": ""})
        elif is_open:
            messages[-1]["content"] += piece.text
    return messages


def segments_of(pieces: Sequence[Piece]) -> tuple[Segment, ...]:
    """The prompt for backends that take text: neighbouring text is one segment, a turn stands by its role."""
    return tuple(_segments(pieces))


def _segments(pieces: Sequence[Piece]) -> Iterator[Segment]:
    text: list[str] = []
    for piece in pieces:
        if piece.kind is SegmentKind.TEXT:
            text.append(piece.text)
            continue
        if text:
            yield Segment(SegmentKind.TEXT, "".join(text))
            text = []
        if piece.kind is not SegmentKind.TURN:
            yield Segment(piece.kind, piece.text)
        elif piece.opens:
            yield Segment(SegmentKind.TURN, piece.role)
    if text:
        yield Segment(SegmentKind.TEXT, "".join(text))
