"""What ``ChatSgl`` and ``SglLLM`` share: options as plain data, and the way from a call to requests on an engine.

A model object is a thin configuration that copies and pickles freely. Constructing, printing, tracing and binding it never
touch an engine; the first call leases one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from sgl_core.runtime.leases import EngineLeases
from sgl_core.runtime.model_source import peek_context_tokens
from sgl_core.types import SamplingParams
from sgl_langchain.calls import codec_of
from sgl_langchain.errors import langchain_errors
from sgl_langchain.options import SAMPLING_FIELDS, TEXT_OPTIONS, canonical_options

__all__ = ["EMBEDDED_NAME", "ENGINE_FIELDS", "SglLanguageModel"]

EMBEDDED_NAME: Final = "SmolLM2-135M-Instruct"
ENGINE_FIELDS: Final = ("model", "device", "dtype", "engine_kwargs")
"""Fields that say which engine a model runs on, if it is given none."""


def _default_model() -> str | None:
    return Environment.read().default_model


class SglLanguageModel(BaseLanguageModel[Any]):
    """Options and requests of a model on sgl-core; see ``ChatSgl`` for what the fields mean."""

    model_config = ConfigDict(extra="forbid")
    _kind: ClassVar[Literal["chat", "llm"]]
    _call_options: ClassVar[frozenset[str]] = TEXT_OPTIONS

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
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    regex: str | None = None
    choices: list[str] | None = None
    grammar: str | None = None
    json_schema: Any = None
    streaming: bool = False

    _leases: EngineLeases = PrivateAttr(default_factory=EngineLeases)

    # ---- a thin object -----------------------------------------------------------------------------------------------
    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        options = canonical_options(cls.__name__, data, {*cls.model_fields, "model_kwargs"})
        more = options.pop("model_kwargs", None) or {}
        if not isinstance(more, Mapping):
            raise InvalidArgumentError("model_kwargs", type(more).__name__, "a dict of further options")
        for name, value in canonical_options("model_kwargs", more, cls.model_fields).items():
            if name in options:
                raise InvalidArgumentError(f"model_kwargs[{name!r}]", value, f"{name}= once, outside model_kwargs")
            options[name] = value
        return options

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
        for name in ENGINE_FIELDS:
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
            return self.model or EMBEDDED_NAME
        return str(getattr(getattr(self.engine, "facts", None), "name", type(self.engine).__name__))

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that decides an answer: LangChain's cache key and traces are made of it."""
        names = ("device", "dtype", "engine_kwargs", "namespace", "logprobs", "top_logprobs", *SAMPLING_FIELDS)
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
            # What is no stop at all is refused by the call, not here.
            params["ls_stop"] = list(stops) if isinstance(stops, Iterable) and not isinstance(stops, str) else [stops]
        return params

    # ---- calls -------------------------------------------------------------------------------------------------------
    def _for_call(self, stop: list[str] | None, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """This object with the options of one call in place of its own, and those of them that are no fields of it.

        Values are checked where they are used.

        Raises:
            UnknownOptionError: an option that no call has.
        """
        with langchain_errors():
            given = canonical_options(f"{type(self).__name__} call", options, self._call_options)
            if stop is not None:
                given["stop"] = stop
            if self.engine is not None and given.get("model") is not None:
                raise InvalidArgumentError("model", given["model"], "nothing beside engine=", "The engine has its own.")
            fields = type(self).model_fields
            update = {name: value for name, value in given.items() if name in fields}
            call = self.model_copy(update=update) if update else self
        return call, {name: value for name, value in given.items() if name not in fields}

    def _engine_config(self) -> EngineConfig:
        options = {"model": self.model, "device": self.device, "dtype": self.dtype}
        for name in options.keys() & self.engine_kwargs.keys():
            raise InvalidArgumentError(f"engine_kwargs[{name!r}]", self.engine_kwargs[name], f"{name}= outside engine_kwargs")
        return EngineConfig.from_options(**options, **self.engine_kwargs)

    def _sampling_params(self, **others: Any) -> SamplingParams:
        """How to sample; ``others`` are fields of ``SamplingParams`` that stand in place of this object's."""
        values = {param: getattr(self, field) for field, param in SAMPLING_FIELDS.items()} | others
        try:
            if self.logprobs or self.top_logprobs is not None:
                values["logprobs"] = self._num_logprobs()
            return SamplingParams(**{param: value for param, value in values.items() if value is not None})
        except InvalidArgumentError as error:
            raise error.renamed({param: field for field, param in SAMPLING_FIELDS.items()}) from None

    def _num_logprobs(self) -> int:
        if not isinstance(self.logprobs, bool | None):
            raise InvalidArgumentError("logprobs", self.logprobs, "True, False or None", "How many is said by top_logprobs.")
        if self.logprobs is False:
            raise InvalidArgumentError("top_logprobs", self.top_logprobs, "None beside logprobs=False")
        top = self.top_logprobs or 0
        try:
            SamplingParams(logprobs=top)
        except InvalidArgumentError as error:
            raise InvalidArgumentError("top_logprobs", top, error.expected) from None
        return top

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

    def _context_tokens(self) -> int | None:
        """What prompt and answer fit into together, where that is known without loading weights or asking a network."""
        if self.engine is not None:
            return int(self.engine.capabilities.context_tokens)
        config = self._engine_config()
        return peek_context_tokens(config.model, Environment.read())

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
