"""Constant prefixes: every real prompt begins with them, whatever fills the holes."""

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RouterRunnable, RunnableBranch, RunnableLambda, RunnablePassthrough

from sgl_core.runtime.codec import LocalCodec
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_langchain import ChatSgl, SglLLM
from sgl_langchain.translate.plan import Plan
from sgl_langchain.translate.prefixes import common_prefix

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


class TrimmingCodec(ByteCodec):
    """Strips the text of a turn, as many templates do."""

    fingerprint = "trimming"

    def body_trim(self, role, turns):
        return True, True


def prefix_of(chain) -> tuple[int, ...]:
    (prefix,) = Plan.of(chain).prefixes()
    return prefix.ids


def sent(engine, chain, value) -> tuple[int, ...]:
    chain.invoke(value)
    return engine.requests[-1].input_ids


@pytest.fixture(scope="module")
def smollm_engine(embedded_folder) -> Any:
    transformers = pytest.importorskip("transformers")
    with FakeBackend(codec=LocalCodec(transformers.AutoTokenizer.from_pretrained(embedded_folder))) as fake:
        yield fake


TEXT = st.text(alphabet=st.sampled_from("abz 'ls.\n\t\u00e9\u4e2d0<|>"), max_size=8)
TEMPLATE = st.lists(st.one_of(TEXT.map(lambda text: text.replace("{", "")), st.just("{x}")), min_size=1, max_size=4).map(
    "".join
)
HISTORY = st.lists(st.one_of(TEXT.map(HumanMessage), TEXT.map(AIMessage), TEXT.map(SystemMessage)), max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["system", "human", "ai"]), TEMPLATE), min_size=1, max_size=3), st.data())
def test_every_real_prompt_begins_with_the_constant_prefix(smollm_engine, messages, data):
    place = data.draw(st.integers(0, len(messages)))
    prompt = ChatPromptTemplate([*messages[:place], MessagesPlaceholder("history"), *messages[place:]])
    chain = prompt | ChatSgl(engine=smollm_engine)
    prefix = prefix_of(chain)
    for _ in range(3):
        ids = sent(smollm_engine, chain, {"x": data.draw(TEXT), "history": data.draw(HISTORY)})
        assert ids[: len(prefix)] == prefix


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEMPLATE, st.data())
def test_every_real_text_begins_with_the_constant_prefix(smollm_engine, template, data):
    chain = PromptTemplate.from_template(template) | SglLLM(engine=smollm_engine)
    prefix = prefix_of(chain)
    for _ in range(3):
        value = data.draw(TEXT)
        assume(template.replace("{x}", value))  # a text model without a BOS has no empty prompt
        ids = sent(smollm_engine, chain, {"x": value})
        assert ids[: len(prefix)] == prefix


def test_the_prefix_reaches_the_last_safe_place_before_the_hole(smollm_engine):
    chain = ChatPromptTemplate([("system", "You label reviews."), ("human", "Review of a product {text}")])
    prefix = prefix_of(chain | ChatSgl(engine=smollm_engine))
    assert smollm_engine.codec.decode(prefix).endswith("Review of a product")


def test_a_prompt_without_holes_is_constant_as_a_whole(engine, chat):
    chain = ChatPromptTemplate([("human", "Say something.")]) | chat
    assert prefix_of(chain) == sent(engine, chain, {})


def test_white_space_that_the_template_strips_is_not_promised():
    with FakeBackend(codec=TrimmingCodec()) as engine:
        chain = ChatPromptTemplate([("human", "Text: {x}")]) | ChatSgl(engine=engine)
        prefix = prefix_of(chain)
        assert engine.codec.decode(prefix) == "Text:"
        for value in ("", " ", "a", " a"):
            assert sent(engine, chain, {"x": value})[: len(prefix)] == prefix


def test_tools_and_the_options_of_a_binding_are_in_the_prefix(engine, chat):
    chain = ChatPromptTemplate([("human", "{x}")]) | chat.bind(tools=[WEATHER], stop=["\n"])
    prefix = prefix_of(chain)
    assert "weather" in engine.codec.decode(prefix)


def test_a_prompt_from_elsewhere_has_only_what_stands_before_any_prompt(engine, chat, llm):
    assert len(prefix_of(RunnableLambda(str) | chat)) <= 2
    assert prefix_of(RunnableLambda(str) | llm) == engine.codec.begin()


def test_no_code_of_the_user_runs(chat):
    called = []
    prompt = ChatPromptTemplate([("human", "{now} {x}")], partial_variables={"now": lambda: called.append(1) or "noon"})
    Plan.of(prompt | RunnableLambda(called.append) | chat).prefixes()
    assert not called


def test_an_arm_is_warmed_as_far_as_all_arms_agree(ask):
    chain = RunnableBranch((bool, ask(("system", "Same."), ("human", "A {x}"))), ask(("system", "Same."), ("human", "B {x}")))
    a, b = Plan.of(chain).prefixes()
    common = len(common_prefix([a.ids, b.ids]))
    assert 0 < common < len(a.ids)
    assert (a.warm_len, b.warm_len) == (common, common)


def test_an_arm_beside_one_that_asks_no_model_is_not_warmed(ask):
    (prefix,) = Plan.of(RouterRunnable({"a": ask(("human", "A {x}")), "b": RunnableLambda(len)})).prefixes()
    assert prefix.ids
    assert prefix.warm_len == 0


def test_a_fallback_is_not_warmed(ask):
    first, second = Plan.of(ask(("human", "A {x}")).with_fallbacks([ask(("human", "B {x}"))])).prefixes()
    assert (first.warm_len, second.warm_len) == (len(first.ids), 0)


def test_branches_of_a_parallel_are_all_warmed(ask):
    chain = RunnablePassthrough.assign(a=ask(("human", "A {x}")), b=ask(("human", "B {x}")))
    assert all(prefix.warm_len == len(prefix.ids) > 0 for prefix in Plan.of(chain).prefixes())


def test_a_prefix_knows_its_engine_and_namespace(engine):
    chat = ChatSgl(engine=engine, namespace="acme")
    (prefix,) = Plan.of(ChatPromptTemplate([("human", "{x}")]) | chat).prefixes()
    assert prefix.engine is engine
    assert prefix.namespace == "acme"
