"""Workloads: real text made deterministically from a seed. Each is a list of prompts as text."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Workload", "few_shot"]

_NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena")
_THINGS = ("apples", "stamps", "pencils", "marbles", "postcards", "shells", "buttons", "coins")
_PLACES = ("at the market", "in the attic", "on the beach", "from a neighbour", "at the school fair", "by post")


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts that are all known at the start.

    Args:
        name: for the report.
        prompts: texts, in the order in which they are submitted.
        new_tokens: exactly so many are generated for each.
    """

    name: str
    prompts: tuple[str, ...]
    new_tokens: int


def _question(rng: random.Random) -> tuple[str, str]:
    """A word problem and its worked answer."""
    name, other = rng.sample(_NAMES, 2)
    thing, place = rng.choice(_THINGS), rng.choice(_PLACES)
    have, found, given = rng.randint(12, 60), rng.randint(5, 40), rng.randint(2, 11)
    question = f"{name} has {have} {thing}, finds {found} more {place} and gives {given} to {other}. How many are left?"
    total = have + found
    return question, f"{name} has {have} + {found} = {total} {thing}. After giving {given} away, {total - given} are left."


def few_shot(*, shots: int = 16, questions: int = 64, new_tokens: int = 32, seed: int = 0) -> Workload:
    """One prefix of worked word problems (about 1,000 tokens with 16 shots), then one new question each."""
    rng = random.Random(seed)
    solved = [_question(rng) for _ in range(shots)]
    prefix = "Solve each problem in one or two sentences.\n\n"
    prefix += "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in solved)
    prompts = tuple(f"{prefix}Question: {_question(rng)[0]}\nAnswer:" for _ in range(questions))
    return Workload("few_shot", prompts, new_tokens)
