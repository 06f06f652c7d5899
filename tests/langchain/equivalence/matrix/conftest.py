"""The runnables of the matrix, each as a function of its world, with inputs; every test of this folder runs for each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import (
    CommaSeparatedListOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
    StrOutputParser,
)
from langchain_core.prompts import (
    ChatPromptTemplate,
    FewShotChatMessagePromptTemplate,
    FewShotPromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
)
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    ConfigurableField,
    RouterRunnable,
    Runnable,
    RunnableBranch,
    RunnableConfig,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    chain,
)
from langchain_core.tools import tool
from pydantic import BaseModel

Build = Callable[[Any], Runnable[Any, Any]]
TIDE, ROPE, LAMP = {"what": "tide"}, {"what": "rope"}, {"what": "lamp"}
BROKEN, MISSING = {"what": "explode"}, {"where": "harbour"}


class Thing(BaseModel):
    name: str
    size: int
    parts: list[str] = []


@dataclass(frozen=True)
class Case:
    """A runnable, inputs for it, and what of its chunks is promised.

    Args:
        interleaves: its chunks are dicts whose keys are filled side by side, in any order.
        is_closed: nothing in it forbids that it runs as a program.
    """

    name: str
    build: Build
    inputs: tuple[Any, ...]
    interleaves: bool = False
    is_closed: bool = True


CASES: list[Case] = []


def case(*inputs: Any, **facts: Any) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        CASES.append(Case(build.__name__, build, inputs, **facts))
        return build

    return register


def asks(text: str = "Describe the {what}.") -> ChatPromptTemplate:
    return ChatPromptTemplate([("system", "You know harbours, and you answer in one line."), ("human", text)])


def says(world, text: str = "Describe the {what}.") -> Runnable[Any, str]:
    return asks(text) | world.chat | StrOutputParser()


# ---- prompt, model, parser -------------------------------------------------------------------------------------------
@case(TIDE, ROPE, BROKEN, MISSING)
def text(world):
    return says(world)


@case(TIDE, ROPE)
def message(world):
    return asks() | world.chat


@case("What is a tide?", [("human", "What is a rope?")], [HumanMessage("explode")])
def model_alone(world):
    return world.chat


@case({"what": "tide"}, {"what": "rope"})
def json_answer(world):
    return asks("Describe the {what} as JSON.") | world.chat | JsonOutputParser()


@case(TIDE, ROPE)
def pydantic_answer(world):
    return asks("Describe the {what} as JSON.") | world.chat | PydanticOutputParser(pydantic_object=Thing)


@case(TIDE, ROPE)
def answer_that_does_not_parse(world):
    return asks() | world.chat | PydanticOutputParser(pydantic_object=Thing)


@case(TIDE, ROPE)
def list_answer(world):
    return asks("Parts of the {what} as a list.") | world.chat | CommaSeparatedListOutputParser()


@case(TIDE, ROPE, LAMP, BROKEN)
def few_shot(world):
    examples = [{"what": "gull", "answer": "bird"}, {"what": "keel", "answer": "ship"}]
    shown = ChatPromptTemplate([("human", "{what}"), ("ai", "{answer}")])
    shots = FewShotChatMessagePromptTemplate(examples=examples, example_prompt=shown)
    return ChatPromptTemplate([("system", "Classify."), shots, ("human", "{what}")]) | world.chat | StrOutputParser()


@case({"question": "Why?"}, {"question": "Why?", "history": [HumanMessage("What is a tide?"), AIMessage("Water.")]})
def history(world):
    template = ChatPromptTemplate(
        [("system", "Be brief."), MessagesPlaceholder("history", optional=True), ("human", "{question}")]
    )
    return template | world.chat | StrOutputParser()


@case(TIDE, ROPE, BROKEN)
def text_model(world):
    return PromptTemplate.from_template("The {what} is") | world.llm | StrOutputParser()


@case("The tide is", "The rope is")
def text_model_alone(world):
    return world.llm


@case(TIDE, ROPE)
def few_shot_text(world):
    shown = PromptTemplate.from_template("{what}: {answer}")
    shots = [{"what": "gull", "answer": "bird"}]
    template = FewShotPromptTemplate(examples=shots, example_prompt=shown, suffix="{what}:", input_variables=["what"])
    return template | world.llm.bind(stop=["."])


@case({}, {})
def nothing_to_fill_in(world):
    return ChatPromptTemplate([("human", "Say something.")]) | world.chat | StrOutputParser()


@case(TIDE, ROPE)
def partial_variables(world):
    template = asks("Describe the {what} as seen from {place} at {hour}.")
    return template.partial(place="the pier", hour=lambda: "noon") | world.chat | StrOutputParser()


# ---- dicts -----------------------------------------------------------------------------------------------------------
@case({"essay": "Tides are regular."}, {"essay": "Ropes are long."}, {"essay": "explode"}, interleaves=True)
def judges(world):
    def judge(what):
        return says(world, "Essay:\n{essay}\n\nJudge the essay on " + what + ".")

    merge = says(world, "Clarity: {clarity}\nEvidence: {evidence}\nStyle: {style}\nThe verdict:")
    each = RunnablePassthrough.assign(clarity=judge("clarity"), evidence=judge("evidence"), style=judge("style"))
    return each | RunnablePassthrough.assign(verdict=merge)


@case(TIDE, BROKEN, "no dict", interleaves=True)
def assigned(world):
    more = says(world, "Shorten this: {first}")
    return RunnablePassthrough.assign(first=says(world)).assign(second=more, size=lambda known: len(known["first"]))


@case(TIDE, ROPE, interleaves=True)
def picked_keys(world):
    return RunnablePassthrough.assign(a=says(world), b=says(world, "Draw the {what}.")).pick(["a", "b"])


@case(TIDE, ROPE)
def picked_key(world):
    return RunnablePassthrough.assign(a=says(world)).pick("a")


@case({"q": "What?", "lang": "Latin", "rest": 1}, {"q": "Why?", "lang": "Greek"}, {"q": "Who?"}, interleaves=True)
def getters(world):
    return {"what": itemgetter("q"), "lang": itemgetter("lang")} | says(world, "{what} Answer in {lang}.")


@case(TIDE, ROPE, BROKEN, interleaves=True)
def side_by_side(world):
    return RunnableParallel(first=says(world), second=says(world, "Draw the {what}."), same=RunnablePassthrough())


@case({}, TIDE)
def no_branches(world):
    return RunnableParallel({})


@case(TIDE, ROPE)
def passed_through_a_function(world):
    return RunnablePassthrough(lambda known: world.saw("passing", known)) | says(world)


class Shelf(BaseRetriever):
    documents: list[str]

    def _get_relevant_documents(self, query: str, *, run_manager) -> list[Document]:
        return [Document(one, metadata={"rank": n}) for n, one in enumerate(self.documents) if query[:1] in one]


@case("tides", "ropes", "explode")
def retrieval(world):
    def joined(found):
        world.saw("joined", found)
        return "\n".join(one.page_content for one in found)

    shelf = Shelf(documents=["the tide rises", "a rope holds", "gulls cry"])
    filled = {"context": shelf | joined, "question": RunnablePassthrough()}
    return filled | says(world, "Context:\n{context}\n\nQuestion: {question}")


# ---- many ------------------------------------------------------------------------------------------------------------
@case("tide,rope,lamp", "gull", "", "tide,explode", interleaves=True)
def map_reduce(world):
    split = RunnableLambda(lambda joined: [{"what": part} for part in joined.split(",") if part])
    reducer = RunnableLambda(lambda notes: {"what": " ".join(notes)}) | says(world, "Sum up: {what}")
    return split | says(world).map() | RunnableParallel(partials=RunnablePassthrough(), summary=reducer)


@case(TIDE, TIDE, ROPE)
def self_consistency(world):
    sample = asks() | world.chat.bind(temperature=0.8) | StrOutputParser()
    return RunnableLambda(lambda known: [known] * 4) | sample.map() | RunnableLambda(max)


@case([TIDE, ROPE], [], [LAMP])
def each(world):
    return says(world).map()


@case({"things": [TIDE, ROPE]}, {"things": [LAMP]}, {"things": [TIDE, BROKEN]}, interleaves=True)
def parallel_in_each_in_assign(world):
    both = RunnableParallel(long=says(world), short=says(world, "Name the {what}."))
    return RunnablePassthrough.assign(found=itemgetter("things") | both.map())


# ---- choices ---------------------------------------------------------------------------------------------------------
@case({"what": "tide", "kind": "a"}, {"what": "rope", "kind": "b"}, {"what": "lamp", "kind": "c"}, {"what": "no kind"})
def branches(world):
    def is_kind(kind):
        return lambda known: world.saw(f"is it {kind}", known) or known["kind"] == kind

    other = RunnableLambda(lambda known: f"nothing of {known['what']}")
    return RunnableBranch((is_kind("a"), says(world, "A: {what}")), (is_kind("b"), says(world, "B: {what}")), other)


@case({"key": "long", "input": TIDE}, {"key": "short", "input": ROPE}, {"key": "none", "input": ROPE})
def routes(world):
    return RouterRunnable({"long": says(world), "short": says(world, "Name the {what}.")})


@case(TIDE, BROKEN)
def fallbacks(world):
    return says(world).with_fallbacks([says(world, "Be careful."), RunnableLambda(lambda known: "nothing")])


@case(TIDE, BROKEN)
def fallbacks_that_are_told(world):
    def told(known):
        world.saw("told", known)
        return type(known["why"]).__name__

    return says(world).with_fallbacks([RunnableLambda(told)], exception_key="why")


@case(TIDE, BROKEN, MISSING)
def fallbacks_for_some_errors(world):
    return says(world).with_fallbacks([says(world, "Be careful.")], exceptions_to_handle=(KeyError,))


@case(BROKEN, {"what": "flaky tide"}, {"what": "flaky rope"}, TIDE)
def retries(world):
    return says(world).with_retry(stop_after_attempt=2, wait_exponential_jitter=False)


@case({"what": "flaky tide"}, TIDE)
def retries_of_a_step(world):
    tried = world.chat.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    return asks() | tried | StrOutputParser()


# ---- functions -------------------------------------------------------------------------------------------------------
@case(TIDE, ROPE, {"what": 3}, {"what": ""})
def functions(world):
    def loud(known):
        world.saw("loud", known)
        return {"what": known["what"].upper()}

    def checked(known):
        world.saw("checked", known)
        if not known["what"]:
            raise LookupError("there is nothing to describe")
        return known

    return RunnableLambda(checked) | loud | says(world) | len


@case(TIDE, ROPE)
def functions_of_both_kinds(world):
    def sync(known):
        world.saw("sync", known)
        return known

    async def native(known):
        world.saw("native", known)
        return known

    return RunnableLambda(sync, native) | says(world)


@case(TIDE, ROPE)
def functions_that_are_only_async(world):
    async def native(known):
        world.saw("native", known)
        return known

    return RunnableLambda(native) | says(world)


@case(TIDE, {"what": "stop"})
def functions_that_return_chains(world):
    @chain
    def choose(known):
        world.saw("choose", known)
        return says(world) if known["what"] != "stop" else "stopped"

    return choose | StrOutputParser()


@case(TIDE, ROPE)
def functions_that_read_their_config(world):
    def reading(known, config: RunnableConfig):
        world.note({key: config.get(key) for key in ("tags", "metadata", "configurable", "recursion_limit")})
        return known

    return RunnableLambda(reading) | says(world) | RunnableLambda(reading).with_config(tags=["last"])


@case(TIDE, ROPE)
def functions_that_call_the_model(world):
    def twice(known):
        return world.chat.invoke(f"Once more: {says(world).invoke(known)}").text

    return RunnableLambda(twice)


@case(TIDE, ROPE)
def functions_that_change_their_input(world):
    def change(known):
        known["what"] = known["what"] + "!"
        return known

    return RunnablePassthrough.assign(before=itemgetter("what")) | RunnableLambda(change) | says(world)


@case(TIDE, ROPE)
def generators(world):
    def louder(pieces: Iterator[str]) -> Iterator[str]:
        for piece in pieces:
            yield piece.upper()

    return says(world) | louder


@case(TIDE, ROPE)
def generators_of_both_kinds(world):
    def louder(pieces: Iterator[str]) -> Iterator[str]:
        yield from (piece.upper() for piece in pieces)

    async def louder_too(pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        async for piece in pieces:
            yield piece.upper()

    return says(world) | RunnableGenerator(louder, louder_too)


@tool
def measure(what: str) -> str:
    """Measure a thing."""
    return f"{what}: {len(what)} metres"


@case(TIDE, ROPE)
def tools_as_steps(world):
    return measure | RunnableLambda(lambda found: {"what": found}) | says(world)


# ---- configuration ---------------------------------------------------------------------------------------------------
@case(TIDE, ROPE)
def options_bound(world):
    return asks() | world.chat.bind(stop=["tide", "e"], temperature=0.4) | StrOutputParser()


@case(TIDE, ROPE)
def choices_bound(world):
    return asks() | world.chat.bind(choices=["billing", "bug", "other"]) | StrOutputParser()


@case(TIDE, ROPE, is_closed=False)
def fields_configured(world):
    chat = world.chat.configurable_fields(temperature=ConfigurableField("heat"), stop=ConfigurableField("ends"))
    return (asks() | chat | StrOutputParser()).with_config(configurable={"heat": 0.5, "ends": ["e"]})


@case(TIDE, ROPE, is_closed=False)
def alternatives_configured(world):
    template = asks().configurable_alternatives(
        ConfigurableField("style"), default_key="plain", verse=asks("A verse on the {what}.")
    )
    return (template | world.chat | StrOutputParser()).with_config(configurable={"style": "verse"})


@case(TIDE, ROPE)
def tags_and_names(world):
    step = says(world).with_config(run_name="describer", tags=["inner"], metadata={"step": 1})
    return (step | RunnableLambda(str.upper)).with_config(run_name="whole", tags=["outer"], metadata={"owner": "pier"})


class Ends(BaseCallbackHandler):
    def __init__(self, world):
        self.world = world

    def on_chain_end(self, outputs, **_):
        self.world.note("chain ended", type(outputs).__name__)

    def on_llm_end(self, response, **_):
        self.world.note("model ended", response.generations[0][0].text)


@case(TIDE, ROPE, is_closed=False)
def callbacks_bound(world):
    return says(world).with_config(callbacks=[Ends(world)])


@case(TIDE, ROPE, is_closed=False)
def callbacks_of_the_model(world):
    return asks() | world.chat.model_copy(update={"callbacks": [Ends(world)]}) | StrOutputParser()


@case(TIDE, BROKEN, is_closed=False)
def listeners(world):
    return says(world).with_listeners(
        on_start=lambda run: world.note("started", run.name),
        on_end=lambda run: world.note("ended", run.name),
        on_error=lambda run: world.note("failed", run.name),
    )


@case(TIDE, ROPE)
def types_given(world):
    return says(world).with_types(input_type=dict[str, str], output_type=str)


# ---- others' runnables -----------------------------------------------------------------------------------------------
@case(TIDE, ROPE)
def another_model_in_between(world):
    foreign = FakeListChatModel(responses=["an echo"])
    return says(world) | foreign | StrOutputParser() | RunnableLambda(lambda known: {"what": known}) | says(world)


class Doubled(Runnable[Any, Any]):
    """A kind of runnable that nobody else knows."""

    def __init__(self, bound):
        self.bound = bound

    def invoke(self, given, config=None, **kwargs):
        return [self.bound.invoke(given, config), self.bound.invoke(given, config)]


@case(TIDE, BROKEN, is_closed=False)
def a_kind_of_its_own(world):
    return Doubled(says(world)) | RunnableLambda(" and ".join)


# ---- tools and structure ---------------------------------------------------------------------------------------------
@case(TIDE, ROPE)
def a_tool_to_call(world):
    return asks() | world.chat.bind_tools([measure], tool_choice="any")


@case(TIDE, ROPE, is_closed=False)
def tools_to_choose_from(world):
    return asks() | world.chat.bind_tools([measure])


@case(TIDE, ROPE)
def structure_by_schema(world):
    return asks() | world.chat.with_structured_output(Thing, method="json_schema")


@case(TIDE, ROPE)
def structure_by_a_call(world):
    return asks() | world.chat.with_structured_output(Thing, method="function_calling")


@case(TIDE, ROPE)
def structure_as_a_dict(world):
    return asks() | world.chat.with_structured_output(Thing.model_json_schema(), method="json_mode")


@case(TIDE, BROKEN, interleaves=True)
def structure_and_the_message(world):
    return asks() | world.chat.with_structured_output(Thing, include_raw=True)


# ---- fixtures --------------------------------------------------------------------------------------------------------
@pytest.fixture(params=CASES, ids=lambda one: one.name)
def case_(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def both(case_, sides):
    return sides(case_.build, case_.inputs)
