"""Code movement: what moves, what stays and why, and what holds whatever is proposed."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_core.errors import InvalidArgumentError, MoveError
from sgl_core.language.graph import Call, Graph, Parameter
from sgl_core.language.ir import (
    Argument,
    CommutativeMark,
    ConstantText,
    Gen,
    Image,
    NodeValue,
    Prefetch,
    RawText,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Variable,
)
from sgl_core.language.movement import RULES, check_move, check_order, move, regions_of
from sgl_core.language.verifier import verify
from sgl_core.testing import ByteCodec
from sgl_core.testing.graphs import GraphBuilder
from sgl_core.testing.optimum import unshared_tokens
from sgl_core.testing.templates import rendered_prompts

RULES_TEXT = "Answer in one word.\n"
CODEC = ByteCodec()


def text_of(graph, stream=0):
    """The prompt of a stream with an argument as {name} and anything else in angle brackets."""
    shown = []
    for node in graph.of_stream(stream):
        match node.op:
            case ConstantText(text=text):
                shown.append(text)
            case Argument(name=name):
                shown.append(f"{{{name}}}")
            case other:
                shown.append(f"<{type(other).__name__}>")
    return "".join(shown)


def question():
    """An argument in front of rules, in a turn, and a generation."""
    b = GraphBuilder("question", Parameter("q"))
    b.at(3, 's += sgl.user("Q: " + q + "\\n" + rules)')
    b.say("Q: ", Argument("q"), RULES_TEXT, role="user")
    b.say(Gen("answer"), role="assistant")
    return b.build()


def group(*parts):
    """The nodes of a commutative group."""
    marks = [CommutativeMark("begin"), *[CommutativeMark("next")] * (len(parts) - 1)]
    return [node for mark, part in zip(marks, parts, strict=True) for node in (mark, *part)] + [CommutativeMark("end")]


def commutative(*parts):
    b = GraphBuilder("commutative", Parameter("q"))
    for op in [*group(*parts), Gen("answer")]:
        b.add(op)
    return b.build()


class Fixed:
    """Proposes what it was told to, region by region."""

    def __init__(self, *proposals):
        self.proposals = list(proposals)
        self.regions = []

    def propose(self, region):
        self.regions.append(region)
        return self.proposals.pop(0)


# ---- aggressive ------------------------------------------------------------------------------------------------------


def test_constants_come_first_and_keep_their_order():
    b = GraphBuilder("f", Parameter("a"), Parameter("b"))
    b.say("1 ", Argument("a"), "2 ", Argument("b"), "3 ", Gen("x"))
    moved, report = move(b.build(), "aggressive")
    assert text_of(moved) == "1 2 3 {a}{b}<Gen>"
    assert [region.ids for region in regions_of(moved)] == [(0, 2, 4, 1, 3)]
    assert len(report.moved) == 1


def test_nothing_moves_by_default():
    graph = question()
    moved, report = move(graph)
    assert moved == graph
    assert (report.how, report.moved, report.kept, report.gained_tokens) == ("safe", (), (), 0)
    assert report.render() == "moved (safe): nothing."


def test_nodes_keep_their_ids_and_the_graph_stays_a_graph():
    graph = question()
    moved, _ = move(graph, "aggressive")
    verify(moved)
    assert {node.id: node for node in moved.nodes} == {node.id: node for node in graph.nodes}
    assert graph == question()


def test_a_turn_and_a_generation_part_regions():
    b = GraphBuilder("f", Parameter("a"))
    b.say(Argument("a"), "x", role="system")
    b.say(Argument("a"), "y", role="user")
    b.say(Gen("g"), Argument("a"), "z", role="assistant")
    moved, _ = move(b.build(), "aggressive")
    turn = "<RoleBegin>{}<RoleEnd>".format
    assert text_of(moved) == turn("x{a}") + turn("y{a}") + turn("<Gen>z{a}")


def test_each_stream_is_ordered_by_itself_even_where_streams_alternate():
    b = GraphBuilder("f", Parameter("a"))
    called = b.call("g")
    b.say(Argument("a"))
    b.say(Argument("a"), stream=called)
    b.say("root")
    b.say("called", stream=called)
    moved, _ = move(b.build(), "aggressive")
    assert text_of(moved) == "root{a}"
    assert text_of(moved, called) == "<StreamBegin>called{a}"
    assert [node.stream for node in moved.nodes] == [called, 0, called, 0, called]


def test_the_gain_is_what_the_constant_beginning_grows_by_in_tokens():
    _, report = move(question(), "aggressive", codec=CODEC)
    (region,) = report.moved
    opening = 2  # the beginning and the turn, one id each
    assert region.tokens_before == opening + len("Q: ")
    assert region.tokens_after == opening + len("Q: " + RULES_TEXT)
    assert report.gained_tokens == len(RULES_TEXT)


def test_the_gain_behind_something_that_differs_is_nil_and_the_report_says_what_would_have_to_repeat():
    b = GraphBuilder("f", Parameter("doc"), Parameter("q"))
    b.say("Read: ", Argument("doc"), role="system")
    b.say(Argument("q"), RULES_TEXT, role="user")
    b.say(Gen("x"), role="assistant")
    moved, report = move(b.build(), "aggressive", codec=CODEC)
    (region,) = report.moved
    assert RULES_TEXT + "{q}" in text_of(moved)
    assert report.gained_tokens == 0
    assert (region.tokens_before, region.tokens_after) == (0, len(RULES_TEXT))
    assert "none, unless argument 'doc' repeats" in report.render()


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (Gen("first"), "the output 'first'"),
        (Select("first", ("a", "b"), "greedy_token_selection"), "the output 'first'"),
        (Image("cat.png"), "an image"),
    ],
)
def test_the_report_names_what_differs_before_a_region(op, words):
    b = GraphBuilder("f", Parameter("q"))
    b.say(op, Argument("q"), "x", Gen("last"))
    _, report = move(b.build(), "aggressive")
    assert report.moved[0].behind == words


def test_a_fork_goes_on_where_its_parent_stands():
    b = GraphBuilder("f", Parameter("q"))
    b.say("constant ")
    (early,) = b.fork(1)
    b.say(Argument("q"))
    (late,) = b.fork(1)
    for child in (early, late):
        b.say(Argument("q"), "rules", Gen("x"), stream=child)
    _, report = move(b.build(), "aggressive", codec=CODEC)
    assert [(region.stream, region.behind, region.gained_tokens) for region in report.moved] == [
        (early, "", len("rules")),
        (late, "argument 'q'", 0),
    ]


def test_values_and_joined_texts_differ_from_run_to_run():
    b = GraphBuilder("f", Parameter("q"))
    (child,) = b.fork(1)
    b.say(Gen("x"), stream=child)
    b.join(child, "concate_and_append")
    b.say(Argument("q"), "rules")
    call = b.add(Call(str.upper, ("a",)))
    called = b.call("g")
    b.say(Variable(NodeValue(call)), Argument("q"), "rules", stream=called)
    _, report = move(b.build(), "aggressive")
    assert [region.behind for region in report.moved] == ["the text of forks", "a value"]


def test_without_a_codec_the_gain_is_not_known():
    _, report = move(question(), "aggressive")
    assert report.gained_tokens is None
    assert "not counted: tokens need a model" in report.render()


def test_the_report_shows_a_diff_that_a_person_can_read():
    _, report = move(question(), "aggressive", codec=CODEC)
    assert report.render().splitlines() == [
        f"moved (aggressive): 1 region, {len(RULES_TEXT)} more tokens shared by all runs. The prompt is another than the one written:",
        "--- stream 0, line 3, as written",
        "+++ moved",
        "@@ -1,4 +1,4 @@",
        " Q: ",
        "-{q}",
        " Answer in one word.",
        " ",
        "+{q}",
        f"  gain: {len(RULES_TEXT)} tokens in every run with new arguments (constant beginning: 5 -> {5 + len(RULES_TEXT)} tokens).",
    ]


# ---- what a proposer may do, and what becomes of it ------------------------------------------------------------------


def test_a_proposer_is_asked_only_where_something_stands_behind_an_argument():
    b = GraphBuilder("f", Parameter("a"))
    b.say("only text", Gen("x"), "text first ", Argument("a"), Gen("y"), Argument("a"), Gen("z"), Argument("a"), "last")
    graph = b.build()
    asked = Fixed([region.ids for region in regions_of(graph)][-1])
    move(graph, "aggressive", proposer=asked)
    assert [region.ids for region in asked.regions] == [(7, 8)]
    assert asked.regions[0].behind == "the output 'x'"


def test_a_proposal_may_be_made_of_numbers_or_of_the_nodes_themselves():
    graph = question()
    (region, *_) = regions_of(graph)
    order = (3, 1, 2)
    by_number, _ = move(graph, "aggressive", proposer=Fixed(order))
    by_node, _ = move(graph, "aggressive", proposer=Fixed([graph.node(node_id) for node_id in order]))
    assert by_number == by_node
    assert text_of(by_number).startswith("<RoleBegin>" + RULES_TEXT + "Q: {q}")
    assert len(region.nodes) == 3


def test_a_refused_proposal_leaves_its_region_alone_and_names_the_rule():
    b = GraphBuilder("f", Parameter("a"))
    b.say(Argument("a"), "one", Gen("x"), Argument("a"), "two")
    moved, report = move(b.build(), "aggressive", proposer=Fixed((1, 1), (4, 3)))
    assert text_of(moved) == "{a}one<Gen>two{a}"
    (kept,) = report.kept
    assert (kept.rule, kept.ids) == ("doubled", (0, 1))
    assert "kept in stream 0: %0, %1: doubled: %1 stands twice" in report.render()


def test_a_legal_order_that_is_a_loss_is_not_taken():
    b = GraphBuilder("f", Parameter("a"))
    b.say("long constant text ", Argument("a"), "x", Gen("g"))
    graph = b.build()
    moved, report = move(graph, "aggressive", proposer=Fixed((2, 1, 0)))
    assert moved == graph
    assert (report.kept[0].rule, report.moved) == ("", ())
    assert "shorter" in report.kept[0].reason


def test_arguments_may_change_places_for_whoever_knows_which_repeat():
    b = GraphBuilder("f", Parameter("often"), Parameter("new"))
    b.say("x", Argument("new"), Argument("often"))
    moved, report = move(b.build(), "aggressive", proposer=Fixed((0, 2, 1)), codec=CODEC)
    assert text_of(moved) == "x{often}{new}"
    assert "none, unless the arguments that come first now repeat" in report.render()


@pytest.mark.parametrize("how", ["always", "", True])
def test_an_unknown_mode_is_refused(how):
    with pytest.raises(InvalidArgumentError, match='"safe", "aggressive" or None'):
        check_move(how, None)


@pytest.mark.parametrize("how", ["safe", None])
def test_a_proposer_that_nobody_would_ask_is_refused(how):
    with pytest.raises(InvalidArgumentError, match=r"proposer: .*Only move="):
        check_move(how, Fixed())


# ---- safe ------------------------------------------------------------------------------------------------------------


def test_parts_that_commute_are_sorted_whole():
    first = [ConstantText("Context: "), Argument("q"), ConstantText(".\n")]
    moved, report = move(commutative(first, [ConstantText("Rules.\n")], [ConstantText("Example.\n")]), "safe", codec=CODEC)
    mark = "<CommutativeMark>"
    assert text_of(moved) == f"{mark}Rules.\n{mark}Example.\n{mark}Context: {{q}}.\n{mark}<Gen>"
    assert [node.op.place for node in moved.nodes if isinstance(node.op, CommutativeMark)] == ["begin", "next", "next", "end"]
    assert report.gained_tokens == len("Rules.\nExample.\n")
    verify(moved)


def test_whole_turns_may_commute():
    def turn(*ops):
        return [RoleBegin("user"), *ops, RoleEnd("user")]

    moved, report = move(commutative(turn(Argument("q")), turn(ConstantText("rules"))), "safe")
    assert text_of(moved).index("rules") < text_of(moved).index("{q}")
    assert "+<user>" in report.render() or "-<user>" in report.render()


def test_parts_with_raw_literals_and_images_may_commute():
    moved, report = move(commutative([Argument("q")], [RawText("<|user|>"), Image("cat.png"), Image(b"...")]), "safe")
    assert [type(node.op) for node in moved.nodes[1:4]] == [RawText, Image, Image]
    assert "<image cat.png>" in report.render()


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ([Gen("x")], RULES["generation"]),
        ([Select("x", ("a",), "greedy_token_selection")], RULES["generation"]),
        ([ScopeBegin("v"), ConstantText("x"), ScopeEnd("v")], RULES["scope"]),
        ([Prefetch()], RULES["effect"]),
        ([RoleBegin("user"), ConstantText("x")], "turn"),
        ([RoleEnd("user"), ConstantText("x")], "turn"),
    ],
)
def test_a_group_with_a_part_that_does_not_stand_alone_stays_and_the_report_says_why(part, reason):
    graph = commutative([Argument("q")], part)
    moved, report = move(graph, "safe")
    assert moved == graph
    (kept,) = report.kept
    assert kept.reason.startswith("part 2 of the commutative group")
    assert reason in kept.reason
    assert kept.reason in report.render()


def test_a_value_made_elsewhere_keeps_a_group_in_place():
    b = GraphBuilder("f", Parameter("q"))
    b.say(Gen("x"))
    for op in group([Variable(NodeValue(0, "x"))], [ConstantText("rules")]):
        b.add(op)
    graph = b.build()
    moved, report = move(graph, "safe")
    assert moved == graph
    assert RULES["value"] in report.kept[0].reason


def test_aggressive_sorts_groups_too_and_then_the_text_inside_a_part():
    part = [Argument("q"), ConstantText("inside ")]
    moved, report = move(commutative(part, [ConstantText("rules ")]), "aggressive", codec=CODEC)
    mark = "<CommutativeMark>"
    assert text_of(moved) == f"{mark}rules {mark}inside {{q}}{mark}<Gen>"
    assert len(report.moved) == 2
    assert report.gained_tokens == len("rules inside ")


# ---- properties ------------------------------------------------------------------------------------------------------

OPS = st.one_of(
    st.integers(0, 9).map(lambda number: ConstantText(f"text {number}. ")),
    st.sampled_from(["a", "b", "c"]).map(Argument),
)
BARRIERS = st.sampled_from([[Gen("x")], [Image("p")], [RawText("r")], [ScopeBegin("v"), ScopeEnd("v")], [Prefetch()]])


@st.composite
def templates(draw):
    """Text and arguments with barriers between, now and then inside turns."""
    b = GraphBuilder("random", *(Parameter(name) for name in "abc"))
    for _ in range(draw(st.integers(1, 4))):
        role = draw(st.sampled_from([None, "user", "assistant"]))
        b.say(*draw(st.lists(OPS, max_size=5)), role=role)
        for op in draw(st.one_of(st.just([]), BARRIERS)):
            b.add(op)
    return b.build()


def between_barriers(graph):
    """Everything that is no text or argument in order, with the multiset of what stands between two of them."""
    found = [Counter()]
    for node in graph.of_stream(0):
        if isinstance(node.op, ConstantText | Argument):
            found[-1][node] += 1
        else:
            found += [node.id, Counter()]
    return found


class Shuffling:
    """Proposes anything, legal or not."""

    def __init__(self, rng):
        self.rng = rng

    def propose(self, region):
        order = self.rng.sample(region.ids, len(region.ids))
        return self.rng.choice([order, order, order[1:], [*order, order[0]], [region.ids[0] + 1000, *order]])


@settings(max_examples=200, deadline=None)
@given(graph=templates(), seed=st.integers(0, 2**16))
def test_whatever_is_proposed_the_nodes_and_the_barriers_stay(graph, seed):
    proposer = Shuffling(random.Random(seed))
    moved, report = move(graph, "aggressive", proposer=proposer, codec=CODEC)
    assert between_barriers(moved) == between_barriers(graph)
    assert all(gain is not None and gain >= 0 for gain in (region.gained_tokens for region in report.moved))
    assert all(kept.rule in {"", "dropped", "doubled", "added"} for kept in report.kept)


@settings(max_examples=200, deadline=None)
@given(graph=templates(), seed=st.integers(0, 2**16))
def test_an_order_of_a_whole_stream_is_accepted_exactly_if_it_keeps_the_barriers(graph, seed):
    rng = random.Random(seed)
    nodes = list(graph.nodes)
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(nodes)) if nodes else 0
        nodes[i : i + 3] = rng.sample(nodes[i : i + 3], len(nodes[i : i + 3]))
    ordered: Graph = replace(graph, nodes=tuple(nodes))
    try:
        check_order(graph, nodes)
        accepted = True
    except MoveError:
        accepted = False
    assert accepted == (bool(nodes) and between_barriers(ordered) == between_barriers(graph))


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(OPS, min_size=1, max_size=6), seed=st.integers(0, 2**16))
def test_constants_first_never_costs_a_token_where_text_does_not_merge(parts, seed):
    b = GraphBuilder("random", *(Parameter(name) for name in "abc"))
    b.say(*parts, Gen("x"))
    graph = b.build()
    moved, _ = move(graph, "aggressive", codec=CODEC)
    rng = random.Random(seed)
    sets = [{name: f"{name}{rng.randrange(4)};" for name in "abc"} for _ in range(6)]

    def tokens(ordered):
        return unshared_tokens(prompt for arguments in sets for prompt in rendered_prompts(ordered, arguments, CODEC, (65,)))

    assert tokens(moved) <= tokens(graph)
