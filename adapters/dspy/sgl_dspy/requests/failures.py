"""Our errors as ``dspy.lm15`` errors, which DSPy turns into its own and, for some, retries.

Messages name options as DSPy's users type them, not as the engine does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from dspy import lm15

from sgl_core import errors

__all__ = ["as_lm15_errors", "unsupported"]

_MAPPING: Final = (  # the first that fits; what fits none passes untouched, so an ImportError stays one
    (errors.ContextLengthError, lm15.ContextLengthError),
    (errors.InvalidArgumentError, lm15.InvalidRequestError),
    (errors.TemplateError, lm15.InvalidRequestError),
    (errors.NotYetAvailableError, lm15.UnsupportedFeatureError),
    (errors.ModelError, lm15.UnsupportedModelError),
    (errors.DeadlineExceeded, lm15.TimeoutError),
    (errors.QueueFull, lm15.RateLimitError),
    (errors.EngineError, lm15.ServerError),
)
_NAMES: Final = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
_ENGINE_NAME: Final = re.compile("|".join(_NAMES))


@contextmanager
def as_lm15_errors() -> Iterator[None]:
    """Raise our errors as lm15's, with ours as the cause.

    Raises:
        dspy.lm15.LM15Error: see the table above.
    """
    try:
        yield
    except errors.SglError as error:
        target = next((lm15_class for ours, lm15_class in _MAPPING if isinstance(error, ours)), None)
        if target is None:
            raise
        raise target(_ENGINE_NAME.sub(lambda found: _NAMES[found[0]], str(error))) from error


def unsupported(feature: str, what: str) -> lm15.UnsupportedFeatureError:
    """What to raise where a request asks for something that we lack.

    Args:
        feature: its place in the request, for whoever wants to leave it out and ask again.
        what: for people.
    """
    message = f"{feature}: {what} is not supported by sgl_dspy; leave it out"
    return lm15.UnsupportedFeatureError(message, feature=feature)
