"""How much a stream has appended since the last request of its history: what its next request has to compute.

For decisions about what is worth a request of its own, so counts are of text alone: the template's own tokens come on top, and
text that only a run knows makes a count open. A prefetch counts for nothing here, as it may be dropped. Called by passes, node
by node in program order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sgl_core.backend import TextCodec
from sgl_core.language.graph import GetForkItem, GraphNode
from sgl_core.language.ir import ConstantText, Fork, Gen, RawText, RoleBegin, RoleEnd, Select
from sgl_core.language.passes.base import appends_text

__all__ = ["NewText", "NewTextMeter"]

_CHARS_PER_TOKEN: Final = 4
"""Of English text in most vocabularies; an estimate for graphs that are compiled before a model is chosen."""


@dataclass(frozen=True, slots=True)
class NewText:
    """Text since the last request.

    Args:
        tokens: of the text that is known.
        is_open: whether there is also text that only a run knows.
        is_empty: whether there is no text at all.
    """

    tokens: int = 0
    is_open: bool = False
    is_empty: bool = True

    def may_reach(self, tokens: int) -> bool:
        """Whether a run may find this many tokens."""
        return not self.is_empty and (self.is_open or self.tokens >= tokens)


_NOTHING: Final = NewText()


class NewTextMeter:
    """Follows the streams of a graph.

    Args:
        codec: counts tokens; without one they are estimated.
    """

    def __init__(self, codec: TextCodec | None) -> None:
        """Before the first node."""
        self._codec = codec
        self._streams: dict[int, NewText] = {}
        self._forks: dict[int, NewText] = {}

    def of(self, stream: int) -> NewText:
        """What the stream has appended so far."""
        return self._streams.get(stream, _NOTHING)

    def settle(self, stream: int) -> None:
        """All of it is being computed."""
        self._streams[stream] = _NOTHING

    def feed(self, node: GraphNode) -> None:
        """Go past a node."""
        match node.op:
            case Gen() | Select():
                self.settle(node.stream)
            case Fork():
                self._forks[node.id] = self.of(node.stream)
            case GetForkItem(fork=fork):
                self._streams[node.stream] = self._forks[fork]
            case ConstantText(text="") | RawText(text=""):
                pass
            case ConstantText(text=text) | RawText(text=text):
                self._add(node.stream, self._count(text), is_open=False)
            case op if appends_text(op):
                self._add(node.stream, 0, is_open=_is_known_by_the_run_alone(node))

    def _add(self, stream: int, tokens: int, *, is_open: bool) -> None:
        before = self.of(stream)
        self._streams[stream] = NewText(before.tokens + tokens, before.is_open or is_open, is_empty=False)

    def _count(self, text: str) -> int:
        return len(text) // _CHARS_PER_TOKEN if self._codec is None else len(self._codec.encode(text))


def _is_known_by_the_run_alone(node: GraphNode) -> bool:
    return not isinstance(node.op, RoleBegin | RoleEnd)
