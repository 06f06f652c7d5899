"""``SglLM``: a ``dspy.LM`` on a model of this machine.

It is thin: the label that keys DSPy's answer cache, explicit defaults, an engine pair, options that DSPy does not know, and one
candidate group around each call. It owns the engine that it made; copies, also deep ones, share that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final

import dspy
from dspy import lm15
from dspy.clients.errors import error_boundary
from dspy.clients.provider import Provider

from sgl_core.backend import Backend
from sgl_core.config import EngineConfig
from sgl_core.errors import InvalidArgumentError
from sgl_dspy.engine import SglAsyncEngine, SglEngine
from sgl_dspy.labels import check_label, is_label
from sgl_dspy.providers import SglProvider
from sgl_dspy.requests.lower import SUPPORTED_PARAMS
from sgl_dspy.requests.options import OPTIONS_KEY, OWN_OPTIONS, check_names, moved, standing_namespace
from sgl_dspy.running.candidates import candidate_group

__all__ = ["SglLM"]

_ENGINE_ONLY: Final = EngineConfig.__dataclass_fields__.keys() - {"model", "seed"}  # a seed is also a request's
_FIXED: Final = ("async_engine", "backend", "engine", "engine_options", "model")


class SglLM(dspy.LM):  # type: ignore[misc]  # dspy has no types
    """A language model for DSPy, in this process.

    ``dspy.configure(lm=SglLM())`` is enough. Weights are loaded by the first call, once for everybody in the process who
    asks for the same model with the same options, and freed with ``close()`` or with the last LM.

    Args:
        model: None for the embedded model, a folder, a ``.gguf`` file or a Hugging Face name; or the label of an LM of the
            same weights (``lm.model``), as DSPy's saved programs hold it.
        temperature: 0.0 is greedy. ``max_tokens``: for one reply, clipped to the context; None is the rest of the context.
        backend: a backend to borrow, such as ``sgl_native.Engine()``; its owner closes it.
        engine: an ``SglEngine`` or, again, a backend. ``async_engine``: its pair, made if it is None.
        engine_options: other fields of ``sgl_core.config.EngineConfig``, such as ``{"dtype": "float32"}``.
        model_type: "chat".
        num_retries: of a request that failed because the engine was busy.
        provider: what ``launch`` and ``kill`` ask; None loads and gives back the engine.
        settings: everything else that ``dspy.LM`` takes: cache, callbacks, prompt_cache, and defaults of requests (top_p,
            top_k, stop, seed, n, ...). Requests also take what DSPy has no word for, here and in each call: ``regex``,
            ``choices``, ``grammar``, ``json_schema``, ``min_p``, ``min_tokens``, ``repetition_penalty``, ``stop_token_ids``,
            ``stop_regex``, ``ignore_eos`` (see ``sgl_core.types.SamplingParams``), ``namespace`` and ``timeout_s``.

    Raises:
        InvalidArgumentError: arguments that do not go together, or a label of other weights.
        UnknownOptionError: an option that there is not; calls raise it, too.
        ModelError: the model cannot be found.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        temperature: float | None = 0.0,
        max_tokens: int | None = 1000,
        backend: Backend | None = None,
        engine: SglEngine | Backend | None = None,
        async_engine: SglAsyncEngine | None = None,
        engine_options: Mapping[str, Any] | None = None,
        model_type: str = "chat",
        num_retries: int = 0,
        provider: Provider | None = None,
        **settings: Any,
    ) -> None:
        """Find the model's files, to know its label; load nothing."""
        if model_type != "chat":
            raise InvalidArgumentError("model_type", model_type, '"chat"')
        for name in _ENGINE_ONLY & settings.keys():
            raise InvalidArgumentError("SglLM", name, "an option of a request", f"Write engine_options={{{name!r}: ...}}.")
        check_names("SglLM", settings, SUPPORTED_PARAMS | set(_FIXED))
        if isinstance(model, Backend | SglEngine):
            raise InvalidArgumentError("model", type(model).__name__, "a name or path", "Write SglLM(backend=...).")
        label = model if isinstance(model, str) and is_label(model) else None
        given = [value for value in (backend, engine) if value is not None]
        if len(given) > 1 or (given and (engine_options or (model is not None and label is None))):
            others = "model, engine_options, engine" if backend is not None else "model, engine_options, backend"
            raise InvalidArgumentError(
                "engine" if backend is None else "backend",
                type(given[0]).__name__,
                f"nothing else that says where to run ({others})",
                "Leave one of them out.",
            )
        runner = _made(None if label else model, engine_options or {}) if not given else _wrapped(given[0])
        if async_engine is not None and not runner.shares_backend_with(async_engine):
            raise InvalidArgumentError(
                "async_engine", type(async_engine).__name__, "SglAsyncEngine(engine)", "Leave it out: it is made of engine."
            )
        if label is not None:
            check_label(label, runner.label)
        super().__init__(
            model=runner.label,
            model_type=model_type,
            temperature=temperature,
            max_tokens=max_tokens,
            num_retries=num_retries,
            provider=provider or SglProvider(),
            engine=runner,
            async_engine=async_engine or SglAsyncEngine(runner),
            **moved(settings, {}),
        )
        self._owns_engine = runner is not engine

    # ---- calls -------------------------------------------------------------------------------------------------------
    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Texts for a prompt; for a ``dspy.lm15.Request`` its ``Response``. All ``n`` candidates share one prefill."""
        kwargs = self._moved(prompt, kwargs)
        with self._group(prompt, kwargs):
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """The same, awaited; cancelling it aborts its requests."""
        kwargs = self._moved(prompt, kwargs)
        with self._group(prompt, kwargs):
            return await super().acall(prompt, messages=messages, **kwargs)

    def _moved(self, prompt: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if _is_typed(prompt, kwargs):
            return kwargs
        check_names("SglLM", kwargs, SUPPORTED_PARAMS)
        return moved(kwargs, self.kwargs)

    def _group(self, prompt: Any, kwargs: Mapping[str, Any]) -> AbstractContextManager[None]:
        rollout = kwargs.get("rollout_id", self.kwargs.get("rollout_id"))
        if _is_typed(prompt, kwargs):
            return candidate_group(1, rollout)  # one response, and no defaults of this LM
        count = kwargs.get("n", self.kwargs.get("n"))
        is_count = isinstance(count, int) and not isinstance(count, bool) and count > 0  # DSPy refuses others
        return candidate_group(count if is_count else 1, rollout)

    # ---- copies and states -------------------------------------------------------------------------------------------
    def copy(self, **kwargs: Any) -> SglLM:
        """A copy with other request defaults, on the same engine.

        Raises:
            InvalidArgumentError: a keyword that would change the model.
            UnknownOptionError: an option that there is not.
        """
        for name in kwargs.keys() & set(_FIXED):
            raise InvalidArgumentError("copy", name, "an option of a request", "Make a new SglLM for another model or engine.")
        check_names("copy", (name for name in kwargs if not hasattr(self, name)), SUPPORTED_PARAMS)
        own = {name: kwargs.pop(name) for name in OWN_OPTIONS.keys() & kwargs.keys()}
        copied: SglLM = super().copy(**kwargs)
        if own:
            copied.kwargs = {**copied.kwargs, "metadata": moved(own, copied.kwargs)["metadata"]}
        return copied

    def dump_state(self) -> dict[str, Any]:
        """JSON: label, request defaults and engine options.

        Raises:
            InvalidArgumentError: the engine's backend is borrowed.
        """
        state: dict[str, Any] = super().dump_state()
        del state["async_engine"]  # made again from the engine
        return state

    # ---- the engine --------------------------------------------------------------------------------------------------
    def stats(self) -> dict[str, Any]:
        """Counts of the engine, as ``SglEngine.stats`` gives them; copies of this LM count there, too. Loads nothing."""
        return self._runner.stats()

    def score(self, prompt: str | lm15.Request | None, continuations: Sequence[str], *, messages: Any = None) -> list[float]:
        """How likely the model is to begin its answer with each of some texts.

        Args:
            prompt: what the user says, or a whole request; or None with ``messages``.
            continuations: at least one, none empty.
            messages: a conversation, in OpenAI's form.

        Returns:
            The sum of the natural-log probabilities of the tokens of each.

        Raises:
            dspy.LMError: the prompt or a continuation cannot be used, or the engine failed.
        """
        request = self._request(prompt, messages)
        with error_boundary(self.model):
            return self._runner.score(request, continuations)

    def inspect_prompt(self, prompt: str | lm15.Request | None = None, *, messages: Any = None, **options: Any) -> str:
        """What the model reads, control tokens spelled out; loads the engine if it is not there.

        Args:
            prompt: what the user says, or a whole request; or None with ``messages``.
            messages: a conversation, in OpenAI's form: ``adapter.format(signature, demos, inputs)`` makes one.
            options: that change a prompt: ``tools``, ``tool_choice``.

        Raises:
            dspy.LMError: it cannot be rendered.
        """
        request = self._request(prompt, messages, **options)
        with error_boundary(self.model):
            return self._runner.inspect(request)

    def prefetch(self, prompt: str | None = None, *, messages: Any = None, key: str | None = None, **options: Any) -> str:
        """Compute what coming prompts begin with, and keep it; waits. The least recently used of these give way to new ones.

        Args:
            prompt: what the user says; or None with ``messages``.
            messages: the first messages of these prompts, in OpenAI's form.
            key: their ``prompt_cache.key``.
            options: that change a prompt: ``tools``.

        Returns:
            A name for ``CacheConfig(resource=...)``. Prompts find the prefix without it, too; with it one that begins otherwise
            is an error.

        Raises:
            dspy.LMError: the messages cannot be used, or do not fit.
        """
        if (prompt is None) == (messages is None):
            given = "nothing" if prompt is None else "both"
            raise InvalidArgumentError("prompt and messages", given, "one of them, as what coming prompts begin with")
        begun = messages if prompt is None else [{"role": "user", "content": prompt}]
        request = self._request(None, [*begun, {"role": "user", "content": "what varies"}], **options)
        if key is not None:
            request = replace(request, config=replace(request.config, cache=lm15.CacheConfig(key=key)))
        with error_boundary(self.model):
            return self._runner.prefetch(request)

    @property
    def _runner(self) -> SglEngine:
        runner: SglEngine = self._engine_spec
        return runner

    def _request(self, prompt: str | lm15.Request | None, messages: Any, **options: Any) -> lm15.Request:
        check_names("options", options, SUPPORTED_PARAMS)
        if isinstance(prompt, lm15.Request) and messages is None and not options:
            return prompt
        if (prompt is None) == (messages is None) or isinstance(prompt, lm15.Request):
            given = "nothing" if prompt is None and messages is None else f"{type(prompt).__name__} beside something else"
            raise InvalidArgumentError("prompt", given, "a text alone, a whole Request alone, or messages= alone")
        body = {"model": self.model, "messages": messages or [{"role": "user", "content": prompt}], **options}
        with error_boundary(self.model):
            request = lm15.request_from_openai_chat(body)
        return self._in_own_namespace(request)

    def _in_own_namespace(self, request: lm15.Request) -> lm15.Request:
        """The request where this LM's calls share prefixes, and nobody else."""
        namespace, cache = standing_namespace(self.kwargs), self.kwargs.get("prompt_cache")
        config = request.config
        if namespace is not None:
            config = replace(config, extensions={**(config.extensions or {}), OPTIONS_KEY: {"namespace": namespace}})
        if isinstance(cache, lm15.CacheConfig) and cache.key is not None:
            config = replace(config, cache=lm15.CacheConfig(key=cache.key))
        return replace(request, config=config)

    def close(self) -> None:
        """Give the engine back, which unloads it if nobody else in the process uses it. A later call loads it again.

        An engine that was passed in stays as it is.
        """
        super().close()
        if self._owns_engine:
            self._runner.close()

    async def aclose(self) -> None:
        """As ``close``."""
        await asyncio.to_thread(self.close)


def _is_typed(prompt: Any, kwargs: Mapping[str, Any]) -> bool:
    return isinstance(prompt, lm15.Request) or kwargs.get("request") is not None


def _made(model: str | None, options: Mapping[str, Any]) -> SglEngine:
    if not isinstance(options, Mapping):
        raise InvalidArgumentError("engine_options", options, 'a dict of options by name, such as {"dtype": "float32"}')
    if "model" in options:
        raise InvalidArgumentError("engine_options", "model", "options beside the model", "Write SglLM(model, ...).")
    return SglEngine(model=model, **options)


def _wrapped(given: SglEngine | Backend) -> SglEngine:
    return given if isinstance(given, SglEngine) else SglEngine(given)
