"""Six workloads: what programs ask of a model, as token ids that depend on what it answered before.

A workload is a list of programs. A program is a generator that yields branches which may run at the same time, a branch being
a call or a program of its own, and receives their results when all of them are done: token ids for a call, the returned value
for a program. So readiness is exact: a call is ready when those that it depends on have ended, not when a level has.

Prompts are made with the language's own positions: turns, generated ids and text are joined as in a ``sgl.function``, and
nothing that a model wrote is encoded again, unless a program quotes it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import prose

from sgl_core.backend import TextCodec
from sgl_core.language.position import Position

__all__ = ["WORKLOADS", "Call", "Ids", "Program", "Workload", "all_at_once", "build"]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One generation.

    Args:
        prompt: the whole prompt.
        new_tokens: exactly so many are generated; no token ends it early.
        label: which step of its program it is.
    """

    prompt: Ids
    new_tokens: int
    label: str


Program = Generator[Sequence["Call | Program"], list[Any], Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """Programs that start at the same time.

    Args:
        key: "W1" to "W6", or whence it was derived.
        title: for people.
        num_calls: calls of all programs together.
        start: makes fresh programs; they can run once each.
    """

    key: str
    title: str
    num_calls: int
    start: Callable[[], list[Program]]


def build(key: str, codec: TextCodec, *, scale: float = 1.0, seed: int = 0) -> Workload:
    """One of ``WORKLOADS``.

    Args:
        key: its name.
        codec: of the model that will answer.
        scale: multiplies the number of programs (for W5, which has one, its tokens); in (0, 1].
        seed: of the texts.
    """
    return WORKLOADS[key](codec, scale, random.Random(f"{key}-{seed}"))


def all_at_once(key: str, title: str, calls: Sequence[Call]) -> Workload:
    """Calls that are all known at the start, each a program of its own, in this order."""
    return Workload(key, title, len(calls), lambda: [_alone(call) for call in calls])


def _alone(call: Call) -> Program:
    yield [call]


def _share(full: int, scale: float) -> int:
    return max(1, round(full * scale))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ---- W1: few-shot -------------------------------------------------------------------------------------------------------
def _few_shot(codec: TextCodec, scale: float, rng: random.Random) -> Workload:
    shots, questions = 15, _share(64, scale)
    text = "Solve each problem in one or two sentences. Write the sum first, then the number that is left.\n\n"
    text += "".join("Question: {}\nAnswer: {}\n\n".format(*prose.word_problem(rng)) for _ in range(shots))
    prompts = [_plain(f"{text}Question: {prose.word_problem(rng)[0]}\nAnswer:", codec) for _ in range(questions)]
    title = f"few-shot: {_count(questions, 'question')} behind one prefix"
    return all_at_once("W1", title, [Call(prompt, 32, "question") for prompt in prompts])


def _plain(text: str, codec: TextCodec) -> Ids:
    return Position().add_text(text).settled(codec).ids.flat()


# ---- W2: judge ----------------------------------------------------------------------------------------------------------
def _judge(codec: TextCodec, scale: float, rng: random.Random) -> Workload:
    essays = [prose.essay(rng) for _ in range(_share(8, scale))]
    aspects = [rng.sample(prose.ASPECTS, 4) for _ in essays]
    title = f"judge: {_count(len(essays), 'essay')}, 4 forks each, and a join"
    return Workload(
        "W2", title, 5 * len(essays), lambda: [_judgement(codec, e, a) for e, a in zip(essays, aspects, strict=True)]
    )


def _judgement(codec: TextCodec, essay: str, aspects: Sequence[str]) -> Program:
    read = _turn(Position(), "system", "You are a fair judge of essays.", codec)
    read = _turn(read, "user", f"Read this essay.\n\n{essay}", codec)
    forks = [_turn(read, "user", f"Judge the essay on {aspect}, in one or two sentences.", codec) for aspect in aspects]
    judged = yield [_asked(fork, 48, "fork", codec) for fork in forks]
    quoted = "\n".join(f"{aspect}: {codec.decode(ids)}" for aspect, ids in zip(aspects, judged, strict=True))
    join = _turn(read, "user", f"These are the judgements.\n{quoted}\nSum them up and give a grade from 1 to 10.", codec)
    yield [_asked(join, 32, "join", codec)]


def _turn(position: Position, role: str, text: str, codec: TextCodec) -> Position:
    return position.open_turn(role, codec).add_text(text).close_turn(role, codec)


def _opened(position: Position, codec: TextCodec) -> Position:
    """With the assistant's turn open and everything before it encoded."""
    return position.open_turn("assistant", codec).settled(codec)


def _asked(position: Position, new_tokens: int, label: str, codec: TextCodec) -> Call:
    return Call(_opened(position, codec).ids.flat(), new_tokens, label)


def _answered(position: Position, ids: Ids, codec: TextCodec) -> Position:
    return position.add_generated(position.ids, ids, codec.decode(ids))


# ---- W3: chat -----------------------------------------------------------------------------------------------------------
def _chat(codec: TextCodec, scale: float, rng: random.Random) -> Workload:
    turns = 4
    asked = [[prose.opening_question(rng), *(prose.follow_up(rng) for _ in range(turns - 1))] for _ in range(_share(8, scale))]
    title = f"chat: {_count(len(asked), 'conversation')} of {turns} turns"
    return Workload("W3", title, turns * len(asked), lambda: [_conversation(codec, questions) for questions in asked])


def _conversation(codec: TextCodec, questions: Sequence[str]) -> Program:
    position = _turn(Position(), "system", "You answer briefly, kindly and with numbers where they help.", codec)
    for number, question in enumerate(questions):
        position = _opened(_turn(position, "user", question, codec), codec)
        (ids,) = yield [Call(position.ids.flat(), 48, f"turn {number + 1}")]
        position = _answered(position, ids, codec).close_turn("assistant", codec)


# ---- W4: tree of thought ------------------------------------------------------------------------------------------------
_DEPTH = 3
_IDEAS = ("Start from what is given.", "Work backwards from the question.", "Try small numbers first.")


def _tree_of_thought(codec: TextCodec, scale: float, rng: random.Random) -> Workload:
    problems = [prose.puzzle(rng) for _ in range(_share(4, scale))]
    nodes = sum(len(_IDEAS) ** depth for depth in range(1, _DEPTH + 1))
    title = f"tree of thought: {_count(len(problems), 'problem')}, {nodes} thoughts each"
    return Workload("W4", title, 2 * nodes * len(problems), lambda: [_problem(codec, problem) for problem in problems])


def _problem(codec: TextCodec, problem: str) -> Program:
    asked = _turn(Position(), "system", "You solve problems step by step and check every step.", codec)
    asked = _opened(_turn(asked, "user", f"{problem}\nThink in {_DEPTH} short steps.", codec), codec)
    yield [_thought(codec, asked, 1, idea) for idea in _IDEAS]


def _thought(codec: TextCodec, before: Position, depth: int, idea: str) -> Program:
    """Think, then score the thought and, at the same time, think on in three directions."""
    asked = before.add_text(f"\nStep {depth}. {idea}").settled(codec)
    (ids,) = yield [Call(asked.ids.flat(), 40, f"thought {depth}")]
    after = _answered(asked, ids, codec)
    score = Call(after.add_text("\nScore of this step, 1 to 9:").settled(codec).ids.flat(), 8, f"score {depth}")
    deeper = [_thought(codec, after, depth + 1, further) for further in _IDEAS] if depth < _DEPTH else []
    yield [score, *deeper]


# ---- W5 and W6: nothing to share ------------------------------------------------------------------------------------------
def _one_stream(codec: TextCodec, scale: float, rng: random.Random) -> Workload:
    given, new_tokens = _share(512, scale), _share(128, scale)
    title = f"one stream: {given} tokens in, {new_tokens} out"
    return all_at_once("W5", title, [Call(_cut(codec, rng, given), new_tokens, "stream")])


def _no_sharing(codec: TextCodec, scale: float, rng: random.Random) -> Workload:
    lengths = [rng.randint(289, 345) for _ in range(_share(32, scale))]
    title = f"no sharing: {_count(len(lengths), 'prompt')} of about 317 tokens"
    return all_at_once("W6", title, [Call(_cut(codec, rng, length), 32, "prompt") for length in lengths])


def _cut(codec: TextCodec, rng: random.Random, length: int) -> Ids:
    """Exactly ``length`` tokens of running text."""
    sentences = math.ceil(length / 8)  # none has fewer than eight tokens
    return _plain(prose.long_text(rng, sentences=sentences), codec)[:length]


WORKLOADS: dict[str, Callable[[TextCodec, float, random.Random], Workload]] = {
    "W1": _few_shot,
    "W2": _judge,
    "W3": _chat,
    "W4": _tree_of_thought,
    "W5": _one_stream,
    "W6": _no_sharing,
}
