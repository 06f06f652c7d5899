"""The listing of a graph."""

import re
from dataclasses import replace

import pytest

from sgl_core.language.graph import Call, Graph, GraphNode, Join, Parameter, Read, SetVar
from sgl_core.language.graph_text import describe, to_text
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    CommutativeMark,
    ConstantText,
    ExprList,
    Fork,
    Gen,
    Image,
    JoinedValue,
    NodeValue,
    Prefetch,
    RawText,
    Select,
    Variable,
)
from sgl_core.testing.graphs import GraphBuilder, essay_judge_graph, roles_graph, tip_suggestion_graph


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def test_a_node_is_shown_with_its_id_its_edges_and_its_line():
    text = to_text(essay_judge_graph())
    assert re.sub(" +", " ", line_of(text, "%7 = ")) == " %7 = Fork(%6, 3) | 4: forks = s.fork(len(dimensions))"
    assert line_of(text, "%30 = ").strip().startswith('%30 = Call("\\n".join, [%15.judgement, %21.judgement, %27.judgement])')
    assert "%33 = Variable(%30)" in text


def test_the_head_names_arguments_defaults_and_what_is_static():
    assert to_text(essay_judge_graph()).splitlines()[0] == (
        'essay_judge(essay) with static dimensions=("clarity", "evidence", "style")'
    )
    assert to_text(tip_suggestion_graph()).startswith('main(topic="staying healthy")\n')


def test_streams_stand_below_the_node_that_begins_them_and_are_indented():
    lines = to_text(essay_judge_graph()).splitlines()
    fork = next(i for i, line in enumerate(lines) if "Fork(" in line)
    assert lines[fork + 1] == "    stream 1: fork 0 of %7"
    assert lines[fork + 2] == "        %8 = GetForkItem(%7, 0)"
    assert next(line for line in lines if "Join(" in line).startswith("    %29")


def test_every_node_is_listed_once():
    for graph in (essay_judge_graph(), tip_suggestion_graph(), roles_graph()):
        shown = [int(line.split()[0][1:]) for line in to_text(graph).splitlines() if line.strip().startswith("%")]
        assert sorted(shown) == [node.id for node in graph.nodes]


def test_what_is_returned_stands_at_the_end():
    assert to_text(tip_suggestion_graph()).endswith("\nreturn [stream 1, stream 2]")
    assert to_text(roles_graph()).endswith("\nreturn (%8.kind, %11.answer)")


def test_a_line_of_the_program_is_shown_once_for_the_nodes_it_made():
    assert to_text(essay_judge_graph()).count("| 3: ") == 1


def test_a_line_of_another_file_has_the_file_without_its_folder():
    graph = tip_suggestion_graph()
    last = graph.nodes[-1]
    assert last.place is not None
    elsewhere = replace(last, place=replace(last.place, file="/somewhere/else.py"))
    assert "| else.py:15" in to_text(replace(graph, nodes=(*graph.nodes[:-1], elsewhere)))


def test_no_line_is_wider_than_asked_unless_its_node_is():
    for width in (80, 100, 128):
        lines = to_text(essay_judge_graph(), width=width).splitlines()
        assert all(len(line) <= width for line in lines if "|" in line)


@pytest.mark.parametrize(("length", "is_whole"), [(60, True), (61, False)])
def test_texts_are_shortened_above_60_characters(length, is_whole):
    shown = describe(ConstantText("x" * length))
    assert ("x" * length in shown) == is_whole
    assert len(shown) == len('ConstantText("")') + 60


def test_control_characters_are_escapes():
    assert describe(ConstantText('a\n\x1b[31m"\\\u202e\U000e0001é')) == r'ConstantText("a\n\x1b[31m\"\\\u202e\U000e0001é")'
    b = GraphBuilder("evil\x1b[2J", Parameter("x", "\x1b", True))
    b.at(1, "s += '\x1b'")
    b.add(RawText("\r"))
    assert not any(char in to_text(b.build()) for char in "\x1b\r")


@pytest.mark.parametrize(
    ("op", "shown"),
    [
        (Gen("v", {"max_new_tokens": 8, "stop": ("\n",)}, int, False, "qwen3"),
         'Gen("v", max_new_tokens=8, stop=("\\n",), dtype=int, heal=False, reasoning="qwen3")'),
        (Select("v", ("a", "b"), "m"), 'Select("v", ["a", "b"], m)'),
        (Argument("essay"), "Argument(essay)"),
        (Variable(ArgumentValue("essay")), "Variable(essay)"),
        (Read(JoinedValue(4, "v", 2)), "Read(%4.v[2])"),
        (Call(str.strip, (NodeValue(1, "v"),), {"chars": "a"}), 'Call(str.strip, %1.v, chars="a")'),
        (SetVar("v", {"a": [1, 2.5, None, (True,)]}), 'SetVar("v", {"a": [1, 2.5, None, (True,)]})'),
        (SetVar("v", object()), 'SetVar("v", <object>)'),
        (Image("a.png"), 'Image("a.png")'),
        (Image(b"1234"), "Image(4 bytes)"),
        (Fork(2), "Fork(2)"),
        (Join(3, errors="keep"), 'Join(%3, "gather_variable", errors="keep")'),
        (CommutativeMark("next"), 'CommutativeMark("next")'),
        (Prefetch(128), "Prefetch(min_tokens=128)"),
        (ExprList(()), "ExprList(?)"),
    ],
)  # fmt: skip
def test_every_kind_of_node_says_what_it_does(op, shown):
    assert describe(op) == shown


def test_annotations_are_shown():
    b = GraphBuilder("program")
    b.add(Gen("_unnamed_0"), is_automatic=True)
    b.add(Gen("w"), same_as=0, last_use=True)
    b.fork(1, commit=True)
    text = to_text(b.build())
    assert line_of(text, "%0").endswith("# unnamed")
    assert line_of(text, "%1").endswith("# same as %0, last use")
    assert line_of(text, "%2").endswith("# commit")


def test_a_graph_that_breaks_rules_is_listed_all_the_same():
    graph = Graph("broken", (), {}, (), (GraphNode(0, 7, ConstantText("a")), GraphNode(0, 7, Join(9))))
    assert to_text(graph).splitlines()[1:] == [
        "stream 7: not declared",
        '    %0 = ConstantText("a")',
        '    %0 = Join(%9, "gather_variable")',
    ]


def test_forks_nested_deeper_than_python_calls_are_listed():
    b = GraphBuilder("deep")
    stream = 0
    for _ in range(1500):
        (stream,) = b.fork(1, stream)
    assert to_text(b.build()).count("GetForkItem") == 1500
