"""What passes have in common: their form, what they may know, what they report, and what more than one of them asks a graph.

A pass takes a graph and returns another one that means the same: text, variables, messages, meta info and errors of a run stay
what they were. Nodes keep their ids, and a node is never put before or behind one that can fail, unless nobody could tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sgl_core.backend import TextCodec
from sgl_core.language.graph import Call, GetForkItem, Graph, GraphNode, Join, Read
from sgl_core.language.ir import Argument, Expr, Fork, Gen, Image, RawText, RoleBegin, RoleEnd, Select, Variable
from sgl_core.language.ir import ConstantText as Text

__all__ = ["Pass", "PassContext", "PassReport", "appends_text", "is_checkpoint", "line_of", "requested_behind"]


@dataclass(frozen=True, slots=True)
class PassContext:
    """What passes may know besides the graph.

    Args:
        codec: of the model that the program will run on; None if it is not known yet. Then tokens are estimated where a
            decision needs their number, and never reported.
        drop_unread: whether streams that generate and that nobody reads go, too, with their errors.
        min_prefetch_tokens: a prefix with fewer new tokens is not worth a prefetch.
    """

    codec: TextCodec | None = None
    drop_unread: bool = False
    min_prefetch_tokens: int = 64


@dataclass(frozen=True, slots=True)
class PassReport:
    """What a pass did.

    Args:
        name: of the pass.
        changes: nodes removed, added or marked.
        gained_tokens: tokens that a run need not compute because of it; None where only a run can tell.
        notes: what a reader should know, a sentence each; what was left alone and why.
    """

    name: str
    changes: int = 0
    gained_tokens: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass.

    Args:
        name: as reports name it.
        run: makes the new graph, and says what it did. It changes nothing else, and running it again changes nothing.
    """

    name: str
    run: Callable[[Graph, PassContext], tuple[Graph, PassReport]]


def is_checkpoint(op: Expr) -> bool:
    """Whether the program's body can fail at a node: it waits for something there, or checks what it appends."""
    return isinstance(op, Read | Join | Call | Argument | Variable | Image)


def appends_text(op: Expr) -> bool:
    """Whether a node adds to its stream's text before the model is asked; a join does if it appends."""
    if isinstance(op, Join):
        return op.mode == "concate_and_append"
    return isinstance(op, Text | RawText | Argument | Variable | Image | RoleBegin | RoleEnd)


def requested_behind(graph: Graph) -> frozenset[int]:
    """Ids of nodes behind which a request follows that continues their stream's text: in the stream, or in a fork of it.

    The first node of a fork or of a called function is among them exactly if that stream, or a fork of it, requests anything.
    """
    found: set[int] = set()
    requesting: set[int] = set()  # streams in which a request stands behind the node at hand
    requesting_forks: set[int] = set()
    for node in reversed(graph.nodes):
        if node.stream in requesting:
            found.add(node.id)
        match node.op:
            case Gen() | Select():
                requesting.add(node.stream)
            case GetForkItem(fork=fork) if node.stream in requesting:
                requesting_forks.add(fork)
            case Fork() if node.id in requesting_forks:
                requesting.add(node.stream)
                found.add(node.id)
    return frozenset(found)


def line_of(node: GraphNode) -> str:
    """``" (line 12)"``, or nothing where the line is not known; for notes."""
    return f" (line {node.place.line})" if node.place is not None else ""
