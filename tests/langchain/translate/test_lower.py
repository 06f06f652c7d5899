"""LangChain's objects as nodes."""

import sys
from operator import attrgetter, itemgetter
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import BaseOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    ConfigurableField,
    RouterRunnable,
    Runnable,
    RunnableBranch,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    RunnablePick,
    RunnableSequence,
)
from langchain_core.tools import tool

from sgl_core.plugins import PluginHookError
from sgl_langchain import ChatSgl
from sgl_langchain.translate import lower as lower_module
from sgl_langchain.translate import nodes
from sgl_langchain.translate.lower import lower


class Twice(Runnable[Any, Any]):
    """A runnable that nobody knows."""

    def __init__(self, step: Runnable[Any, Any]):
        self.step = step

    def invoke(self, input, config=None, **kwargs):  # noqa: A002
        return self.step.invoke(self.step.invoke(input, config), config)


def letters(pieces):
    yield from pieces


class Host:
    """Answers for ``Twice`` by ``answer(node, builder)``, and counts the questions."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = 0

    def lower(self, node, builder):
        self.asked += 1
        return self.answer(node, builder)


@pytest.fixture
def host_of(monkeypatch):
    def install(answer):
        host = Host(answer)
        monkeypatch.setattr(lower_module, "get_host", lambda: host)
        return host

    return install


def kinds(node):
    return [type(inner).__name__ for inner in node.walk()]


def test_a_sequence_has_its_steps_in_order(chat):
    chain = PromptTemplate.from_template("{x}") | chat | StrOutputParser()
    assert kinds(lower(chain)) == ["Sequence", "Prompt", "Model", "Parse"]


def test_a_dict_is_a_parallel_with_its_keys_in_order():
    node = lower(RunnableParallel(b=RunnableLambda(len), a=RunnablePassthrough()))
    assert isinstance(node, nodes.Parallel)
    assert [key for key, _ in node.branches] == ["b", "a"]


def test_an_assign_holds_its_mapper():
    assert kinds(lower(RunnablePassthrough.assign(n=len))) == ["Assign", "Parallel", "Call"]


@pytest.mark.parametrize(("keys", "expected"), [("a", "a"), (["a", "b"], ("a", "b"))])
def test_a_pick_knows_its_keys(keys, expected):
    assert lower(RunnablePick(keys)).keys == expected


def test_a_passthrough_with_a_function_has_an_effect():
    assert [lower(RunnablePassthrough()).has_effect, lower(RunnablePassthrough(print)).has_effect] == [False, True]


def test_a_map_holds_what_runs_for_an_element(chat):
    assert kinds(lower(chat.map())) == ["Each", "Model"]


def test_a_branch_has_conditions_arms_and_a_default(chat):
    node = lower(RunnableBranch((len, chat), RunnablePassthrough()))
    assert [type(child).__name__ for child in node.children()] == ["Call", "Model", "Passthrough"]


def test_a_router_has_its_routes(chat):
    assert [key for key, _ in lower(RouterRunnable({"a": chat, "b": chat})).routes] == ["a", "b"]


def test_fallbacks_and_retries_hold_what_they_try(chat):
    assert kinds(lower(chat.with_fallbacks([chat]))) == ["Fallbacks", "Model", "Model"]
    assert kinds(lower(chat.with_retry())) == ["Retry", "Model"]


def test_nested_bindings_give_the_model_all_their_options_and_the_outer_ones_win(chat):
    node = lower(chat.bind(temperature=1.0, max_tokens=4).with_config(tags=["t"]).bind(temperature=0.5))
    (model,) = (inner for inner in node.walk() if isinstance(inner, nodes.Model))
    assert dict(model.options) == {"temperature": 0.5, "max_tokens": 4}


def test_a_binding_keeps_its_configuration(chat):
    node = lower(chat.with_config(tags=["t"]))
    assert node.config["tags"] == ["t"]


def test_listeners_are_factories_of_a_binding(chat):
    assert len(lower(chat.with_listeners(on_start=lambda run: None)).factories) == 1


def test_options_of_a_sequence_go_to_its_first_step_only(chat):
    first, second = (step.options for step in lower((chat | chat).bind(max_tokens=3)).bound.steps)
    assert (dict(first), dict(second)) == ({"max_tokens": 3}, {})


def test_options_reach_the_arms_of_a_branch_and_no_branch_of_a_parallel(chat):
    branch = lower(RunnableBranch((len, chat), chat), {"max_tokens": 3})
    parallel = lower(RunnableParallel(a=chat), {"max_tokens": 3})
    assert [dict(branch.arms[0][1].options), dict(branch.default.options)] == [{"max_tokens": 3}] * 2
    assert dict(parallel.branches[0][1].options) == {}


@pytest.mark.parametrize("getter", [itemgetter("a"), attrgetter("a")])
def test_getters_are_pure(getter):
    assert lower(RunnableLambda(getter)).is_pure


def test_a_lambda_is_known_and_not_pure():
    node = lower(RunnableLambda(len))
    assert (node.name, node.is_known, node.is_pure) == ("len", True, False)


def test_generators_tools_retrievers_and_other_models_run_as_they_are():
    class Nothing(BaseRetriever):
        def _get_relevant_documents(self, query, *, run_manager):
            return [Document(query)]

    @tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    for runnable in (Nothing(), add, FakeListChatModel(responses=["x"]), RunnableGenerator(letters)):
        node = lower(runnable)
        assert isinstance(node, nodes.Call)
        assert node.is_known


def test_a_parser_of_the_users_that_only_parses_is_a_parser():
    class Upper(BaseOutputParser[str]):
        def parse(self, text: str) -> str:
            return text.upper()

    assert isinstance(lower(Upper()), nodes.Parse)


def test_a_parser_that_runs_its_own_way_is_unknown():
    class Loud(StrOutputParser):
        def invoke(self, input, config=None, **kwargs):  # noqa: A002
            return "LOUD"

    assert not lower(Loud()).is_known


def test_a_parser_that_asks_a_model_is_no_pure_function(chat):
    class Mending(BaseOutputParser[str]):
        helper: Any

        def parse(self, text: str) -> str:
            return self.helper.invoke(text)

    assert isinstance(lower(Mending(helper=chat)), nodes.Call)


def test_subclasses_of_known_kinds_are_unknown(chat, engine):
    class Mine(RunnableSequence):
        pass

    class MyChat(ChatSgl):
        pass

    for runnable in (Mine(chat, chat), MyChat(engine=engine)):
        node = lower(runnable)
        assert isinstance(node, nodes.Call)
        assert not node.is_known


def test_a_configurable_model_is_left_for_the_configuration_of_a_call(engine):
    chat = ChatSgl(engine=engine).configurable_fields(temperature=ConfigurableField(id="heat"))
    assert isinstance(lower(chat), nodes.Configurable)


def test_a_shared_part_stands_in_every_place(chat):
    one, other = (node for node in lower(RunnableParallel(a=chat, b=chat)).walk() if isinstance(node, nodes.Model))
    assert one is not other
    assert one.runnable is other.runnable


def test_objects_that_double_at_every_level_stay_within_bounds():
    runnable: Runnable[Any, Any] = RunnableLambda(len)
    for _ in range(40):
        runnable = RunnableParallel(a=runnable, b=runnable)
    assert sum(1 for _ in lower(runnable).walk()) < 50_000


def test_very_deep_objects_end_in_a_call():
    runnable: Runnable[Any, Any] = RunnableLambda(len)
    for _ in range(sys.getrecursionlimit()):
        runnable = RunnableParallel(a=runnable)
    *_, last = lower(runnable).walk()
    assert isinstance(last, nodes.Call)
    assert not last.is_known


def test_a_plugin_lowers_a_kind_of_its_own(host_of, chat):
    host_of(lambda node, builder: builder.sequence(node, [builder.lower(node.step), builder.lower(node.step, max_tokens=2)]))
    node = lower(Twice(chat) | RunnableLambda(len))
    assert kinds(node) == ["Sequence", "Sequence", "Model", "Model", "Call"]
    assert dict(node.steps[0].steps[1].options) == {"max_tokens": 2}


def test_a_kind_that_no_plugin_knows_is_an_unknown_call(host_of, chat):
    host = host_of(lambda node, builder: None)
    node = lower(Twice(chat))
    assert (node.name, node.is_known, host.asked) == ("Twice", False, 1)


def test_no_plugin_is_asked_about_known_kinds(host_of, chains):
    host = host_of(lambda node, builder: None)
    for chain in vars(chains).values():
        lower(chain)
    assert host.asked == 0


def test_a_plugin_that_returns_something_else_is_told_so(host_of, chat):
    host_of(lambda node, builder: "a node, honestly")
    with pytest.raises(PluginHookError, match=r"sgl_lower.*Twice.*str.*expected a node"):
        lower(Twice(chat))


def test_a_prompt_template_of_the_users_is_a_prompt():
    class Mine(ChatPromptTemplate):
        pass

    assert isinstance(lower(Mine([("human", "{x}")])), nodes.Prompt)
