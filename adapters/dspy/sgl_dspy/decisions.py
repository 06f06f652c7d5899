"""``SglDecisions``: DSPy's decision requests on a model of this machine.

A predictor whose LM is one sends no chat: DSPy hands over a state (instructions and inputs) and a question for each output,
and gets probabilities back. ``sgl_core.chat.decisions`` runs them as one program, in which the state is computed once; here
DSPy's questions and answers become those of that module, and the call is kept in DSPy's cache, history and usage.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import json
import uuid
from collections.abc import Mapping
from typing import Any, Final, Self

import dspy
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER
from dspy.clients.base_lm import LM_CLASS_STATE_KEY
from dspy.clients.errors import error_boundary
from dspy.utils.callback import BaseCallback, with_callbacks
from pydantic_core import PydanticSerializationError, to_jsonable_python

from sgl_core.backend import Backend
from sgl_core.chat.decisions import (
    Decisions,
    Question,
    Verdict,
    as_text,
    decide,
    decide_async,
    level_of,
    one_of,
    yes_or_no,
)
from sgl_core.errors import InvalidArgumentError
from sgl_core.types import Usage
from sgl_dspy.engine import SglEngine
from sgl_dspy.labels import check_label
from sgl_dspy.lm import SglLM
from sgl_dspy.requests.failures import as_lm15_errors

__all__ = ["SglDecisions"]

_COPYABLE: Final = frozenset({"cache", "callbacks", "namespace", "rollout_id", "temperature"})


class SglDecisions(dspy.BaseLM):  # type: ignore[misc]  # dspy has no types
    """Answers predictors whose outputs are decisions: bool, Literal, and DSPy's Noul, Score and Choice.

    ``predict.set_lm(SglDecisions())``, or ``dspy.context(lm=...)`` around the call. Each output needs a description, which is
    its question. All questions share what the state costs, and nothing is generated. Probabilities are the model's own, given
    that it picks one of the answers, and sum to 1; a confidence is the probability of the likeliest answer, a score the
    expected level. There is no chance in them: ``rollout_id`` and ``temperature`` may be set on copies and mean nothing.

    Args:
        model, backend, engine, engine_options: as for ``SglLM``; ``engine=lm.engine`` shares that of an LM.
        namespace: what is computed is shared within it only.
        cache: keep answers in DSPy's cache.
        callbacks: DSPy's, of this client.

    Raises:
        InvalidArgumentError: arguments that do not go together, or a label of other weights.
        ModelError: the model cannot be found.
    """

    supports_decision_requests = True

    def __init__(
        self,
        model: str | None = None,
        *,
        backend: Backend | None = None,
        engine: SglEngine | Backend | None = None,
        engine_options: Mapping[str, Any] | None = None,
        namespace: str | None = None,
        cache: bool = True,
        callbacks: list[BaseCallback] | None = None,
    ) -> None:
        """Find the model's files, to know its label; load nothing."""
        # It checks the options, and owns the lease of the engine.
        self._lm = SglLM(model, backend=backend, engine=engine, engine_options=engine_options)
        super().__init__(model=self._lm.model, cache=cache, callbacks=callbacks, num_retries=0)
        self.kwargs: dict[str, Any] = {}  # a decision has no options
        self.namespace = namespace

    # ---- calls -------------------------------------------------------------------------------------------------------
    @with_callbacks  # type: ignore[untyped-decorator, unused-ignore]
    def __call__(self, state: object, questions: Mapping[str, Any]) -> dict[str, Any]:
        """Answers by the names of their questions, in the form that DSPy's predictors decode.

        Args:
            state: what they are about: text, or what JSON can say.
            questions: of each, ``type`` ("noul", "choice" or "score"), ``instructions`` and ``criteria``.

        Raises:
            dspy.LMError: the request, or the engine, failed; its cause is ours.
        """
        with error_boundary(self.model), as_lm15_errors():
            asked = _Asked(state, questions)
            if (found := self._cached(asked)) is not None:
                return self._recorded(asked, found, is_new=False)
            backend = self._backend()
            decisions = decide(asked.state, asked.texts, backend, namespace=self.namespace)
            return self._recorded(asked, self._answered(asked, decisions, backend), is_new=True)

    @with_callbacks  # type: ignore[untyped-decorator, unused-ignore]
    async def acall(self, state: object, questions: Mapping[str, Any]) -> dict[str, Any]:
        """The same, awaited; cancelling it aborts its requests."""
        with error_boundary(self.model), as_lm15_errors():
            asked = _Asked(state, questions)
            if (found := self._cached(asked)) is not None:
                return self._recorded(asked, found, is_new=False)
            backend = await asyncio.to_thread(self._backend)  # which may load weights
            decisions = await decide_async(asked.state, asked.texts, backend, namespace=self.namespace)
            return self._recorded(asked, self._answered(asked, decisions, backend), is_new=True)

    def _backend(self) -> Backend:
        engine: SglEngine = self._lm.engine
        return engine.backend

    def _cached(self, asked: _Asked) -> dict[str, Any] | None:
        found: dict[str, Any] | None = dspy.cache.get(asked.cache_key(self.model)) if self.cache else None
        return found

    def _answered(self, asked: _Asked, decisions: Decisions, backend: Backend) -> dict[str, Any]:
        usage = _usage(decisions.usage, backend.capabilities.cached_tokens)
        answered = {"answers": asked.answers(decisions), "usage": usage}
        if self.cache:
            dspy.cache.put(asked.cache_key(self.model), copy.deepcopy(answered))
        return answered

    def _recorded(self, asked: _Asked, answered: dict[str, Any], *, is_new: bool) -> dict[str, Any]:
        answers: dict[str, Any] = answered["answers"]
        usage = answered["usage"] if is_new else {}
        if is_new and dspy.settings.usage_tracker is not None:
            dspy.settings.usage_tracker.add_usage(self.model, dict(usage))
        self.update_history(
            {
                "prompt": asked.shown(),
                "messages": None,
                "kwargs": {},
                "response": answered,
                "outputs": [json.dumps(answers, ensure_ascii=False)],
                "usage": usage,
                "cost": None,
                "timestamp": datetime.datetime.now().isoformat(),
                "uuid": str(uuid.uuid4()),
                "model": self.model,
                "response_model": self.model,
                "model_type": self.model_type,
            }
        )
        return copy.deepcopy(answers)

    # ---- copies and states -------------------------------------------------------------------------------------------
    def copy(self, **kwargs: Any) -> Self:
        """A copy on the same engine, with an empty history.

        Raises:
            InvalidArgumentError: a keyword that is no setting of this client.
        """
        for name in kwargs.keys() - _COPYABLE:
            raise InvalidArgumentError("copy", name, f"one of {', '.join(sorted(_COPYABLE))}")
        copied: Self = super().copy(**kwargs)
        return copied

    def dump_state(self) -> dict[str, Any]:
        """JSON: label, settings and engine options.

        Raises:
            InvalidArgumentError: the engine's backend is borrowed.
        """
        return {
            LM_CLASS_STATE_KEY: f"{type(self).__module__}.{type(self).__qualname__}",
            "model": self.model,
            "cache": self.cache,
            "engine": self._lm.engine.dump_state(),
            "namespace": self.namespace,
        }

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """A client by its saved state; loads no weights.

        Raises:
            InvalidArgumentError: the label is that of other weights.
        """
        options = dict(state["engine"]["options"])
        made = cls(options.pop("model", None), engine_options=options, namespace=state["namespace"], cache=state["cache"])
        check_label(state["model"], made.model)
        return made

    def close(self) -> None:
        """Give the engine back, see ``SglLM.close``; a later call leases it again."""
        self._lm.close()


class _Asked:
    """One request: DSPy's, and the same in words."""

    def __init__(self, state: object, questions: Mapping[str, Any]) -> None:
        if not isinstance(questions, Mapping):
            raise InvalidArgumentError("questions", type(questions).__name__, "a dict of questions by name")
        self.questions = questions
        self.state = _text("state", _inputs_last(state))
        self.texts = tuple(_question(f"questions[{name!r}]", question) for name, question in questions.items())

    def answers(self, decisions: Decisions) -> dict[str, Any]:
        """By name."""
        pairs = zip(self.questions.items(), decisions.verdicts, strict=True)
        return {name: _answer(question, verdict) for (name, question), verdict in pairs}

    def cache_key(self, model: str) -> dict[str, Any]:
        """What decides the answers, in an order that DSPy's hash keeps: the model reads everything in order."""
        texts = [[name, text.text, text.opening, *text.answers] for name, text in zip(self.questions, self.texts, strict=True)]
        return {"client": "sgl_decisions", "model": model, "state": self.state, "questions": texts}

    def shown(self) -> str:
        """For the history."""
        return "\n\n".join((self.state, *(text.text for text in self.texts)))


def _inputs_last(state: object) -> object:
    """What DSPy's predictors send, with instructions and demos first: calls of one predictor then begin alike."""
    if isinstance(state, Mapping) and "inputs" in state:
        return {**{name: value for name, value in state.items() if name != "inputs"}, "inputs": state["inputs"]}
    return state


def _question(where: str, question: Mapping[str, Any]) -> Question:
    if not isinstance(question, Mapping):
        raise InvalidArgumentError(where, type(question).__name__, "a dict with type, instructions and criteria")
    instructions = _text(f"{where}['instructions']", question.get("instructions"))
    criteria = _plain(f"{where}['criteria']", question.get("criteria"))
    match question.get("type"), criteria:
        case "noul", None | dict():
            outcomes = criteria or {}
            return yes_or_no(instructions, yes=_described(outcomes.get("true")), no=_described(outcomes.get("false")))
        case "choice", dict() if criteria:
            if len(criteria) < len(question["criteria"]):
                raise InvalidArgumentError(f"{where}['criteria']", "labels that are the same as text", "different ones")
            return one_of(instructions, {label: _described(description) for label, description in criteria.items()})
        case "score", list() if criteria:
            return level_of(instructions, [_described(level) for level in criteria])
        case ("noul" | "choice" | "score") as kind, _:
            expected = "a list of levels" if kind == "score" else "descriptions by answer"
            raise InvalidArgumentError(f"{where}['criteria']", type(criteria).__name__, expected)
        case kind, _:
            raise InvalidArgumentError(f"{where}['type']", kind, '"noul", "choice" or "score"')


def _answer(question: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
    match question["type"]:
        case "noul":
            return {"noul": verdict.shares[0]}
        case "choice":
            labels = list(question["criteria"])
            probabilities: dict[Any, float] = dict(zip(labels, verdict.shares, strict=True))
            return {
                "choice": labels[verdict.likeliest],
                "confidence": verdict.confidence,
                "probabilities": probabilities,
            }
        case _:
            return {
                "score": verdict.mean,
                "confidence": verdict.confidence,
                "probabilities": dict(enumerate(verdict.shares)),
            }


def _described(description: object) -> str | None:
    return None if description is None else as_text(description)


def _text(where: str, value: object) -> str:
    text = as_text(_plain(where, value))
    if CUSTOM_TYPE_START_IDENTIFIER in text:
        cure = "The model reads text; leave images, audio and files out."
        raise InvalidArgumentError(where, "an image, audio or another type of content", "text", cure)
    return text


def _plain(where: str, value: object) -> Any:
    """The value in what JSON can say."""
    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        cure = "Convert it to text first."
        raise InvalidArgumentError(where, type(value).__name__, "text, and what JSON can say", cure) from error


def _usage(usage: Usage, counts_cached: bool) -> dict[str, Any]:
    """As DSPy counts that of any LM."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens} if counts_cached else None,
        "completion_tokens_details": None,
    }
