"""Who suggests an order: the heuristic, and a model that is asked by a program of this language."""

import itertools
import re

import pytest

from sgl_core.errors import EngineStepError, InvalidArgumentError, TemplateError
from sgl_core.language.graph import Parameter
from sgl_core.language.ir import Argument, Gen
from sgl_core.language.movement import move, regions_of
from sgl_core.language.proposers import HeuristicProposer, LLMProposer, answer_pattern, question
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_core.testing.graphs import GraphBuilder


def graph_of(*parts):
    b = GraphBuilder("f", Parameter("q"), Parameter("doc"))
    b.say("", Gen("before"))  # so that numbers of nodes are not places in the region
    b.say(*parts, Gen("x"))
    return b.build()


def region_of(*parts):
    return regions_of(graph_of(*parts))[1]


REGION = region_of("Question: ", Argument("q"), "\nRules", Argument("doc"))


def asking(reply, region=REGION, **options):
    with FakeBackend(reply) as backend:
        return LLMProposer(backend, **options).propose(region), backend.requests


def test_the_heuristic_puts_constants_first_and_keeps_both_orders():
    assert HeuristicProposer().propose(REGION) == (2, 4, 3, 5)
    assert HeuristicProposer().propose(region_of("a", Argument("q"))) == (2, 3)


def test_a_model_is_shown_the_numbered_nodes_with_long_text_shortened_and_arguments_by_name():
    asked = question(region_of("x" * 1000, Argument("q"), "line\nbreak"))
    assert "3: argument {q}\n" in asked
    assert "4: text 'line\\nbreak'\n" in asked
    assert "all 3 numbers" in asked
    assert "x" * 50 in asked
    assert "x" * 150 not in asked


def test_guidance_stands_in_the_question():
    seen = []

    def reply(ids, params):
        seen.append(ByteCodec().decode(ids))
        return "2, 3, 4, 5"

    asking(reply, guidance="The document is the same for many questions.")
    assert "The document is the same for many questions." in seen[0]


def test_the_answer_is_read_as_an_order():
    order, (request,) = asking(lambda ids, params: "5, 2, 4, 3")
    assert order == (5, 2, 4, 3)
    assert request.params.temperature == 0.0


def test_the_answer_can_only_be_as_many_numbers_of_nodes_as_there_are_nodes():
    pattern = re.compile(answer_pattern(REGION))
    assert all(pattern.fullmatch(", ".join(map(str, order))) for order in itertools.permutations(REGION.ids))
    for wrong in ("", "2, 3, 4", "2, 3, 4, 5, 2", "2, 3, 4, 6", "2, 3, 4, 25", "2 3 4 5", "2, 3, 4, 5 because"):
        assert not pattern.fullmatch(wrong), wrong
    _, (request,) = asking(lambda ids, params: "2, 3, 4, 5")
    assert request.params.regex == answer_pattern(REGION)


@pytest.mark.parametrize("number", [2, 3, 9, 40])
def test_the_budget_is_enough_for_the_longest_answer_of_a_model_that_spells_every_character(number):
    region = region_of(*[Argument("q")] * number)
    longest = ", ".join([str(max(region.ids))] * number)
    order, (request,) = asking(lambda ids, params: longest, region)
    assert len(order) == number
    assert request.params.max_new_tokens > len(ByteCodec().encode(longest))


def test_another_budget_is_passed_on():
    _, (request,) = asking(lambda ids, params: "2, 3, 4, 5", max_tokens=11)
    assert request.params.max_new_tokens == 11


def test_a_model_that_repeats_itself_is_refused_by_the_checker_and_the_prompt_stays():
    graph = graph_of("Question: ", Argument("q"), "\nRules")
    with FakeBackend(lambda ids, params: "2, 2, 2") as backend:
        moved, report = move(graph, "aggressive", proposer=LLMProposer(backend))
    assert moved == graph
    assert [(kept.rule, kept.ids) for kept in report.kept] == [("doubled", (2, 3, 4))]


def test_a_good_proposal_of_a_model_is_taken():
    graph = graph_of("Question: ", Argument("q"), "\nRules")
    with FakeBackend(lambda ids, params: "4, 2, 3") as backend:
        moved, report = move(graph, "aggressive", proposer=LLMProposer(backend))
    assert regions_of(moved)[1].ids == (4, 2, 3)
    assert report.kept == ()


class Untemplated(ByteCodec):
    def open_turn(self, role, turns):
        raise TemplateError("the tokenizer has no chat template")


@pytest.mark.parametrize("codec", [ByteCodec(), Untemplated()])
def test_a_model_is_asked_in_turns_if_it_has_a_template_and_in_plain_text_otherwise(codec):
    with FakeBackend(lambda ids, params: "2, 3, 4, 5", codec=codec) as backend:
        assert LLMProposer(backend).propose(REGION) == (2, 3, 4, 5)
    has_turns = any(token > 256 for token in backend.requests[0].input_ids)
    assert has_turns == (type(codec) is ByteCodec)


def test_a_backend_that_fails_is_heard_of():
    failing = FakeBackend(lambda ids, params: "", fail=lambda request: EngineStepError("broken"))
    with failing as backend, pytest.raises(EngineStepError, match="broken"):
        LLMProposer(backend).propose(REGION)


@pytest.mark.parametrize("max_tokens", [0, -1, True, "12", 1.5])
def test_a_budget_that_is_none_is_refused(max_tokens):
    with FakeBackend() as backend, pytest.raises(InvalidArgumentError, match="max_tokens"):
        LLMProposer(backend, max_tokens=max_tokens)


def test_guidance_that_is_no_text_is_refused():
    with FakeBackend() as backend, pytest.raises(InvalidArgumentError, match="guidance"):
        LLMProposer(backend, guidance=["a"])
