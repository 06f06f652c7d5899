"""Typed questions about one state, answered with probabilities. The decision models of the adapters call it.

A request is one program. The state is the beginning of a user's turn, every question is a fork of it that ends the turn and
scores its possible answers, so the state is computed once whatever the number of questions. Nothing is generated.

What an answer's probability is: each possible answer is a piece of JSON up to and including the character that ends it
(``yes"``, ``bug report"``, ``3}``), and its share of the summed probabilities of all of them. No piece begins another one, so
these are the model's own probabilities given that it picks one of the answers, whatever their lengths. The mean over tokens,
which ``select`` compares by, would flatter long answers and is no probability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sgl_core.backend import Backend
from sgl_core.errors import InvalidArgumentError
from sgl_core.language import ForkGroup, ProgramState, function, select
from sgl_core.language.ir import ConstantText
from sgl_core.types import Usage

__all__ = [
    "Decisions",
    "Question",
    "Verdict",
    "as_json",
    "as_text",
    "decide",
    "decide_async",
    "level_of",
    "one_of",
    "shares",
    "yes_or_no",
]

_SYSTEM: Final = "You answer questions about what the user shows you. Your answer is JSON."
_ANSWER: Final = "answer"


# ---- questions -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Question:
    """One question for the model.

    Args:
        text: what stands behind the state.
        opening: what every answer begins with.
        answers: the rest of each, up to its end.
    """

    text: str
    opening: str
    answers: tuple[str, ...]


def yes_or_no(instructions: str, *, yes: str | None = None, no: str | None = None) -> Question:
    """A question whose first answer is yes and whose second is no, with what they mean where that is said."""
    described = {answer: text for answer, text in (("yes", yes), ("no", no)) if text is not None}
    form = '{"answer": "yes"} or {"answer": "no"}'
    return Question(_text(instructions, described, form), '{"answer": "', ('yes"', 'no"'))


def one_of(instructions: str, labels: Mapping[str, str | None]) -> Question:
    """A choice among labels, each with its description or None."""
    form = '{"answer": "<one of these labels>"}'
    return Question(_text(instructions, labels, form), '{"answer": "', tuple(as_json(label)[1:] for label in labels))


def level_of(instructions: str, levels: Sequence[str | None]) -> Question:
    """A level of a scale from 0 up, each with its description."""
    described = {str(level): text for level, text in enumerate(levels)}
    form = '{"answer": <the number of one of these levels>}'
    return Question(_text(instructions, described, form), '{"answer": ', tuple(f"{level}}}" for level in described))


def as_text(value: object) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else as_json(value)


def as_json(value: object) -> str:
    """JSON with letters as they are and keys in the caller's order: prompts that begin alike stay alike."""
    return json.dumps(value, ensure_ascii=False)


def _text(instructions: str, described: Mapping[str, str | None], form: str) -> str:
    lines = [f"- {answer}" + ("" if text is None else f": {text}") for answer, text in described.items()]
    return "\n".join((instructions, *lines, f"Answer with {form}."))


# ---- answers ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one question.

    Args:
        shares: the probability of each possible answer, in order; they sum to 1.
    """

    shares: tuple[float, ...]

    @property
    def likeliest(self) -> int:
        """Index of the likeliest answer, the first of equals."""
        return max(range(len(self.shares)), key=self.shares.__getitem__)

    @property
    def confidence(self) -> float:
        """The probability of the likeliest."""
        return max(self.shares)

    @property
    def mean(self) -> float:
        """The expected index, which is the score of a scale."""
        return math.fsum(index * share for index, share in enumerate(self.shares))


@dataclass(frozen=True, slots=True)
class Decisions:
    """The answers to all questions of a request.

    Args:
        verdicts: one for each question, in order.
        usage: summed over the questions; no token is generated.
        program_id: what the hints of the engine's requests say, too.
    """

    verdicts: tuple[Verdict, ...]
    usage: Usage
    program_id: str


def decide(state: str, questions: Sequence[Question], backend: Backend, *, namespace: str | None = None) -> Decisions:
    """Answer the questions about the state.

    Args:
        state: what the questions are about; spellings of control tokens in it stay text.
        questions: at least one.
        backend: where to run.
        namespace: prefixes are shared within it only.

    Raises:
        InvalidArgumentError: there is no text to judge, or no question.
        ContextLengthError: the state, a question and its answers do not fit.
        SglError: the backend's own error.
    """
    _check(state, questions)
    return _decisions(_ask.run(state=state, questions=questions, backend=backend, namespace=namespace))


async def decide_async(
    state: str, questions: Sequence[Question], backend: Backend, *, namespace: str | None = None
) -> Decisions:
    """Like ``decide``, without blocking the loop; cancelling it aborts its requests."""
    _check(state, questions)
    return _decisions(await _ask_async.arun(state=state, questions=questions, backend=backend, namespace=namespace))


def _check(state: str, questions: Sequence[Question]) -> None:
    if not state.strip():
        raise InvalidArgumentError("state", "no text", "text, messages or JSON to judge")
    if not questions:
        raise InvalidArgumentError("questions", "no questions", "at least one question")


def _decisions(run: ProgramState) -> Decisions:
    metas = [fork.get_meta_info(_ANSWER) for fork in run.ret_value]
    prompt, cached = (sum(meta[count] for meta in metas) for count in ("prompt_tokens", "cached_tokens"))
    verdicts = tuple(Verdict(shares(meta["sum_logprobs"])) for meta in metas)
    return Decisions(verdicts, Usage(prompt, cached, 0), run.run.program_id)


def shares(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Probabilities of answers, given that it is one of them."""
    top = max(logprobs)
    if math.isinf(top):  # every answer is impossible: none is likelier than another
        return tuple(1 / len(logprobs) for _ in logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


# ---- the program -----------------------------------------------------------------------------------------------------
def _write(s: ProgramState, state: str, questions: Sequence[Question]) -> ForkGroup:
    """Everything is submitted before anything is waited for."""
    s.system(_SYSTEM)
    s.user_begin()
    _append(s, state)
    forks = s.fork(len(questions))
    for fork, question in zip(forks, questions, strict=True):
        _append(fork, f"\n\n{question.text}")
        fork.user_end()
        fork.assistant_begin()
        fork += question.opening + select(_ANSWER, question.answers)
    return forks


def _append(s: ProgramState, text: str) -> None:
    """Append data. ``s += text`` would warn of spellings of control tokens, as if somebody had written them in a program."""
    s.stream.submit((ConstantText(text),))


async def _write_async(s: ProgramState, state: str, questions: Sequence[Question]) -> ForkGroup:
    return _write(s, state, questions)


_ask: Final = function(_write)
_ask_async: Final = function(_write_async)
