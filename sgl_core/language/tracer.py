"""Traces a program: runs its body once, on values that are not there yet, and makes the graph of what it does.

Called by ``compiled``. A trace belongs to the context that it runs in, so traces of several threads do not meet. The body's
host code runs once, here; what has to run each time stands in ``sgl.call``.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sgl_core.errors import TraceError
from sgl_core.language.abstract import AbstractValue, is_handed_to_c_code
from sgl_core.language.graph import Call, Graph, Parameter, StreamState
from sgl_core.language.lowering import lowered
from sgl_core.language.recorder import Recorder
from sgl_core.language.run import CURRENT_STATE
from sgl_core.language.state import ProgramState
from sgl_core.language.traced_state import TracedState
from sgl_core.language.traced_stream import TracedStream

if TYPE_CHECKING:
    from sgl_core.language.program import SglFunction

__all__ = ["Tracer", "trace"]


def trace(function: SglFunction, *, static: Mapping[str, Any] = MappingProxyType({})) -> Graph:
    """The graph of a program.

    Args:
        function: its body runs once, in this context; an ``async def`` body on a loop of its own, in a thread.
        static: arguments that are fixed in the graph, beside those that are bound.

    Raises:
        TraceError: the body needs a value that it will have only when it runs.
        UnknownOptionError: ``static`` names no parameter.
        BaseException: what the body raises.
    """
    return Tracer(function, static=static).run()


class Tracer:
    """One trace. See ``trace`` for the arguments."""

    def __init__(self, function: SglFunction, *, static: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Read the signature; nothing runs yet."""
        signature = function.signature
        signature.check_bindable("compile", tuple(static))
        self._function = function
        self._static = {**signature.bound, **static}
        self._parameters = tuple(
            Parameter(name, None, False)
            if parameter.default is inspect.Parameter.empty
            else Parameter(name, parameter.default, True)
            for name, parameter in signature.parameters.items()
            if name not in self._static
        )
        self._recorder = Recorder(function.name, _body_in_context.__code__, is_async=function.is_async)
        self._root = TracedState(TracedStream(self._recorder))

    def run(self) -> Graph:
        """Run the body and make the graph; once."""
        try:
            value = self._run_body()
            self._raise_refusal()
            returns = lowered(value, "the caller", _Returning(self._recorder))
            self._recorder.check_unchanged()
        except Exception as error:
            if is_handed_to_c_code(error):
                self._recorder.refuse_c_code(error)
            self._raise_refusal(error)
            raise
        finally:
            self._recorder.end()
        return self._graph(returns)

    def recorded(self) -> Graph:
        """What has been recorded, up to the first refusal; it may end inside a turn, a scope or a fork's life."""
        return self._graph(None)

    def _graph(self, returns: Any) -> Graph:
        recorder = self._recorder
        return Graph(self._function.name, self._parameters, self._static, recorder.streams, recorder.nodes, returns)

    def _raise_refusal(self, error: Exception | None = None) -> None:
        """Raise the first refusal, also where the body caught it and went on or failed otherwise."""
        first = self._recorder.refusals.first
        if first is not None and first is not error:
            raise first from error

    def _run_body(self) -> Any:
        values = {parameter.name: self._recorder.argument(parameter.name) for parameter in self._parameters}
        arguments = {**self._static, **values}

        def body() -> Any:
            CURRENT_STATE.set(self._root)
            return self._function.func(self._root, **arguments)

        context = contextvars.copy_context()
        if not self._function.is_async:
            return _body_in_context(context, body)
        return _in_thread(lambda: _body_in_context(context, lambda: asyncio.run(body())))


class _Returning:
    """What ``lowering`` needs where the root body returns: states may be returned."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def call(self, call: Call) -> AbstractValue:
        return self._recorder.call(0, call)

    def state(self, state: ProgramState) -> StreamState:
        if not isinstance(state, TracedState) or state.traced.recorder is not self._recorder:
            raise self.refuse("the program returns a state that is not its own", "Return its values.")
        return StreamState(state.traced.id)

    def refuse(self, what: str, cure: str) -> TraceError:
        return self._recorder.refusals.refuse(what, cure)


def _body_in_context(context: contextvars.Context, body: Callable[[], Any]) -> Any:
    """The frame around a body: what stands outside of it is not the program's."""
    return context.run(body)


def _in_thread(work: Callable[[], Any]) -> Any:
    """The result of ``work`` in a thread of its own, where no event loop runs yet."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def keep() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=keep, name="sgl-trace", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
