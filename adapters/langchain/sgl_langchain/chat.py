"""``ChatSgl``: a LangChain chat model on an engine in this process. Chains, agents and graphs call it as any other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, ClassVar, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from sgl_core.backend import Backend, TextCodec
from sgl_core.chat.conversation import render
from sgl_core.chat.replies import memory_of
from sgl_core.chat.tools import ToolForm, form_for
from sgl_core.errors import InvalidArgumentError
from sgl_core.types import SamplingParams
from sgl_langchain import running
from sgl_langchain.base import SglLanguageModel
from sgl_langchain.calls import PreparedCall, codec_of
from sgl_langchain.errors import langchain_errors
from sgl_langchain.gates import on_a_loop
from sgl_langchain.messages import conversation
from sgl_langchain.options import CHAT_OPTIONS
from sgl_langchain.scope import in_flight
from sgl_langchain.structured import StructuredMethod, response_constraint, with_structured_output
from sgl_langchain.tools import bind_tools, tool_set

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
        n: answers to one prompt, which is computed once; ``generate`` shows them all.
        logprobs, top_logprobs: report log-probabilities in ``response_metadata``.
        streaming: answer every call through the stream, for callbacks that want tokens.
        tool_format: how the prompt offers tools: "hermes" (as JSON, for models that were trained on it), "signatures" (for
            others), or "auto", the default: what the model's chat template suggests.
        model_kwargs: further options by name.

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

    Tool calling:
        ```python
        from pydantic import BaseModel, Field


        class GetTide(BaseModel):
            harbour: str = Field(description="name of the harbour")


        chat.bind_tools([GetTide], tool_choice="any").invoke("When is high tide in Dover?").tool_calls
        ```
        A call is held to its tool's schema and ends within ``max_tokens``. With ``tool_choice="auto"`` the model decides
        between calling and answering.

    Structured output:
        ```python
        chat.with_structured_output(GetTide).invoke("When is high tide in Dover?")  # GetTide(harbour=...)
        ```

    JSON mode:
        ```python
        chat.bind(response_format={"type": "json_object"}).invoke("Describe the harbour of Dover as JSON.").text
        ```

    Token usage:
        ```python
        chat.invoke("What is a tide?").usage_metadata["input_token_details"]["cache_read"]
        ```

    Logprobs:
        ```python
        chat.bind(logprobs=True, top_logprobs=2).invoke("Yes or no?").response_metadata["logprobs"]["content"]
        ```

    Response metadata:
        ```python
        chat.invoke("What is a tide?").response_metadata  # model_name, finish_reason, stop_reason, ...
        ```
    """

    model_config = ConfigDict(extra="forbid")
    _kind: ClassVar[Literal["chat", "llm"]] = "chat"
    _call_options: ClassVar[frozenset[str]] = CHAT_OPTIONS

    tool_format: Literal["auto", "hermes", "signatures"] = "auto"

    @property
    def _llm_type(self) -> str:
        return "sgl-chat"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "tool_format": self.tool_format}

    @override
    def _resolve_model_profile(self) -> ModelProfile | None:
        profile = ModelProfile(
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            tool_calling=True,
            tool_choice=True,
            tool_call_streaming=True,
            structured_output=True,
            temperature=True,
            open_weights=True,
            reasoning_output=False,
        )
        context_tokens = self._context_tokens()
        if context_tokens is not None:
            profile["max_input_tokens"] = profile["max_output_tokens"] = context_tokens
        return profile

    # ---- one call ----------------------------------------------------------------------------------------------------
    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._decided(self._prepare(messages, stop, kwargs))
        (results,) = running.results(call.engine, [call.request])
        return call.chat_result(results)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = await self._adecided(await self._aprepare(messages, stop, kwargs))
        (results,) = await running.aresults(call.engine, [call.request])
        return call.chat_result(results)

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._decided(_streamed(self._prepare(messages, stop, kwargs)))
        reader = call.stream_reader()
        with closing(running.pieces(call.engine, call.request)) as pieces:
            for chunk in (chunk for piece in pieces for chunk in reader.chunks(piece)):
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
        call = await self._adecided(_streamed(await self._aprepare(messages, stop, kwargs)))
        reader = call.stream_reader()
        async with aclosing(running.apieces(call.engine, call.request)) as pieces:
            async for piece in pieces:
                for chunk in reader.chunks(piece):
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    @override
    async def agenerate(
        self, messages: list[list[BaseMessage]], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Like LangChain's, which takes the ``CancelledError`` of a stream that was left for an answer, and misses its text."""
        try:
            return await super().agenerate(messages, stop, callbacks, **kwargs)
        except AttributeError:
            with on_a_loop():
                in_flight().check()
            raise

    def _prepare(self, messages: Sequence[BaseMessage], stop: list[str] | None, options: Mapping[str, Any]) -> PreparedCall:
        """Make a call ready; leases an engine.

        Raises:
            InvalidArgumentError: a message or an option cannot be used.
            ModelError: the model cannot be found, read or served.
        """
        call, rest = self._for_call(stop, options)
        return call._prepared(call._engine(), messages, rest)

    async def _aprepare(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, options: Mapping[str, Any]
    ) -> PreparedCall:
        call, rest = self._for_call(stop, options)
        return call._prepared(await call._aengine(), messages, rest)

    def _prepared(self, engine: Backend, messages: Sequence[BaseMessage], options: Mapping[str, Any]) -> PreparedCall:
        with langchain_errors():
            codec = codec_of(engine)
            form = self._tool_form(codec)
            tools = tool_set(options, form)
            call = PreparedCall(
                engine=engine,
                model_name=self._model_name,
                prompt=render(codec, conversation(messages, tools, form), replies=memory_of(engine)),
                params=self._answer_params(options.get("response_format")),
                namespace=self.namespace,
                timeout_s=self.timeout,
                tools=tools,
                answers="either" if tools is not None and tools.choice == "auto" else "text",
                follows_result=isinstance(messages[-1], ToolMessage),
            )
            return call.as_tool_call() if tools is not None and tools.forces_call else call

    def _tool_form(self, codec: TextCodec) -> ToolForm:
        return form_for(codec) if self.tool_format == "auto" else self.tool_format

    def _answer_params(self, response_format: object) -> SamplingParams:
        """Parameters of an answer in text. Without a constraint it has a token at least: nobody wants an empty answer."""
        constraint = response_constraint(response_format)
        given = (self.min_tokens, self.regex, self.choices, self.grammar, self.json_schema)
        if not constraint and all(one is None for one in given):
            return self._sampling_params(min_new_tokens=1)
        return self._sampling_params(**constraint)

    def _decided(self, call: PreparedCall) -> PreparedCall:
        return call if call.is_decided else call.decided(running.scored(call.engine, call.decision))

    async def _adecided(self, call: PreparedCall) -> PreparedCall:
        return call if call.is_decided else call.decided(await running.ascored(call.engine, call.decision))

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

        Args:
            messages: of the call.
            tools: that it is given.
        """
        with langchain_errors():
            engine = self._engine()
            codec = codec_of(engine)
            form = self._tool_form(codec)
            told = conversation(messages, tool_set({"tools": tools}, form), form)
            return len(render(codec, told, replies=memory_of(engine)).ids)

    # ---- tools and structure -----------------------------------------------------------------------------------------
    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: object = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools that it may or must call; see ``sgl_langchain.tools.bind_tools``."""
        return bind_tools(
            self,
            tools,
            tool_choice=tool_choice,
            strict=strict,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            **kwargs,
        )

    @override
    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: StructuredMethod = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """This model, answering with an object of ``schema``; see ``sgl_langchain.structured.with_structured_output``."""
        return with_structured_output(self, schema, method=method, include_raw=include_raw, strict=strict, **kwargs)


def _streamed(call: PreparedCall) -> PreparedCall:
    """A stream tells of one answer."""
    if call.params.n > 1:
        with langchain_errors():
            raise InvalidArgumentError("n", call.params.n, "1 in a stream", "Use generate() for several answers.")
    return call
