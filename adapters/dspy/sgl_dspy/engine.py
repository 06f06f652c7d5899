"""``SglEngine`` and ``SglAsyncEngine``: DSPy's engine contract over a ``Backend``.

DSPy calls ``complete`` or ``stream`` for one attempt at one request, from any thread or event loop; caching, retries and
history are its own. An engine owns a reference to a backend, which is leased from the registry by the first request, so it
is cheap to make, and its copies are itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from dspy import lm15

from sgl_core.backend import Backend
from sgl_core.config import EngineConfig
from sgl_core.errors import InvalidArgumentError
from sgl_dspy.backend_ref import BackendRef
from sgl_dspy.candidates import attempt
from sgl_dspy.failures import as_lm15_errors
from sgl_dspy.lower import SUPPORTED_PARAMS, delta_event, end_event, gen_request, start_event, to_response

__all__ = ["SglAsyncEngine", "SglEngine"]


class _EngineHandle:
    """What both engines are: a handle on a backend. See ``SglEngine`` for the arguments."""

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = False
    supported_params = SUPPORTED_PARAMS

    def __init__(self, backend: Backend | _EngineHandle | None = None, *, engine: Any = None, **options: Any) -> None:
        """Load nothing."""
        if backend is not None and engine is not None:
            raise InvalidArgumentError("engine", type(engine).__name__, "nothing beside backend=, whose other name it is")
        source = engine if backend is None else backend
        if source is None:
            self._ref = BackendRef(EngineConfig.from_options(**options))
            return
        if options:
            raise InvalidArgumentError("options", sorted(options), "none with a backend, which has its own")
        self._ref = source._ref if isinstance(source, _EngineHandle) else BackendRef(source)

    @property
    def backend(self) -> Backend:
        """The backend, which is leased now if it is not yet.

        Raises:
            ModelError: the model cannot be found, read or served.
        """
        return self._ref.get()

    @property
    def label(self) -> str:
        """``sgl/<model>@<quantisation or dtype>#<hash>``, known without loading weights.

        Raises:
            ModelError: the model cannot be found.
        """
        return self._ref.label

    def shares_backend_with(self, other: object) -> bool:
        """Whether ``other`` is a handle on the same backend."""
        return isinstance(other, _EngineHandle) and other._ref is self._ref

    def close(self) -> None:
        """Give the lease back; a later request leases anew. A borrowed backend is its owner's to close."""
        self._ref.close()

    def dump_state(self) -> dict[str, Any]:
        """Options to find the engine again, for DSPy's saved programs.

        Raises:
            InvalidArgumentError: the backend is borrowed.
        """
        return {"options": self._ref.options()}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """A handle by saved options; loads nothing.

        Raises:
            UnknownOptionError: an option that this version does not have.
        """
        return cls(**state["options"])

    @classmethod
    def _from_ref(cls, ref: BackendRef) -> Self:
        made = cls.__new__(cls)
        made._ref = ref
        return made

    def __copy__(self) -> Self:
        """The engine itself."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The engine itself: DSPy copies LMs freely, and weights are not to be copied with them."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Options, not weights; refused for a borrowed backend."""
        return type(self)._from_ref, (self._ref,)


class SglEngine(_EngineHandle):
    """Runs DSPy's requests: ``dspy.LM("sgl/any-name", engine=SglEngine())``, or let ``SglLM`` make one.

    Args:
        backend: a backend to borrow (``sgl_native.Engine``, ``FakeBackend``), or another engine of this package, to share
            its backend. None leases the engine for ``options`` from the registry when it is needed.
        engine: the same under the name that it has elsewhere.
        options: fields of ``sgl_core.config.EngineConfig``: model, device, dtype, ...

    Raises:
        InvalidArgumentError: an option is out of range or does not go with another, or ``backend`` is none.
        UnknownOptionError: an option that EngineConfig does not have.
    """

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Run one request and wait for it.

        Raises:
            dspy.lm15.LM15Error: the request, or the engine, failed.
            MissingExtraError: the runtime is not installed.
        """
        with as_lm15_errors():
            backend = self._ref.get()
            with attempt(request, gen_request(request, backend), backend) as handle:
                return to_response(request, handle.id, handle.result(), backend)

    def stream(self, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
        """Run one request, event by event; closing the iterator early aborts it. Raises as ``complete``."""
        with as_lm15_errors():
            backend = self._ref.get()
            with attempt(request, gen_request(request, backend), backend) as handle:
                yield start_event(request, handle.id)
                for delta in handle:
                    if delta.text:
                        yield delta_event(delta)
                end = end_event(handle.result(0), backend)
            yield end


class SglAsyncEngine(_EngineHandle):
    """The same for an event loop, which it never blocks. ``SglAsyncEngine(engine)`` shares an ``SglEngine``'s backend.

    Arguments and errors are those of ``SglEngine``.
    """

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Run one request; cancelling the task aborts it. Raises as ``SglEngine.complete``."""
        with as_lm15_errors():
            backend = await self._ref.get_async()
            with attempt(request, gen_request(request, backend), backend) as handle:
                return to_response(request, handle.id, await handle, backend)

    async def stream(self, request: lm15.Request) -> AsyncIterator[lm15.StreamEvent]:
        """Run one request, event by event; ``aclose`` aborts it. Raises as ``SglEngine.complete``."""
        with as_lm15_errors():
            backend = await self._ref.get_async()
            with attempt(request, gen_request(request, backend), backend) as handle:
                yield start_event(request, handle.id)
                async for delta in handle:
                    if delta.text:
                        yield delta_event(delta)
                end = end_event(handle.result(0), backend)
            yield end

    async def aclose(self) -> None:
        """Give the lease back, see ``close``."""
        await asyncio.to_thread(self.close)
