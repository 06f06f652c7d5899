"""A request is the last to use its prompt if nothing that the program asks for later begins with it."""

from sgl_core.language.ir import Fork, Gen, NodeValue, Select, Variable
from sgl_core.language.passes import PassContext
from sgl_core.language.passes.last_use import run
from sgl_core.language.verifier import verify
from sgl_core.testing.graphs import GraphBuilder


def last_uses(builder: GraphBuilder) -> set[int]:
    graph, report = run(builder.build(), PassContext())
    verify(graph)
    assert run(graph, PassContext())[0] is graph
    marked = {node.id for node in graph.nodes if node.last_use}
    assert report.changes == len(marked)
    return marked


def test_the_last_request_of_a_stream_is_a_last_use() -> None:
    b = GraphBuilder("p")
    _, _, _, choice, _ = b.say("q", Gen("x"), "then", Select("y", ("a", "b"), "token_length_normalized"), "end")
    assert last_uses(b) == {choice}


def test_a_fork_that_asks_extends_what_stands_before_it() -> None:
    b = GraphBuilder("p")
    b.say("q", Gen("x"))
    gens = {b.say("f", Gen("y"), stream=stream)[1] for stream in b.fork(2)}
    assert last_uses(b) == gens


def test_a_fork_of_a_fork_extends_too() -> None:
    b = GraphBuilder("p")
    b.say("q", Gen("x"))
    (inner,) = b.fork(1, b.fork(1)[0])
    _, gen = b.say("f", Gen("y"), stream=inner)
    assert last_uses(b) == {gen}


def test_a_fork_that_asks_nothing_extends_nothing() -> None:
    b = GraphBuilder("p")
    _, gen = b.say("q", Gen("x"))
    b.say("text", stream=b.fork(1)[0])
    assert last_uses(b) == {gen}


def test_a_fork_that_started_before_the_request_does_not_extend_it() -> None:
    b = GraphBuilder("p")
    (child,) = b.fork(1)
    _, gen = b.say("q", Gen("x"))
    _, other = b.say("f", Variable(NodeValue(gen, "x")), Gen("y"), stream=child)[1:]
    assert last_uses(b) == {gen, other}


def test_text_that_a_join_appends_is_computed_again() -> None:
    b = GraphBuilder("p")
    b.say("q")
    (child,) = b.fork(1)
    _, inner = b.say("f", Gen("x"), stream=child)
    b.join(child, "concate_and_append")
    (last,) = b.say(Gen("y"))
    assert last_uses(b) == {inner, last}


def test_a_gen_whose_equal_is_extended_is_no_last_use() -> None:
    b = GraphBuilder("p")
    one, other = b.fork(2)
    _, first = b.say("q", Gen("x"), stream=one)
    b.say("q", stream=other)
    b.add(Gen("x"), other, same_as=first)
    _, last = b.say("then", Gen("y"), stream=other)
    assert last_uses(b) == {last}


def test_a_graph_without_requests_stays_as_it_is() -> None:
    b = GraphBuilder("p")
    b.add(Fork(0))
    b.say("text")
    assert run(b.build(), PassContext())[1].gained_tokens == 0
