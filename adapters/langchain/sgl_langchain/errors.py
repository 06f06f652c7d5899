"""Our errors as LangChain's: each class here is one of ``sgl_core.errors`` and one of ``langchain_core.exceptions``.

Agents and middleware look for LangChain's classes (a ``ContextOverflowError`` makes them summarise, a retryable one makes
them retry), callers of sgl-core for ours; both find them. The models raise these through ``langchain_errors``. Options have the
names in them that users of LangChain type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from langchain_core import exceptions as langchain

from sgl_core import errors as ours
from sgl_langchain.options import SAMPLING_FIELDS

__all__ = [
    "LangChainVersionError",
    "SglAPIError",
    "SglContextOverflowError",
    "SglGrammarError",
    "SglInvalidRequestError",
    "SglModelNotFoundError",
    "SglRateLimitError",
    "SglTemplateError",
    "SglTimeoutError",
    "SglUnknownOptionError",
    "langchain_errors",
]


_NAMES: Final = {"timeout_s": "timeout"} | {param: field for field, param in SAMPLING_FIELDS.items() if param != field}
"""The engine's names of options, and those of the models' fields."""
_ENGINE_NAME: Final = re.compile(rf"\b(?:{'|'.join(_NAMES)})\b")
_WORDS: Final = ("argument", "expected", "cure")
"""Attributes of an error that speak of options."""


class LangChainVersionError(ours.SglError, ImportError):
    """The installed langchain-core is too old for one of our classes.

    Args:
        feature: the class.
        needed: the oldest version that will do.
        installed: the version that is there.
    """

    def __init__(self, feature: str, *, needed: str, installed: str) -> None:
        """Say both versions and the install line."""
        super().__init__(
            f"{feature} needs langchain-core {needed} or newer; installed: {installed}. "
            f"Run: pip install 'langchain-core>={needed},<2'"
        )


class _Twin(ours.SglError):
    """An error again, under one more class.

    Args:
        original: the error as the engine raised it.
    """

    def __init__(self, original: ours.SglError) -> None:
        """Take over the message and the attributes, in the caller's names of options."""
        Exception.__init__(self, *map(_typed, original.args))
        self.__dict__.update(original.__dict__)
        self.__dict__.update({name: _typed(getattr(original, name)) for name in _WORDS if name in original.__dict__})


class SglContextOverflowError(_Twin, ours.ContextLengthError, langchain.ContextOverflowError):
    """Prompt and explicit budget do not fit."""


class SglInvalidRequestError(_Twin, ours.InvalidArgumentError, langchain.ModelInvalidRequestError):
    """An option or a message cannot be used."""


class SglUnknownOptionError(_Twin, ours.UnknownOptionError, langchain.ModelInvalidRequestError):
    """A keyword that no call has."""


class SglGrammarError(_Twin, ours.GrammarError, langchain.ModelInvalidRequestError):
    """A schema, a grammar or a tool that no output can be held to, or that the budget is too small for."""


class SglTemplateError(_Twin, ours.TemplateError, langchain.ModelInvalidRequestError):
    """The model has no chat template, or it refuses the conversation."""


class SglModelNotFoundError(_Twin, ours.ModelNotFoundError, langchain.ModelNotFoundError):
    """No such folder, file or name."""


class SglTimeoutError(_Twin, ours.DeadlineExceeded, langchain.ModelTimeoutError):
    """``timeout`` passed; the request's memory is free again."""


class SglRateLimitError(_Twin, ours.QueueFull, langchain.ModelRateLimitError):
    """More requests wait than ``max_queued`` allows."""


class SglAPIError(_Twin, ours.EngineStepError, langchain.ModelAPIError):
    """A forward pass failed; ``__cause__`` has the reason."""


_TWINS: Final[dict[type[ours.SglError], type[_Twin]]] = {
    ours.ContextLengthError: SglContextOverflowError,
    ours.InvalidArgumentError: SglInvalidRequestError,
    ours.UnknownOptionError: SglUnknownOptionError,
    ours.GrammarError: SglGrammarError,
    ours.TemplateError: SglTemplateError,
    ours.ModelNotFoundError: SglModelNotFoundError,
    ours.DeadlineExceeded: SglTimeoutError,
    ours.QueueFull: SglRateLimitError,
    ours.EngineStepError: SglAPIError,
}


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Raise our errors as their twins above, with the same message, attributes, traceback and cause; others pass.

    Where a message names an option as the engine does, the twin's has the name of the field.
    """
    try:
        yield
    except ours.SglError as error:
        twin_class = _TWINS.get(type(error))
        if twin_class is None:
            raise
        raise twin_class(error).with_traceback(error.__traceback__) from error.__cause__


def _typed(said: object) -> object:
    return _ENGINE_NAME.sub(lambda found: _NAMES[found[0]], said) if isinstance(said, str) else said
