"""Graphs as pictures: DOT, Mermaid and SVG."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from sgl_core.errors import GraphError
from sgl_core.language.graph import Call, Graph, Parameter, Read
from sgl_core.language.graph_blocks import blocks_of
from sgl_core.language.graph_drawing import to_dot, to_mermaid
from sgl_core.language.graph_layout import WIDTH, lay_out
from sgl_core.language.graph_svg import to_svg
from sgl_core.language.ir import (
    CommutativeMark,
    ConstantText,
    Gen,
    Image,
    NodeValue,
    Prefetch,
    RawText,
    RoleBegin,
    RoleEnd,
    Variable,
)
from sgl_core.testing.graphs import GraphBuilder, essay_judge_graph, roles_graph, tip_suggestion_graph

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "\"]; <script>&'\\ \x1b[31m\x00 `#` --> end\n"


def evil_graph() -> Graph:
    b = GraphBuilder(EVIL, Parameter("x", EVIL, True), file=EVIL)
    b.at(1, EVIL)
    b.say(EVIL, RawText(EVIL), Image(EVIL), Gen("v"), role="user")
    return b.build()


def tangled_graph() -> Graph:
    """Forks in forks, two forks at once, a call in an open turn whose value the turn goes on with, everything else once."""
    b = GraphBuilder("tangled")
    b.say(CommutativeMark("begin"), "a", CommutativeMark("next"), "b", CommutativeMark("end"), Prefetch(64), role="system")
    first = b.fork(2, commit=True)
    b.say("meanwhile", role="user")
    second = b.fork(2)
    inner = b.fork(3, first[0])
    for fork in (*inner, *second):
        b.add(Gen("v"), fork)
    b.join(inner[0])
    b.join(first[0], "concate_and_append", "keep")
    b.join(second[0])
    b.add(RoleBegin("assistant"))
    (start,) = b.say("so ", Gen("w"))[1:]
    stream = b.call("f")
    b.add(Variable(NodeValue(start, "w")), stream)
    gen = b.add(Gen("u"), stream)
    b.add(Read(NodeValue(gen, "u")))
    b.say(Variable(NodeValue(gen, "u")), " and more")
    b.add(RoleEnd("assistant"))
    return b.build()


GRAPHS = [essay_judge_graph, tip_suggestion_graph, roles_graph, evil_graph, tangled_graph]


# ---- blocks ----------------------------------------------------------------------------------------------------------
def test_a_turn_is_one_block_and_a_fork_a_join_and_a_call_are_each_one():
    root = blocks_of(essay_judge_graph()).by_stream[0]
    assert [block.kind for block in root] == ["begin", "turn", "turn", "fork", "join", "call", "turn", "turn", "turn", "turn"]
    assert [block.label for block in root if block.kind == "turn"] == [
        "system", "user", "user", "assistant", "user", "assistant",
    ]  # fmt: skip


@pytest.mark.parametrize("make", GRAPHS)
def test_a_block_stands_behind_the_blocks_whose_values_it_uses(make):
    blocks = blocks_of(make())
    assert all(blocks.block_of[edge.source].id < blocks.block_of[edge.target].id for edge in blocks.edges)


def test_a_turn_that_goes_on_in_a_fork_is_marked():
    (block,) = [block for block in blocks_of(roles_graph()).by_stream[1] if block.kind == "turn"]
    assert block.label == "assistant"
    assert block.is_continued


def test_only_values_from_other_streams_are_edges():
    assert [edge.name for edge in blocks_of(essay_judge_graph()).edges] == ["judgement"] * 3
    assert blocks_of(roles_graph()).edges == ()


def test_a_graph_that_breaks_rules_is_not_drawn():
    b = GraphBuilder("broken")
    b.add(RoleEnd("user"))
    for draw in (to_dot, to_mermaid, lambda graph: to_svg(graph, "title")):
        with pytest.raises(GraphError, match=r"^turns: "):
            draw(b.build())


# ---- DOT and Mermaid -------------------------------------------------------------------------------------------------
def test_dot_has_a_frame_for_each_stream_and_dashed_arrows_for_values():
    dot = to_dot(essay_judge_graph())
    assert dot.startswith('digraph "essay_judge" {')
    assert dot.count("subgraph cluster_") == 4
    assert dot.count("style=dashed") == 3
    assert 'label="user\\lEssay:↵{essay}\\l"' in dot


def test_mermaid_has_a_frame_for_each_stream_and_dotted_arrows_for_values():
    mermaid = to_mermaid(tip_suggestion_graph())
    assert mermaid.startswith("flowchart TD\n")
    assert mermaid.count("  subgraph ") == mermaid.count("\n  end\n") == 3
    assert mermaid.count('-. "detailed_tip" .->') == 2


@pytest.mark.parametrize("make", GRAPHS)
@pytest.mark.parametrize(("draw", "arrow"), [(to_dot, r"^  b(\d+) -> b(\d+)"), (to_mermaid, r"^  b(\d+) -[^b]*> b(\d+)$")])
def test_every_arrow_joins_boxes_that_are_there(make, draw, arrow):
    text = draw(make())
    boxes = set(re.findall(r"^    b(\d+)\s*\[", text, re.MULTILINE))
    arrows = re.findall(arrow, text, re.MULTILINE)
    assert len(boxes) == len(blocks_of(make()).blocks)
    assert {end for pair in arrows for end in pair} <= boxes


def test_no_text_leaves_its_quotes_in_dot():
    for line in to_dot(evil_graph()).splitlines():
        assert re.sub(r'"(?:[^"\\]|\\.)*"', "", line).count('"') == 0
        assert "\x1b" not in line
        assert "\x00" not in line


def test_no_text_leaves_its_quotes_in_mermaid():
    for line in to_mermaid(evil_graph()).splitlines():
        assert line.count('"') in (0, 2)
        assert "<script" not in line
        assert "\x1b" not in line


# ---- SVG -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", GRAPHS)
def test_the_picture_is_well_formed_and_has_its_title(make):
    root = ElementTree.fromstring(to_svg(make(), "Title <&>"))
    assert root.tag == f"{SVG}svg"
    assert root.get("aria-label") == "Title <&>"
    assert root.find(f".//{SVG}script") is None


@pytest.mark.parametrize("make", GRAPHS)
def test_no_two_boxes_overlap_and_all_lie_inside(make):
    layout = lay_out(make())
    for box in layout.boxes:
        assert box.x - box.width / 2 >= 0
        assert box.x + box.width / 2 <= layout.width
        assert 0 <= box.y <= box.bottom <= layout.height
    for a, b in itertools.combinations(layout.boxes, 2):
        is_beside = abs(a.x - b.x) >= (a.width + b.width) / 2
        assert is_beside or a.bottom <= b.y or b.bottom <= a.y


@pytest.mark.parametrize("make", GRAPHS)
def test_time_goes_down_along_lanes_and_values(make):
    layout = lay_out(make())
    assert all(route.y1 < route.y2 for route in layout.routes)
    assert all(wire.y1 < wire.y2 for wire in layout.wires)
    assert len(layout.wires) == len(layout.blocks.edges)


def test_forks_stand_side_by_side_under_their_parent():
    layout = lay_out(essay_judge_graph())
    root = layout.boxes[0].x
    forks = [box for box in layout.boxes if box.block.kind == "begin" and box.block.stream]
    assert [box.x - root for box in forks] == pytest.approx([forks[0].x - root, 0, root - forks[0].x])
    assert forks[1].x - forks[0].x > WIDTH
    assert len({box.y for box in forks}) == 1


def test_of_many_forks_some_are_left_out_and_counted():
    many = essay_judge_graph(tuple(f"dimension {i}" for i in range(5000)))
    picture = to_svg(many, "title")
    assert "4,993 more" in picture
    assert len(lay_out(many).boxes) < 50


def test_rows_of_a_card_stay_inside_it():
    b = GraphBuilder("program")
    b.say("word " * 30 + "\n\n\n\n" + "x" * 300, Gen("v" * 100, {"max_new_tokens": 3}), "tail", role="user")
    (card,) = [box for box in lay_out(b.build()).boxes if box.block.kind == "turn"]
    assert all(item.column + len(item.text.rstrip("↵ ")) * 1.0 <= 37 for row in card.rows for item in row.items)
    assert all(row.y + row.height <= card.height for row in card.rows)


def test_long_text_is_shortened_and_all_of_it_is_in_a_title():
    text = "It was a dark and stormy night. " * 20
    b = GraphBuilder("program")
    b.say(text, role="user")
    root = ElementTree.fromstring(to_svg(b.build(), "title"))
    assert text in [title.text for title in root.iter(f"{SVG}title")]
    assert all(len("".join(node.itertext())) < 60 for node in root.iter(f"{SVG}text"))


def test_what_the_passes_add_is_visible():
    texts = ["".join(node.itertext()) for node in ElementTree.fromstring(to_svg(tangled_graph(), "title")).iter(f"{SVG}text")]
    for words in ("prefetch", "shared prefix computed once, before they start", "in any order:", "text appended, errors kept"):
        assert words in texts


def test_arrows_are_drawn_for_values_and_say_which():
    root = ElementTree.fromstring(to_svg(tip_suggestion_graph(), "title"))
    wires = [group for group in root.iter(f"{SVG}g") if group.find(f"{SVG}path[@class='wire']") is not None]
    assert [group.findtext(f"{SVG}title") for group in wires] == ["detailed_tip"] * 2


def test_a_picture_names_files_without_their_folders():
    b = GraphBuilder("program", file="/somewhere/judge.py")
    b.at(3, "forks = s.fork(2)")
    b.fork(2)
    picture = to_svg(b.build(), "title")
    assert "judge.py:3: forks = s.fork(2)" in picture
    assert "/somewhere" not in picture


def test_a_call_shows_the_function_and_is_no_turn():
    b = GraphBuilder("program")
    b.add(Call(len, ("abc",)))
    b.add(ConstantText("a"))
    assert "call  len" in to_svg(b.build(), "title")
