"""Code movement on a real engine: the tokens that it saves are prefilled no more, and a real model can propose an order."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from sgl_core.language import ProgramState, SglFunction
from sgl_core.language.graph import Graph
from sgl_core.language.ir import Argument, ConstantText, ExprList
from sgl_core.language.movement import RULES, move, regions_of
from sgl_core.language.proposers import LLMProposer, answer_pattern
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.testing.optimum import unshared_tokens
from sgl_core.testing.templates import TEMPLATES, PromptTemplate, rendered_prompts

CACHE_TOKENS = 16384
SURE = 1e4
"""A bias that no logit of a random model outweighs."""


@pytest.fixture(scope="module")
def small_engine(one_layer_model: LoadedModel) -> Iterator[Engine]:
    with Engine(loaded=one_layer_model, cache_tokens=CACHE_TOKENS, device="cpu", dtype="float32") as engine:
        yield engine


def program_of(graph: Graph) -> SglFunction:
    """A program that says what a graph of one stream says."""

    def body(s: ProgramState, **arguments: str) -> None:
        s += ExprList(
            tuple(ConstantText(arguments[node.op.name]) if isinstance(node.op, Argument) else node.op for node in graph.nodes)
        )

    return SglFunction(body)


def prefilled(program: SglFunction, template: PromptTemplate, engine: Engine, answer: int) -> int:
    """Prompt tokens that the engine runs through the model for all argument sets, beginning with nothing cached."""
    engine.flush_cache()
    engine.reset_stats()
    for arguments in template.argument_sets:
        program.run(**arguments, backend=engine, max_new_tokens=1, temperature=0.0, logit_bias={answer: SURE})
    return engine.stats().prefilled_tokens


def expected(graph: Graph, template: PromptTemplate, codec: LocalCodec, answer: int) -> int:
    """The same by the tokens of the prompts, without an engine."""
    return unshared_tokens(
        p for arguments in template.argument_sets for p in rendered_prompts(graph, arguments, codec, (answer,))
    )


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_the_engine_prefills_less_by_exactly_the_tokens_that_the_trie_predicts(
    template: PromptTemplate, small_engine: Engine, embedded_codec: LocalCodec
) -> None:
    (answer,) = embedded_codec.encode(" yes")
    written = template.graph()
    moved, report = move(written, "aggressive", codec=embedded_codec)
    assert report.moved
    before = prefilled(template.function, template, small_engine, answer)
    after = prefilled(program_of(moved), template, small_engine, answer)
    assert before == expected(written, template, embedded_codec, answer)
    assert after == expected(moved, template, embedded_codec, answer)
    assert before > after


@pytest.fixture(scope="module")
def proposer(embedded_model: LoadedModel) -> Iterator[LLMProposer]:
    with Engine(loaded=embedded_model, cache_tokens=4096) as engine:
        yield LLMProposer(engine)


@pytest.mark.parametrize("template", TEMPLATES[:3], ids=lambda template: template.name)
def test_the_embedded_model_gives_a_well_formed_proposal(template: PromptTemplate, proposer: LLMProposer) -> None:
    region = max(regions_of(template.graph()), key=lambda region: len(region.nodes))
    order = proposer.propose(region)
    assert re.fullmatch(answer_pattern(region), ", ".join(map(str, order)))


def test_what_the_embedded_model_proposes_is_taken_or_refused_by_its_rule_and_is_no_loss(
    proposer: LLMProposer, embedded_codec: LocalCodec
) -> None:
    template = TEMPLATES[0]
    written = template.graph()
    moved, report = move(written, "aggressive", proposer=proposer, codec=embedded_codec)
    (answer,) = embedded_codec.encode(" yes")
    assert expected(moved, template, embedded_codec, answer) <= expected(written, template, embedded_codec, answer)
    assert (moved == written) == (not report.moved)
    assert all(kept.rule in RULES for kept in report.kept if kept.rule)
