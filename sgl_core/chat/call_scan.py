"""Where the parts of a tool call stand in JSON text that is still being written. Pure; ``tool_reading`` reads with it.

It finds the name, the arguments and the end as soon as they are there. What stands inside is for a real parser, once it is
whole.
"""

from __future__ import annotations

import json
from enum import Enum, auto
from typing import Final

__all__ = ["CallScan"]

_SPACE: Final = " \t\n\r"
_SCALAR: Final = frozenset("0123456789+-.eEtrufalsn")
"""Characters of numbers, true, false and null."""


class _Expects(Enum):
    """What may come at the level of the call's own members."""

    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    COMMA = auto()


class CallScan:
    """The position of one call's parts.

    Attributes:
        name: the tool's, once its closing quote was read.
        arguments_start: index of the brace that opens them, once both it and the name were read. ``arguments_end``: behind the
            brace that closes them. Both stay None for arguments that are no object.
        end: index behind the object, or of the first character that can belong to none; nothing is read from there on.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments_start: int | None = None
        self.arguments_end: int | None = None
        self.end: int | None = None
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._expects = _Expects.FIRST_KEY
        self._key = ""
        self._keys: set[str] = set()
        self._value_start = 0
        self._object: int | None = None

    def read(self, text: str, start: int) -> None:
        """Read on.

        Args:
            text: all of it.
            start: where the part begins that was not read before.
        """
        for at in range(start, len(text)):
            if self.end is not None:
                return
            if self._in_string:
                self._read_in_string(text, at)
            elif not self._read_outside(text, at):
                self.end = at

    def _read_in_string(self, text: str, at: int) -> None:
        char = text[at]
        if char < " ":  # JSON has none of these inside a string: a quote is missing
            self.end = at
        elif self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            if self._depth == 1 and not self._take_string(text[self._value_start : at + 1]):
                self.end = at

    def _take_string(self, literal: str) -> bool:
        """A string among the members: a key or a value. False for what is no string, or for a key that stands twice."""
        try:
            read = json.loads(literal)
        except ValueError:
            return False
        if self._expects in (_Expects.FIRST_KEY, _Expects.KEY):
            is_new = read not in self._keys
            self._keys.add(read)
            self._key, self._expects = read, _Expects.COLON
            return is_new
        self._expects = _Expects.COMMA
        if self._key == "name" and read:
            self.name = read
            if self._object is not None:
                self.arguments_start = self._object
        return True

    def _read_outside(self, text: str, at: int) -> bool:
        """A character outside of strings; False if no JSON object has it there."""
        char = text[at]
        if char in _SPACE:
            return True
        if self._depth == 0:
            self._depth = 1
            return char == "{"
        if self._depth == 1:
            return self._read_member(char, at)
        if char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth == 1 and self._key == "arguments" and self._object is not None:
                self.arguments_end = at + 1
        elif char == '"':
            self._in_string = True
        else:
            return char in ",:" or char in _SCALAR
        return True

    def _read_member(self, char: str, at: int) -> bool:
        match self._expects:
            case _Expects.FIRST_KEY | _Expects.KEY if char == '"':
                self._in_string, self._value_start = True, at
            case _Expects.COLON if char == ":":
                self._expects = _Expects.VALUE
            case _Expects.VALUE:
                return self._begin_value(char, at)
            case _Expects.COMMA if char == ",":
                self._expects = _Expects.KEY
            case _Expects.FIRST_KEY | _Expects.COMMA if char == "}":
                self.end = at + 1
            case _Expects.COMMA:
                return char in _SCALAR  # the rest of a number or a word
            case _:
                return False
        return True

    def _begin_value(self, char: str, at: int) -> bool:
        if char == '"':
            self._in_string, self._value_start = True, at
            return True
        self._expects = _Expects.COMMA
        if char in "{[":
            self._depth = 2
            if char == "{" and self._key == "arguments":
                self._object = at
                self.arguments_start = at if self.name is not None else None
            return True
        return char in _SCALAR
