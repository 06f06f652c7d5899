"""Which engine the calls of a model's node go to: the model's own options, and those that are bound around it."""

from __future__ import annotations

from typing import Any, Final, cast

from sgl_core.backend import Backend
from sgl_langchain.base import SglLanguageModel
from sgl_langchain.translate import nodes

__all__ = ["call_options", "engine_key", "engine_of", "held_engine"]

_NOT_FOR_THE_MODEL: Final = ("stop", "ls_structured_output_format")


def engine_of(model: nodes.Model) -> Backend:
    """The engine that a call of this model goes to; leased if nobody has it yet.

    Raises:
        InvalidArgumentError: an option that is bound to it cannot be used.
        ModelError: the model cannot be found, read or served.
    """
    return _model_of_call(model)._engine()


def held_engine(model: nodes.Model) -> Backend | None:
    """The engine that a call of this model goes to, if it can be had without loading anything.

    Raises:
        InvalidArgumentError: an option that is bound to it cannot be used.
    """
    call = _model_of_call(model)
    if call.engine is not None:
        return cast("Backend", call.engine)
    return call._leases.held(call._engine_config())


def engine_key(model: nodes.Model) -> tuple[object, str | None]:
    """Engine and namespace: models with equal ones find each other's prefixes. Loads nothing.

    Raises:
        InvalidArgumentError: an option that is bound to it cannot be used.
    """
    call = _model_of_call(model)
    return (call._engine_config() if call.engine is None else id(call.engine)), call.namespace


def call_options(model: nodes.Model) -> dict[str, Any]:
    """The options that every call of this model gets, without stop strings and notes for traces."""
    return {name: value for name, value in model.options.items() if name not in _NOT_FOR_THE_MODEL}


def _model_of_call(model: nodes.Model) -> SglLanguageModel:
    """The model object with the options of its calls in place of its own."""
    call, _ = cast("SglLanguageModel", model.runnable)._for_call(None, call_options(model))
    return call
