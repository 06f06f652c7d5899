"""A prefetch stands where a stream has to wait, and only there."""

import pytest

from sgl_core.language.graph import Call, Graph, Parameter
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    ConstantText,
    Gen,
    JoinedValue,
    NodeValue,
    Prefetch,
    Variable,
)
from sgl_core.language.passes import PassContext, PassReport
from sgl_core.language.passes.prefetch import run
from sgl_core.language.verifier import verify
from sgl_core.testing import ByteCodec
from sgl_core.testing.graphs import GraphBuilder

LONG = "x" * 64
"""As many tokens as a prefetch needs."""


def program() -> GraphBuilder:
    return GraphBuilder("p", Parameter("a"))


def prefetched(builder: GraphBuilder, codec: ByteCodec | None = ByteCodec()) -> tuple[Graph, PassReport]:  # noqa: B008
    graph, report = run(builder.build(), PassContext(codec))
    verify(graph)
    assert run(graph, PassContext(codec))[0] is graph
    assert tuple(node for node in graph.nodes if not is_prefetch(node)) == builder.build().nodes
    assert report.changes == len(graph.nodes) - len(builder.build().nodes)
    return graph, report


def is_prefetch(node) -> bool:
    return isinstance(node.op, Prefetch)


def waiting(graph: Graph) -> list[int]:
    """The nodes right behind a prefetch, in its stream."""
    return [
        next(node.id for node in graph.nodes[index:] if node.stream == prefetch.stream and not is_prefetch(node))
        for index, prefetch in enumerate(graph.nodes)
        if is_prefetch(prefetch)
    ]


def elsewhere(builder: GraphBuilder, name: str = "x") -> NodeValue:
    """A value that a called function makes."""
    stream = builder.call("write")
    return NodeValue(builder.say("q", Gen(name), stream=stream)[1], name)


def test_it_stands_before_text_that_another_stream_makes() -> None:
    b = program()
    value = elsewhere(b)
    _, wait, _ = b.say(LONG, Variable(value), Gen("y"))
    graph, report = prefetched(b)
    assert waiting(graph) == [wait]
    assert report.gained_tokens is None
    (node,) = filter(is_prefetch, graph.nodes)
    assert node.op == Prefetch(64)
    assert node.id == b.build().next_id()


def test_it_stands_at_the_end_of_a_called_functions_constant_beginning() -> None:
    b = program()
    value = elsewhere(b)
    stream = b.call("expand")
    _, _, wait, _ = b.say(LONG, Argument("a"), Variable(value), Gen("y"), stream=stream)
    assert waiting(prefetched(b)[0]) == [wait]


def test_it_stands_before_what_host_code_makes() -> None:
    b = program()
    called = b.add(Call(len, ("abc",)))
    _, wait, _ = b.say(LONG, Variable(NodeValue(called)), Gen("y"))
    assert waiting(prefetched(b)[0]) == [wait]


def test_it_stands_before_what_a_join_leaves_and_once_for_all_of_it() -> None:
    b = program()
    b.say("intro")
    forks = b.fork(2)
    for fork in forks:
        b.say("q", Gen("x"), stream=fork)
    join = b.join(forks[0], errors="keep")
    _, wait, _, _, _ = b.say(LONG, Variable(JoinedValue(join, "x", 0)), LONG, Variable(JoinedValue(join, "x", 1)), Gen("y"))
    assert waiting(prefetched(b)[0]) == [wait]


def test_it_stands_before_a_join_that_appends_and_not_before_one_that_gathers() -> None:
    for mode in ("concate_and_append", "gather_variable"):
        b = program()
        forks = b.fork(2)
        for fork in forks:
            b.say("q", Gen("x"), stream=fork)
        b.say(LONG)
        join = b.join(forks[0], mode)
        b.say(Gen("y"))
        graph, _ = prefetched(b)
        assert waiting(graph) == ([join] if mode == "concate_and_append" else []), mode


def test_every_value_of_a_fork_is_a_wait_of_its_own() -> None:
    b = program()
    forks = b.fork(2)
    values = [NodeValue(b.say("q", Gen("x"), stream=fork)[1], "x") for fork in forks]
    _, first, _, second, _ = b.say(LONG, Variable(values[0]), LONG, Variable(values[1]), Gen("y"))
    assert waiting(prefetched(b)[0]) == [first, second]


def test_it_does_not_stand_before_what_is_there_already() -> None:
    b = program()
    _, own = b.say("q", Gen("own"))
    (child,) = b.fork(1)
    stream = b.call("write")
    _, early, late = b.say("q", Gen("early"), Gen("late"), stream=stream)
    b.say(LONG, Variable(ArgumentValue("a")), Gen("y"), stream=stream)
    b.say(LONG, Variable(NodeValue(own, "own")), Gen("y"))
    b.say(LONG, Variable(NodeValue(own, "own")), Gen("y"), stream=child)
    assert waiting(prefetched(b)[0]) == []
    _, wait, _, _, _ = b.say(LONG, Variable(NodeValue(late, "late")), LONG, Variable(NodeValue(early, "early")), Gen("z"))
    assert waiting(prefetched(b)[0]) == [wait]


def test_a_fork_that_began_before_its_parent_made_the_value_waits() -> None:
    b = program()
    (child,) = b.fork(1)
    _, own = b.say("q", Gen("own"))
    _, wait, _ = b.say(LONG, Variable(NodeValue(own, "own")), Gen("y"), stream=child)
    assert waiting(prefetched(b)[0]) == [wait]


def test_it_needs_new_text_since_the_last_request() -> None:
    b = program()
    value = elsewhere(b)
    b.say(LONG, Gen("y"), Variable(value), Gen("z"))
    assert waiting(prefetched(b)[0]) == []


@pytest.mark.parametrize(("codec", "stands"), [(ByteCodec(), False), (None, True)])
def test_too_little_text_is_left_to_the_run_only_while_nobody_can_count_it(codec: ByteCodec | None, stands: bool) -> None:
    b = program()
    value = elsewhere(b)
    b.at(5)
    _, wait, _ = b.say("short", Variable(value), Gen("y"))
    graph, report = prefetched(b, codec)
    assert waiting(graph) == ([wait] if stands else [])
    assert report.notes == (() if stands else (f"%{wait} (line 5) waits behind 5 new tokens: too few for a prefetch.",))


def test_text_of_unknown_length_may_be_enough() -> None:
    b = program()
    value = elsewhere(b)
    _, _, wait, _ = b.say("short", Argument("a"), Variable(value), Gen("y"))
    assert waiting(prefetched(b)[0]) == [wait]


def test_a_request_must_follow_that_needs_it_in_the_stream_or_in_a_fork() -> None:
    b = program()
    value = elsewhere(b)
    _, wait = b.say(LONG, Variable(value))
    assert waiting(prefetched(b)[0]) == []
    b.say(Gen("y"), stream=b.fork(1)[0])
    assert waiting(prefetched(b)[0]) == [wait]


def test_the_context_says_how_much_is_worth_it() -> None:
    b = program()
    value = elsewhere(b)
    b.add(ConstantText("12345"))
    b.say(Variable(value), Gen("y"))
    graph, _ = run(b.build(), PassContext(ByteCodec(), min_prefetch_tokens=5))
    assert [node.op for node in graph.nodes if is_prefetch(node)] == [Prefetch(5)]


def test_behind_a_join_that_appends_the_values_of_its_forks_are_there() -> None:
    b = program()
    (fork,) = b.fork(1)
    _, gen = b.say("q", Gen("x"), stream=fork)
    b.say(LONG)
    join = b.join(fork, "concate_and_append")
    b.say(LONG, Variable(NodeValue(gen, "x")), Gen("y"))
    assert waiting(prefetched(b)[0]) == [join]


def test_unknown_text_counts_until_the_next_request() -> None:
    b = program()
    value = elsewhere(b)
    _, _, _, wait, _ = b.say(Argument("a"), "short", "er", Variable(value), Gen("y"))
    other = elsewhere(b)
    b.say("short", Variable(other), Gen("z"))
    assert waiting(prefetched(b)[0]) == [wait]
