"""Where a text stands as JSON: how deep, and whether inside a string. No torch. Harmless for other texts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Scan"]

_QUOTE, _BACKSLASH = b'"\\'


@dataclass(frozen=True, slots=True)
class Scan:
    """A position in a text.

    Args:
        depth: open objects and arrays.
        in_string: between quotes. ``escaped``: behind a backslash there.
    """

    depth: int = 0
    in_string: bool = False
    escaped: bool = False

    def after(self, text: bytes) -> Scan:
        """The position behind ``text``."""
        depth, in_string, escaped = self.depth, self.in_string, self.escaped
        for byte in text:
            if escaped:
                escaped = False
            elif in_string:
                in_string, escaped = byte != _QUOTE, byte == _BACKSLASH
            elif byte == _QUOTE:
                in_string = True
            elif byte in b"{[":
                depth += 1
            elif byte in b"}]":
                depth = max(0, depth - 1)
        return Scan(depth, in_string, escaped)
