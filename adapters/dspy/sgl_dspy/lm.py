"""``SglLM``: a ``dspy.LM`` on a model of this machine.

It is thin: the label that keys DSPy's answer cache, explicit defaults, an engine pair, and one candidate group around each
call. It owns the engine that it made; copies, also deep ones, share that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import dspy
from dspy import lm15

from sgl_core.backend import Backend
from sgl_core.config import EngineConfig
from sgl_core.errors import InvalidArgumentError
from sgl_dspy.candidates import candidate_group
from sgl_dspy.engine import SglAsyncEngine, SglEngine
from sgl_dspy.labels import check_label, is_label

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
        settings: everything else that ``dspy.LM`` takes: cache, callbacks, prompt_cache, and defaults of requests (top_p,
            top_k, stop, seed, n, ...).

    Raises:
        InvalidArgumentError: arguments that do not go together, or a label of other weights.
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
        **settings: Any,
    ) -> None:
        """Find the model's files, to know its label; load nothing."""
        if model_type != "chat":
            raise InvalidArgumentError("model_type", model_type, '"chat"')
        for name in _ENGINE_ONLY & settings.keys():
            raise InvalidArgumentError("SglLM", name, "an option of a request", f"Write engine_options={{{name!r}: ...}}.")
        label = model if isinstance(model, str) and is_label(model) else None
        given = [value for value in (backend, engine) if value is not None]
        if len(given) > 1 or (given and (engine_options or (model is not None and label is None))):
            raise InvalidArgumentError(
                "engine", type(given[-1]).__name__, "nothing else that says where to run (model, engine_options, backend)"
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
            engine=runner,
            async_engine=async_engine or SglAsyncEngine(runner),
            **settings,
        )
        self._owns_engine = runner is not engine

    # ---- calls -------------------------------------------------------------------------------------------------------
    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Texts for a prompt; for a ``dspy.lm15.Request`` its ``Response``. All ``n`` candidates share one prefill."""
        with self._group(prompt, kwargs):
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """The same, awaited; cancelling it aborts its requests."""
        with self._group(prompt, kwargs):
            return await super().acall(prompt, messages=messages, **kwargs)

    def _group(self, prompt: Any, kwargs: Mapping[str, Any]) -> AbstractContextManager[None]:
        rollout = kwargs.get("rollout_id", self.kwargs.get("rollout_id"))
        if isinstance(prompt, lm15.Request) or kwargs.get("request") is not None:
            return candidate_group(1, rollout)  # one response, and no defaults of this LM
        count = kwargs.get("n", self.kwargs.get("n"))
        is_count = isinstance(count, int) and not isinstance(count, bool) and count > 0  # DSPy refuses others
        return candidate_group(count if is_count else 1, rollout)

    # ---- copies and states -------------------------------------------------------------------------------------------
    def copy(self, **kwargs: Any) -> SglLM:
        """A copy with other request defaults, on the same engine.

        Raises:
            InvalidArgumentError: a keyword that would change the model.
        """
        for name in kwargs.keys() & set(_FIXED):
            raise InvalidArgumentError("copy", name, "an option of a request", "Make a new SglLM for another model or engine.")
        copied: SglLM = super().copy(**kwargs)
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
    def launch(self, launch_kwargs: dict[str, Any] | None = None) -> None:  # noqa: ARG002  (DSPy's signature)
        """Load the weights now.

        Raises:
            ModelError: the model cannot be read or served.
        """
        _ = self._engine_spec.backend

    def kill(self, launch_kwargs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """As ``close``."""
        self.close()

    def close(self) -> None:
        """Give the engine back, which unloads it if nobody else in the process uses it. A later call loads it again.

        An engine that was passed in stays as it is.
        """
        super().close()
        if self._owns_engine:
            self._engine_spec.close()

    async def aclose(self) -> None:
        """As ``close``."""
        await asyncio.to_thread(self.close)


def _made(model: str | None, options: Mapping[str, Any]) -> SglEngine:
    if "model" in options:
        raise InvalidArgumentError("engine_options", "model", "options beside the model", "Write SglLM(model, ...).")
    return SglEngine(model=model, **options)


def _wrapped(given: SglEngine | Backend) -> SglEngine:
    return given if isinstance(given, SglEngine) else SglEngine(given)
