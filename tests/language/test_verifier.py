"""Every rule of graphs: graphs that keep it pass, one change that breaks it is named."""

from dataclasses import replace

import pytest

from sgl_core.errors import GraphError
from sgl_core.language.graph import (
    Call,
    GetForkItem,
    Graph,
    GraphNode,
    GraphStream,
    Join,
    Parameter,
    Read,
    SetVar,
    StreamBegin,
    StreamKind,
    StreamState,
)
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    CommutativeMark,
    ConstantText,
    ExprList,
    Fork,
    Gen,
    JoinedValue,
    NodeValue,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Variable,
)
from sgl_core.language.verifier import RULES, verify
from sgl_core.testing.graphs import GraphBuilder, essay_judge_graph, roles_graph, tip_suggestion_graph

METHOD = "token_length_normalized"
GEN = Gen("v", {"max_new_tokens": 4})


def builder() -> GraphBuilder:
    return GraphBuilder("program", Parameter("x"), file="program.py", fixed=1)


def with_nodes(*ops, **annotations) -> Graph:
    b = builder()
    for op in ops:
        b.add(op)
    graph = b.build()
    if annotations:
        graph = replace(graph, nodes=(*graph.nodes[:-1], replace(graph.nodes[-1], **annotations)))
    return graph


def broken_rule(graph: Graph) -> str:
    with pytest.raises(GraphError) as raised:
        verify(graph)
    rule = str(raised.value).partition(":")[0]
    assert rule in RULES
    return rule


def forked(*, errors="raise", mode="gather_variable", after=(), name="v") -> Graph:
    """Two forks that set ``v``, joined, and ``after`` behind that: pairs of stream and node."""
    b = builder()
    forks = b.fork(2)
    for fork in forks:
        b.add(Gen(name, {}), fork)
    b.join(forks[0], mode, errors)
    for stream, op in after:
        b.add(op, stream)
    return b.build()


@pytest.mark.parametrize("make", [essay_judge_graph, tip_suggestion_graph, roles_graph, forked])
def test_what_programs_make_keeps_the_rules(make):
    verify(make())


def test_ids_with_gaps_are_fine():
    graph = essay_judge_graph()
    verify(replace(graph, nodes=tuple(node for node in graph.nodes if not isinstance(node.op, ConstantText))))


def test_the_error_names_the_node_and_its_line():
    b = builder()
    b.at(7, 's += s["v"]')
    b.add(Variable(NodeValue(5, "v")))
    with pytest.raises(GraphError, match=r'^values: %0 = Variable: no earlier node is %5 \(program.py:7: s \+= s\["v"\]\)$'):
        verify(b.build())


# ---- ids and streams -------------------------------------------------------------------------------------------------
def test_two_nodes_with_one_id_are_refused():
    graph = with_nodes(ConstantText("a"), ConstantText("b"))
    assert broken_rule(replace(graph, nodes=(graph.nodes[0], replace(graph.nodes[1], id=0)))) == "ids"


@pytest.mark.parametrize("node_id", [-1, True, "1"])
def test_an_id_is_a_number_of_at_least_0(node_id):
    graph = with_nodes(ConstantText("a"))
    assert broken_rule(replace(graph, nodes=(replace(graph.nodes[0], id=node_id),))) == "ids"


ROOT = GraphStream(0, StreamKind.ROOT, (), None)


@pytest.mark.parametrize(
    ("streams", "rule"),
    [
        ((), "streams"),
        ((replace(ROOT, id=1),), "ids"),
        ((replace(ROOT, kind=StreamKind.FORK),), "streams"),
        ((replace(ROOT, path=(0,)),), "streams"),
        ((replace(ROOT, parent=0),), "streams"),
        ((ROOT, GraphStream(1, StreamKind.ROOT, (0,), 0)), "streams"),
        ((ROOT, GraphStream(1, StreamKind.CALL, (0,), None)), "streams"),
        ((ROOT, GraphStream(1, StreamKind.CALL, (0,), 1)), "streams"),
        ((ROOT, GraphStream(1, StreamKind.CALL, (0, 0), 0)), "streams"),
        ((ROOT, GraphStream(1, StreamKind.CALL, (), 0)), "streams"),
        ((ROOT, GraphStream(1, StreamKind.CALL, (0,), 0), GraphStream(2, StreamKind.CALL, (0,), 0)), "streams"),
    ],
)
def test_streams_are_in_order_and_their_paths_extend_their_parents(streams, rule):
    nodes = tuple(GraphNode(stream.id, stream.id, StreamBegin("f")) for stream in streams[1:])
    assert broken_rule(Graph("program", (), {}, streams, nodes)) == rule


def test_a_node_of_a_stream_that_is_not_there_is_refused():
    graph = with_nodes(ConstantText("a"))
    assert broken_rule(replace(graph, nodes=(replace(graph.nodes[0], stream=3),))) == "streams"


# ---- how streams begin -----------------------------------------------------------------------------------------------
def test_a_stream_without_nodes_is_refused():
    graph = with_nodes(ConstantText("a"))
    assert broken_rule(replace(graph, streams=(ROOT, GraphStream(1, StreamKind.CALL, (0,), 0)))) == "begin"


@pytest.mark.parametrize("kind", [StreamKind.CALL, StreamKind.FORK])
def test_a_stream_begins_as_its_kind_says(kind):
    graph = Graph("program", (), {}, (ROOT, GraphStream(1, kind, (0,), 0)), (GraphNode(0, 1, ConstantText("a")),))
    assert broken_rule(graph) == "begin"


def test_a_stream_begins_once():
    b = builder()
    b.add(StreamBegin("f"), b.call("f"))
    assert broken_rule(b.build()) == "begin"
    assert broken_rule(with_nodes(StreamBegin("f"))) == "begin"


def test_a_call_begins_behind_the_beginning_of_its_parent():
    b = builder()
    outer = b.call("f")
    b.call("g", outer)
    graph = b.build()
    verify(graph)
    assert broken_rule(replace(graph, nodes=graph.nodes[::-1])) == "begin"


# ---- forks -----------------------------------------------------------------------------------------------------------
def test_a_fork_without_all_of_its_streams_is_refused():
    assert broken_rule(with_nodes(Fork(1))) == "forks"


def test_a_huge_fork_is_refused_at_once():
    assert broken_rule(with_nodes(Fork(2**31 - 1))) == "forks"


@pytest.mark.parametrize("indices", [(0, 0), (1, 0), (0, 2)])
def test_every_stream_of_a_fork_begins_once_in_order(indices):
    b = builder()
    b.fork(2)
    graph = b.build()
    items = tuple(replace(node, op=GetForkItem(0, i)) for node, i in zip(graph.nodes[1:], indices, strict=True))
    assert broken_rule(replace(graph, nodes=(graph.nodes[0], *items))) == "forks"


def test_paths_of_a_fork_are_in_its_order():
    b = builder()
    b.fork(2)
    graph = b.build()
    first, second = (replace(s, path=(1 - s.path[0],)) for s in graph.streams[1:])
    assert broken_rule(replace(graph, streams=(ROOT, first, second))) == "forks"


def test_a_stream_is_forked_from_an_earlier_node_of_its_parent():
    b = builder()
    outer = b.fork(1)
    b.fork(1, outer[0])
    graph = b.build()
    verify(graph)
    assert broken_rule(replace(graph, nodes=(*graph.nodes[:3], replace(graph.nodes[3], op=GetForkItem(0, 0))))) == "forks"
    assert broken_rule(replace(graph, nodes=graph.nodes[::-1])) == "forks"


# ---- joins -----------------------------------------------------------------------------------------------------------
def test_a_join_names_a_fork_of_its_own_stream():
    assert broken_rule(with_nodes(Join(0))) == "joins"
    b = builder()
    forks = b.fork(1)
    b.add(Join(b.node_of_fork(forks[0])), forks[0])
    assert broken_rule(b.build()) == "joins"


def test_a_fork_is_joined_once():
    assert broken_rule(forked(after=[(0, Join(0))])) == "joins"


@pytest.mark.parametrize("op", [ConstantText("a"), GEN, SetVar("w", 1), Fork(1), RoleBegin("user")])
def test_nothing_is_added_to_a_joined_stream(op):
    assert broken_rule(forked(after=[(1, op)])) == "joins"


def test_a_joined_stream_may_still_be_read_and_called_on():
    verify(forked(after=[(1, Read(NodeValue(3, "v"))), (1, Call(len, (NodeValue(3, "v"),)))]))


def joined_around_an_inner_fork() -> tuple[GraphBuilder, int, int]:
    b = builder()
    (outer,) = b.fork(1)
    (inner,) = b.fork(1, outer)
    b.join(outer)
    return b, outer, inner


def test_a_fork_of_a_joined_stream_that_was_not_joined_itself_goes_on():
    b, _, inner = joined_around_an_inner_fork()
    b.add(ConstantText("a"), inner)
    verify(b.build())


def test_a_join_in_a_joined_stream_may_bring_nothing():
    b, _, inner = joined_around_an_inner_fork()
    b.join(inner)
    verify(b.build())
    b, _, inner = joined_around_an_inner_fork()
    b.add(GEN, inner)
    b.join(inner)
    assert broken_rule(b.build()) == "joins"


def test_a_join_stands_behind_the_beginning_of_all_streams():
    b = builder()
    b.join(b.fork(2)[0])
    graph = b.build()
    fork, first, second, join = graph.nodes
    assert broken_rule(replace(graph, nodes=(fork, first, join, second))) == "joins"


# ---- values ----------------------------------------------------------------------------------------------------------
def test_a_value_needs_an_earlier_node():
    assert broken_rule(with_nodes(Variable(NodeValue(1, "v")), GEN)) == "values"


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (GEN, "v"),
        (Gen("v", {}, reasoning="qwen3"), "v_reasoning_content"),
        (Select("v", ("a",), METHOD), "v"),
        (Call(len, ([],)), ""),
    ],
)
def test_a_value_has_a_name_that_its_node_defines(op, name):
    verify(with_nodes(op, Read(NodeValue(0, name))))
    assert broken_rule(with_nodes(op, Read(NodeValue(0, "another")))) == "values"


@pytest.mark.parametrize("op", [ConstantText("a"), SetVar("v", 1), ScopeBegin("v"), GEN])
def test_a_node_that_makes_no_such_value_is_no_source(op):
    assert broken_rule(with_nodes(op, ScopeEnd("v"), Read(NodeValue(0, "v_reasoning_content")))) in ("values", "scopes")
    if op is not GEN:
        assert broken_rule(with_nodes(op, Read(NodeValue(0, "v")))) in ("values", "scopes")


def test_the_text_of_a_scope_is_a_value():
    verify(with_nodes(ScopeBegin("v"), ScopeEnd("v"), Read(NodeValue(1, "v"))))


def test_values_inside_calls_and_variables_count():
    missing = NodeValue(9, "v")
    assert broken_rule(with_nodes(Call(len, ([{"a": (missing,)}],)))) == "values"
    assert broken_rule(with_nodes(Call(len, (), {"key": missing}))) == "values"
    assert broken_rule(with_nodes(SetVar("w", [missing]))) == "values"


def test_arguments_are_parameters():
    verify(with_nodes(Argument("x"), Variable(ArgumentValue("x"))))
    assert broken_rule(with_nodes(Argument("y"))) == "values"
    assert broken_rule(with_nodes(Argument("fixed"))) == "values"
    assert broken_rule(with_nodes(Read(ArgumentValue("y")))) == "values"


def test_a_joined_value_needs_a_join_that_keeps_errors():
    value = JoinedValue(5, "v", 1)
    verify(forked(errors="keep", after=[(0, Read(value))]))
    assert broken_rule(forked(errors="raise", after=[(0, Read(value))])) == "values"
    assert broken_rule(forked(errors="keep", mode="concate_and_append", after=[(0, Read(value))])) == "values"


@pytest.mark.parametrize("value", [JoinedValue(5, "v", 2), JoinedValue(5, "w", 0), JoinedValue(0, "v", 0)])
def test_a_joined_value_names_a_fork_and_a_variable_that_was_set(value):
    assert broken_rule(forked(errors="keep", after=[(0, Read(value))])) == "values"


def test_what_an_inner_join_gathers_is_set_in_its_stream():
    b = builder()
    (outer,) = b.fork(1)
    (inner,) = b.fork(1, outer)
    b.add(SetVar("v", 1), inner)
    b.join(inner)
    join = b.join(outer, errors="keep")
    b.add(Read(JoinedValue(join, "v", 0)))
    verify(b.build())


def test_automatic_variables_are_not_gathered():
    b = builder()
    (fork,) = b.fork(1)
    b.add(Gen("_unnamed_0"), fork, is_automatic=True)
    join = b.join(fork, errors="keep")
    b.add(Read(JoinedValue(join, "_unnamed_0", 0)))
    assert broken_rule(b.build()) == "values"


def test_what_is_returned_must_be_there():
    graph = with_nodes(GEN)
    verify(replace(graph, returns=[{"a": NodeValue(0, "v")}, StreamState(0), 3, ArgumentValue("x")]))
    for returns in (NodeValue(1, "v"), (StreamState(1),), ArgumentValue("y")):
        assert broken_rule(replace(graph, returns=returns)) == "values"


# ---- arguments and annotations ---------------------------------------------------------------------------------------
def test_an_argument_is_there_once_and_not_static_too():
    graph = with_nodes()
    assert broken_rule(replace(graph, parameters=(Parameter("x"), Parameter("x")))) == "arguments"
    assert broken_rule(replace(graph, parameters=(Parameter("fixed"),))) == "arguments"


def test_indices_of_generations_grow_and_may_have_gaps():
    verify(with_nodes(GEN, Select("w", ("a",), METHOD), index=5))
    assert broken_rule(with_nodes(GEN, Select("w", ("a",), METHOD), index=0)) == "annotations"


@pytest.mark.parametrize(
    "annotation", [{"index": 1}, {"is_automatic": True}, {"last_use": True}, {"commit": True}, {"same_as": 0}]
)
def test_annotations_stand_where_they_mean_something(annotation):
    assert broken_rule(with_nodes(GEN, ConstantText("a"), **annotation)) == "annotations"


def test_commit_is_for_a_fork_and_not_for_a_generation():
    b = builder()
    b.fork(2, commit=True)
    verify(b.build())
    assert broken_rule(with_nodes(GEN, commit=True)) == "annotations"


def test_same_as_names_an_earlier_generation_that_differs_in_its_name_at_most():
    verify(with_nodes(GEN, replace(GEN, name="w"), same_as=0))
    assert broken_rule(with_nodes(GEN, replace(GEN, options={}), same_as=0)) == "annotations"
    assert broken_rule(with_nodes(GEN, replace(GEN, heal=False), same_as=0)) == "annotations"
    assert broken_rule(with_nodes(GEN, GEN, same_as=1)) == "annotations"
    assert broken_rule(with_nodes(ConstantText("a"), GEN, same_as=0)) == "annotations"


# ---- turns, scopes, commutative parts --------------------------------------------------------------------------------
def test_turns_do_not_nest():
    assert broken_rule(with_nodes(RoleBegin("user"), RoleBegin("user"))) == "turns"


@pytest.mark.parametrize("ops", [(RoleEnd("user"),), (RoleBegin("user"), RoleEnd("system"))])
def test_only_the_open_turn_is_closed(ops):
    assert broken_rule(with_nodes(*ops)) == "turns"


def test_a_turn_may_stay_open():
    verify(with_nodes(RoleBegin("user")))


def test_a_fork_inherits_the_open_turn_of_the_place_where_it_was_made():
    b = builder()
    b.add(RoleBegin("user"))
    first, second = b.fork(2)
    b.add(RoleEnd("user"))
    b.add(RoleEnd("user"), first)
    verify(b.build())
    b.add(RoleBegin("user"), second)
    assert broken_rule(b.build()) == "turns"


def test_a_call_begins_outside_of_turns():
    b = builder()
    b.add(RoleBegin("user"))
    stream = b.call("f")
    b.add(RoleBegin("user"), stream)
    verify(b.build())


def test_after_forks_that_leave_turns_were_appended_any_turn_may_follow():
    b = builder()
    b.add(RoleBegin("user"))
    (fork,) = b.fork(1)
    b.add(RoleEnd("user"), fork)
    b.join(fork, "concate_and_append")
    (late,) = b.fork(1)
    b.add(RoleBegin("assistant"), late)
    b.add(RoleBegin("assistant"))
    verify(b.build())
    b.add(RoleBegin("user"))
    assert broken_rule(b.build()) == "turns"


def test_captures_end_in_the_stream_that_began_them():
    verify(with_nodes(ScopeBegin("a"), ScopeBegin("b"), ScopeBegin("a"), ScopeEnd("a"), ScopeEnd("b"), ScopeEnd("a")))
    assert broken_rule(with_nodes(ScopeBegin("a"))) == "scopes"
    assert broken_rule(with_nodes(ScopeBegin("a"), ScopeEnd("b"))) == "scopes"
    b = builder()
    b.add(ScopeBegin("a"))
    b.add(ScopeEnd("a"), b.fork(1)[0])
    assert broken_rule(b.build()) == "scopes"


def marks(*places):
    return with_nodes(*(CommutativeMark(place) for place in places))


def test_commutative_parts_begin_and_end_and_do_not_nest():
    verify(marks("begin", "next", "next", "end", "begin", "end"))
    for places in (("begin",), ("next",), ("end",), ("begin", "begin", "end"), ("begin", "end", "next")):
        assert broken_rule(marks(*places)) == "commutative"


# ---- nodes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "op",
    [
        Gen(None),
        Gen(""),
        Select(None, ("a",), METHOD),
        Select("v", (), METHOD),
        Select("v", ("a", ""), METHOD),
        Select("v", ("a",), "best"),
        Fork(0),
        Join(0, mode="some"),
        Join(0, errors="some"),
        CommutativeMark("middle"),
        Call("len"),
        ExprList(()),
    ],
)
def test_a_node_that_cannot_be_run_is_refused(op):
    assert broken_rule(with_nodes(op)) == "nodes"
