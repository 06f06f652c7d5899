"""Prefixes are the very ids that requests begin with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_core import language as sgl
from sgl_core.errors import TemplateError
from sgl_core.language.graph import Parameter, SetVar
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    Gen,
    Image,
    NodeValue,
    RawText,
    RoleBegin,
    RoleEnd,
    Select,
    Variable,
)
from sgl_core.language.passes import PassContext
from sgl_core.language.passes.prefixes import constant_prefixes, distinct_tokens, known_prefixes, run
from sgl_core.language.position import Position
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_core.testing.graphs import GraphBuilder, essay_judge_graph

METHOD = "token_length_normalized"
BEGIN = 256


def prefix(*parts, codec: ByteCodec | None = None, **arguments) -> tuple[int, ...]:
    """The known prefix of a program that says ``parts``."""
    b = GraphBuilder("p", Parameter("a"), Parameter("d", "default", True))
    b.say(*parts)
    return known_prefixes(b.build(), codec or ByteCodec(), arguments)[0]


def ids(text: str) -> tuple[int, ...]:
    return (BEGIN, *text.encode())


def test_constant_text_up_to_the_first_thing_that_a_run_decides() -> None:
    b = GraphBuilder("p")
    value = NodeValue(b.say("q", Gen("x"), stream=b.call("f"))[1], "x")
    for unknown in (Argument("a"), Variable(ArgumentValue("a")), Variable(value), Image("a.png"), Gen("y", heal=False)):
        assert prefix("ab", SetVar("v", 1), "c", unknown, "d") == ids("abc"), unknown


def test_turns_and_literals_belong_to_it(merging_codec: ByteCodec) -> None:
    program = (RoleBegin("user"), "abc", RoleEnd("user"), RawText("<|end_user|>x"), "yz", Argument("a"))
    position = Position().open_turn("user", merging_codec).add_text("abc").close_turn("user", merging_codec)
    expected = position.add_raw("<|end_user|>x", merging_codec).add_text("yz").stable_ids(merging_codec)
    assert prefix(*program, codec=merging_codec) == expected
    assert len(expected) > len(position.stable_ids(merging_codec))


def test_nothing_is_certain_of_a_program_that_says_nothing_yet() -> None:
    assert prefix() == ()
    assert prefix(Argument("a")) == ()


def test_arguments_and_defaults_that_are_known_go_on_with_it() -> None:
    program = ("<", Argument("a"), "|", Argument("d"), ">")
    assert prefix(*program) == ids("<")
    assert prefix(*program, a="1") == ids("<1|default>")
    assert prefix(*program, a="1", d="2") == ids("<1|2>")
    assert prefix(*program, a=1) == ids("<")


def test_constant_prefixes_know_no_defaults() -> None:
    b = GraphBuilder("p", Parameter("d", "default", True))
    b.say("<", Argument("d"), ">")
    assert constant_prefixes(b.build(), ByteCodec()) == {0: ids("<")}


def test_forks_inherit_it_and_go_on_and_calls_begin_anew() -> None:
    b = GraphBuilder("p")
    b.say("a")
    one, other = b.fork(2)
    b.say("b", stream=one)
    b.say(Argument("x"), "b", stream=other)
    (inner,) = b.fork(1, other)
    b.say("c", stream=inner)
    called = b.call("f")
    b.say("d", stream=called)
    b.say("z")
    prefixes = constant_prefixes(b.build(), ByteCodec())
    assert prefixes == {0: ids("az"), one: ids("ab"), other: ids("a"), inner: ids("a"), called: ids("d")}


def test_only_a_join_that_appends_ends_it() -> None:
    for mode, expected in (("gather_variable", "az"), ("concate_and_append", "a")):
        b = GraphBuilder("p")
        b.say("a")
        (child,) = b.fork(1)
        b.say("b", stream=child)
        b.join(child, mode)
        b.say("z")
        assert constant_prefixes(b.build(), ByteCodec())[0] == ids(expected)


def test_a_turn_that_the_template_refuses_ends_it() -> None:
    class Refusing(ByteCodec):
        def open_turn(self, role, turns):
            raise TemplateError("no such turn")

    assert prefix("abc", RoleBegin("user"), "d", codec=Refusing()) == ids("abc")


def test_before_a_gen_a_token_that_it_may_heal_is_left_out(merging_codec: ByteCodec) -> None:
    assert prefix("a ", Gen("x")) == ids("a")
    assert prefix("a ", Gen("x", heal=False)) == ids("a ")
    whole = (BEGIN, *merging_codec.encode("abcd"))
    assert prefix("abcd", Gen("x"), codec=merging_codec) == whole
    assert len(prefix("abcd", Argument("a"), codec=merging_codec)) < len(whole)


def test_before_a_choice_it_ends_where_the_choices_part() -> None:
    assert prefix("Grade: ", Select("x", ("A1", "A2"), METHOD)) == ids("Grade: ")


@sgl.function
def interview(s, name):
    s += sgl.system("Answer briefly.")
    s += sgl.user("Who is " + name + "? ")
    for fork in s.fork(2):
        fork += sgl.assistant("abc " + sgl.gen("answer"))
    s += sgl.assistant("abcd" + sgl.select("choice", ["ab", "abc"]))


def interview_graph():
    b = GraphBuilder("interview", Parameter("name"))
    b.say("Answer briefly.", role="system")
    b.say("Who is ", Argument("name"), "? ", role="user")
    for fork in b.fork(2):
        b.say("abc ", Gen("answer"), stream=fork, role="assistant")
    b.say("abcd", Select("choice", ("ab", "abc"), METHOD), role="assistant")
    return b.build()


@pytest.mark.parametrize("name", ["Ada", "", "ab"])
def test_the_requests_of_a_run_begin_with_the_prefixes_of_its_streams(merging_codec: ByteCodec, name: str) -> None:
    graph = interview_graph()
    with FakeBackend(codec=merging_codec) as backend:
        interview.run(name=name, backend=backend, max_tokens=4)
        prompts = {request.input_ids for request in (*backend.requests, *backend.scores)}
    known = known_prefixes(graph, merging_codec, {"name": name})
    assert prompts == {known[1], known[2], known[0]}
    for ids_of_all in constant_prefixes(graph, merging_codec).values():
        assert len(ids_of_all) > 1
        assert all(prompt[: len(ids_of_all)] == ids_of_all for prompt in prompts)


STEPS = st.lists(st.tuples(st.sampled_from(["text", "raw", "turn"]), st.text("ab <|>", max_size=5)), max_size=8)


@given(before=STEPS, after=STEPS)
def test_stable_ids_begin_every_continuation(merging_codec: ByteCodec, before, after) -> None:
    def walked(position: Position, steps) -> Position:
        for kind, text in steps:
            if kind == "text":
                position = position.add_text(text)
            elif kind == "raw":
                position = position.add_raw(text, merging_codec)
            elif position.turns.is_open:
                position = position.close_turn(position.turns.roles[-1], merging_codec)
            else:
                position = position.open_turn("user", merging_codec)
        return position

    here = walked(Position(), before)
    stable = here.stable_ids(merging_codec)
    assert walked(here, after).settled(merging_codec).ids.flat()[: len(stable)] == stable
    assert len(stable) >= here.ids.length


@given(st.lists(st.lists(st.integers(0, 2), max_size=4).map(tuple), max_size=8))
def test_distinct_tokens_is_the_size_of_the_tree(prefixes: list[tuple[int, ...]]) -> None:
    nodes = {ids[: end + 1] for ids in prefixes for end in range(len(ids))}
    assert distinct_tokens(prefixes) == len(nodes)


def test_the_report_counts_what_requesting_streams_share_and_what_runs_share() -> None:
    graph = essay_judge_graph()
    same, report = run(graph, PassContext(ByteCodec()))
    assert same is graph
    (shared,) = set(constant_prefixes(graph, ByteCodec()).values())
    assert report.gained_tokens == 3 * len(shared)
    assert report.notes == (f"{len(shared)} tokens are the same in every run; a second run finds them computed.",)


def test_a_stream_that_asks_for_nothing_shares_nothing() -> None:
    b = GraphBuilder("p")
    b.say("abc")
    b.say("d", Gen("x", heal=False), stream=b.fork(1)[0])
    assert run(b.build(), PassContext(ByteCodec()))[1].gained_tokens == 0


def test_without_a_codec_nothing_is_counted() -> None:
    _, report = run(essay_judge_graph(), PassContext())
    assert report.gained_tokens is None
    assert "compile(backend=...)" in report.notes[0]
