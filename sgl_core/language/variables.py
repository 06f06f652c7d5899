"""Variables: futures that a stream resolves once and anybody may read.

The stream's dispatcher thread calls ``start``, ``resolve`` and ``fail``; readers block, await, or listen to the text as it
comes. A fork refers to its parent's futures, it does not copy them. There may be very many, so one costs little until
somebody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sgl_core.backend import Handle
from sgl_core.errors import InvalidArgumentError
from sgl_core.types import GenDelta, GenResult

__all__ = ["Put", "VariableFuture", "VariableTable", "automatic_name", "check_name"]

_NO_META: Mapping[str, Any] = MappingProxyType({})

_NO_VARIABLES: dict[str, Any] = {}  # never changed: whoever begins with it shares it

Put = Callable[[str | None], None]
"""Gets text piece by piece, and None at its end."""


def check_name(name: object) -> None:
    """Refuse what cannot be the name of a variable.

    Raises:
        InvalidArgumentError: it is no str, or empty.
    """
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError("name", name, "a non-empty str")


def automatic_name(index: int) -> str:
    """The variable of a stream's generation number ``index`` where its author gave it no name."""
    return f"_unnamed_{index}"


class VariableFuture:
    """A value that will be there, or an error.

    Args:
        name: the variable's name.
        is_automatic: the author gave no name; ``join`` passes over it.
    """

    __slots__ = (
        "_callbacks",
        "_error",
        "_handle",
        "_is_done",
        "_lock",
        "_taps",
        "_text",
        "_value",
        "generation",
        "is_automatic",
        "meta",
        "name",
    )

    def __init__(self, name: str, *, is_automatic: bool = False) -> None:
        """Nothing is there yet."""
        self.name = name
        self.is_automatic = is_automatic
        self.meta = _NO_META
        self.generation: GenResult | None = None
        """What a gen's request gave; the stream sets it before the value is there."""
        self._lock = threading.Lock()
        self._is_done = False
        self._value: Any = None
        self._text: str | None = ""
        self._error: BaseException | None = None
        self._handle: Handle[GenResult] | None = None
        self._callbacks: list[Callable[[], None]] | None = None
        self._taps: list[_Tap] | None = None

    @classmethod
    def of(cls, name: str, value: Any, meta: Any = _NO_META) -> VariableFuture:
        """A variable that has its value already."""
        future = cls(name)
        future.resolve(value, None, meta)
        return future

    # ---- for readers -------------------------------------------------------------------------------------------------
    def done(self) -> bool:
        """Whether value or error are there."""
        return self._is_done

    @property
    def error(self) -> BaseException | None:
        """The error, once there is one."""
        return self._error

    @property
    def text(self) -> str:
        """The text that stands for the value; empty until done and after an error."""
        return str(self._value) if self._text is None else self._text

    def result(self) -> Any:
        """Wait for the value; raises the node's own error."""
        if not self._is_done:
            ended = threading.Event()
            self.add_done_callback(ended.set)
            ended.wait()
        if self._error is not None:
            raise self._error
        return self._value

    async def wait_async(self) -> None:
        """Wait until done without blocking the loop."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self.add_done_callback(lambda: _wake(loop, waiter))
        await waiter

    def add_done_callback(self, fn: Callable[[], None]) -> None:
        """Call ``fn`` once when done, at once if it is; it must be short."""
        with self._lock:
            if not self._is_done:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(fn)
                return
        fn()

    def listen(self, put: Put) -> None:
        """Call ``put`` with the text piece by piece, from its beginning, and with None at the end."""
        tap = _Tap(put)
        with self._lock:
            is_done, handle = self._is_done, self._handle
            if not is_done:
                if self._taps is None:
                    self._taps = []
                self._taps.append(tap)
        if is_done:
            tap.end(self.text)
        elif handle is not None:
            handle.add_delta_callback(tap.take)

    # ---- for the stream ----------------------------------------------------------------------------------------------
    def start(self, handle: Handle[GenResult]) -> None:
        """Say which request produces the text."""
        with self._lock:
            self._handle = handle
            taps = tuple(self._taps or ())
        for tap in taps:
            handle.add_delta_callback(tap.take)

    def resolve(self, value: Any, text: str | None, meta: Any = _NO_META) -> None:
        """End with a value, the text it came from (None: ``str`` of it), and what is known about it."""
        self._value, self._text, self.meta = value, text, meta
        self._end()

    def fail(self, error: BaseException) -> None:
        """End with an error, which every reader gets."""
        self._error = error
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._is_done = True
            self._handle = None
            callbacks, self._callbacks = self._callbacks or (), None
            taps, self._taps = self._taps or (), None
        for tap in taps:
            tap.end(self.text)
        for fn in callbacks:
            fn()


class VariableTable:
    """The variables of a stream by name: those that it began with, shared with its siblings, and its own.

    ``define`` is for the stream, under its lock; a table that others began with is copied before it changes.

    Args:
        base: of the parent, as it is now.
    """

    __slots__ = ("_is_shared", "_own", "_variables")

    def __init__(self, base: VariableTable | None = None) -> None:
        """Share the parent's table."""
        self._variables: dict[str, VariableFuture] = _NO_VARIABLES if base is None else base._variables
        self._is_shared = True
        self._own: dict[str, None] | None = None
        if base is not None:
            base._is_shared = True

    def find(self, name: str) -> VariableFuture | None:
        """The newest definition of a name."""
        return self._variables.get(name)

    def named(self) -> dict[str, VariableFuture]:
        """All that have a name."""
        return {name: future for name, future in self._variables.items() if not future.is_automatic}

    def own_names(self) -> tuple[str, ...]:
        """Names that the stream itself has defined, in order; automatic ones left out."""
        return tuple(self._own or ())

    def define(self, future: VariableFuture) -> VariableFuture:
        """Set a variable."""
        if self._is_shared:
            self._variables = dict(self._variables)
            self._is_shared = False
        self._variables[future.name] = future
        if not future.is_automatic:
            if self._own is None:
                self._own = {}
            self._own[future.name] = None
        return future


class _Tap:
    """One listener: gets every character once, whether deltas brought it or the result did."""

    __slots__ = ("_emitted", "_is_open", "_lock", "_put")

    def __init__(self, put: Put) -> None:
        self._put = put
        self._emitted = 0
        self._is_open = True
        self._lock = threading.Lock()

    def take(self, delta: GenDelta) -> None:
        with self._lock:
            if self._is_open and delta.text:
                self._emitted += len(delta.text)
                self._put(delta.text)

    def end(self, text: str) -> None:
        with self._lock:
            if self._is_open:
                self._is_open = False
                if rest := text[self._emitted :]:
                    self._put(rest)
                self._put(None)


def _wake(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    def set_result() -> None:
        if not waiter.done():
            waiter.set_result(None)

    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
        loop.call_soon_threadsafe(set_result)
