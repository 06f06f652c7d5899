"""What a plan says to people."""

from types import SimpleNamespace

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel, RunnablePassthrough

from sgl_core.runtime.leases import EngineLeases
from sgl_langchain import ChatSgl, compile_runnable
from sgl_langchain.translate.explain import explain
from sgl_langchain.translate.plan import Plan

RULES = "Answer in the form that the rules say, and never in another one. " * 3


def said(chain):
    return explain(Plan.of(chain))


def test_a_constant_prefix_is_counted_in_the_models_tokens(chains):
    plan = Plan.of(chains.few_shot)
    assert f"constant prefix: {len(plan.prefixes()[0].ids)} tokens" in explain(plan)


def test_without_an_engine_tokens_are_estimated_and_none_is_loaded(monkeypatch):
    loaded = []
    monkeypatch.setattr(EngineLeases, "engine", lambda _, config: loaded.append(config))
    text = said(ChatPromptTemplate([("human", RULES + "{x}")]) | ChatSgl())
    assert f"constant prefix: about {-(-len(RULES) // 4)} tokens ({len(RULES)} characters)" in text
    assert not loaded


def test_arms_that_share_say_with_whom_and_what(chains):
    text = said(chains.judges)
    assert "evidence: ChatSgl (step 1, evidence, step 2)" in text
    assert "shares with clarity: 45 tokens of constant text and {essay} (side by side: computed once, then forked)" in text


def test_a_prompt_that_goes_on_where_another_ended_is_said_to_extend_it(chat):
    first = ChatPromptTemplate([("system", "S"), ("human", "{x}")]) | chat
    second = ChatPromptTemplate([("system", "S"), ("human", "{x}"), ("ai", "{a}"), ("human", "Sure?")]) | chat
    assert "extends the prompt of a: 1 token of constant text and {x}" in said(RunnablePassthrough.assign(a=first) | second)


def test_constant_text_behind_a_hole_is_a_lint(ask):
    text = said(ask(("human", "It is {now}.\n" + RULES)))
    assert f"lint: constant {len(RULES) + 2} tokens behind {{now}} in the user turn: 0 shared" in text


def test_text_behind_a_value_that_prompts_share_is_no_lint(chains):
    assert "lint" not in said(chains.judges)


def test_models_with_other_weights_share_nothing(engine):
    prompt = ChatPromptTemplate([("system", "The same rules."), ("human", "{x}")])
    chain = RunnablePassthrough.assign(a=prompt | ChatSgl(engine=engine)) | prompt | ChatSgl(engine=engine, namespace="other")
    assert "shares with" not in said(chain)


def test_calls_that_are_bound_to_other_namespaces_share_nothing(chat):
    prompt = ChatPromptTemplate([("system", "The same rules."), ("human", "{x}")])
    chain = RunnableParallel(a=prompt | chat.bind(namespace="a"), b=prompt | chat.bind(namespace="b"))
    assert "shares with" not in said(chain)
    assert "shares with" in said(RunnableParallel(a=prompt | chat.bind(seed=1), b=prompt | chat.bind(seed=2)))


def test_host_code_and_unknown_steps_are_listed(chat, chains):
    assert "retriever (step 1, context, step 1): host code; runs once, in its place" in said(chains.rag)
    configurable = RunnableLambda(str) | chat.configurable_fields(temperature=ConfigurableField(id="heat"))
    assert "known when it is called" in said(configurable)


def test_elements_of_a_list_are_said_to_share(chains):
    assert "runs once for each element of a list" in said(chains.map_reduce)


def test_a_prompt_that_begins_with_the_input_shares_nothing_in_a_batch(ask):
    assert "in a batch: nothing is shared unless inputs are equal" in said(ask(("human", "{x}")))


def test_tools_are_named(chat):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    assert "tools: weather;" in said(chat.bind(tools=[tool]))


def test_the_verdict_has_its_reasons(chains, chat):
    configurable = chat.configurable_fields(temperature=ConfigurableField(id="heat"))
    assert "runs as a program: yes" in said(chains.judges)
    assert "runs as a program: no\n  RunnableConfigurableFields is known only" in said(configurable)


def test_the_verdict_is_that_of_the_calls(chat):
    prompt = ChatPromptTemplate([("human", "{x}")])
    for model in (chat.bind(timeout=3), chat.with_listeners(on_start=print), ChatSgl(engine=chat.engine, n=2)):
        compiled = compile_runnable(prompt | model, mode="program")
        assert compiled._program(None) is None
        assert "runs as a program: no" in compiled.explain()


def test_an_engine_that_the_model_holds_already_counts_tokens(engine, monkeypatch):
    monkeypatch.setattr("sgl_core.runtime.leases.acquire", lambda _: SimpleNamespace(engine=engine, close=lambda: None))
    chat = ChatSgl()
    chain = ChatPromptTemplate([("human", "Dear {x}")]) | chat
    before = said(chain)
    chat._engine()
    assert "about 2 tokens" in before
    assert "constant prefix: 7 tokens" in said(chain)
