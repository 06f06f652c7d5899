"""Only gens that must come out equal are made once."""

import json

import pytest

from sgl_core.language.graph import Graph, Parameter
from sgl_core.language.ir import (
    Argument,
    ArgumentValue,
    Expr,
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
from sgl_core.language.passes import PassContext
from sgl_core.language.passes.dedupe import run
from sgl_core.language.verifier import verify
from sgl_core.testing.graphs import GraphBuilder

GREEDY = {"temperature": 0}
SAMPLES = {"temperature": 0.5}


def program() -> GraphBuilder:
    return GraphBuilder("p", Parameter("a"))


def deduped(builder: GraphBuilder) -> Graph:
    graph, report = run(builder.build(), PassContext())
    verify(graph)
    assert run(graph, PassContext())[0] is graph
    marked = [node for node in graph.nodes if node.same_as is not None]
    assert report.changes == len(report.notes) == len(marked)
    assert (report.gained_tokens is None) == bool(marked)
    return graph


def pairs(builder: GraphBuilder) -> dict[int, int]:
    return {node.id: node.same_as for node in deduped(builder).nodes if node.same_as is not None}


def in_two_forks(first: tuple[Expr | str, ...], second: tuple[Expr | str, ...]) -> tuple[GraphBuilder, list[int], list[int]]:
    """A program with two forks; the ids of what they say."""
    b = program()
    b.say("shared ")
    one, other = b.fork(2)
    return b, list(b.say(*first, stream=one)), list(b.say(*second, stream=other))


@pytest.mark.parametrize("options", [{}, GREEDY, {"temperature": 0.0, "stop": ("\n",), "logit_bias": {1: 2.0}}])
def test_equal_gens_behind_equal_text_are_made_once_whatever_their_names(options: dict) -> None:
    b, one, other = in_two_forks(("q ", Gen("x", dict(options))), ("q ", Gen("y", dict(options))))
    assert pairs(b) == {other[1]: one[1]}


@pytest.mark.parametrize(
    "second",
    [
        ("r ", Gen("x", GREEDY)),
        ("q", Gen("x", GREEDY)),
        ("q ", RawText(""), Gen("x", GREEDY)),
        ("q ", Gen("x", {**GREEDY, "stop": ("a",)})),
        ("q ", Gen("x", {**GREEDY, "max_new_tokens": 3})),
        ("q ", Gen("x", {})),
        ("q ", Gen("x", GREEDY, int)),
        ("q ", Gen("x", GREEDY, heal=False)),
        ("q ", Gen("x", GREEDY, reasoning="deepseek-r1")),
        ("q ", Argument("a"), Gen("x", GREEDY)),
        ("q ", Image("a.png"), Gen("x", GREEDY)),
    ],
)
def test_any_difference_in_prompt_or_options_counts(second: tuple[Expr | str, ...]) -> None:
    b, *_ = in_two_forks(("q ", Gen("x", GREEDY)), second)
    assert pairs(b) == {}


def test_gens_that_sample_or_make_several_completions_are_left_alone() -> None:
    for options in (SAMPLES, {**GREEDY, "n": 2}):
        b, *_ = in_two_forks(("q ", Gen("x", options)), ("q ", Gen("x", options)))
        assert pairs(b) == {}


def test_it_does_not_matter_how_text_was_put_together() -> None:
    b, one, other = in_two_forks(("a", "bc", Gen("x")), ("ab", "", "c", ScopeBegin("v"), Prefetch(), Gen("x"), ScopeEnd("v")))
    assert pairs(b) == {other[5]: one[2]}


def test_turns_literals_pictures_and_arguments_may_be_equal_too() -> None:
    prompt = (RoleBegin("user"), RawText("<|end_user|>"), Image(b"png"), Argument("a"), RoleEnd("user"), "q", Gen("x"))
    same = (*prompt[:3], Variable(ArgumentValue("a")), *prompt[4:])
    b, one, other = in_two_forks(prompt, same)
    assert pairs(b) == {other[-1]: one[-1]}


def test_functions_called_with_equal_arguments_are_equal_from_their_beginning() -> None:
    b = program()
    gens = [b.say("Expand: ", Argument("a"), Gen("x"), stream=b.call("expand"))[-1] for _ in range(3)]
    assert pairs(b) == {gens[1]: gens[0], gens[2]: gens[0]}


def test_texts_of_one_value_are_equal_and_texts_of_two_are_not() -> None:
    for sources, expected in (((0, 0), 1), ((0, 1), 0)):
        b = program()
        made = [NodeValue(b.say(text, Gen("x", SAMPLES), stream=b.call("make"))[1], "x") for text in ("a", "b")]
        for source in sources:
            b.say(Variable(made[source]), Gen("y"), stream=b.call("use"))
        assert len(pairs(b)) == expected


def test_behind_equal_gens_gens_are_equal_again() -> None:
    for first, then in ((GREEDY, GREEDY), ({}, {}), (GREEDY, {})):
        prompt = ("q", Gen("x", first), "and", Gen("y", then))
        b, one, other = in_two_forks(prompt, prompt)
        assert pairs(b) == {other[1]: one[1], other[3]: one[3]}


def test_a_greedy_gen_is_not_equal_behind_gens_that_may_turn_out_to_sample() -> None:
    prompt = ("q", Gen("x", {}), "and", Gen("y", GREEDY))
    b, one, other = in_two_forks(prompt, prompt)
    assert pairs(b) == {other[1]: one[1]}


def test_nothing_is_equal_behind_gens_that_sample_or_choices_that_are_scored_apart() -> None:
    for between in (Gen("x", SAMPLES), Select("x", ("a", "b"), "token_length_normalized")):
        prompt = ("q", between, "and", Gen("y", GREEDY))
        b, *_ = in_two_forks(prompt, prompt)
        assert pairs(b) == {}


def test_a_join_that_appends_makes_a_stream_unlike_any_other() -> None:
    b = program()
    streams = b.fork(2)
    for stream in streams:
        (inner,) = b.fork(1, stream)
        b.say("text", stream=inner)
        b.join(inner, "concate_and_append")
        b.say(Gen("x", GREEDY), stream=stream)
    assert pairs(b) == {}


def test_options_without_a_hash_are_compared_by_what_they_hold() -> None:
    schema = json.dumps({"type": "object"})
    for other, expected in (([1, 2], 1), ([2, 1], 0)):
        options = [{**GREEDY, "json_schema": schema, "stop_token_ids": ids} for ids in ([1, 2], other)]
        b, *_ = in_two_forks(("q", Gen("x", options[0])), ("q", Gen("x", options[1])))
        assert len(pairs(b)) == expected


def test_forks_have_the_history_of_their_parents() -> None:
    for texts, expected in ((("a", "b"), 0), (("a", "a"), 1)):
        b = program()
        for text in texts:
            caller = b.call("f")
            b.say(text, stream=caller)
            b.say("q", Gen("x", GREEDY), stream=b.fork(1, caller)[0])
        assert len(pairs(b)) == expected
