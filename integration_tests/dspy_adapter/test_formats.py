"""Formats that a small model obeys: the embedded model answers ten kinds of signatures through our ``ChatAdapter``.

Every call must parse at once, and no text in an answer may be blank. What the answers say is not judged here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Literal

import dspy
import pydantic
import pytest

from sgl_core.runtime.engine import Engine
from sgl_dspy import SglLM
from sgl_dspy.adapters import ChatAdapter

Figure = Callable[[str, Mapping[str, int]], None]

TICKETS = (
    "I was charged twice for my subscription in March.",
    "The app crashes whenever I open the settings page.",
    "How do I change the language of the interface?",
    "My parcel arrived with a broken lid, and I want my 30 dollars back.",
    "Please add a dark mode, my eyes hurt at night.",
    "I cannot log in since the last update.",
    "The invoice of 12 May shows the wrong address in Leeds.",
    "Your support was quick and friendly, thank you!",
    "Is there a discount for students and teachers?",
    "The search returns nothing when I type two words.",
    "Delivery took 9 days instead of 2.",
    "Can I use one licence on three computers?",
    "The battery of the tablet is empty after 40 minutes.",
    "I would like to speak to a human being, now.",
    "Export to CSV loses the last column.",
    "We need 25 more seats for our team in Oslo.",
    "The coupon SPRING24 is not accepted at checkout.",
    "Why does the report say -3 open tasks?",
    "The printer is loud, but it works well.",
    "Nothing works. I am very disappointed.",
)


class Priority(Enum):
    LOW = 1
    NORMAL = 2
    URGENT = 3


class Address(pydantic.BaseModel):
    street: str
    city: str


class Customer(pydantic.BaseModel):
    name: str
    age: int
    address: Address
    interests: list[str]


TYPES = {"Address": Address, "Customer": Customer, "Priority": Priority}
SIGNATURES = {
    "ticket -> team: Literal['billing', 'bug', 'feature request', 'other']": "Choose the team that answers the ticket.",
    "ticket -> reasoning: str, is_complaint: bool": "Say whether the customer complains.",
    "ticket -> days_to_answer: int": "Estimate how many days an answer may take.",
    "ticket -> sentiment: float, reason: str": "Rate the mood of the customer from -1 to 1, and say why in one sentence.",
    "ticket -> keywords: list[str]": "List the words that the ticket is about.",
    "ticket -> customer: Customer": "Invent a customer who could have written the ticket.",
    "ticket -> reasoning: str, priority: Priority, reply: str": "Choose a priority, and write one friendly sentence back.",
    "ticket -> count: Optional[int], title: str, scores: dict[str, float]": "Give the ticket a title and scores by topic.",
    "ticket -> summary: str, tags: list[str], is_urgent: bool, amount: float": "Summarise the ticket in one sentence.",
}


def look_up(topic: str, limit: int = 3) -> str:
    """Search the handbook."""
    return f"{topic}: see chapter {limit}"


def escalate(team: Literal["billing", "engineering"], is_urgent: bool) -> str:
    """Hand the ticket to a team."""
    return f"handed to {team}{' at once' if is_urgent else ''}"


def runs(tickets: Sequence[str]) -> Iterator[tuple[dspy.Module, dict[str, str]]]:
    """Each signature on each ticket, and steps of an agent: two calls for every other ticket."""
    for text, instructions in SIGNATURES.items():
        predict = dspy.Predict(dspy.Signature(text, instructions, custom_types=TYPES))
        yield from ((predict, {"ticket": ticket}) for ticket in tickets)
    agent = dspy.ReAct(
        dspy.Signature("ticket -> answer: str", "Answer the customer's ticket."), tools=[look_up, escalate], max_iters=1
    )
    yield from ((agent, {"ticket": ticket}) for ticket in tickets[::2])


def strings_in(value: object) -> Iterator[str]:
    """Every text in a prediction, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, pydantic.BaseModel):
        yield from strings_in(value.model_dump())
    elif isinstance(value, Mapping):
        yield from (text for one in value.values() for text in strings_in(one))
    elif isinstance(value, list):
        yield from (text for one in value for text in strings_in(one))


def answer(engine: Engine, pairs: Sequence[tuple[dspy.Module, dict[str, str]]]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Predictions, and what the LM did for them; a reply that does not parse raises, as nothing is asked again."""
    lm = SglLM(backend=engine, max_tokens=150)
    with dspy.context(lm=lm, adapter=ChatAdapter(use_json_adapter_fallback=False)):
        parallel = dspy.Parallel(num_threads=4, max_errors=1, disable_progress_bar=True, timeout=0)
        predictions = parallel([(module, dspy.Example(**inputs).with_inputs(*inputs)) for module, inputs in pairs])
    return predictions, lm.history


def check(predictions: Sequence[Any], calls: Sequence[dict[str, Any]], figure: Figure) -> None:
    assert all(prediction is not None for prediction in predictions)
    reasons = [call["response"].finish_reason for call in calls]
    figure(
        "formats, embedded model",
        {"calls": len(calls), "parsed at once": len(calls), "of them cut by the budget": reasons.count("length")},
    )
    texts = [text for prediction in predictions for text in strings_in(dict(prediction.items()))]
    assert texts
    assert all(text.strip() for text in texts)


def test_replies_of_ten_kinds_parse_at_the_first_call(engine: Engine, figure: Figure) -> None:
    predictions, calls = answer(engine, list(runs(TICKETS[:2])))
    assert len(calls) == 20
    check(predictions, calls, figure)


@pytest.mark.soak
def test_two_hundred_replies_parse_at_the_first_call_and_few_are_cut(engine: Engine, figure: Figure) -> None:
    predictions, calls = answer(engine, list(runs(TICKETS)))
    assert len(calls) == 200
    check(predictions, calls, figure)
    lengths = sum(call["response"].finish_reason == "length" for call in calls)
    assert lengths <= 10
