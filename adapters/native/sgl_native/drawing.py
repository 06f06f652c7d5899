"""The prefix tree as rows, and as a tree on a terminal with rich. ``sgl_native.svg`` draws the same rows as a picture.

Called by ``sgl cache`` and by whoever holds a ``TreeSnapshot``. Nodes that follow each other without a branching stand under
each other, so that a long conversation does not wander off to the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgl_core.backend import TextCodec
from sgl_core.runtime.snapshot import NodeSnapshot, TreeSnapshot
from sgl_native.printable import one_line, readable, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    from rich.tree import Tree

__all__ = ["Row", "namespace_title", "print_tree", "readers", "rows_of", "share", "summary"]

_MOST_TEXT = 400
"""Characters kept of a node's text; drawers shorten further to the room that they have."""
_LEAST_TEXT = 24
_COLUMNS_OF_NUMBERS = 14
_COLUMNS_OF_GUIDE = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One node, placed.

    Args:
        node: what it shows.
        text: its text on one line.
        depth: branchings above it.
        parent: the row above it in the tree, which it continues or branches off; None at the top.
        is_branch: one of several below its parent, or at the top: it starts an indentation of its own.
    """

    node: NodeSnapshot
    text: str
    depth: int
    parent: int | None
    is_branch: bool


def rows_of(snapshot: TreeSnapshot, codec: TextCodec) -> list[Row]:
    """Every node in the order of ``TreeSnapshot.walk``, with its text."""
    rows: list[Row] = []
    placed: dict[int, tuple[int, int]] = {}  # id() of a node -> its parent's row, its own depth
    for node in snapshot.walk():
        parent, depth = placed.get(id(node), (None, 0))
        is_branch = parent is None or len(rows[parent].node.children) > 1
        text = shortened(one_line(readable(codec, node.token_ids)), _MOST_TEXT)
        for child in node.children:
            placed[id(child)] = (len(rows), depth + (len(node.children) > 1))
        rows.append(Row(node, text, depth, parent, is_branch))
    return rows


def summary(snapshot: TreeSnapshot) -> str:
    """What sharing saves, in one line."""
    held, apart = snapshot.num_tokens, snapshot.unshared_tokens
    if not held:
        return "The cache is empty."
    text = f"{held:,} tokens held in {_plural(snapshot.num_nodes, 'node')} for {_plural(snapshot.num_leaves, 'sequence')}"
    if apart == held:
        return f"{text}; nothing is shared"
    return f"{text}; one by one they would take {apart:,} ({apart / held:.1f} times as many)"


def namespace_title(namespace: str | None) -> str:
    """How a namespace is called in a drawing."""
    return "the default namespace" if namespace is None else f"namespace {one_line(namespace)!r}"


def share(node: NodeSnapshot) -> str:
    """How many sequences share it, short; empty for one."""
    return f"\u00d7{node.num_leaves:,}" if node.num_leaves > 1 else ""  # a multiplication sign


def readers(node: NodeSnapshot) -> str:
    """How many running requests hold it; empty for none."""
    return _plural(node.lock_ref, "reader") if node.lock_ref else ""


def print_tree(snapshot: TreeSnapshot, codec: TextCodec, console: Console | None = None) -> None:
    """Draw every namespace as a tree (tokens, how many sequences share them, text), and the sum below."""
    from rich.console import Console

    console = Console() if console is None else console
    rows = rows_of(snapshot, codec)
    for namespace in dict.fromkeys(node.namespace for node in snapshot.top):
        console.print(_terminal_tree(rows, namespace, console.width), highlight=False)
    console.print(summary(snapshot), highlight=False)


def _terminal_tree(rows: Sequence[Row], namespace: str | None, width: int) -> Tree:
    """The tree of one namespace. Branches that are too deep for the width stand at the depth of their parent."""
    from rich.text import Text
    from rich.tree import Tree

    most_depth = max(1, (width - _COLUMNS_OF_NUMBERS - _LEAST_TEXT) // _COLUMNS_OF_GUIDE - 1)
    tree = Tree(Text(namespace_title(namespace), style="bold"), guide_style="dim")
    places: dict[int, _Place] = {}
    for index, row in enumerate(rows):
        if row.node.namespace != namespace:
            continue
        place = None if row.parent is None else places[row.parent]
        if place is None or row.is_branch:
            lines = _lines()
            above = tree if place is None else place.below if row.depth <= most_depth else place.above
            place = _Place(above, above.add(lines), lines)
        places[index] = place
        room = width - _COLUMNS_OF_GUIDE * (min(row.depth, most_depth) + 1) - _COLUMNS_OF_NUMBERS
        place.lines.add_row(*_cells(row, max(_LEAST_TEXT, room)))
    return tree


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a stretch of nodes without a branching stands: what it hangs on, what hangs on it, and its lines."""

    above: Tree
    below: Tree
    lines: Table


def _lines() -> Table:
    from rich.table import Table

    lines = Table.grid(padding=(0, 1))
    lines.add_column(justify="right", no_wrap=True, min_width=5)
    lines.add_column(no_wrap=True, min_width=3)
    lines.add_column(no_wrap=True)
    return lines


def _cells(row: Row, room: int) -> tuple[Text, Text, Text]:
    from rich.text import Text

    node = row.node
    held = readers(node)
    text = Text(shortened(row.text, room - len(held)))
    if held:
        text.append(f" {held}", "yellow")
    style = "bold cyan" if node.num_leaves > 1 else ""
    return Text(f"{node.num_tokens:,}", style), Text(share(node), "cyan"), text


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
