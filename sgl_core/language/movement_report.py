"""What code movement did to a prompt: what moved, what stayed and why, as a diff that a person reads.

Made by ``movement.move``, shown by ``explain()``. Frozen values; the text in them is the program's own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sgl_core.language.graph import GraphNode
from sgl_core.language.ir import Argument, CommutativeMark, ConstantText, Image, RawText, RoleBegin, RoleEnd

__all__ = ["KeptRegion", "MoveReport", "MovedRegion"]


@dataclass(frozen=True, slots=True)
class MovedRegion:
    """A run of nodes that has a new order.

    Args:
        stream: id of the stream.
        before, after: its nodes.
        tokens_before, tokens_after: tokens that the stream begins with whatever the arguments, or, of a region ``behind``
            something, that the region begins with; None without a codec.
        behind: what makes the text before it differ from run to run; empty if that text is always the same.
    """

    stream: int
    before: tuple[GraphNode, ...]
    after: tuple[GraphNode, ...]
    tokens_before: int | None
    tokens_after: int | None
    behind: str = ""

    @property
    def gained_tokens(self) -> int | None:
        """Tokens by which the constant beginning grew: each run with new arguments saves them. None without a codec.

        0 for a region behind something that differs: what follows is shared by runs only if they are the same up to there.
        """
        if self.behind:
            return 0
        return self.grown_tokens

    @property
    def grown_tokens(self) -> int | None:
        """Tokens by which the region's own constant beginning grew, whatever stands before it. None without a codec."""
        if self.tokens_before is None or self.tokens_after is None:
            return None
        return self.tokens_after - self.tokens_before

    def diff(self) -> str:
        """A unified diff of the parts, an argument as ``{name}``."""
        first = self.before[0]
        at = "" if first.place is None else f", line {first.place.line}"
        lines = difflib.unified_diff(
            _lines(self.before), _lines(self.after), f"stream {self.stream}{at}, as written", "moved", lineterm="", n=2
        )
        return "\n".join(lines)

    def gain(self) -> str:
        """The gain in a sentence."""
        grown = self.grown_tokens
        if grown is None:
            return "gain: not counted: tokens need a model; compile(backend=...) names one."
        sizes = f"{self.tokens_before} -> {self.tokens_after} tokens"
        if self.behind:
            return f"gain: none, unless {self.behind} repeats from run to run; its constant beginning then: {sizes}."
        if not grown:
            return "gain: none, unless the arguments that come first now repeat from run to run."
        return f"gain: {grown} tokens in every run with new arguments (constant beginning: {sizes})."


@dataclass(frozen=True, slots=True)
class KeptRegion:
    """A run of nodes, or a commutative group, that somebody wanted to change and that stays.

    Args:
        stream: id of the stream.
        ids: of its nodes.
        reason: why, in words; begins with the rule if a proposal broke one.
        rule: the rule of ``movement.RULES`` that the proposal breaks; empty if it is legal and no gain.
    """

    stream: int
    ids: tuple[int, ...]
    reason: str
    rule: str = ""


@dataclass(frozen=True, slots=True)
class MoveReport:
    """All of it.

    Args:
        how: "safe" or "aggressive".
        moved: what has a new order.
        kept: what was proposed, or declared commutative, and stays.
    """

    how: str
    moved: tuple[MovedRegion, ...]
    kept: tuple[KeptRegion, ...]

    @property
    def gained_tokens(self) -> int | None:
        """The sum over moved regions; None without a codec."""
        gains = [region.gained_tokens for region in self.moved]
        known = [gain for gain in gains if gain is not None]
        return sum(known) if len(known) == len(gains) else None

    def render(self) -> str:
        """For a person: a sentence, then a diff and a gain for each region that moved, then what stays."""
        return "\n".join(self._rendered())

    def _rendered(self) -> Iterator[str]:
        if self.moved:
            gained = self.gained_tokens
            gain = "" if gained is None else f", {gained} more tokens shared by all runs"
            yield f"moved ({self.how}): {_count(len(self.moved), 'region')}{gain}. The prompt is another than the one written:"
        else:
            yield f"moved ({self.how}): nothing."
        for region in self.moved:
            yield region.diff()
            yield f"  {region.gain()}"
        for kept in self.kept:
            nodes = ", ".join(f"%{node_id}" for node_id in kept.ids)
            yield f"kept in stream {kept.stream}: {nodes}: {kept.reason}"


def _lines(nodes: Sequence[GraphNode]) -> list[str]:
    """The lines of each part; a part begins a line of its own."""
    return [line for node in nodes if not isinstance(node.op, CommutativeMark) for line in _text(node).split("\n")]


def _text(node: GraphNode) -> str:
    match node.op:
        case ConstantText(text=text) | RawText(text=text):
            return text
        case Argument(name=name):
            return f"{{{name}}}"
        case RoleBegin(role=role):
            return f"<{role}>"
        case RoleEnd(role=role):
            return f"</{role}>"
        case Image(source=source):
            return "<image>" if isinstance(source, bytes) else f"<image {source}>"
    return f"<{type(node.op).__name__}>"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
