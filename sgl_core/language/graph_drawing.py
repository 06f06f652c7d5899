"""A graph as text for drawing tools: DOT for Graphviz, and Mermaid for pages that render it.

Called by ``sgl graph`` and by whoever shows graphs. Both say the same: a box for each turn, fork, join and call, a frame around
each stream, solid arrows in the order of a stream, dashed ones for values that go from one stream to another. ``graph_svg``
draws without a tool.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from sgl_core.language.graph import Graph, Join, StreamKind
from sgl_core.language.graph_blocks import Block, Blocks, Part, blocks_of
from sgl_core.language.readable import one_line, shortened

__all__ = ["to_dot", "to_mermaid"]

_MOST_TEXT: Final = 48
_INLINE: Final = ("text", "raw", "argument", "value")
_FILL: Final = {"begin": "#1e293b", "turn": "#f8fafc", "fork": "#e2e8f0", "join": "#e2e8f0", "call": "#ede9fe"}
_FILL_OF_REQUEST: Final = "#ccfbf1"
_MERMAID: Final = {"#": "#35;", '"': "#quot;", "&": "#amp;", "<": "#lt;", ">": "#gt;", "`": "#96;", "\\": "#92;"}
_DOT: Final = {'"': '\\"', "\\": "\\\\"}


def to_dot(graph: Graph) -> str:
    """A graph in the language of Graphviz: ``dot -Tsvg`` draws it.

    Raises:
        GraphError: it breaks a rule of graphs.
    """
    blocks = blocks_of(graph)
    return "\n".join(_dot_lines(blocks)) + "\n"


def to_mermaid(graph: Graph) -> str:
    """A graph as a flowchart of Mermaid, which many pages draw from a fenced block.

    Raises:
        GraphError: it breaks a rule of graphs.
    """
    blocks = blocks_of(graph)
    return "\n".join(_mermaid_lines(blocks)) + "\n"


# ---- what both say ---------------------------------------------------------------------------------------------------
def _lines_of(block: Block) -> Iterator[str]:
    """The text of a box, with values in braces inside it; not escaped."""
    if block.kind != "turn":
        yield {"call": "call "}.get(block.kind, "") + block.label
        if block.note:
            yield block.note
        return
    if block.label:
        yield block.label + (" (continued)" if block.is_continued else "")
    for is_inline, parts in itertools.groupby(block.parts, key=lambda part: part.kind in _INLINE):
        if is_inline:
            yield "".join(_line_of(part) for part in parts)
        else:
            yield from (_line_of(part) for part in parts)


def _line_of(part: Part) -> str:
    if part.kind in ("argument", "value"):
        return f"{{{one_line(part.label)}}}"
    if part.kind in ("text", "raw", "note"):
        return shortened(one_line(part.label), _MOST_TEXT)
    detail = f" ({one_line(part.detail)})" if part.detail else ""
    return shortened(f"{part.kind} {one_line(part.label)}{detail}", _MOST_TEXT)


def _fill(block: Block) -> str:
    is_request = any(part.kind in ("gen", "select") for part in block.parts)
    return _FILL_OF_REQUEST if is_request else _FILL[block.kind]


def _arrows(blocks: Blocks) -> Iterator[tuple[int, int]]:
    """From box to box: along each stream, to the streams that begin in it, and from those to the joins."""
    for stream in blocks.graph.streams:
        own = blocks.by_stream[stream.id]
        yield from ((before.id, after.id) for before, after in itertools.pairwise(own))
        if stream.kind is StreamKind.CALL and stream.parent is not None:
            yield _last_before(blocks, stream.parent, own[0]).id, own[0].id
    for block in blocks.blocks:
        if block.kind == "fork" and block.node is not None:
            yield from ((block.id, blocks.by_stream[child][0].id) for child in blocks.forked[block.node.id])
        elif block.node is not None and isinstance(block.node.op, Join):
            yield from ((_last_before(blocks, child, block).id, block.id) for child in blocks.forked[block.node.op.fork])


def _last_before(blocks: Blocks, stream: int, later: Block) -> Block:
    """The last box of a stream that stands before one of another stream."""
    return [block for block in blocks.by_stream[stream] if block.id < later.id][-1]


def _values(blocks: Blocks) -> Iterator[tuple[int, int, str]]:
    pairs = ((blocks.block_of[edge.source].id, blocks.block_of[edge.target].id, edge.name) for edge in blocks.edges)
    yield from dict.fromkeys(pairs)


def _title_of(blocks: Blocks, stream: int) -> str:
    kind = blocks.graph.streams[stream].kind
    head = blocks.by_stream[stream][0].label
    return {StreamKind.ROOT: "the program", StreamKind.CALL: f"{head}, a stream of its own"}.get(kind, head)


# ---- DOT -------------------------------------------------------------------------------------------------------------
def _dot_lines(blocks: Blocks) -> Iterator[str]:
    yield f"digraph {_dot_text(blocks.graph.name)} {{"
    yield '  graph [fontname="Helvetica", fontsize=11, rankdir=TB, nodesep=0.4, ranksep=0.35, color="#cbd5e1", style=rounded];'
    yield '  node [fontname="Helvetica", fontsize=10, shape=box, style="rounded,filled", color="#94a3b8", margin="0.15,0.08"];'
    yield '  edge [fontname="Helvetica", fontsize=9, color="#64748b", arrowsize=0.7];'
    for stream in blocks.graph.streams:
        yield f"  subgraph cluster_{stream.id} {{"
        yield f"    label={_dot_text(one_line(_title_of(blocks, stream.id)))};"
        yield from (f"    {_dot_box(block)}" for block in blocks.by_stream[stream.id])
        yield "  }"
    yield from (f"  b{source} -> b{target};" for source, target in _arrows(blocks))
    for source, target, name in _values(blocks):
        yield f'  b{source} -> b{target} [label={_dot_text(name)}, style=dashed, color="#7c3aed", fontcolor="#7c3aed"];'
    yield "}"


def _dot_box(block: Block) -> str:
    label = "".join(f"{_dot_escaped(line)}\\l" for line in _lines_of(block))
    colour = ', fontcolor="#ffffff"' if block.kind == "begin" else ""
    return f'b{block.id} [label="{label}", fillcolor="{_fill(block)}"{colour}];'


def _dot_text(text: str) -> str:
    return f'"{_dot_escaped(text)}"'


def _dot_escaped(text: str) -> str:
    return "".join(_DOT.get(char, char) for char in one_line(text))


# ---- Mermaid ---------------------------------------------------------------------------------------------------------
def _mermaid_lines(blocks: Blocks) -> Iterator[str]:
    yield "flowchart TD"
    for stream in blocks.graph.streams:
        yield f'  subgraph s{stream.id}["{_mermaid_text(_title_of(blocks, stream.id))}"]'
        for block in blocks.by_stream[stream.id]:
            yield f'    b{block.id}["{"<br/>".join(_mermaid_text(line) for line in _lines_of(block))}"]'
        yield "  end"
    yield from (f"  b{source} --> b{target}" for source, target in _arrows(blocks))
    yield from (f'  b{source} -. "{_mermaid_text(name)}" .-> b{target}' for source, target, name in _values(blocks))
    for block in blocks.blocks:
        colour = ",color:#ffffff" if block.kind == "begin" else ""
        yield f"  style b{block.id} fill:{_fill(block)},stroke:#94a3b8{colour}"


def _mermaid_text(text: str) -> str:
    return "".join(_MERMAID.get(char, char) for char in one_line(text))
