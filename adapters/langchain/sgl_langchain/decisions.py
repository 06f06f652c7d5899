"""``SglDecisions``: many typed questions about one state, answered with probabilities; needs langchain-core 1.8 or newer.

The questions of a request share what the state costs, and nothing is generated: see ``sgl_core.chat.decisions``, which also
says what an answer's probability is. Here LangChain's questions, states and answers become those of that module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self

from langchain_core.messages import BaseMessage, is_data_content_block
from langchain_core.runnables import RunnableConfig
from langchain_core.version import VERSION
from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import override

from sgl_core.chat.decisions import Decisions, Verdict, as_text, decide, decide_async, level_of, one_of, yes_or_no
from sgl_core.chat.decisions import Question as Asked
from sgl_core.errors import InvalidArgumentError
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
            text, asked = _text(state, "state"), _asked(questions)
            return self._response(questions, decide(text, asked, self._chat._engine(), namespace=self.namespace))

    @override
    async def _aclassify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        with langchain_errors():
            text, asked = _text(state, "state"), _asked(questions)
            engine = await self._chat._aengine()
            return self._response(questions, await decide_async(text, asked, engine, namespace=self.namespace))

    def _response(self, questions: Mapping[str, Question], decisions: Decisions) -> ClassifierResponse:
        pairs = zip(questions.items(), decisions.verdicts, strict=True)
        return ClassifierResponse(
            model=self.model,
            answers={name: _answer(question, verdict) for (name, question), verdict in pairs},
            usage=usage_metadata(decisions.usage),
            request_id=decisions.program_id,
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


# ---- questions and answers -------------------------------------------------------------------------------------------
def _asked(questions: Mapping[str, Question]) -> tuple[Asked, ...]:
    return tuple(_one_asked(f"questions[{name!r}]", question) for name, question in questions.items())


def _one_asked(where: str, question: Question) -> Asked:
    match question:
        case Noul(criteria=criteria):
            yes, no = (None, None) if criteria is None else (criteria.true, criteria.false)
            described = _described(where, {"yes": yes, "no": no})
            return yes_or_no(_instructions(where, question), **described)
        case Choice(criteria=labels):
            return one_of(_instructions(where, question), _described(where, labels))
        case Score(criteria=levels):
            described = _described(where, dict(enumerate(levels)))
            return level_of(_instructions(where, question), tuple(described.values()))
        case Box():
            raise InvalidArgumentError(
                where, "a Box", "Noul, Choice or Score", "The model reads text; no image has a place in it."
            )
        case _:
            raise InvalidArgumentError(where, type(question).__name__, "Noul, Choice or Score of langchain_core.decisions")


def _instructions(where: str, question: Any) -> str:
    return _text(question.instructions, f"{where}.instructions")


def _described(where: str, criteria: Mapping[Any, Any]) -> dict[Any, str | None]:
    return {
        answer: None if description is None else _text(description, f"{where}.criteria[{answer!r}]")
        for answer, description in criteria.items()
    }


def _answer(question: Question, verdict: Verdict) -> Answer:
    shares = verdict.shares
    if isinstance(question, Noul):
        return NoulAnswer(type="noul", noul=shares[0])
    if isinstance(question, Choice):
        labels = list(question.criteria)
        by_label = dict(zip(labels, shares, strict=True))
        choice = labels[verdict.likeliest]
        return ChoiceAnswer(type="choice", choice=choice, probabilities=by_label, confidence=verdict.confidence)
    assert isinstance(question, Score), "a Box is refused before anything runs"
    return ScoreAnswer(
        type="score",
        score=verdict.mean,
        legend=dict(enumerate(question.criteria)),
        probabilities=dict(enumerate(shares)),
        confidence=verdict.confidence,
    )


# ---- state as text ---------------------------------------------------------------------------------------------------
def _text(value: object, where: str) -> str:
    return as_text(_plain(value, where))


def _plain(value: object, where: str) -> Any:
    """What JSON can say, in the caller's order."""
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
