"""What LangChain programs share, as they report it, against what a trie over their real ids could have shared."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough

from sgl_core.backend import Handle
from sgl_core.runtime.engine import Engine
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.testing.optimum import LoggedRequest, optimal_prefill_tokens
from sgl_core.types import GenRequest, GenResult
from sgl_langchain import ChatSgl, compile_runnable

SHOTS = [
    ("The soup came cold and the waiter shrugged.", "negative"),
    ("We laughed all evening and the fish was perfect.", "positive"),
    ("It is a restaurant on the main street.", "neutral"),
    ("Never again: two hours for a burnt crust.", "negative"),
    ("The owner remembered us and brought a cake.", "positive"),
    ("They open at six and close at ten.", "neutral"),
]
REVIEWS = [
    f"{opening} {ending}"
    for opening, ending in itertools.product(
        ("The bread", "My steak", "Their wine", "The music", "Our table", "The garden"),
        ("was a joy.", "was too salty.", "was there.", "made me sad for a week."),
    )
]
ESSAYS = [
    "Harbours are where a country meets what it does not own. " * 4,
    "A tide table is a promise that the moon makes to fishermen. " * 4,
    "Bread teaches patience to people who would never sit still. " * 4,
]


@dataclass
class Recorder:
    """An engine that notes what it is asked and what it answers; events are counted, not timed."""

    engine: Any

    def __post_init__(self) -> None:
        self._events = itertools.count()
        self._lock = threading.Lock()
        self._asked: list[tuple[GenRequest, Handle[GenResult], int, list[int]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def submit(self, request: GenRequest) -> Handle[GenResult]:
        handle = self.engine.submit(request)
        finished: list[int] = []
        with self._lock:
            self._asked.append((request, handle, next(self._events), finished))
        handle.add_done_callback(lambda: finished.append(next(self._events)))
        return handle

    def log(self) -> list[LoggedRequest]:
        return [
            LoggedRequest(request.input_ids, handle.result(0).token_ids, ready, finished[0])
            for request, handle, ready, finished in self._asked
        ]


class CacheReads(BaseCallbackHandler):
    """Sums what messages say of the cache."""

    def __init__(self) -> None:
        self.total = 0

    def on_llm_end(self, response: Any, **_: Any) -> None:
        usage = response.generations[0][0].message.usage_metadata
        self.total += usage["input_token_details"]["cache_read"]


@pytest.fixture(scope="module")
def engine(one_layer_model: LoadedModel) -> Iterator[Engine]:
    with Engine(loaded=one_layer_model, cache_tokens=16_384, device="cpu", dtype="float32") as engine:
        yield engine


@pytest.fixture
def recorder(engine: Engine) -> Recorder:
    engine.flush_cache()
    engine.reset_stats()
    return Recorder(engine)


def few_shot(chat: ChatSgl, build: Callable[[Any], Any], config: Any) -> None:
    example = ChatPromptTemplate([("human", "Review: {review}"), ("ai", "{label}")])
    shots = FewShotChatMessagePromptTemplate(
        examples=[{"review": review, "label": label} for review, label in SHOTS], example_prompt=example
    )
    prompt = ChatPromptTemplate([("system", "You label restaurant reviews."), shots, ("human", "Review: {review}")])
    build(prompt | chat.bind(max_tokens=3) | StrOutputParser()).batch([{"review": review} for review in REVIEWS], config)


def self_consistency(chat: ChatSgl, build: Callable[[Any], Any], config: Any) -> None:
    prompt = ChatPromptTemplate([("human", "A farmer has {n} sheep and sells 4. How many are left? Think step by step.")])
    build(prompt | chat.bind(temperature=0.8, seed=1, max_tokens=12) | StrOutputParser()).batch([{"n": 17}] * 8, config)


def conversation(chat: ChatSgl, build: Callable[[Any], Any], config: Any) -> None:
    answer: Runnable[Any, Any] = build(chat.bind(max_tokens=16))
    messages: list[Any] = [SystemMessage("You are a harbour master. You answer briefly.")]
    for question in ("What is a tide?", "Why twice a day?", "And at full moon?", "Who told you?", "Thank you."):
        messages.append(HumanMessage(question))
        messages.append(answer.invoke(messages, config))


def judges(chat: ChatSgl, build: Callable[[Any], Any], config: Any) -> None:
    def judge(what: str) -> Any:
        prompt = ChatPromptTemplate([("system", "You judge essays."), ("human", "Essay:\n{essay}\nJudge it on " + what + ".")])
        return prompt | chat.bind(max_tokens=8) | StrOutputParser()

    merge = (
        ChatPromptTemplate([("system", "You judge essays."), ("human", "Essay:\n{essay}\nNotes: {a} / {b} / {c}. Grade it.")])
        | chat.bind(max_tokens=4)
        | StrOutputParser()
    )
    chain = RunnablePassthrough.assign(a=judge("clarity"), b=judge("evidence"), c=judge("style")) | merge
    build(chain).batch([{"essay": essay} for essay in ESSAYS], config)


def as_it_is(runnable: Any) -> Any:
    return runnable


@pytest.mark.parametrize("build", [as_it_is, compile_runnable], ids=["plain", "compiled"])
@pytest.mark.parametrize("program", [few_shot, self_consistency, conversation, judges])
def test_what_is_reported_as_cached_is_what_a_trie_over_the_ids_could_share(
    recorder: Recorder, program: Callable[..., None], build: Callable[[Any], Any]
) -> None:
    reads = CacheReads()
    program(ChatSgl(engine=recorder, temperature=0), build, {"callbacks": [reads]})
    log = recorder.log()
    stats = recorder.engine.stats()
    prompt_tokens = sum(len(request.prompt) for request in log)
    optimum = optimal_prefill_tokens(log)
    assert reads.total == stats.cached_tokens
    assert reads.total >= 0.95 * (prompt_tokens - optimum)
    assert stats.prefilled_tokens + stats.prefetched_tokens <= 1.03 * optimum


def test_a_cold_few_shot_batch_that_runs_as_a_program_computes_the_trie(recorder: Recorder) -> None:
    few_shot(ChatSgl(engine=recorder, temperature=0), lambda chain: compile_runnable(chain, mode="program"), None)
    stats = recorder.engine.stats()
    assert stats.num_finished == 24
    assert stats.prefilled_tokens + stats.prefetched_tokens <= 1.03 * optimal_prefill_tokens(recorder.log())
