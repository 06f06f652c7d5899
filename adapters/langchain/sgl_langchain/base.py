"""What ``ChatSgl`` and ``SglLLM`` share: options as plain data, and the way from a call to requests on an engine.

A model object is a thin configuration that copies and pickles freely. Constructing, printing, tracing and binding it never
touch an engine; the first call leases one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Self, cast

from langchain_core.language_models.base import BaseLanguageModel, LangSmithParams
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import override

from sgl_core import __version__
from sgl_core.backend import Backend, TextCodec
from sgl_core.config import EngineConfig, Environment
from sgl_core.errors import InvalidArgumentError
from sgl_core.types import GenRequest, SamplingParams
from sgl_langchain.errors import langchain_errors
from sgl_langchain.leases import EngineLeases
from sgl_langchain.options import canonical_options

__all__ = ["SglLanguageModel", "codec_of"]

_EMBEDDED_NAME: Final = "SmolLM2-135M-Instruct"
_ENGINE_FIELDS: Final = ("model", "device", "dtype", "engine_kwargs")
_SAMPLING_FIELDS: Final = {
    "temperature": "temperature",
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repetition_penalty",
    "logit_bias": "logit_bias",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "seed": "seed",
}
_CALL_OPTIONS: Final = frozenset(_SAMPLING_FIELDS) | {"model", "namespace", "timeout"}


def _default_model() -> str | None:
    return Environment.read().default_model


def codec_of(engine: Backend) -> TextCodec:
    """The engine's codec.

    Raises:
        InvalidArgumentError: it has none.
    """
    if engine.codec is None:
        raise InvalidArgumentError("engine", type(engine).__name__, "an engine that takes token ids", "Use sgl.Engine().")
    return engine.codec


class SglLanguageModel(BaseLanguageModel[Any]):
    """Options and requests of a model on sgl-core; see ``ChatSgl`` for what the fields mean."""

    model_config = ConfigDict(extra="forbid")
    _kind: ClassVar[Literal["chat", "llm"]]

    model: str | None = Field(default_factory=_default_model)
    engine: Any = Field(default=None, exclude=True, repr=False)
    device: str | None = None
    dtype: str | None = None
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    namespace: str | None = None
    timeout: float | None = Field(default=None, gt=0)
    temperature: float | None = 0.0
    max_tokens: int | None = None
    min_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    streaming: bool = False

    _leases: EngineLeases = PrivateAttr(default_factory=EngineLeases)

    # ---- a thin object -----------------------------------------------------------------------------------------------
    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        return canonical_options(cls.__name__, data, cls.model_fields) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.engine is None:
            self._engine_config()
        else:
            self._check_borrowed()
        self._sampling_params()
        return self

    @model_validator(mode="after")
    def _set_sgl_version(self) -> Self:
        self._add_version("sgl-core", __version__)
        return self

    def _check_borrowed(self) -> None:
        if isinstance(self.engine, type) or not isinstance(self.engine, Backend):
            raise InvalidArgumentError("engine", type(self.engine).__name__, "None or an engine, as Engine() makes it")
        for name in _ENGINE_FIELDS:
            if name in self.model_fields_set and getattr(self, name):
                raise InvalidArgumentError(name, getattr(self, name), "nothing beside engine=", "The engine has its own.")
        self.model = None

    @override
    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy on the same engine."""
        memo = {} if memo is None else memo
        memo[id(self.engine)] = self.engine
        return super().__deepcopy__(memo)

    @override
    def __getstate__(self) -> dict[Any, Any]:
        """The configuration; a pickle holds no engine.

        Raises:
            InvalidArgumentError: the engine was brought by the caller and cannot travel.
        """
        if self.engine is not None:
            raise InvalidArgumentError(
                "engine", type(self.engine).__name__, "no engine in a pickle", "Pickle an object that was made with model=..."
            )
        return super().__getstate__()

    def close(self) -> None:
        """Give back the engine that this object and its copies share; the next call leases it anew.

        An engine that came as ``engine=`` is left alone.
        """
        self._leases.close()

    # ---- names -------------------------------------------------------------------------------------------------------
    @property
    def _model_name(self) -> str:
        if self.engine is None:
            return self.model or _EMBEDDED_NAME
        return str(getattr(getattr(self.engine, "facts", None), "name", type(self.engine).__name__))

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that decides an answer: LangChain's cache key and traces are made of it."""
        names = ("device", "dtype", "engine_kwargs", "namespace", *_SAMPLING_FIELDS)
        params = {name: getattr(self, name) for name in names}
        params["stop_sequences"] = params.pop("stop")  # core writes the call's over "stop"
        borrowed = None if self.engine is None else repr(getattr(self.engine, "config", self._model_name))
        return {"model": self._model_name, "engine": borrowed, **params}

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="sgl", ls_model_name=kwargs.get("model") or self._model_name, ls_model_type=self._kind
        )
        temperature, max_tokens = (kwargs.get(name, getattr(self, name)) for name in ("temperature", "max_tokens"))
        if temperature is not None:
            params["ls_temperature"] = temperature
        if max_tokens is not None:
            params["ls_max_tokens"] = max_tokens
        if stops := self.stop if stop is None else stop:
            params["ls_stop"] = [stops] if isinstance(stops, str) else list(stops)
        return params

    # ---- calls -------------------------------------------------------------------------------------------------------
    def _for_call(self, stop: list[str] | None, options: Mapping[str, Any]) -> Self:
        """This object with the options of one call in place of its own.

        Raises:
            UnknownOptionError: an option that no call has.
            NotYetAvailableError: one that this version does not have.
        """
        given = {name: value for name, value in options.items() if name != "stream"}  # core's own switch
        with langchain_errors():
            update = canonical_options(f"{type(self).__name__} call", given, _CALL_OPTIONS)
            if stop is not None:
                update["stop"] = stop
            if self.engine is not None and update.get("model") is not None:
                raise InvalidArgumentError("model", update["model"], "nothing beside engine=", "The engine has its own.")
        return self.model_copy(update=update) if update else self

    def _engine_config(self) -> EngineConfig:
        options = {"model": self.model, "device": self.device, "dtype": self.dtype}
        for name in options.keys() & self.engine_kwargs.keys():
            raise InvalidArgumentError(f"engine_kwargs[{name!r}]", self.engine_kwargs[name], f"{name}= outside engine_kwargs")
        return EngineConfig.from_options(**options, **self.engine_kwargs)

    def _sampling_params(self) -> SamplingParams:
        values = {param: getattr(self, field) for field, param in _SAMPLING_FIELDS.items()}
        try:
            return SamplingParams(**{param: value for param, value in values.items() if value is not None})
        except InvalidArgumentError as error:
            raise error.renamed({param: field for field, param in _SAMPLING_FIELDS.items()}) from None

    def _request(self, ids: Sequence[int]) -> GenRequest:
        return GenRequest(tuple(ids), self._sampling_params(), namespace=self.namespace, timeout_s=self.timeout)

    def _engine(self) -> Backend:
        if self.engine is not None:
            return cast("Backend", self.engine)
        with langchain_errors():
            return self._leases.engine(self._engine_config())

    async def _aengine(self) -> Backend:
        if self.engine is not None:
            return cast("Backend", self.engine)
        with langchain_errors():
            return await self._leases.aengine(self._engine_config())

    def _codec(self) -> TextCodec:
        return codec_of(self._engine())

    # ---- widths ------------------------------------------------------------------------------------------------------
    @property
    def _width(self) -> int:
        if self.engine is None:
            return self._engine_config().max_running
        return int(getattr(self.engine, "width", EngineConfig().max_running))

    def _widened(self, config: RunnableConfig | Sequence[RunnableConfig] | None, num_inputs: int) -> list[RunnableConfig]:
        """One config for each input; as many inputs at once as the engine runs, unless the caller named a number.

        LangChain would use a few threads more than there are processors, and the engine would never see the batch.
        """
        configs = get_config_list(config, num_inputs)
        if configs and not configs[0].get("max_concurrency"):
            configs[0] = {**configs[0], "max_concurrency": self._width}
        return configs

    # ---- counting ----------------------------------------------------------------------------------------------------
    @override
    def get_token_ids(self, text: str) -> list[int]:
        """The ids of ``text`` in the model's own vocabulary, as they stand inside a prompt."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self._codec().encode(text))
