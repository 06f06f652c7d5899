"""Plans: what they hold, and whether they are still true."""

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.prompts import (
    ChatPromptTemplate,
    FewShotChatMessagePromptTemplate,
    FewShotPromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
)
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph

from sgl_langchain.translate.plan import Plan

SHOT = PromptTemplate.from_template("{q}")


def test_a_plan_knows_its_models_and_their_prompts(chains):
    plan = Plan.of(chains.judges)
    assert len(plan.models) == 4
    assert all(gen.template is not None for gen in plan.trace.gens())


def test_a_fork_has_at_least_two_models(chains):
    assert [len(Plan.of(chain).fork_sites) for chain in (chains.judges, chains.rag)] == [1, 0]


def test_making_a_plan_sends_nothing_to_the_engine(engine, chains):
    for chain in vars(chains).values():
        Plan.of(chain).prefixes()
    assert engine.requests == engine.prefetches == []


def test_a_graph_is_a_reason(chat):
    graph = StateGraph(MessagesState)
    graph.add_node("ask", lambda state: {"messages": [chat.invoke(state["messages"])]})
    graph.add_edge(START, "ask")
    (reason,) = Plan.of(graph.compile() | RunnableLambda(len)).reasons
    assert "only LangGraph itself knows" in reason


def test_what_is_configurable_is_a_reason(chat):
    (reason,) = Plan.of(chat.configurable_fields(temperature=ConfigurableField(id="heat"))).reasons
    assert "configuration of a call" in reason


def _append(prompt):
    prompt.append(("human", "more"))


def _edit(prompt):
    prompt.messages[0].prompt.template = "other {x}"


def _edit_message(prompt):
    prompt.messages[1].content = "other"


def _add_example(prompt):
    prompt.messages[2].examples.append({"q": "b"})


def _change_example(prompt):
    prompt.messages[2].examples[0]["q"] = "b"


def _set_partial(prompt):
    prompt.partial_variables["y"] = "other"


@pytest.mark.parametrize("change", [_append, _edit, _edit_message, _add_example, _change_example, _set_partial])
def test_a_changed_prompt_makes_a_plan_stale(chat, change):
    shots = FewShotChatMessagePromptTemplate(examples=[{"q": "a"}], example_prompt=ChatPromptTemplate([("human", "{q}")]))
    prompt = ChatPromptTemplate([("human", "{x} {y}"), HumanMessage("fixed"), shots, MessagesPlaceholder("h", optional=True)])
    prompt = prompt.partial(y="y")
    plan = Plan.of(prompt | chat)
    assert plan.is_current()
    change(prompt)
    assert not plan.is_current()


def test_a_changed_few_shot_text_makes_a_plan_stale(llm):
    prompt = FewShotPromptTemplate(examples=[{"q": "a"}], example_prompt=SHOT, suffix="{s}")
    plan = Plan.of(prompt | llm)
    prompt.suffix = "other {s}"
    assert not plan.is_current()


def test_the_constant_prefix_of_a_new_plan_follows_a_changed_prompt(engine, chat):
    prompt = ChatPromptTemplate([("human", "One {x}")])
    before = Plan.of(prompt | chat).prefixes()[0].ids
    prompt.messages[0].prompt.template = "Two {x}"
    after = Plan.of(prompt | chat).prefixes()[0].ids
    assert engine.codec.decode(before) != engine.codec.decode(after) == "Two "
