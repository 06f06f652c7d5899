"""``SglLLM``: a LangChain text model on an engine in this process. Prompts are plain text, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any, ClassVar, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import ConfigDict
from typing_extensions import override

from sgl_core.backend import Backend, TextCodec
from sgl_core.errors import InvalidArgumentError
from sgl_core.types import GenRequest, GenResult
from sgl_langchain import running
from sgl_langchain.base import SglLanguageModel
from sgl_langchain.calls import codec_of
from sgl_langchain.errors import langchain_errors
from sgl_langchain.messages import generation_info, token_usage, usage_metadata

__all__ = ["SglLLM"]


class SglLLM(SglLanguageModel, BaseLLM):
    """A text model: it continues a prompt, which stands in the request as it is, behind BOS where the model has one.

    Options are those of ``ChatSgl``. All prompts of one call are submitted together. The answer does not repeat the prompt.

    Instantiate:
        ```python
        from sgl_langchain import SglLLM

        llm = SglLLM(max_tokens=32, stop=["."])
        ```

    Invoke:
        ```python
        llm.invoke("The tide rises because")
        ```

    Generation info:
        ```python
        llm.generate(["The tide rises because"]).generations[0][0].generation_info  # finish_reason, usage_metadata, ...
        ```
    """

    model_config = ConfigDict(extra="forbid")
    _kind: ClassVar[Literal["chat", "llm"]] = "llm"

    @property
    def _llm_type(self) -> str:
        return "sgl-llm"

    # ---- one call ----------------------------------------------------------------------------------------------------
    @override
    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call, _ = self._for_call(stop, kwargs)
        engine = call._engine()
        return call._llm_result(codec_of(engine), running.results(engine, call._text_requests(engine, prompts)))

    @override
    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        call, _ = self._for_call(stop, kwargs)
        engine = await call._aengine()
        return call._llm_result(codec_of(engine), await running.aresults(engine, call._text_requests(engine, prompts)))

    @override
    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        call, _ = self._for_call(stop, kwargs)
        engine = call._engine()
        with closing(running.pieces(engine, call._streamed_request(engine, prompt))) as pieces:
            for piece in pieces:
                chunk = call._chunk(codec_of(engine), piece)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    @override
    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        call, _ = self._for_call(stop, kwargs)
        engine = await call._aengine()
        async with aclosing(running.apieces(engine, call._streamed_request(engine, prompt))) as pieces:
            async for piece in pieces:
                chunk = call._chunk(codec_of(engine), piece)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _text_requests(self, engine: Backend, prompts: list[str]) -> list[GenRequest]:
        codec = codec_of(engine)
        with langchain_errors():
            params = self._sampling_params()
            return [
                GenRequest(codec.begin() + codec.encode(prompt), params, namespace=self.namespace, timeout_s=self.timeout)
                for prompt in prompts
            ]

    def _streamed_request(self, engine: Backend, prompt: str) -> GenRequest:
        (request,) = self._text_requests(engine, [prompt])
        if request.params.n > 1:
            with langchain_errors():
                raise InvalidArgumentError("n", request.params.n, "1 in a stream", "Use generate() for several answers.")
        return request

    def _llm_result(self, codec: TextCodec, results: list[list[GenResult]]) -> LLMResult:
        generations = [
            [Generation(text=result.text, generation_info=_info(result, codec)) for result in completions]
            for completions in results
        ]
        usages = [[result.usage for result in completions] for completions in results]
        return LLMResult(
            generations=generations, llm_output={"model_name": self._model_name, "token_usage": token_usage(usages)}
        )

    def _chunk(self, codec: TextCodec, piece: str | GenResult) -> GenerationChunk:
        if isinstance(piece, str):
            return GenerationChunk(text=piece)
        return GenerationChunk(text="", generation_info={"model_name": self._model_name, **_info(piece, codec)})

    # ---- many calls --------------------------------------------------------------------------------------------------
    @override
    def generate(self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any) -> LLMResult:
        """Continue all prompts; see ``BaseLLM.generate``.

        A call's options go into a copy of this object first: LangChain's cache key holds an object's own options only.
        """
        base, options = _split(kwargs)
        call, _ = self._for_call(None, options)
        return super(SglLLM, call).generate(prompts, stop, callbacks, **base)

    @override
    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Like ``generate``."""
        base, options = _split(kwargs)
        call, _ = self._for_call(None, options)
        return await super(SglLLM, call).agenerate(prompts, stop, callbacks, **base)

    @override
    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Continue all inputs in one call; with ``return_exceptions`` each in one of its own, with an error of its own."""
        if return_exceptions:
            return Runnable.batch(self, inputs, self._widened(config, len(inputs)), return_exceptions=True, **kwargs)
        return super().batch(inputs, config, **kwargs)

    @override
    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Like ``batch``."""
        if return_exceptions:
            return await Runnable.abatch(self, inputs, config, return_exceptions=True, **kwargs)
        return await super().abatch(inputs, config, **kwargs)

    # ---- counting ----------------------------------------------------------------------------------------------------
    @override
    def get_token_ids(self, text: str) -> list[int]:
        """The ids of the prompt that ``text`` makes, BOS included: as many as its call has input tokens."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        codec = self._codec()
        return list(codec.begin() + codec.encode(text))


_GENERATE_ARGUMENTS = frozenset({"tags", "metadata", "run_name", "run_id"})


def _split(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of ``BaseLLM.generate``, and options of the call."""
    base = {name: value for name, value in kwargs.items() if name in _GENERATE_ARGUMENTS}
    return base, {name: value for name, value in kwargs.items() if name not in base}


def _info(result: GenResult, codec: TextCodec) -> dict[str, Any]:
    return {**generation_info(result, codec), "usage_metadata": usage_metadata(result.usage)}
