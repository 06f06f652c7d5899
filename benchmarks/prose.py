"""English and mathematics made from a seed: essays, word problems, questions, facts. Used by the workloads.

Sentences come from patterns filled with the words of one subject, so two essays share a style but not a text, and every text
reads like something a person might send to a model. The same seed gives the same text on every machine.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["ASPECTS", "essay", "follow_up", "long_text", "opening_question", "puzzle", "word_problem"]

_NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena", "Mira", "Nuno")
_THINGS = ("apples", "stamps", "pencils", "marbles", "postcards", "shells", "buttons", "coins", "ribbons", "tickets")
_PLACES = ("at the market", "in the attic", "on the beach", "from a neighbour", "at the school fair", "by post")

ASPECTS = ("clarity", "evidence", "structure", "style", "originality", "balance")
"""What an essay can be judged on."""


@dataclass(frozen=True, slots=True)
class _Subject:
    name: str
    place: str
    people: str
    gain: str
    cost: str
    habit: str
    measure: str
    image: str


_SUBJECTS = (
    _Subject(
        "night trains",
        "Vienna",
        "commuters",
        "arriving rested",
        "ageing carriages",
        "booking early",
        "passengers",
        "a corridor of small lit windows",
    ),
    _Subject(
        "school gardens",
        "Leeds",
        "pupils",
        "patience with slow things",
        "unpaid weekends",
        "weeding in pairs",
        "beds",
        "a row of labelled beans",
    ),
    _Subject(
        "public libraries",
        "Porto",
        "readers",
        "a warm place that asks for nothing",
        "shrinking budgets",
        "late opening",
        "loans",
        "a desk under a green lamp",
    ),
    _Subject(
        "tidal power",
        "Brittany",
        "engineers",
        "electricity that can be foretold",
        "silt and salt",
        "slow maintenance",
        "megawatts",
        "a wall that the sea crosses twice a day",
    ),
    _Subject(
        "paper maps",
        "the Tatra mountains",
        "hikers",
        "a sense of the whole valley",
        "wet creases",
        "folding at the ridge",
        "sheets",
        "a blue line under a thumb",
    ),
    _Subject(
        "bicycle lanes",
        "Bogota",
        "couriers",
        "streets that children may cross",
        "lost parking",
        "painting before building",
        "kilometres",
        "a green stripe past the bakery",
    ),
    _Subject(
        "sourdough bread",
        "Tbilisi",
        "bakers",
        "a loaf that keeps for a week",
        "sleepless starters",
        "feeding at dawn",
        "loaves",
        "a jar that breathes on the shelf",
    ),
    _Subject(
        "village choirs",
        "Estonia",
        "singers",
        "company in the dark months",
        "cold halls",
        "rehearsing by ear",
        "voices",
        "steam rising over an old hymn book",
    ),
    _Subject(
        "repair cafes",
        "Utrecht",
        "volunteers",
        "a toaster saved from the bin",
        "missing spare parts",
        "keeping a ledger",
        "repairs",
        "a lamp coming on to applause",
    ),
    _Subject(
        "rain barrels",
        "Adelaide",
        "gardeners",
        "green leaves in a dry summer",
        "mosquito nets",
        "cleaning the gutters",
        "litres",
        "a tin roof drumming in the night",
    ),
)

_PATTERNS = (
    "Nobody in {place} planned for {name} to matter, and yet {people} speak of little else.",
    "The first argument for {name} is {gain}, which no table of costs has ever managed to price.",
    "Between {year} and {later}, the number of {measure} rose from {few} to {many}.",
    "Critics point to {cost}, and they are right that the bill of {price} thousand a year is not small.",
    "Still, {people} who took up {habit} reported {percent} per cent fewer complaints within a single season.",
    "I remember {image}, and I think that such a picture explains more than a report could.",
    "A survey of {few} {people} found that {percent} per cent would pay more rather than lose it.",
    "It would be easy to conclude that {name} can only be a luxury; the figures from {year} say the opposite.",
    "What began as {habit} became a rule, and the rule became a small institution.",
    "If {cost} were the whole story, {place} would have given up after {year}.",
    "Consider what {people} do on an ordinary Tuesday: they count {measure}, they talk, they go on.",
    "The council set aside {price} thousand, spent {few} less than that, and was surprised by {gain}.",
    "One may object that {place} is a special case, since few towns begin with {many} {measure}.",
    "The objection fails, because {habit} costs nothing and can be copied by anyone.",
    "By {later} there were {many} {measure}, or roughly {ratio} for each household.",
    "In the end the case rests on {gain}, and on {image}.",
    "We should ask less whether money spent on {name} comes back and more who is poorer without it.",
    "Those who dismiss {people} as dreamers have not looked at the ledger for {year}.",
)

_QUESTIONS = (
    "My neighbours in {place} keep talking about {name}. Could you explain in plain words why {people} care about {gain}?",
    "I have to give a short talk on {name} next week. Where should I begin, and how do I deal with the point about {cost}?",
    "Please help me decide whether {habit} is worth the trouble. We have about {few} {measure} and {price} thousand to spend.",
    "I read that the number of {measure} in {place} grew to {many} by {later}. Is that plausible, and what could have caused it?",
)

_FOLLOW_UPS = (
    "That helps. What would you say to someone who only sees {cost}?",
    "Can you put a number on it? Assume {few} {people} and a budget of {price} thousand.",
    "Give me one example from {place}, please, and keep it to two sentences.",
    "And how does {habit} change the picture after {year}?",
    "Which of your points is the weakest, in your own opinion?",
    "Please say the same to a child of ten.",
    "Suppose that the {measure} double by {later}. Does your advice still hold?",
    "What should I read next if I want to understand {gain}?",
)

_PUZZLES = (
    (
        "A ferry carries {a} cars and {b} bicycles. A car pays {c} coins and a bicycle {d}. On the way back there are {e} fewer cars. "
        "How much does the ferry earn on both trips?"
    ),
    (
        "Three shelves hold {a}, {b} and {c} books. {name} moves {d} books from the first to the second and gives {e} from the third "
        "away. How many books are on each shelf, and how many in all?"
    ),
    (
        "A path around a square field of side {a} metres is {d} metres wide. What is its area, and what do {b} lamps along the outer "
        "edge cost at {c} coins each?"
    ),
    (
        "{name} walks {d} kilometres an hour and starts {e} hours before a friend who cycles at {c} kilometres an hour. When and where "
        "do they meet if the road is {a} kilometres long?"
    ),
)


def _words(subject: _Subject, rng: random.Random) -> dict[str, object]:
    year = rng.randint(1951, 2012)
    few, many = rng.randint(11, 95), rng.randint(120, 990)
    return {
        **{name: getattr(subject, name) for name in subject.__dataclass_fields__},
        "year": year,
        "later": year + rng.randint(3, 14),
        "few": few,
        "many": many,
        "price": rng.randint(12, 480),
        "percent": rng.randint(9, 88),
        "ratio": rng.randint(2, 9),
    }


def _sentences(subject: _Subject, rng: random.Random, count: int) -> list[str]:
    """Sentences on one subject; a pattern comes back only when all have been used, with other figures."""
    patterns: list[str] = []
    while len(patterns) < count:
        patterns += rng.sample(_PATTERNS, len(_PATTERNS))
    return [pattern.format(**_words(subject, rng)) for pattern in patterns[:count]]


def essay(rng: random.Random, *, sentences: int = 12) -> str:
    """A titled opinion piece; 12 sentences are about 260 words."""
    subject = rng.choice(_SUBJECTS)
    body = _sentences(subject, rng, sentences)
    half = len(body) // 2
    return f"In praise of {subject.name}\n\n{' '.join(body[:half])}\n\n{' '.join(body[half:])}"


def long_text(rng: random.Random, *, sentences: int) -> str:
    """Plain paragraphs that open with a sentence of their own, so that two of them share no beginning worth the name."""
    opening = f"{rng.choice(_NAMES)}, {rng.randint(19, 78)}, of {rng.choice(_SUBJECTS).place} writes about {{name}}. "
    subject = rng.choice(_SUBJECTS)
    return opening.format(name=subject.name) + " ".join(_sentences(subject, rng, sentences))


def opening_question(rng: random.Random) -> str:
    """What somebody asks at the beginning of a conversation."""
    return rng.choice(_QUESTIONS).format(**_words(rng.choice(_SUBJECTS), rng))


def follow_up(rng: random.Random) -> str:
    """What somebody asks next."""
    return rng.choice(_FOLLOW_UPS).format(**_words(rng.choice(_SUBJECTS), rng))


def word_problem(rng: random.Random) -> tuple[str, str]:
    """A problem and its worked answer."""
    name, other = rng.sample(_NAMES, 2)
    thing, place = rng.choice(_THINGS), rng.choice(_PLACES)
    have, found, given = rng.randint(12, 60), rng.randint(5, 40), rng.randint(2, 11)
    question = f"{name} has {have} {thing}, finds {found} more {place} and gives {given} to {other}. How many are left?"
    total = have + found
    return question, f"{name} has {have} + {found} = {total} {thing}. After giving {given} away, {total - given} are left."


def puzzle(rng: random.Random) -> str:
    """A problem of several steps, without its answer."""
    figures = {letter: rng.randint(low, high) for letter, low, high in (("a", 40, 96), ("b", 20, 60), ("c", 12, 30))}
    return rng.choice(_PUZZLES).format(name=rng.choice(_NAMES), d=rng.randint(3, 9), e=rng.randint(2, 7), **figures)
