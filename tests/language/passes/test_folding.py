"""Folding changes how a program says something, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from sgl_core.language.graph import Call, Graph, Join, Read, SetVar
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    CommutativeMark,
    ConstantText,
    Fork,
    Gen,
    JoinedValue,
    NodeValue,
    RawText,
    RoleBegin,
    Variable,
)
from sgl_core.language.passes import PassContext
from sgl_core.language.passes.base import is_checkpoint
from sgl_core.language.passes.folding import run
from sgl_core.language.verifier import verify
from sgl_core.testing.graphs import GraphBuilder


def folded(builder: GraphBuilder) -> Graph:
    graph, report = run(builder.build(), PassContext())
    verify(graph)
    assert report.changes == len(builder.build().nodes) - len(graph.nodes)
    assert run(graph, PassContext())[0] is graph
    return graph


def texts(graph: Graph, stream: int = 0) -> list[str]:
    return [node.op.text for node in graph.of_stream(stream) if isinstance(node.op, ConstantText)]


def reads(graph: Graph) -> list[int]:
    return [node.id for node in graph.nodes if isinstance(node.op, Read)]


def test_neighbouring_constants_become_one_with_the_id_and_place_of_the_first() -> None:
    b = GraphBuilder("p")
    b.at(2)
    b.add(ConstantText("a"))
    b.at(3)
    b.add(ConstantText("b"))
    b.add(ConstantText("c"))
    (node,) = folded(b).nodes
    assert (node.id, node.op, node.place.line) == (0, ConstantText("abc"), 2)


def test_empty_text_goes() -> None:
    b = GraphBuilder("p")
    b.say("", Gen("x"), "")
    assert [type(node.op) for node in folded(b).nodes] == [Gen]


def test_what_stands_between_in_the_same_stream_keeps_constants_apart() -> None:
    for between in (Gen("x"), Argument("a"), RawText("r"), RoleBegin("user"), Fork(1), CommutativeMark("next"), SetVar("v", 1)):
        b = GraphBuilder("p")
        b.say("a", between, "b")
        assert texts(run(b.build(), PassContext())[0]) == ["a", "b"], between


def test_another_streams_nodes_between_do_not_matter() -> None:
    b = GraphBuilder("p")
    first, second = b.fork(2)
    for stream in (first, second, first, second):
        b.say(f"{stream}", stream=stream)
        b.say(Gen("_"), stream=0)
    graph = folded(b)
    assert texts(graph, first) == [f"{first}{first}"]
    assert texts(graph, second) == [f"{second}{second}"]


def test_text_stays_behind_a_checkpoint_of_another_stream() -> None:
    b = GraphBuilder("p")
    (child,) = b.fork(1)
    (gen,) = b.say("q", Gen("x"), stream=child)[1:]
    b.say("a")
    b.add(Read(NodeValue(gen, "x")), child)
    b.say("b")
    assert texts(folded(b)) == ["a", "b"]


def test_a_second_read_of_a_value_goes() -> None:
    b = GraphBuilder("p")
    _, gen = b.say("q", Gen("x"))
    value = NodeValue(gen, "x")
    first = b.add(Read(value))
    b.say("more")
    b.add(Read(value))
    assert reads(folded(b)) == [first]


def test_reads_of_what_cannot_have_failed_go() -> None:
    b = GraphBuilder("p")
    kept_fork, raising_fork = b.fork(2), b.fork(2)
    kept = [b.say("q", Gen("x"), stream=stream)[1] for stream in kept_fork]
    raising = [b.say("q", Gen("y"), stream=stream)[1] for stream in raising_fork]
    keep = b.join(kept_fork[0], errors="keep")
    b.join(raising_fork[0])
    called = b.add(Call(len, ("abc",)))
    for value in (ArgumentValue("a"), JoinedValue(keep, "x", 0), NodeValue(raising[1], "y"), NodeValue(called)):
        b.add(Read(value))
    needed = b.add(Read(NodeValue(kept[0], "x")))
    b.add(Read(NodeValue(kept[0], "x")))
    graph, _ = run(b.build(), PassContext())
    assert reads(graph) == [needed]


def test_a_read_right_before_a_call_on_that_value_alone_goes() -> None:
    b = GraphBuilder("p")
    _, gen = b.say("q", Gen("x"))
    value = NodeValue(gen, "x")
    b.add(Read(value))
    b.add(Call(str.strip, (value,)))
    assert reads(folded(b)) == []


def test_a_read_before_a_call_stays_if_anything_else_may_fail_first_or_run_in_vain() -> None:
    for extra in ("another argument", "text between"):
        b = GraphBuilder("p")
        _, gen, other = b.say("q", Gen("x"), Gen("y"))
        value = NodeValue(gen, "x")
        read = b.add(Read(value))
        if extra == "text between":
            b.say("text")
            b.add(Call(str.strip, (value,)))
        else:
            b.add(Call(max, (NodeValue(other, "y"), value)))
        assert reads(folded(b)) == [read], extra


KINDS = ("text", "empty", "read", "argument", "variable", "gen", "join")


@st.composite
def programs(draw: st.DrawFn) -> Graph:
    b = GraphBuilder("p")
    streams = [0, *b.fork(2)]
    made: list[NodeValue] = []
    joined = False
    for index, kind in enumerate(draw(st.lists(st.sampled_from(KINDS), max_size=30))):
        stream = 0 if joined else draw(st.sampled_from(streams))
        if kind in ("text", "empty"):
            b.say("" if kind == "empty" else f"[{index}]", stream=stream)
        elif kind == "argument":
            b.say(Argument("a"), stream=stream)
        elif kind == "gen":
            made.append(NodeValue(*b.say(Gen(f"v{index}"), stream=stream), f"v{index}"))
        elif kind == "join" and not joined:
            joined = True
            b.join(streams[1])
        elif kind in ("read", "variable") and made:
            value = draw(st.sampled_from(made))
            b.add(Read(value) if kind == "read" else Variable(value), stream)
    return b.build()


def appended_before(graph: Graph, node_id: int | None) -> dict[int, list[object]]:
    """What each stream has appended when the body stands before a node, neighbouring constants as one."""
    found: dict[int, list[object]] = {}
    for node in graph.nodes:
        if node.id == node_id:
            break
        items = found.setdefault(node.stream, [])
        if not isinstance(node.op, ConstantText):
            if not isinstance(node.op, Read | Join):
                items.append(node.id)
        elif items and isinstance(items[-1], str):
            items[-1] += node.op.text
        elif node.op.text:
            items.append(node.op.text)
    return {stream: items for stream, items in found.items() if items}


@given(programs())
def test_every_stream_has_appended_the_same_wherever_the_body_may_fail(graph: Graph) -> None:
    after, _ = run(graph, PassContext())
    checkpoints = [node.id for node in after.nodes if is_checkpoint(node.op)]
    for node_id in (*checkpoints, None):
        assert appended_before(after, node_id) == appended_before(graph, node_id)


@given(programs())
def test_every_value_that_was_read_is_still_read_before_anything_that_came_behind_its_first_read(graph: Graph) -> None:
    after, _ = run(graph, PassContext())
    joins = [index for index, node in enumerate(graph.nodes) if isinstance(node.op, Join)]
    kept = {node.id for node in after.nodes}
    seen = set()
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, Read) and node.op.source not in seen:
            seen.add(node.op.source)
            is_joined = any(join < index for join in joins) and graph.node(node.op.source.node).stream != 0
            assert (node.id in kept) != is_joined


def test_a_read_of_what_a_call_has_taken_goes() -> None:
    b = GraphBuilder("p")
    _, gen = b.say("q", Gen("x"))
    b.add(Call(str.strip, (NodeValue(gen, "x"),)))
    b.say("text")
    b.add(Read(NodeValue(gen, "x")))
    assert reads(folded(b)) == []
