"""A model call inside a program: the request that LangChain's own call would have made, and the output it would have given."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from langchain_core.language_models._utils import _normalize_messages
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatResult
from langchain_core.utils.utils import LC_ID_PREFIX
from langchain_core.utils.uuid import uuid7

from sgl_core.language.ir import ConstantText
from sgl_core.types import GenRequest, SamplingParams
from sgl_langchain.base import SglLanguageModel
from sgl_langchain.calls import codec_of
from sgl_langchain.chat import ChatSgl
from sgl_langchain.errors import langchain_errors
from sgl_langchain.llm import SglLLM
from sgl_langchain.programs.effects import Ask, Effect, Evaluation, Host, Load
from sgl_langchain.programs.operation import NO_KWARGS, Frame, Kwargs, Operation
from sgl_langchain.translate.nodes import Model

__all__ = ["AskChat", "AskText", "gen_options"]

_DEFAULTS: Final = {name: getattr(SamplingParams(), name) for name in sorted(SamplingParams.field_names() - {"temperature"})}
_NOTES: Final = ("ls_structured_output_format", "structured_output_format")  # for traces; LangChain takes them out itself
_OF_GENERATE: Final = frozenset({"callbacks", "tags", "metadata", "run_name", "run_id", "stream"})
"""Arguments that LangChain's ``generate`` reads itself: a call with one of them is LangChain's."""


def gen_options(params: SamplingParams) -> dict[str, Any]:
    """The options of a ``Gen`` with these parameters; the temperature is named, for the language has another default."""
    options = {name: value for name, default in _DEFAULTS.items() if (value := getattr(params, name)) != default}
    return {"temperature": params.temperature, **options}


class AskChat(Operation):
    """``ChatSgl`` is asked. A call that is no single request of this program is LangChain's to make."""

    def __init__(self, node: Model) -> None:
        """Keep the model, which may change between runs."""
        self._model = cast("ChatSgl", node.runnable)
        self._options = node.options

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Ask, and wait for the answer."""
        options = {**self._options, **kwargs}
        if not _OF_GENERATE.isdisjoint(options):
            return (yield Host(self._model, value, frame.config, options))
        given = {name: option for name, option in options.items() if name not in _NOTES}
        stop = given.pop("stop", None)
        messages = _normalize_messages(self._model._convert_input(value).to_messages())
        model = frame.calls.model(self._model)
        yield from _loaded(model, given)
        call = model._prepare(messages, stop, given)
        if not (call.is_decided and _is_single(call.request) and frame.calls.serves(call.engine, call.namespace)):
            return (yield Host(self._model, value, frame.config, options))
        with langchain_errors():
            result = yield Ask(call.prompt.nodes(), gen_options(call.params))
        return _message(call.chat_result([result]))


class AskText(Operation):
    """``SglLLM`` is asked."""

    def __init__(self, node: Model) -> None:
        """Keep the model, which may change between runs."""
        self._model = cast("SglLLM", node.runnable)
        self._options = node.options

    def run(self, value: Any, frame: Frame, kwargs: Kwargs = NO_KWARGS) -> Evaluation:
        """Ask, and wait for the text."""
        options = {**self._options, **kwargs}
        if not _OF_GENERATE.isdisjoint(options):
            return (yield Host(self._model, value, frame.config, options))
        prompt = self._model._convert_input(value).to_string()
        model = frame.calls.model(self._model)
        yield from _loaded(model, options)
        question = _text_question(model, prompt, options)
        request = question.request
        if not (request.input_ids and _is_single(request) and frame.calls.serves(question.engine, request.namespace)):
            return (yield Host(self._model, value, frame.config, options))
        with langchain_errors():
            result = yield Ask((ConstantText(prompt),), gen_options(request.params))
        return result.text


def _loaded(model: SglLanguageModel, options: Mapping[str, Any]) -> Generator[Effect, Any, None]:
    """From here on, making the call ready does not load anything. An engine of the caller's is there already."""
    if model.engine is None:
        yield Load(model, options)


@dataclass(frozen=True, slots=True)
class _TextQuestion:
    engine: Any
    request: GenRequest


def _text_question(model: SglLLM, prompt: str, options: Mapping[str, Any]) -> _TextQuestion:
    given = dict(options)
    call, _ = model._for_call(given.pop("stop", None), given)
    engine = call._engine()
    codec_of(engine)
    (request,) = call._text_requests(engine, [prompt])
    return _TextQuestion(engine, request)


def _is_single(request: GenRequest) -> bool:
    """Whether it is one generation without a deadline, which is all that a stream of the language makes."""
    return request.params.n == 1 and request.timeout_s is None


def _message(result: ChatResult) -> AIMessage:
    """The answer as LangChain's ``generate`` leaves it: with an id, and with everything in its metadata."""
    (generation,) = result.generations
    message = generation.message
    if message.id is None:
        message.id = f"{LC_ID_PREFIX}-{uuid7()}-0"
    info = generation.generation_info or {}
    message.response_metadata = {**(result.llm_output or {}), **info, **message.response_metadata}
    return cast("AIMessage", message)
