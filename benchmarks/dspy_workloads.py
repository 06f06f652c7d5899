"""Seven DSPy programs: modules as people write them, and how they are called.

A program gets its LM from ``dspy.context``, and knows nothing else about whoever runs it: the same code runs on every system.
Texts are made from a seed (see ``prose``), so every run asks the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

import dspy
import prose

__all__ = ["THREADS", "WORKLOADS", "DspyWorkload", "ForgivingAdapter", "build"]

THREADS = 8
"""``num_threads`` of every program, on every system."""


@dataclass(frozen=True, slots=True)
class DspyWorkload:
    """A program and its inputs.

    Args:
        key: its name in ``WORKLOADS``.
        title: for people.
        num_replies: of the LM, all candidates counted.
        num_first: calls of the LM whose prompts depend on no answer.
        max_tokens: of every reply.
        build: makes the module.
        drive: runs it and gives the texts that came out.
        sampled: whether the program samples; then no two runs put out the same.
        compiling: options of ``sgl_dspy.compile_module`` that a user would give for this program.
    """

    key: str
    title: str
    num_replies: int
    num_first: int
    max_tokens: int
    build: Callable[[], dspy.Module]
    drive: Callable[[dspy.Module], list[str]]
    sampled: bool = False
    compiling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lays_out(self) -> bool:
        """Whether compiling changes its prompts."""
        return "hoist" in self.compiling


def build(key: str, *, scale: float = 1.0, seed: int = 0) -> DspyWorkload:
    """One of ``WORKLOADS``.

    Args:
        key: its name.
        scale: multiplies the number of inputs, where there are several, and of candidates; in (0, 1].
        seed: of the texts.
    """
    return WORKLOADS[key](scale, random.Random(f"{key}-{seed}"))


class ForgivingAdapter(dspy.ChatAdapter):  # dspy has no types
    """Renders as DSPy's ``ChatAdapter`` does, and reads every reply: a field that is missing or wrong gets a value of its type.

    A model this small does not always keep to the format. What programs do about it (ask again in JSON, give up) would depend on
    chance, and then systems would not do the same work.
    """

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """The fields, all of them."""
        found: dict[str, Any] = {}
        for name, info in signature.output_fields.items():
            try:
                found |= super().parse(_only(signature, name), completion)
            except dspy.AdapterParseError:
                found[name] = _stand_in(info.annotation, completion)
        return found


def _only(signature: Any, kept: str) -> Any:
    """The signature with one of its output fields."""
    for name in signature.output_fields:
        if name != kept:
            signature = signature.delete(name)
    return signature


def _stand_in(annotation: Any, completion: str) -> Any:
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if annotation is int:
        return 0
    return {} if get_origin(annotation) is dict else completion.strip() or "nothing"


def _share(full: int, scale: float) -> int:
    return max(1, round(full * scale))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _parallel(calls: Sequence[tuple[dspy.Module, dict[str, Any]]]) -> list[dspy.Prediction]:
    """``dspy.Parallel``; a slow system's last ones are not submitted again, as they would be after two minutes.

    Raises:
        Exception: of the first call that failed.
    """
    run = dspy.Parallel(num_threads=THREADS, disable_progress_bar=True, timeout=0, return_failed_examples=True)
    found, _, errors = run(list(calls))
    if errors:
        raise errors[0]
    return list(found)


def _at_once(inputs: Sequence[Mapping[str, Any]], output: str) -> Callable[[dspy.Module], list[str]]:
    """All inputs at the same time."""
    return lambda program: [str(found[output]) for found in _parallel([(program, dict(given)) for given in inputs])]


# ---- few-shot Evaluate ----------------------------------------------------------------------------------------------------
_VERDICTS = {
    "positive": ("It did what it promised from the first day.", "I have bought a second one for my sister."),
    "negative": ("It broke before the month was over.", "Nobody answered my letters, and I want my money back."),
    "mixed": ("The idea is good, and I use it twice a week.", "For this price, though, I had hoped for more care."),
}
_GOODS = ("kettle", "rucksack", "desk lamp", "bicycle pump", "radio", "tent", "pair of boots", "coffee grinder", "umbrella")
_DETAILS = (
    "It came in {days} days, in a box that was {size} times its size.",
    "The handle is made of {stuff}, which surprised me.",
    "We took it along to the coast for {days} days, with sand, rain and three children.",
    "The manual has {days} pages, {size} of them in a language that I can read.",
)


def _review(rng: random.Random) -> dspy.Example:
    mood, verdicts = rng.choice(list(_VERDICTS.items()))
    figures = {"days": rng.randint(3, 19), "size": rng.randint(2, 6), "stuff": rng.choice(("beech", "steel", "felt", "cork"))}
    text = " ".join([f"A {rng.choice(_GOODS)} for my own use.", rng.choice(_DETAILS).format(**figures), *verdicts])
    return dspy.Example(review=text, mood=mood).with_inputs("review")


class _Sort(dspy.Signature):
    """Sort reviews of goods by the mood of their authors."""

    review: str = dspy.InputField()
    mood: Literal["positive", "negative", "mixed"] = dspy.OutputField()


def _evaluate(scale: float, rng: random.Random) -> DspyWorkload:
    demos = [_review(rng) for _ in range(8)]
    devset = [_review(rng) for _ in range(_share(24, scale))]

    def make() -> dspy.Module:
        program = dspy.Predict(_Sort)
        program.demos = demos
        return program

    def drive(program: dspy.Module) -> list[str]:
        evaluate = dspy.Evaluate(
            devset=devset, metric=lambda example, found, _=None: found.mood == example.mood, num_threads=THREADS
        )
        return [str(found.mood) for _, found, _ in evaluate(program).results]

    title = f"few-shot Evaluate: {_count(len(devset), 'example')}, 8 demos"
    return DspyWorkload("few-shot", title, len(devset), len(devset), 24, make, drive)


# ---- chains of thought ----------------------------------------------------------------------------------------------------
def _thinker(rng: random.Random) -> dspy.Module:
    """A chain of thought with two worked examples."""
    solve = dspy.ChainOfThought(dspy.Signature("question -> answer", "Solve the problem."))
    for _ in range(2):
        question, worked = prose.word_problem(rng)
        answer = worked.rpartition(", ")[2].removesuffix(" are left.")
        solve.predict.demos.append(dspy.Example(question=question, reasoning=worked, answer=answer))
    return solve


def _puzzles(rng: random.Random, count: int) -> list[dict[str, str]]:
    return [{"question": prose.puzzle(rng)} for _ in range(count)]


def _candidates(scale: float, rng: random.Random) -> DspyWorkload:
    thinker, (asked,) = _thinker(rng), _puzzles(rng, 1)
    count = _share(8, scale)

    def drive(solve: dspy.Module) -> list[str]:
        found = solve(**asked, config={"n": count, "temperature": 0.9})
        return [str(answer) for answer in found.completions.answer]

    title = f"n={count}: candidates for one question, chain of thought"
    return DspyWorkload("n=8", title, count, 1, 64, thinker.deepcopy, drive, sampled=True)


class _Consistent(dspy.Module):
    """Several chains of thought, and a last one that compares them."""

    def __init__(self, solve: dspy.Module, count: int) -> None:
        super().__init__()
        self.count = count
        self.solve = solve
        self.compare = dspy.MultiChainComparison("question -> answer", M=count)

    def forward(self, question: str) -> dspy.Prediction:
        """Answer it."""
        found = self.solve(question=question, config={"n": self.count, "temperature": 0.7})
        return self.compare([found.completions[number] for number in range(self.count)], question=question)


def _self_consistency(scale: float, rng: random.Random) -> DspyWorkload:
    thinker, inputs, count = _thinker(rng), _puzzles(rng, _share(3, scale)), _share(5, scale)
    title = f"self-consistency: {_count(len(inputs), 'question')}, {_count(count, 'chain')} of thought each and a comparison"
    num_replies = len(inputs) * (count + 1)
    make = lambda: _Consistent(thinker.deepcopy(), count)  # noqa: E731
    return DspyWorkload("self-consistency", title, num_replies, len(inputs), 64, make, _at_once(inputs, "answer"), sampled=True)


def _best_of_n(scale: float, rng: random.Random) -> DspyWorkload:
    thinker, inputs, count = _thinker(rng), _puzzles(rng, _share(4, scale)), 4

    def reward(_given: dict[str, Any], found: dspy.Prediction) -> float:
        return 1.0 / len(str(found.answer))  # never good enough to stop early

    title = f"BestOfN: {_count(len(inputs), 'question')}, {count} attempts each"
    return DspyWorkload(
        "BestOfN",
        title,
        count * len(inputs),
        count * len(inputs),
        64,
        lambda: dspy.BestOfN(thinker.deepcopy(), N=count, reward_fn=reward, threshold=2.0),
        _at_once(inputs, "answer"),
        sampled=True,
        compiling={"speculate": count},
    )


# ---- documents --------------------------------------------------------------------------------------------------------------
def _rag(scale: float, rng: random.Random) -> DspyWorkload:
    documents = [prose.essay(rng) for _ in range(3)]
    questions = [prose.opening_question(rng) for _ in range(_share(4, scale))]
    inputs = [{"context": document, "question": question} for document in documents for question in questions]

    def make() -> dspy.Module:
        return dspy.Predict(dspy.Signature("context, question -> answer", "Answer from the context alone, in one sentence."))

    title = f"RAG: 3 documents, {_count(len(questions), 'question')} to each"
    return DspyWorkload("RAG", title, len(inputs), len(inputs), 40, make, _at_once(inputs, "answer"))


_ASPECTS = prose.ASPECTS[:5]


class _Panel(dspy.Module):
    """Judges who read the same essay at once, each a predictor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.judges = [
            dspy.Predict(dspy.Signature("essay -> comment, score: int", f"Judge the {aspect} of the essay, from 1 to 10."))
            for aspect in _ASPECTS
        ]

    def forward(self, essay: str) -> dspy.Prediction:
        """All their comments."""
        found = _parallel([(judge, {"essay": essay}) for judge in self.judges])
        return dspy.Prediction(comments=[judged.comment for judged in found])


def _judges(_scale: float, rng: random.Random) -> DspyWorkload:
    essay = prose.essay(rng, sentences=24)
    title = f"{len(_ASPECTS)} judges on one essay"
    drive = lambda panel: [str(comment) for comment in panel(essay=essay).comments]  # noqa: E731
    return DspyWorkload("judges", title, len(_ASPECTS), len(_ASPECTS), 64, _Panel, drive, compiling={"hoist": ["essay"]})


# ---- ReAct ------------------------------------------------------------------------------------------------------------------
def price(item: str) -> str:
    """Look up what an item costs at the market."""
    return f"{7 + len(item) % 5} coins"


def multiply(a: int, b: int) -> int:
    """Multiply two whole numbers."""
    return a * b


def _agent(iterations: int) -> dspy.Module:
    agent = dspy.ReAct("question -> answer", tools=[price, multiply], max_iters=iterations)
    worked = "[[ ## thought_0 ## ]]\nI need the price first.\n\n[[ ## tool_name_0 ## ]]\nprice\n\n[[ ## tool_args_0 ## ]]\n"
    agent.react.demos = [
        dspy.Example(
            question="What do 3 lamps cost?",
            trajectory="",
            next_thought="I need the price first.",
            next_tool_name="price",
            next_tool_args={"item": "lamp"},
        ),
        dspy.Example(
            question="What do 3 lamps cost?",
            trajectory=worked + '{"item": "lamp"}\n\n[[ ## observation_0 ## ]]\n11 coins',
            next_thought="Three times eleven.",
            next_tool_name="multiply",
            next_tool_args={"a": 3, "b": 11},
        ),
    ]
    return agent


def _react(scale: float, rng: random.Random) -> DspyWorkload:
    iterations = 2
    goods = rng.sample(_GOODS, _share(4, scale))
    inputs = [{"question": f"What do {rng.randint(4, 9)} items of the kind '{item}' cost?"} for item in goods]
    title = f"ReAct: {_count(len(inputs), 'question')}, {iterations} steps each and an answer"
    return DspyWorkload(
        "ReAct",
        title,
        len(inputs) * (iterations + 1),
        len(inputs),
        80,
        lambda: _agent(iterations),
        _at_once(inputs, "answer"),
    )


WORKLOADS: dict[str, Callable[[float, random.Random], DspyWorkload]] = {
    "few-shot": _evaluate,
    "n=8": _candidates,
    "RAG": _rag,
    "judges": _judges,
    "BestOfN": _best_of_n,
    "ReAct": _react,
    "self-consistency": _self_consistency,
}
