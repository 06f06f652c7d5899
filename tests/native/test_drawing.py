"""The prefix tree on a terminal and as SVG."""

import io
import itertools
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from sgl_core.runtime.radix_cache import RadixCache
from sgl_core.runtime.snapshot import take_snapshot
from sgl_core.testing import ByteCodec
from sgl_native.drawing import print_tree, rows_of, summary
from sgl_native.svg import tree_svg

CODEC = ByteCodec()
SVG = "{http://www.w3.org/2000/svg}"


def tree_of(*texts, namespace=None, tree=None):
    tree = RadixCache() if tree is None else tree
    slots = itertools.count(tree.total_size)
    for text in texts:
        ids = CODEC.encode_trusted(text)
        tree.insert(ids, list(itertools.islice(slots, len(ids))), namespace=namespace)
    return tree


def drawn(tree, width=100):
    console = Console(file=io.StringIO(), width=width)
    print_tree(take_snapshot(tree), CODEC, console)
    return console.file.getvalue()


def picture(tree, title="a title"):
    return ElementTree.fromstring(tree_svg(take_snapshot(tree), CODEC, title))


def words(svg):
    return ["".join(node.itertext()) for node in svg.iter(f"{SVG}text")]


def bars(svg):
    """x and width of every bar, in the order of the rows."""
    found = [rect for group in svg.iter(f"{SVG}g") for rect in group.iter(f"{SVG}rect") if rect.get("class") is None]
    return [(float(rect.get("x")), float(rect.get("width")), rect.get("fill")) for rect in found]


def test_nodes_without_a_branching_share_a_depth():
    rows = rows_of(take_snapshot(tree_of("ab", "abcd", "abcdx", "abcdy")), CODEC)
    assert [(row.text, row.depth, row.is_branch) for row in rows] == [
        ("ab", 0, True),
        ("cd", 0, False),
        ("x", 1, True),
        ("y", 1, True),
    ]
    assert [row.parent for row in rows] == [None, 0, 1, 1]


def test_the_sum_says_what_sharing_saves():
    assert summary(take_snapshot(tree_of("abcx", "abcy"))) == (
        "5 tokens held in 3 nodes for 2 sequences; one by one they would take 8 (1.6 times as many)"
    )


def test_the_sum_says_when_nothing_is_shared():
    assert summary(take_snapshot(tree_of("ab"))) == "2 tokens held in 1 node for 1 sequence; nothing is shared"


def test_the_terminal_shows_tokens_sharing_and_text_of_every_node():
    lines = drawn(tree_of("<|user|>Hi there", "<|user|>Hi you")).splitlines()
    assert re.fullmatch(r"└──\s+4 ×2\s+<\|user\|>Hi\s*", lines[1])
    assert re.fullmatch(r"    ├──\s+5\s+there\s*", lines[2])
    assert re.fullmatch(r"    └──\s+3\s+you\s*", lines[3])


def test_the_terminal_shows_readers():
    tree = tree_of("ab")
    tree.inc_lock_ref(tree.match_prefix(CODEC.encode("ab")).node)
    assert "1 reader" in drawn(tree)


def test_every_namespace_has_a_title():
    out = drawn(tree_of("ab", namespace="tenant", tree=tree_of("ab")))
    assert "the default namespace" in out
    assert "namespace 'tenant'" in out


def test_an_empty_tree_is_said_to_be_empty():
    assert drawn(RadixCache()) == "The cache is empty.\n"
    assert "The cache is empty." in words(picture(RadixCache()))


def test_no_line_is_wider_than_the_terminal():
    out = drawn(tree_of("a" * 300 + "b" * 300, "a" * 300 + "c" * 300), width=60)
    assert max(map(len, out.splitlines())) <= 60


def test_a_tree_deeper_than_the_page_is_wide_keeps_its_text():
    tree = tree_of(*("x" * depth + "y" for depth in range(1, 60)))
    assert len(re.findall(r"[xy] *$", drawn(tree), re.MULTILINE)) == take_snapshot(tree).num_nodes
    svg = picture(tree)
    assert len(bars(svg)) == take_snapshot(tree).num_nodes
    assert max(float(text.get("x")) for text in svg.iter(f"{SVG}text") if text.get("class") == "text") < bars(svg)[0][0]


@pytest.mark.parametrize("text", ["<b>&amp;\"quoted\" 'text'</b>", "\x1b[31m\x00\x07", "]]>", "日本語 🙂"])
def test_any_text_makes_well_formed_xml(text):
    svg = picture(tree_of(text), title=text)
    assert len(bars(svg)) == 1


def test_text_is_shown_as_it_is():
    assert "<b>R&D</b>" in words(picture(tree_of("<b>R&D</b>")))


def test_bars_are_to_scale_and_start_where_their_parent_ends():
    (parent_x, parent_width, _), *children = bars(picture(tree_of("a" * 60 + "b" * 30, "a" * 60 + "c" * 40)))
    for (x, width, _), tokens in zip(children, (30, 40), strict=True):
        assert x == pytest.approx(parent_x + parent_width, abs=0.2)
        assert width == pytest.approx(parent_width * tokens / 60, abs=0.2)


def test_a_shared_bar_has_another_colour_than_one_alone():
    (_, _, shared), (_, _, first), (_, _, second) = bars(picture(tree_of("abx", "aby")))
    assert first == second != shared


def test_all_of_the_text_stands_in_the_tooltip():
    text = "word " * 70
    titles = [node.text for node in picture(tree_of(text)).iter(f"{SVG}title")]
    assert titles == [f"350 tokens: {text}"]


def test_nothing_is_drawn_outside_the_page():
    svg = picture(tree_of(*(f"{number}-" * 40 for number in range(30))))
    width, height = float(svg.get("width")), float(svg.get("height"))
    assert all(x + w < width for x, w, _ in bars(svg))
    assert all(0 < float(text.get("y")) < height for text in svg.iter(f"{SVG}text"))
