"""A program's way to the models: one run of the language, with a stream for every model call.

Owned by one ``invoke`` or batch of a program, or made for the run of a native one. The run is opened with the first call, as
only that says which engine it goes to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from sgl_core.backend import Backend
from sgl_core.language.dispatcher import post
from sgl_core.language.ir import Gen
from sgl_core.language.run import ProgramRun
from sgl_core.language.stream import StreamExecutor
from sgl_core.language.variables import VariableFuture
from sgl_core.types import GenResult
from sgl_langchain.base import SglLanguageModel
from sgl_langchain.programs.effects import Ask

__all__ = ["Asked", "Calls"]

_REPLY: Final = "reply"
ModelT = TypeVar("ModelT", bound=SglLanguageModel)


class Asked:
    """A model call under way; enough of a ``Handle`` for the scopes that list and count requests."""

    __slots__ = ("_future", "_run", "_stream")

    def __init__(self, run: ProgramRun, stream: StreamExecutor, future: VariableFuture) -> None:
        """Made by ``Calls.start``."""
        self._run = run
        self._stream = stream
        self._future = future

    def add_done_callback(self, fn: Callable[[], None]) -> None:
        """Call ``fn`` once when it has ended; it must be short."""
        self._future.add_done_callback(fn)

    def abort(self) -> None:
        """End it soon, with ``RequestAborted``; no effect if it has ended."""
        post(self._stream.abort)

    def result(self) -> GenResult:
        """What it gave, once it has ended.

        Raises:
            BaseException: its error, which then counts as read.
        """
        if self._future.error is not None:
            self._run.mark_seen(self._future.error)
            raise self._future.error
        result = self._future.generation
        assert result is not None, "a stream says what its request gave"
        return result


class Calls:
    """The calls of one run.

    Args:
        run: of a native program, whose backend then serves all models; None opens one on the first model's own engine.
    """

    def __init__(self, run: ProgramRun | None = None) -> None:
        """Nothing is asked yet."""
        self._run = run
        self._lends: Final = run is not None
        self._lent: dict[int, Any] = {}

    def model(self, model: ModelT) -> ModelT:
        """The model itself, or a copy of it that asks the program's backend."""
        if not self._lends or self._run is None or model.engine is self._run.backend:
            return model
        copy = self._lent.get(id(model))
        if copy is None:
            copy = self._lent[id(model)] = model.model_copy(update={"engine": self._run.backend, "model": None})
        return copy

    def serves(self, engine: Backend, namespace: str | None) -> bool:
        """Whether a request for this engine and namespace belongs into this run."""
        if self._run is None:
            self._run = ProgramRun(engine, namespace=namespace, defaults={})
        return self._run.backend is engine and (self._lends or self._run.namespace == namespace)

    def start(self, ask: Ask) -> Asked:
        """Submit a call that the run ``serves``; never blocks."""
        assert self._run is not None, "serves() has opened it"
        stream = self._run.root.call()
        stream.submit((*ask.nodes, Gen(_REPLY, ask.options, heal=False)))
        future = stream.find(_REPLY)
        assert future is not None, "it was just submitted"
        return Asked(self._run, stream, future)

    def is_cancelled(self) -> bool:
        """Whether somebody has aborted the program."""
        return self._run is not None and self._run.cancelled is not None

    def cancel(self) -> None:
        """Abort whatever is under way; nothing more is asked."""
        if self._run is not None:
            self._run.cancel()
