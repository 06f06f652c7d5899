"""Shortest matches of a regular expression, as a ``Shape``: a small parser of the syntax that llguidance reads. No torch.

``instance`` calls it for ``regex`` and for a schema's ``pattern``. It is no matcher: what it yields is validated by llguidance
before use, so anchors and flags that only narrow a match are passed over, and syntax that it does not know yields nothing.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable

from sgl_core.runtime.grammar.shapes import EMPTY, Chars, Literal, Shape, TooLargeError, any_of, sequence

__all__ = ["Spell", "chars", "regex_shape", "repeated"]

Spell = Callable[[str], bytes]

_MAX_DEPTH = 64
_MAX_COPIES = 4_096
_MAX_CLASS_COPIES = 24
_MAX_WIDE_COPIES = 8
_WIDE = 40
_RUN_BYTES = b" -=*_.#/a0A"
_RARE = 4
_ASCII = [chr(code) for code in range(128)]
_DIGITS = frozenset(string.digits)
_WORD = frozenset(string.ascii_letters + string.digits + "_")
_SPACE = frozenset(" \t\n\r\f\v")
_SETS = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
_HEX = {"x": 2, "u": 4, "U": 8}
_ANCHORS = "AzZ"


class _UnknownSyntaxError(Exception):
    """The pattern uses something that this parser does not know."""


def regex_shape(pattern: str, spell: Spell, extra: int = 0) -> Shape | None:
    """Texts that match ``pattern`` and are about as short as a match can be.

    Args:
        pattern: a regular expression, read without Python's ``re``.
        spell: bytes of a character in the output (JSON strings escape some).
        extra: copies to add to the first repetition that may be longer, for texts with a least length.

    Returns:
        None where the syntax is not known, or nothing matches.
    """
    try:
        parser = _Parser(pattern, spell, extra)
        shape = parser.alternation(0)
    except (_UnknownSyntaxError, TooLargeError, RecursionError):
        return None
    return shape if parser.at_end() else None


def repeated(shape: Shape, copies: int) -> Shape:
    """``copies`` of ``shape``. Long runs of one character out of a class are runs of the same, which vocabularies have tokens for."""
    if isinstance(shape, Chars) and copies > (_MAX_WIDE_COPIES if shape.members.bit_count() > _WIDE else _MAX_CLASS_COPIES):
        same = [Literal(bytes([byte]) * copies) for byte in _RUN_BYTES if shape.members >> byte & 1]
        if same:
            return any_of(same) or EMPTY
    return sequence([shape] * copies)


def chars(members: Iterable[str], spell: Spell) -> Shape | None:
    """One of ``members``: those that are one byte in the output, or a few of the others if there are none."""
    bits = 0
    longer: list[Shape] = []
    for member in sorted(set(members)):
        spelled = spell(member)
        if len(spelled) == 1:
            bits |= 1 << spelled[0]
        elif len(longer) < _RARE:
            longer.append(Literal(spelled))
    if bits:
        return Literal(bytes([bits.bit_length() - 1])) if not bits & (bits - 1) else Chars(bits)
    return any_of(longer)


class _Parser:
    """Recursive descent over the pattern; owns its position."""

    def __init__(self, pattern: str, spell: Spell, extra: int) -> None:
        self._pattern = pattern
        self._spell = spell
        self._extra = extra
        self._at = 0

    def at_end(self) -> bool:
        return self._at >= len(self._pattern)

    def alternation(self, depth: int) -> Shape | None:
        """``branch|branch``; None if no branch can match."""
        if depth > _MAX_DEPTH:
            raise _UnknownSyntaxError
        options = [self._branch(depth)]
        while self._take("|"):
            options.append(self._branch(depth))
        return any_of(option for option in options if option is not None)

    def _branch(self, depth: int) -> Shape | None:
        parts: list[Shape | None] = []
        while not self.at_end() and self._peek() not in "|)":
            parts.append(self._repetition(depth))
        known = [part for part in parts if part is not None]
        return sequence(known) if len(known) == len(parts) else None

    def _repetition(self, depth: int) -> Shape | None:
        shape = self._atom(depth)
        while True:
            bounds = self._bounds()
            if bounds is None:
                return shape
            least, most = bounds
            copies = least
            if self._extra and (most is None or most > least):
                added = self._extra if most is None else min(self._extra, most - least)
                copies, self._extra = least + added, self._extra - added
            if copies > _MAX_COPIES:
                raise _UnknownSyntaxError
            if shape is not None or not copies:
                shape = EMPTY if shape is None else repeated(shape, copies)

    def _bounds(self) -> tuple[int, int | None] | None:
        if self._take("*"):
            bounds: tuple[int, int | None] = (0, None)
        elif self._take("+"):
            bounds = (1, None)
        elif self._take("?"):
            bounds = (0, 1)
        elif not self.at_end() and self._peek() == "{":
            counted = self._counted()
            if counted is None:
                return None
            bounds = counted
        else:
            return None
        self._take("?")  # lazy: the same texts
        return bounds

    def _counted(self) -> tuple[int, int | None] | None:
        end = self._pattern.find("}", self._at)
        low, comma, high = self._pattern[self._at + 1 : max(end, self._at + 1)].partition(",")
        if end < 0 or not (low + high).isdecimal() or not (low or comma):
            return None
        self._at = end + 1
        least = int(low or 0)
        return least, (int(high) if high else None) if comma else least

    def _atom(self, depth: int) -> Shape | None:
        char = self._next()
        if char == "(":
            return self._group(depth)
        if char == "[":
            return chars(self._class(), self._spell)
        if char == ".":
            return chars([one for one in _ASCII if one != "\n"], self._spell)
        if char in "^$":
            return EMPTY
        if char == "\\":
            if not self.at_end() and self._peek() in _ANCHORS:
                self._next()
                return EMPTY
            return chars(self._escape(), self._spell)
        if char in "*+?":
            raise _UnknownSyntaxError
        return Literal(self._spell(char))

    def _group(self, depth: int) -> Shape | None:
        if self._take("?"):
            if self._take("P<") or (self._take("<") and self._peek() not in "=!"):
                self._skip_to(">")
            else:
                while self._peek() in "ims-":
                    self._next()
                if self._take(")"):
                    return EMPTY  # flags for what follows
                if not self._take(":"):
                    raise _UnknownSyntaxError
        shape = self.alternation(depth + 1)
        if not self._take(")"):
            raise _UnknownSyntaxError
        return shape

    def _class(self) -> frozenset[str]:
        negated = self._take("^")
        members: set[str] = set()
        first = True
        while first or self._peek() != "]":
            first = False
            if self._peek() in "[&~" and (self._pattern[self._at + 1 : self._at + 2] in (":", "&", "~") or self._peek() == "["):
                raise _UnknownSyntaxError  # nested classes and set operations
            low = self._class_member()
            if (
                len(low) == 1
                and self._pattern[self._at : self._at + 1] == "-"
                and self._pattern[self._at + 1 : self._at + 2] != "]"
            ):
                self._next()
                members |= _between(low, self._class_member())
            else:
                members |= low
        self._next()
        return frozenset(_ASCII) - members if negated else frozenset(members)

    def _class_member(self) -> frozenset[str]:
        char = self._next()
        if char != "\\":
            return frozenset((char,))
        if self._peek() == "b":
            raise _UnknownSyntaxError
        return self._escape()

    def _escape(self) -> frozenset[str]:
        """What stands behind a backslash."""
        char = self._next()
        if char in _SETS:
            return _SETS[char]
        if char.lower() in _SETS:
            return frozenset(_ASCII) - _SETS[char.lower()]
        if char in _CONTROLS:
            return frozenset(_CONTROLS[char])
        if char in _HEX:
            return frozenset(self._code_point(_HEX[char]))
        if char.isalnum():
            raise _UnknownSyntaxError  # properties, word boundaries, back-references
        return frozenset(char)

    def _code_point(self, digits: int) -> str:
        if self._take("{"):
            text = self._skip_to("}")
        else:
            text, self._at = self._pattern[self._at : self._at + digits], self._at + digits
        if not text or len(text) > 8 or set(text) - set(string.hexdigits) or not 0 <= int(text, 16) < 0xD800:
            raise _UnknownSyntaxError
        return chr(int(text, 16))

    def _skip_to(self, end: str) -> str:
        at = self._pattern.find(end, self._at)
        if at < 0:
            raise _UnknownSyntaxError
        skipped, self._at = self._pattern[self._at : at], at + 1
        return skipped

    def _take(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _peek(self) -> str:
        if self.at_end():
            raise _UnknownSyntaxError
        return self._pattern[self._at]

    def _next(self) -> str:
        char = self._peek()
        self._at += 1
        return char


def _between(low: frozenset[str], high: frozenset[str]) -> frozenset[str]:
    """Members of a class's range; of ranges beyond ASCII the first few."""
    if len(low) != 1 or len(high) != 1:
        raise _UnknownSyntaxError
    first, last = ord(next(iter(low))), ord(next(iter(high)))
    return frozenset(map(chr, range(first, min(last, max(127, first + _RARE)) + 1)))
