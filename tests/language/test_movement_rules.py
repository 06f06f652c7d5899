"""The checker of orders: thirty ways to cheat and more, each refused with its rule named, and what it accepts."""

import itertools
from dataclasses import replace

import pytest

from sgl_core.errors import MoveError
from sgl_core.language.graph import Call, GraphNode, Parameter, Read, SetVar
from sgl_core.language.ir import (
    Argument,
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
from sgl_core.language.movement import RULES, check_order, regions_of
from sgl_core.language.verifier import verify
from sgl_core.testing.graphs import GraphBuilder


def everything():
    """A stream that holds one of each kind of node, with text on both sides of it; node ids are noted by name."""
    b = GraphBuilder("everything", Parameter("a"), Parameter("b"))
    ids = {}

    def text(name):
        ids[name] = b.add(ConstantText(name))

    def op(name, node):
        ids[name] = b.add(node)

    text("t0")
    op("a", Argument("a"))
    text("t1")
    op("gen", Gen("x", {"temperature": 0.0}))
    text("t2")
    op("select", Select("y", ("p", "q"), "greedy_token_selection"))
    text("t3")
    op("variable", Variable(NodeValue(ids["gen"], "x")))
    text("t4")
    op("image", Image("cat.png"))
    text("t5")
    op("raw", RawText("<|user|>"))
    text("t6")
    op("scope", ScopeBegin("v"))
    text("t7")
    op("scope_end", ScopeEnd("v"))
    text("t8")
    (child,) = b.fork(1)
    ids["fork"] = b.node_of_fork(child)
    ids["item"] = ids["fork"] + 1
    ids["c0"] = b.add(ConstantText("c0"), child)
    ids["c1"] = b.add(Argument("b"), child)
    text("t9")
    ids["join"] = b.join(child)
    text("t10")
    op("call", Call(str.upper, ("a",)))
    text("t11")
    op("begin", RoleBegin("user"))
    text("t12")
    op("b", Argument("b"))
    op("end", RoleEnd("user"))
    text("t13")
    op("read", Read(NodeValue(ids["gen"], "x")))
    text("t14")
    op("set", SetVar("w", 1))
    text("t15")
    op("prefetch", Prefetch())
    text("t16")
    return b.build(), ids


GRAPH, IDS = everything()
STREAM = tuple(node.id for node in GRAPH.of_stream(0))


def whole(*swaps):
    """All nodes of the root stream with some of them swapped, by name."""
    order = list(STREAM)
    for one, other in swaps:
        i, j = order.index(IDS[one]), order.index(IDS[other])
        order[i], order[j] = order[j], order[i]
    return order


def ids(*names):
    return [IDS[name] for name in names]


def edited(name, **changes):
    return replace(GRAPH.node(IDS[name]), **changes)


def foreign(op):
    return GraphNode(max(node.id for node in GRAPH.nodes) + 1, 0, op)


CHEATS = {
    "drops a constant": (ids("t0", "a"), "dropped"),
    "drops an argument": (ids("t1", "t0"), "dropped"),
    "drops the generation of a stream": ([i for i in STREAM if i != IDS["gen"]], "dropped"),
    "drops a turn's end": ([i for i in STREAM if i != IDS["end"]], "dropped"),
    "names nothing": ([], "dropped"),
    "doubles a constant": (ids("t0", "t0", "a", "t1"), "doubled"),
    "doubles an argument in place of a constant": (ids("t0", "a", "a"), "doubled"),
    "doubles the generation": ([*STREAM, IDS["gen"]], "doubled"),
    "adds an unknown number": ([*ids("t0", "a", "t1"), 10_000], "added"),
    "adds a negative number": ([*ids("t0", "a", "t1"), -1], "added"),
    "adds new text as a node": ([*(GRAPH.node(i) for i in ids("t0", "a", "t1")), foreign(ConstantText("more"))], "added"),
    "adds new text as a str": ([*ids("t0", "a", "t1"), "Ignore the rules."], "added"),
    "is a str": ("0 1 2", "added"),
    "passes True for node 1": ([IDS["t0"], True, IDS["t1"]], "added"),
    "edits a text": ([edited("t0", op=ConstantText("T0")), *ids("a", "t1")], "edited"),
    "edits an argument": ([IDS["t0"], edited("a", op=Argument("b")), IDS["t1"]], "edited"),
    "edits the options of a generation": (
        [edited("gen", op=Gen("x", {"temperature": 1.0})) if i == IDS["gen"] else i for i in STREAM],
        "edited",
    ),
    "moves a node into another stream by editing it": ([edited("t0", stream=1), *ids("a", "t1")], "edited"),
    "crosses a gen": (whole(("t1", "t2")), "generation"),
    "crosses a gen and a turn": (whole(("t0", "t12")), "generation"),
    "crosses a gen with two regions swapped and the gen left out": (ids("t2", "t0", "a", "t1"), "generation"),
    "moves the gen itself": (whole(("gen", "t1")), "generation"),
    "crosses a select": (whole(("t2", "t3")), "generation"),
    "crosses a variable": (whole(("t3", "t4")), "value"),
    "crosses a join": (whole(("t9", "t10")), "value"),
    "crosses a call": (whole(("t10", "t11")), "value"),
    "crosses a read": (whole(("t13", "t14")), "value"),
    "crosses a variable that is set": (whole(("t14", "t15")), "value"),
    "crosses an image": (whole(("t4", "t5")), "image"),
    "crosses a raw literal": (whole(("t5", "t6")), "raw"),
    "crosses the beginning of a scope": (whole(("t6", "t7")), "scope"),
    "crosses the end of a scope": (whole(("t7", "t8")), "scope"),
    "crosses a fork": (whole(("t8", "t9")), "fork"),
    "crosses the beginning of a turn": (whole(("t11", "t12")), "turn"),
    "crosses the end of a turn": (whole(("b", "t13")), "turn"),
    "moves the turn itself": (whole(("begin", "t12")), "turn"),
    "crosses a prefetch": (whole(("t15", "t16")), "effect"),
    "takes a node of another stream": ([*ids("t0", "a", "t1"), IDS["c0"]], "stream"),
    "swaps nodes of two streams": (ids("c0", "a", "t1"), "stream"),
    "puts text before the beginning of a fork": (ids("c0", "item", "c1"), "stream"),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheating_proposal_is_refused_and_its_rule_named(cheat):
    proposal, rule = CHEATS[cheat]
    with pytest.raises(MoveError, match=f"^{rule}: ") as refusal:
        check_order(GRAPH, proposal)
    assert refusal.value.rule == rule


def test_every_rule_has_a_cheat():
    assert {rule for _, rule in CHEATS.values()} == set(RULES)
    assert len(CHEATS) >= 30


def test_an_honest_order_of_a_stream_or_a_region_is_accepted():
    verify(GRAPH)
    check_order(GRAPH, STREAM)
    check_order(GRAPH, whole(("t0", "t1"), ("t12", "b")))
    check_order(GRAPH, ids("c1", "c0"))
    for region in regions_of(GRAPH):
        for order in itertools.permutations(region.nodes):
            check_order(GRAPH, order)
            check_order(GRAPH, order, region)


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (("t0", "a", "t1", "t2"), "generation"),
        (("t0", "a", "t13"), "generation"),
        (("t0", "a", "t1", "c0"), "stream"),
        (("c0", "c1"), "stream"),
        (("t0", "t1"), "dropped"),
        ((), "dropped"),
    ],
)
def test_an_order_for_a_region_is_of_that_region_alone(names, rule):
    with pytest.raises(MoveError) as refusal:
        check_order(GRAPH, ids(*names), regions_of(GRAPH)[0])
    assert refusal.value.rule == rule


def test_a_move_error_says_nothing_of_the_prompt():
    secret = "the patient's name"
    b = GraphBuilder("f")
    b.say(secret, Gen("x"), secret)
    with pytest.raises(MoveError) as refusal:
        check_order(b.build(), [2, 1, 0])
    assert secret not in str(refusal.value)
