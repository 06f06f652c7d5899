"""The prefix tree as an SVG picture: a row for each node, its text on the left and its tokens to scale on the right.

Called by ``sgl cache --svg``. The horizontal axis is the position in a sequence, so a bar starts where its parent's ends: a
shared prefix is one long bar, and what branches off it stands below its end. Written by hand, without a library; text is
escaped and holds no control characters. Pointing at a row in a browser shows all of its text.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sgl_core.backend import TextCodec
from sgl_core.runtime.snapshot import TreeSnapshot
from sgl_native.drawing import Row, namespace_title, readers, rows_of, share, summary
from sgl_native.printable import one_line, shortened

__all__ = ["tree_svg"]

_WIDTH = 1280
_MARGIN = 28
_TEXT_LEFT = _MARGIN
_BARS_LEFT = 700
_BARS_RIGHT = _WIDTH - 110  # behind it is room for the numbers of the longest bar
_ROWS_TOP = 128
_ROW = 26
_BAR = 14
_LEAST_BAR = 3.0
_INDENT = 18
_MOST_DEPTH = 20  # what branches deeper than that is not indented further
_CHAR = 7.25  # width of a character of the fixed-width font at its size
_TICKS = 8  # at most, on the axis
_STEPS = (1, 2, 5)

_SHARED_FEW, _SHARED_ALL = (153, 213, 207), (15, 118, 110)  # shared by two ... by every sequence
_ALONE = "#cbd5e1"
_STYLE = """
text { font-family: ui-sans-serif, system-ui, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 12px; fill: #334155; }
.title { font-size: 20px; font-weight: 600; fill: #0f172a; }
.sum { font-size: 13px; fill: #475569; }
.text { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1e293b; white-space: pre; }
.namespace { font-weight: 600; fill: #0f172a; }
.axis { font-size: 11px; fill: #94a3b8; text-anchor: middle; }
.count { font-size: 11px; fill: #475569; font-variant-numeric: tabular-nums; }
.share { font-weight: 600; fill: #0f766e; }
.held { font-weight: 600; fill: #b45309; }
.grid { stroke: #e9eef4; stroke-width: 1; }
.guide { stroke: #cbd5e1; stroke-width: 1.25; fill: none; }
.drop { stroke: #94a3b8; stroke-width: 1; fill: none; }
.row:hover rect.back { fill: #f1f5f9; }
"""


@dataclass(frozen=True, slots=True)
class _Page:
    """What every row needs to know of the others.

    Args:
        middles: vertical middle of each row.
        titles: namespace -> the middle of the row that names it.
        bottom: where the rows end.
        longest: tokens at the right end of the axis.
        sequences: the number that the darkest colour stands for.
    """

    middles: tuple[float, ...]
    titles: dict[str | None, float]
    bottom: float
    longest: int
    sequences: int

    def x(self, position: int) -> float:
        """Where a position in a sequence lies."""
        return _BARS_LEFT + (_BARS_RIGHT - _BARS_LEFT) * position / self.longest


def tree_svg(snapshot: TreeSnapshot, codec: TextCodec, title: str) -> str:
    """Draw the tree.

    Args:
        snapshot: from ``Engine.tree``.
        codec: of the same engine; makes ids readable.
        title: stands above the picture.

    Returns:
        A whole SVG document.
    """
    rows = rows_of(snapshot, codec)
    page = _lay_out(snapshot, rows)
    height = page.bottom + _MARGIN
    size = f'width="{_WIDTH}" height="{height:g}"'
    view = f'viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{_escaped(title)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view}>',
        f"<style>{_STYLE}</style>",
        f'<rect {size} fill="#ffffff"/>',
        _text(_MARGIN, 44, title, "title"),
        _text(_MARGIN, 68, summary(snapshot), "sum"),
        *_legend(),
    ]
    if rows:
        parts += _axis(page)
        parts += [_text(_TEXT_LEFT, middle + 4, namespace_title(name), "namespace") for name, middle in page.titles.items()]
        for index in range(len(rows)):
            parts += _row(rows, index, page)
    parts.append("</svg>\n")
    return "\n".join(parts)


def _lay_out(snapshot: TreeSnapshot, rows: Sequence[Row]) -> _Page:
    names = dict.fromkeys(node.namespace for node in snapshot.top)
    are_named = len(names) > 1 or any(name is not None for name in names)
    middles: list[float] = []
    titles: dict[str | None, float] = {}
    y = _ROWS_TOP + _ROW / 2
    for row in rows:
        if are_named and row.node.namespace not in titles:
            titles[row.node.namespace] = y
            y += _ROW
        middles.append(y)
        y += _ROW
    longest = max((row.node.end for row in rows), default=1)
    most = max((row.node.num_leaves for row in rows), default=1)
    return _Page(tuple(middles), titles, y - _ROW / 2, longest, most)


# ---- around the rows -------------------------------------------------------------------------------------------------
def _legend() -> Iterator[str]:
    y = 90
    x = float(_MARGIN)
    for colour, text in (
        (_colour(2, 9), "shared by two sequences"),
        (_colour(9, 9), "by the most"),
        (_ALONE, "one sequence alone"),
    ):
        yield f'<rect x="{x:g}" y="{y - 9}" width="18" height="11" rx="3" fill="{colour}"/>'
        yield _text(x + 25, y, text)
        x += 25 + 6.6 * len(text) + 22
    yield _text(_BARS_LEFT, y, "position in the sequence, in tokens")


def _axis(page: _Page) -> Iterator[str]:
    step = _tick_step(page.longest)
    for position in range(0, page.longest + 1, step):
        x = page.x(position)
        yield f'<line class="grid" x1="{x:.1f}" y1="{_ROWS_TOP - 4}" x2="{x:.1f}" y2="{page.bottom:g}"/>'
        yield _text(x, _ROWS_TOP - 10, f"{position:,}", "axis")


def _tick_step(longest: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that needs few ticks."""
    power = 1
    while True:
        for step in _STEPS:
            if longest <= step * power * _TICKS:
                return step * power
        power *= 10


# ---- a row -----------------------------------------------------------------------------------------------------------
def _row(rows: Sequence[Row], index: int, page: _Page) -> Iterator[str]:
    row, middle = rows[index], page.middles[index]
    node = row.node
    left, right = page.x(node.start), page.x(node.end)
    text_x = _text_x(row)
    room = int((_BARS_LEFT - 24 - text_x) / _CHAR)
    notes = ", ".join(note for note in (f"{node.num_tokens:,} tokens", share(node), readers(node)) if note)
    yield f'<g class="row"><title>{_escaped(f"{notes}: {row.text}")}</title>'
    yield f'<rect class="back" x="0" y="{middle - _ROW / 2:g}" width="{_BARS_LEFT - 12}" height="{_ROW}" fill="none"/>'
    yield from _connectors(rows, index, page)
    yield _text(text_x, middle + 4, shortened(row.text, room), "text")
    stroke = ' stroke="#b45309" stroke-width="1.5"' if node.lock_ref else ""
    yield (
        f'<rect x="{left:.1f}" y="{middle - _BAR / 2:g}" width="{max(_LEAST_BAR, right - left):.1f}" height="{_BAR}" rx="3" '
        f'fill="{_colour(node.num_leaves, page.sequences)}"{stroke}/>'
    )
    spans = [f"{node.num_tokens:,}"]
    if node.num_leaves > 1:
        spans.append(f'<tspan class="share" dx="5">{share(node)}</tspan>')
    if node.lock_ref:
        spans.append(f'<tspan class="held" dx="5">{readers(node)}</tspan>')
    yield f'<text class="count" x="{max(right, left + _LEAST_BAR) + 6:.1f}" y="{middle + 4:g}">{"".join(spans)}</text></g>'


def _text_x(row: Row) -> float:
    return _TEXT_LEFT + _INDENT * min(row.depth, _MOST_DEPTH)


def _connectors(rows: Sequence[Row], index: int, page: _Page) -> Iterator[str]:
    """From the parent: an elbow beside the text, and a line down from the end of the parent's bar."""
    row, middle = rows[index], page.middles[index]
    if row.parent is None:
        return
    above = page.middles[row.parent]
    if row.is_branch:
        x = _text_x(row) - _INDENT + 6
        yield f'<path class="guide" d="M{x:g} {above + 9:g} V{middle - 5:g} q0 5 5 5 h5"/>'
    x_bar = page.x(row.node.start)
    yield f'<path class="drop" d="M{x_bar:.1f} {above + _BAR / 2:g} V{middle - _BAR / 2:g}"/>'


def _colour(num_leaves: int, most: int) -> str:
    if num_leaves < 2:
        return _ALONE
    weight = (num_leaves - 2) / max(1, most - 2) if most > 2 else 1.0
    red, green, blue = (round(a + (b - a) * weight) for a, b in zip(_SHARED_FEW, _SHARED_ALL, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:g}" xml:space="preserve">{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    return html.escape(one_line(text))
