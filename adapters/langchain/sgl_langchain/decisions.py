"""``SglDecisions``: many typed questions about one state, answered with probabilities; needs langchain-core 1.8 or newer.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from langchain_core.messages import BaseMessage, is_data_content_block
from langchain_core.runnables import RunnableConfig
from langchain_core.version import VERSION
from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import override

from sgl_core.errors import InvalidArgumentError
from sgl_core.language import ForkGroup, ProgramState, function, select
from sgl_core.language.ir import ConstantText
from sgl_core.types import Usage
from sgl_langchain.base import EMBEDDED_NAME
from sgl_langchain.chat import ChatSgl
from sgl_langchain.errors import LangChainVersionError, langchain_errors
from sgl_langchain.messages import usage_metadata
from sgl_langchain.options import canonical_options

try:
    from langchain_core.decisions import (  # type: ignore[import-not-found, unused-ignore]
        Answer,
        BaseDecisionModel,
        Box,
        Choice,
        ChoiceAnswer,
        ClassifierRequest,
        ClassifierResponse,
        Noul,
        NoulAnswer,
        Question,
        Score,
        ScoreAnswer,
        State,
    )
except ImportError as error:
    raise LangChainVersionError("SglDecisions", needed="1.8", installed=VERSION) from error

__all__ = ["SglDecisions"]

_SYSTEM: Final = "You answer questions about what the user shows you. Your answer is JSON."
_ANSWER: Final = "answer"
_ROLES: Final = {"human": "user", "ai": "assistant"}
_MEDIA_OF_PROVIDERS: Final = frozenset({"image_url", "input_audio", "input_image", "input_file"})


class SglDecisions(BaseDecisionModel):  # type: ignore[misc, unused-ignore]
    """A decision model on an engine of this process: questions about one state share what the state costs.

    Setup:
        ```bash
        pip install 'sgl-core[langchain,runtime]' 'langchain-core>=1.8'
        ```

    Key init args:
        model, device, dtype, engine_kwargs, engine, namespace: as in ``ChatSgl``, and engines are shared with it. The
            object cannot be changed; make another one.

    Invoke:
        ```python
        from langchain_core.decisions import Choice, Noul, Score
        from sgl_langchain import SglDecisions

        response = SglDecisions().invoke(
            {
                "state": "This has failed three times. Fix it now.",
                "questions": {
                    "urgent": Noul(instructions="Does this need an answer today?"),
                    "team": Choice(instructions="Who should read it?", criteria={"support": None, "sales": "Prices."}),
                    "anger": Score(instructions="How angry is the writer?", criteria=["Calm.", "Annoyed.", "Furious."]),
                },
            }
        )
        response.nouls["urgent"].noul, response.choices["team"].choice, response.scores["anger"].score
        ```

    Answers:
        ``noul`` is the probability of yes. ``confidence`` of a choice or a score is the probability of its likeliest label or
        level; ``score`` is the expected level. Probabilities of one answer sum to 1.

    State:
        Text as it is; anything else as JSON, with messages as ``{"role": ..., "content": ...}`` at any depth. Images, audio
        and files are an error, as is a ``Box``: the model reads text.

    Token usage:
        ``response.usage`` is the sum over all questions; with many of them most of it is
        ``input_token_details["cache_read"]``. Output tokens are 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    engine: Any = Field(default=None, exclude=True, repr=False)
    device: str | None = None
    dtype: str | None = None
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    namespace: str | None = None

    _chat: ChatSgl = PrivateAttr()  # checks the options, and owns the lease of the engine

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Refuse misspelt names, and name the model where none is given: traces and responses show it."""
        if not isinstance(data, Mapping):
            return data
        options = canonical_options(cls.__name__, data, cls.model_fields)
        if options.get("model") is None:
            engine = options.get("engine")
            options["model"] = (ChatSgl() if engine is None else ChatSgl(engine=engine))._model_name
        return options

    @model_validator(mode="after")
    def _configure(self) -> Self:
        options = {name: getattr(self, name) for name in ("engine", "device", "dtype", "engine_kwargs", "namespace")}
        is_default = self.engine is not None or self.model == EMBEDDED_NAME
        self._chat = ChatSgl(model=None if is_default else self.model, **options)
        if self.engine is not None and self.model != self._chat._model_name:
            raise InvalidArgumentError("model", self.model, "nothing beside engine=", "The engine has its own.")
        return self

    @override
    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy on the same engine."""
        memo = {} if memo is None else memo
        memo[id(self.engine)] = self.engine
        copied: Self = super().__deepcopy__(memo)
        return copied

    @override
    def __getstate__(self) -> dict[Any, Any]:
        """The configuration; a pickle holds no engine.

        Raises:
            InvalidArgumentError: the engine was brought by the caller and cannot travel.
        """
        self._chat.__getstate__()
        state: dict[Any, Any] = super().__getstate__()
        return state

    def close(self) -> None:
        """Give back the engine that this object and its copies share; the next call leases it anew."""
        self._chat.close()

    @property
    def _provider(self) -> str:
        return "sgl"

    # ---- one request -------------------------------------------------------------------------------------------------
    @override
    def _classify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        with langchain_errors():
            arguments = {"state": _state_text(state), "tasks": _tasks(questions)}
            run = _ask.run(**arguments, backend=self._chat._engine(), namespace=self.namespace)
        return self._response(questions, run)

    @override
    async def _aclassify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        with langchain_errors():
            arguments = {"state": _state_text(state), "tasks": _tasks(questions)}
            run = await _ask_async.arun(**arguments, backend=await self._chat._aengine(), namespace=self.namespace)
        return self._response(questions, run)

    def _response(self, questions: Mapping[str, Question], run: ProgramState) -> ClassifierResponse:
        metas = [fork.get_meta_info(_ANSWER) for fork in run.ret_value]
        answers = {
            name: _answer(question, _shares(meta["sum_logprobs"]))
            for (name, question), meta in zip(questions.items(), metas, strict=True)
        }
        prompt, cached = (sum(meta[count] for meta in metas) for count in ("prompt_tokens", "cached_tokens"))
        return ClassifierResponse(
            model=self.model,
            answers=answers,
            usage=usage_metadata(Usage(prompt, cached, 0)),
            request_id=run.run.program_id,  # what the hints of the engine's requests say, too
        )

    # ---- many requests -----------------------------------------------------------------------------------------------
    @override
    def batch(
        self,
        inputs: list[ClassifierRequest],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[ClassifierResponse]:
        """Answer all requests, as many at once as the engine runs; ``max_concurrency`` in the config sets another number."""
        configs = self._chat._widened(config, len(inputs))
        responses: list[ClassifierResponse] = super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)
        return responses

    @override
    def batch_as_completed(
        self,
        inputs: Sequence[ClassifierRequest],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Like ``batch``: pairs of position and response, as they come."""
        configs = self._chat._widened(config, len(inputs))
        if return_exceptions:
            yield from super().batch_as_completed(inputs, configs, return_exceptions=True, **kwargs)
        else:
            yield from super().batch_as_completed(inputs, configs, **kwargs)


# ---- the program -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Task:
    """One question for the model.

    Args:
        text: what stands behind the state.
        opening: what every answer begins with.
        answers: the rest of each, up to its end.
    """

    text: str
    opening: str
    answers: tuple[str, ...]


def _write(s: ProgramState, state: str, tasks: Sequence[_Task]) -> ForkGroup:
    """Everything is submitted before anything is waited for."""
    s.system(_SYSTEM)
    s.user_begin()
    _append(s, state)
    forks = s.fork(len(tasks))
    for fork, task in zip(forks, tasks, strict=True):
        _append(fork, f"\n\n{task.text}")
        fork.user_end()
        fork.assistant_begin()
        fork += task.opening + select(_ANSWER, task.answers)
    return forks


def _append(s: ProgramState, text: str) -> None:
    """Append data. ``s += text`` would warn of spellings of control tokens, as if somebody had written them in a program."""
    s.stream.submit((ConstantText(text),))


async def _write_async(s: ProgramState, state: str, tasks: Sequence[_Task]) -> ForkGroup:
    return _write(s, state, tasks)


_ask: Final = function(_write)
_ask_async: Final = function(_write_async)


def _shares(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Probabilities of answers, given that it is one of them."""
    top = max(logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


# ---- questions and answers -------------------------------------------------------------------------------------------
def _tasks(questions: Mapping[str, Question]) -> tuple[_Task, ...]:
    if not questions:
        raise InvalidArgumentError("questions", "no questions", "at least one question")
    return tuple(_task(f"questions[{name!r}]", question) for name, question in questions.items())


def _task(where: str, question: Question) -> _Task:
    match question:
        case Noul(criteria=criteria):
            given = {} if criteria is None else {"yes": criteria.true, "no": criteria.false}
            described = {answer: value for answer, value in given.items() if value is not None}
            form = '{"answer": "yes"} or {"answer": "no"}'
            return _Task(_task_text(where, question, described, form), '{"answer": "', ('yes"', 'no"'))
        case Choice(criteria=labels):
            form = '{"answer": "<one of these labels>"}'
            return _Task(_task_text(where, question, labels, form), '{"answer": "', tuple(_json(label)[1:] for label in labels))
        case Score(criteria=levels):
            form = '{"answer": <the number of one of these levels>}'
            answers = tuple(f"{level}}}" for level in range(len(levels)))
            return _Task(_task_text(where, question, dict(enumerate(levels)), form), '{"answer": ', answers)
        case Box():
            raise InvalidArgumentError(
                where, "a Box", "Noul, Choice or Score", "The model reads text; no image has a place in it."
            )
        case _:
            raise InvalidArgumentError(where, type(question).__name__, "Noul, Choice or Score of langchain_core.decisions")


def _task_text(where: str, question: Any, described: Mapping[Any, Any], form: str) -> str:
    lines = [_text(question.instructions, f"{where}.instructions")]
    for answer, description in described.items():
        tail = "" if description is None else f": {_text(description, f'{where}.criteria[{answer!r}]')}"
        lines.append(f"- {answer}{tail}")
    return "\n".join((*lines, f"Answer with {form}."))


def _answer(question: Question, shares: Sequence[float]) -> Answer:
    likeliest = max(range(len(shares)), key=shares.__getitem__)
    confidence = shares[likeliest]
    if isinstance(question, Noul):
        return NoulAnswer(type="noul", noul=shares[0])
    if isinstance(question, Choice):
        labels = list(question.criteria)
        by_label = dict(zip(labels, shares, strict=True))
        return ChoiceAnswer(type="choice", choice=labels[likeliest], probabilities=by_label, confidence=confidence)
    assert isinstance(question, Score), "a Box is refused before anything runs"
    return ScoreAnswer(
        type="score",
        score=math.fsum(level * share for level, share in enumerate(shares)),
        legend=dict(enumerate(question.criteria)),
        probabilities=dict(enumerate(shares)),
        confidence=confidence,
    )


# ---- state as text ---------------------------------------------------------------------------------------------------
def _state_text(state: State) -> str:
    text = _text(state, "state")
    if not text.strip():
        raise InvalidArgumentError("state", "no text", "text, messages or JSON to judge")
    return text


def _text(value: object, where: str) -> str:
    return value if isinstance(value, str) else _json(_plain(value, where))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(value: object, where: str) -> Any:
    """What JSON can say, in the caller's order: prompts that begin alike stay alike."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case BaseMessage():
            return _plain_message(value, where)
        case Mapping():
            _refuse_media(value, where)
            return {_key(key, where): _plain(inner, f"{where}[{key!r}]") for key, inner in value.items()}
        case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
            return [_plain(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
        case _:
            cure = "Convert it to text first."
            raise InvalidArgumentError(where, type(value).__name__, "text, numbers, messages, lists and mappings of them", cure)


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise InvalidArgumentError(where, f"a key of type {type(key).__name__}", "str as keys")
    return key


def _refuse_media(block: Mapping[Any, Any], where: str) -> None:
    kind = block.get("type")
    if kind in _MEDIA_OF_PROVIDERS or (kind != "text-plain" and is_data_content_block(dict(block))):
        raise InvalidArgumentError(where, f"a block of type {kind!r}", "text", "Text is all the model reads.")


def _plain_message(message: BaseMessage, where: str) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": _ROLES.get(message.type, message.type)}
    if message.name:
        plain["name"] = message.name
    if getattr(message, "status", None) == "error":
        plain["status"] = "error"
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message.content_blocks:
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "tool_call", "name": name, "args": arguments}:
                calls.append({"name": name, "arguments": _plain(arguments, where)})
            case {"type": "reasoning"}:
                continue
            case _:
                given = f"a content block of type {block.get('type')!r}"
                raise InvalidArgumentError(where, given, "text and tool calls", "Text is all the model reads.")
    plain["content"] = "".join(texts)
    return {**plain, "tool_calls": calls} if calls else plain
