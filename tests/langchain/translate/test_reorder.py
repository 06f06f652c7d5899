"""Constant text before what changes: what moves, what does not, and what is said about it."""

import pytest
from langchain_core.messages import SystemMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate

from sgl_langchain.translate.reorder import reordered

BLOCKS = "Context:\n{context}\n\nRules:\nBe brief.\n\nQuestion:\n{question}"


def texts(prompt):
    return [message.prompt.template for message in prompt.messages]


def test_constant_blocks_go_before_those_with_variables():
    new, _ = reordered(PromptTemplate.from_template(BLOCKS))
    assert new.template == "Rules:\nBe brief.\n\nContext:\n{context}\n\nQuestion:\n{question}"


def test_a_constant_system_message_goes_to_the_front():
    prompt = ChatPromptTemplate([("human", "{x}"), ("system", "S")])
    new, _ = reordered(prompt)
    assert texts(new) == ["S", "{x}"]


def test_the_original_is_left_alone():
    prompt = ChatPromptTemplate([("human", BLOCKS), ("system", "S")])
    new, _ = reordered(prompt)
    assert new is not prompt
    assert texts(prompt) == [BLOCKS, "S"]


def test_the_diff_shows_what_moved():
    _, diff = reordered(PromptTemplate.from_template(BLOCKS))
    assert "--- prompt as written" in diff
    assert "+Rules:\n" in diff
    assert "-Rules:\n" in diff


@pytest.mark.parametrize(
    "prompt",
    [
        PromptTemplate.from_template("It is {now}.\n\nRules:\nBe brief."),
        PromptTemplate.from_template("Rules:\nBe brief.\n\nContext:\n{context}"),
        PromptTemplate.from_template("Context:\n{{x}}\n\nRules:\nBe brief.", template_format="mustache"),
        ChatPromptTemplate([("system", "S"), MessagesPlaceholder("h"), ("human", "{x}")]),
        ChatPromptTemplate([("human", "fixed"), SystemMessage("S"), ("human", "{x}")]),
        ChatPromptTemplate([("human", "{x}"), ("system", "S {y}")]),
    ],
)
def test_nothing_else_moves(prompt):
    new, diff = reordered(prompt)
    assert new is prompt
    assert diff == ""


def test_a_chain_is_copied_only_where_a_prompt_changes(chat, ask):
    chain = PromptTemplate.from_template(BLOCKS) | chat
    new, diff = reordered(chain)
    assert diff
    assert new.last is chat
    assert new.first.template.startswith("Rules:")
    assert reordered(ask(("human", "{x}")))[1] == ""


def test_prompts_inside_branches_are_found(chat):
    late = ChatPromptTemplate([("human", "{x}"), ("system", "S")])
    new, _ = reordered((late | chat).with_config(tags=["t"]) | {"a": late | chat})
    assert texts(new.first.bound.first) == texts(new.last.steps__["a"].first) == ["S", "{x}"]
    assert new.first.config["tags"] == ["t"]
