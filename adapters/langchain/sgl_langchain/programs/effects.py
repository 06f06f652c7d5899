"""What a chain asks of whoever runs it. A chain is evaluated by generators that yield these and are sent what comes of them.

The operations yield them; the two drivers (``waiting`` for a thread, ``awaiting`` for an event loop) carry them out. So every
kind of step is written once for both.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from sgl_core.language.ir import Expr
from sgl_langchain.base import SglLanguageModel

__all__ = ["Ask", "Effect", "Evaluation", "Failure", "Host", "Load", "Outcome", "Pause", "Together", "values_of"]


@dataclass(frozen=True, slots=True)
class Ask:
    """A model is asked; brings its ``GenResult``.

    Args:
        nodes: the prompt, as expressions for an empty stream.
        options: of the ``Gen`` behind it.
    """

    nodes: tuple[Expr, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Load:
    """A model is about to be asked, and its engine may have to be loaded first: on a loop, without blocking it.

    Args:
        model: that is asked.
        options: of the call; they may name another model.
    """

    model: SglLanguageModel
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Host:
    """A runnable runs by its own ``invoke`` or ``ainvoke``, once; brings its output. It may block."""

    runnable: Runnable[Any, Any]
    value: Any
    config: RunnableConfig
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pause:
    """Time passes."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Together:
    """Several evaluations at once; brings their outcomes in order.

    Args:
        evaluations: what runs.
        limit: so many at once; None is all.
        keeps_errors: the loop, too, waits for all. Without it, the loop raises the first error when it happens, and the others
            run on, as LangChain has it; a thread waits for all of them in any case.
    """

    evaluations: Sequence[Evaluation]
    limit: int | None = None
    keeps_errors: bool = False


Effect = Ask | Host | Load | Pause | Together
Evaluation = Generator[Effect, Any, Any]
"""One value on its way through a chain; returns the output."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An evaluation that ended with an error."""

    error: BaseException


Outcome = Any
"""A value, or a ``Failure``."""


def values_of(outcomes: Iterable[Outcome]) -> list[Any]:
    """The values.

    Raises:
        BaseException: the first error by position.
    """
    values = list(outcomes)
    for outcome in values:
        if isinstance(outcome, Failure):
            raise outcome.error
    return values
