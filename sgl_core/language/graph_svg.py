"""A graph as an SVG picture: every stream a lane, lanes side by side run at the same time, and time goes down.

Called by ``sgl graph --svg`` and by whoever shows graphs. A turn is a card, with the generations in it as bars; a fork spreads
into lanes and a join brings them together; a value that one lane takes from another is an arrow. Written by hand, without a
library; text is escaped and holds no control characters, and pointing at a part in a browser shows all of it. ``graph_layout``
says where everything stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sgl_core.language.graph import Graph
from sgl_core.language.graph_layout import (
    CHAR,
    HEAD,
    PADDING,
    WIDTH,
    Box,
    Route,
    Row,
    Wire,
    lay_out,
)
from sgl_core.language.graph_text import signature
from sgl_core.language.readable import escaped, shortened

__all__ = ["to_svg"]

_MARGIN: Final = 28
_LEAST_WIDTH: Final = 720  # room for title and legend
_TOP: Final = 140
_CURVE: Final = 44  # height in which a line goes from one lane to another
_MOST_DEFAULT: Final = 24  # characters of an argument's text above the picture
_CHAR_OF_SUM: Final = 7.6  # width of a character of that font, at most
_DOT: Final = "  \u00b7  "

_VALUE: Final = "#7c3aed"
_ROLES: Final = {"system": "#94a3b8", "user": "#3b82f6", "assistant": "#14b8a6"}
_NO_ROLE: Final = "#cbd5e1"
_COLOURS: Final = {  # of a bar or pill: fill, line, text
    "gen": ("#ccfbf1", "#0f766e", "#0f766e"),
    "select": ("#fef3c7", "#b45309", "#b45309"),
    "argument": ("#dbeafe", "#3b82f6", "#1d4ed8"),
    "value": ("#ede9fe", _VALUE, "#6d28d9"),
    "image": ("#fce7f3", "#db2777", "#be185d"),
    "note": ("none", "#94a3b8", "#64748b"),
}
_LEGEND: Final = (
    ("gen", "the model generates"),
    ("select", "the model chooses"),
    ("argument", "an argument"),
    ("value", "a value made elsewhere"),
)
_STYLE: Final = """
text { font-family: ui-sans-serif, system-ui, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 12px; fill: #334155; }
.title { font-size: 20px; font-weight: 600; fill: #0f172a; }
.sum { font-size: 13px; fill: #475569; }
.text, .raw, .pill, .name { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 11px; }
.text { fill: #1e293b; }
.raw { fill: #1e293b; font-style: italic; }
.name { font-weight: 600; }
.role { font-size: 10.5px; font-weight: 600; letter-spacing: 0.04em; }
.tag { font-size: 10px; font-weight: 600; fill: #ffffff; text-anchor: middle; }
.detail { font-size: 10.5px; text-anchor: end; fill: #475569; }
.small { font-size: 10.5px; fill: #64748b; }
.head { font-weight: 600; text-anchor: middle; }
.middle { text-anchor: middle; }
.card { fill: #ffffff; stroke: #d7dee8; stroke-width: 1; }
.lane { fill: none; stroke: #cbd5e1; stroke-width: 2; }
.start { fill: none; stroke: #cbd5e1; stroke-width: 1.5; stroke-dasharray: 4 4; }
.wire { fill: none; stroke: #7c3aed; stroke-width: 1.5; opacity: 0.75; }
g.part:hover rect { stroke-width: 2; }
"""
_TIP: Final = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0.5 L7.5 4 L0 7.5 z" fill="{_VALUE}"/></marker></defs>'
)


def to_svg(graph: Graph, title: str) -> str:
    """Draw a graph.

    Args:
        graph: of a fork with many streams some are left out; the picture says how many.
        title: stands above the picture.

    Returns:
        A whole SVG document.

    Raises:
        GraphError: the graph breaks a rule of graphs.
    """
    layout = lay_out(graph)
    width = max(_LEAST_WIDTH, layout.width + 2 * _MARGIN)
    height = _TOP + layout.height + _MARGIN
    size = f'width="{width:.0f}" height="{height:.0f}"'
    view = f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escaped(title)}"'
    called = shortened(signature(graph, _MOST_DEFAULT), int((width - 2 * _MARGIN) / _CHAR_OF_SUM))
    shift = (width - layout.width) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view}>',
        f"<style>{_STYLE}</style>",
        _TIP,
        f'<rect {size} fill="#f8fafc"/>',
        _text(_MARGIN, 44, title, "title"),
        _text(_MARGIN, 68, called, "sum"),
        _text(_MARGIN, 89, f"{layout.blocks.summary()}; lanes side by side run in parallel", "sum"),
        *_legend(),
        f'<g transform="translate({shift:.1f} {_TOP})">',
        *(_route(route) for route in layout.routes),
        *(_wire(wire) for wire in layout.wires),
    ]
    for box in layout.boxes:
        parts += _box(box)
    parts += [_text(x, y, f"{number:,} more", "small middle") for x, y, number in layout.left_out]
    parts.append("</g></svg>\n")
    return "\n".join(parts)


def _legend() -> Iterator[str]:
    x, y = float(_MARGIN), 112
    for kind, words in _LEGEND:
        fill, line, _ = _COLOURS[kind]
        yield f'<rect x="{x:.1f}" y="{y - 10}" width="20" height="12" rx="4" fill="{fill}" stroke="{line}"/>'
        yield _text(x + 27, y, words)
        x += 27 + 6.7 * len(words) + 20


# ---- lines -----------------------------------------------------------------------------------------------------------
def _route(route: Route) -> str:
    """Along a lane, or from one to another."""
    if route.is_call:
        bend = min(12.0, route.y2 - route.y1)
        return (
            f'<path class="start" d="M{route.x1:.1f} {route.y1:.1f} H{route.x2 - bend:.1f} '
            f'Q{route.x2:.1f} {route.y1:.1f} {route.x2:.1f} {route.y1 + bend:.1f} V{route.y2:.1f}"/>'
        )
    if route.x1 == route.x2:
        return f'<path class="lane" d="M{route.x1:.1f} {route.y1:.1f} V{route.y2:.1f}"/>'
    bend = max(route.y1, route.y2 - _CURVE)  # straight down its own lane first, which is free
    middle = (bend + route.y2) / 2
    return (
        f'<path class="lane" d="M{route.x1:.1f} {route.y1:.1f} V{bend:.1f} C{route.x1:.1f} {middle:.1f} '
        f'{route.x2:.1f} {middle:.1f} {route.x2:.1f} {route.y2:.1f}"/>'
    )


def _wire(wire: Wire) -> str:
    """A value: out of one card's side, down between the lanes, and into another's side or top, with rounded corners."""
    bend = min(12.0, (wire.y2 - wire.y1) / 2)
    first, second = (1 if wire.track > wire.x1 else -1), (1 if wire.x2 > wire.track else -1)
    path = (
        f"M{wire.x1:.1f} {wire.y1:.1f} H{wire.track - first * bend:.1f} "
        f"Q{wire.track:.1f} {wire.y1:.1f} {wire.track:.1f} {wire.y1 + bend:.1f} "
    )
    if wire.x2 == wire.track:
        path += f"V{wire.y2:.1f}"
    else:
        path += (
            f"V{wire.y2 - bend:.1f} Q{wire.track:.1f} {wire.y2:.1f} {wire.track + second * bend:.1f} {wire.y2:.1f} "
            f"H{wire.x2:.1f}"
        )
    return f'<g><title>{escaped(wire.name)}</title><path class="wire" d="{path}" marker-end="url(#tip)"/></g>'


# ---- boxes -----------------------------------------------------------------------------------------------------------
def _box(box: Box) -> Iterator[str]:
    match box.block.kind:
        case "turn":
            yield from _card(box)
        case "begin":
            is_fork = box.width < WIDTH
            yield _pill(box, *(("#ffffff", "#94a3b8", "#475569") if is_fork else ("#1e293b", "#1e293b", "#ffffff")))
        case "call":
            yield _pill(box, *_COLOURS["value"], text=f"call  {box.block.label}", most=int((WIDTH - 20) / CHAR))
        case _:
            yield _pill(box, "#e2e8f0", "#94a3b8", "#334155")
            if box.block.note:
                yield _text(box.x + box.width / 2 + 8, box.y + box.height / 2 + 4, box.block.note, "small")


def _pill(box: Box, fill: str, line: str, colour: str, *, text: str = "", most: int = 0) -> str:
    text = text or box.block.label
    left, middle = box.x - box.width / 2, box.y + box.height / 2
    title = _DOT.join(part for part in (text, box.title) if part)
    return (
        f'<g class="part"><title>{escaped(title)}</title>'
        f'<rect x="{left:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{box.height / 2:.1f}" '
        f'fill="{fill}" stroke="{line}"/>'
        f'<text class="head" x="{box.x:.1f}" y="{middle + 4:.1f}" style="fill:{colour}">'
        f"{escaped(shortened(text, most or int(box.width / CHAR)))}</text></g>"
    )


def _card(box: Box) -> Iterator[str]:
    left, block = box.x - WIDTH / 2, box.block
    colour = _ROLES.get(block.label, _NO_ROLE)
    yield f'<rect class="card" x="{left:.1f}" y="{box.y:.1f}" width="{WIDTH}" height="{box.height:.1f}" rx="8"/>'
    yield f'<rect x="{left:.1f}" y="{box.y + 7:.1f}" width="4" height="{box.height - 14:.1f}" rx="2" fill="{colour}"/>'
    if block.label:
        words = shortened(block.label, 30) + (" (continued)" if block.is_continued else "")
        yield (
            f'<text class="role" x="{left + PADDING:.1f}" y="{box.y + HEAD - 5:.1f}" '
            f'style="fill:{colour}">{escaped(words)}</text>'
        )
    for row in box.rows:
        yield from _row(row, left + PADDING, box.y)


def _row(row: Row, left: float, top: float) -> Iterator[str]:
    y = top + row.y
    for item in row.items:
        x = left + item.column * CHAR
        title = f'<g class="part"><title>{escaped(item.part.title or item.part.label)}</title>'
        if item.part.kind in ("text", "raw"):
            yield f"{title}{_text(x, y + 13, item.text, item.part.kind)}</g>"
        elif item.part.kind in ("gen", "select"):
            yield f"{title}{''.join(_bar(row, left, y))}</g>"
        else:
            fill, line, colour = _COLOURS[item.part.kind]
            dashes = ' stroke-dasharray="3 3"' if item.part.kind == "note" else ""
            yield (
                f'{title}<rect x="{x:.1f}" y="{y + 1.5:.1f}" width="{(len(item.text) + 1.6) * CHAR:.1f}" height="16" rx="5" '
                f'fill="{fill}" stroke="{line}" stroke-width="0.8"{dashes}/>'
                f'<text class="pill" x="{x + 0.8 * CHAR:.1f}" y="{y + 13:.1f}" xml:space="preserve" style="fill:{colour}">'
                f"{escaped(item.text)}</text></g>"
            )


def _bar(row: Row, left: float, y: float) -> Iterator[str]:
    """A generation or choice, as wide as its card."""
    (item,) = row.items
    fill, line, colour = _COLOURS[item.part.kind]
    width, height = WIDTH - 2 * PADDING, row.height - 4
    tag = 30 if item.part.kind == "gen" else 42
    yield (
        f'<rect x="{left:.1f}" y="{y + 1:.1f}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{line}"/>'
        f'<path d="M{left + tag:.1f} {y + 1:.1f} h{6 - tag} a6 6 0 0 0 -6 6 v{height - 12} a6 6 0 0 0 6 6 h{tag - 6} z" '
        f'fill="{line}"/>'
        f'<text class="tag" x="{left + tag / 2:.1f}" y="{y + 15.5:.1f}">{item.part.kind}</text>'
    )
    yield (
        f'<text class="name" x="{left + tag + 8:.1f}" y="{y + 16:.1f}" xml:space="preserve" style="fill:{colour}">'
        f"{escaped(item.text)}</text>"
    )
    room = int((width - tag - 20) / CHAR) - len(item.text)
    if item.part.detail and room >= 4:
        yield _text(left + width - 8, y + 15.5, shortened(item.part.detail, room), "detail")


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:.1f}" xml:space="preserve">{escaped(text)}</text>'
