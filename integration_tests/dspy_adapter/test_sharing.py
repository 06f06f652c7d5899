"""What DSPy programs share, as their usage reports it, against what a trie over the ids of their prompts could have shared."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15

from sgl_core.config import EngineConfig
from sgl_core.runtime.registry import acquire
from sgl_core.testing.optimum import LoggedRequest, optimal_prefill_tokens
from sgl_dspy import SglEngine, SglLM
from sgl_dspy.adapters import ChatAdapter
from sgl_dspy.best_of_n import BestOfN
from sgl_dspy.requests.calls import prepare

SHOTS = [
    ("The soup came cold and the waiter shrugged.", "negative"),
    ("We laughed all evening and the fish was perfect.", "positive"),
    ("It is a restaurant on the main street.", "neutral"),
    ("Never again: two hours for a burnt crust.", "negative"),
    ("The owner remembered us and brought a cake.", "positive"),
    ("They open at six and close at ten.", "neutral"),
    ("My steak was raw and my wine was warm.", "negative"),
    ("I would walk ten miles for that bread.", "positive"),
]
REVIEWS = [
    f"{opening} {ending}"
    for opening, ending in itertools.product(
        ("The bread", "My steak", "Their wine", "Our table"),
        ("was a joy.", "was too salty.", "was there.", "made me sad for a week."),
    )
]
DOCUMENTS = [
    "The ferry to the island leaves at 8:10, 12:30 and 17:40 from the north pier. Dogs travel free. " * 3,
    "The lighthouse was built in 1871 of grey stone and has 212 steps. It is open from May to September. " * 3,
    "The market is held on Tuesday and Saturday behind the town hall. Fish is sold until nine o'clock. " * 3,
]
QUESTIONS = ("When is it open?", "Where is it?", "How old is it?", "May I bring my dog?")
TOPICS = ("the sea", "bread", "a harbour", "winter")
PLACES = ("Dover", "Hull", "York")


class LoggedEngine(SglEngine):
    """An engine that notes the prompt of every call and the usage of its answer; events are counted, not timed."""

    def __init__(self, backend: Any) -> None:
        super().__init__(backend)
        self._events = itertools.count()
        self._lock = threading.Lock()
        self.log: list[LoggedRequest] = []
        self.cached_tokens = 0
        self.prompt_tokens = 0

    def complete(self, request: lm15.Request) -> lm15.Response:
        prompt = prepare(request, self.backend).prompt.ids
        with self._lock:
            ready = next(self._events)
        response = super().complete(request)
        with self._lock:
            self.log.append(LoggedRequest(prompt, (), ready, next(self._events)))
            self.cached_tokens += response.usage.cache_read_tokens
            self.prompt_tokens += response.usage.input_tokens
        return response

    def reported_share(self) -> float:
        """As the usage of the calls says."""
        return self.cached_tokens / self.prompt_tokens

    def ideal_share(self) -> float:
        """Of a cache that never drops anything and computes nothing twice."""
        assert self.prompt_tokens == sum(len(request.prompt) for request in self.log)
        return 1 - optimal_prefill_tokens(self.log) / self.prompt_tokens


@pytest.fixture
def logged(embedded_folder: Path) -> Iterator[LoggedEngine]:
    del embedded_folder  # converted before anybody waits for it
    with acquire(EngineConfig()) as lease:
        lease.engine.flush_cache()
        yield LoggedEngine(lease.engine)
        stats = lease.engine.stats()
        assert stats.num_running == stats.num_waiting == stats.protected_tokens == 0


def timetable(place: str) -> str:
    """Say when buses leave for a place."""
    return f"Buses for {place} leave at 8:10 and 17:40."


def in_parallel(module: dspy.Module, inputs: list[dict[str, str]], threads: int) -> None:
    run = dspy.Parallel(num_threads=threads, timeout=0, disable_progress_bar=True, max_errors=1)
    assert None not in run([(module, one) for one in inputs])


def few_shot_evaluate(threads: int) -> None:
    task = "review -> mood: Literal['positive', 'negative', 'neutral']"
    classify = dspy.Predict(dspy.Signature(task, "Label restaurant reviews."))
    classify.demos = [dspy.Example(review=review, mood=mood) for review, mood in SHOTS]
    devset = [dspy.Example(review=review, mood="positive").with_inputs("review") for review in REVIEWS]
    evaluate = dspy.Evaluate(devset=devset, metric=lambda asked, got: asked.mood == got.mood, num_threads=threads, max_errors=1)
    assert len(evaluate(classify).results) == len(REVIEWS)


def rag(threads: int) -> None:
    answer = dspy.Predict("context, question -> answer", max_tokens=32)
    inputs = [{"context": document, "question": question} for document in DOCUMENTS for question in QUESTIONS]
    in_parallel(answer, inputs, threads)


def best_of_n(threads: int) -> None:
    write = dspy.Predict("topic -> slogan", max_tokens=32)
    best = BestOfN(module=write, N=4, reward_fn=lambda *_: 0.0, threshold=1.0, speculate=1 if threads == 1 else 2)
    in_parallel(best, [{"topic": topic} for topic in TOPICS], threads)


def react(threads: int) -> None:
    agent = dspy.ReAct("question -> answer", tools=[timetable], max_iters=2)
    agent.react.demos = [
        dspy.Example(
            question=f"When does the bus to {place} leave?",
            trajectory="",
            next_thought=f"I look up {place}.",
            next_tool_name="timetable",
            next_tool_args={"place": place},
        )
        for place in ("Rye", "Deal")
    ]
    in_parallel(agent, [{"question": f"When does the bus to {place} leave?"} for place in PLACES], threads)


def self_consistency(threads: int) -> None:
    solve = dspy.Predict("problem -> answer: int", n=8, temperature=0.8)
    in_parallel(solve, [{"problem": f"Tom has {pens} pens and loses two. How many are left?"} for pens in (5, 9, 12)], threads)


PROGRAMS = [few_shot_evaluate, rag, best_of_n, react, self_consistency]


@pytest.mark.parametrize(("threads", "points"), [(1, 3), (8, 8)], ids=["one-thread", "eight-threads"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_reported_as_cached_is_what_a_trie_over_the_ids_could_share(
    logged: LoggedEngine, program: Callable[[int], None], threads: int, points: int
) -> None:
    with dspy.context(lm=SglLM(engine=logged, max_tokens=64, seed=1), adapter=ChatAdapter()):
        program(threads)
    assert len(logged.log) >= 8
    print(
        f"{program.__name__} {threads}: {len(logged.log)} calls, {logged.prompt_tokens} tokens, ideal {logged.ideal_share():.4f}, reported {logged.reported_share():.4f}"
    )
    assert abs(logged.reported_share() - logged.ideal_share()) <= points / 100
