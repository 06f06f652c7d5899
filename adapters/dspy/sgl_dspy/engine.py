"""``SglEngine`` and ``SglAsyncEngine``: DSPy's engine contract over a ``Backend``.

DSPy calls ``complete`` or ``stream`` for one attempt at one request, from any thread or event loop; caching, retries and
history are its own. An engine owns a reference to a backend, which is leased from the registry by the first request, so it
is cheap to make, and its copies are itself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Self

from dspy import lm15

from sgl_core.backend import Backend
from sgl_core.config import EngineConfig
from sgl_core.errors import InvalidArgumentError, PoolExhaustedError
from sgl_core.types import GenResult, ScoreRequest, ScoreResult
from sgl_dspy.requests.calls import PreparedCall, beginning_of, prepare
from sgl_dspy.requests.failures import as_lm15_errors, unsupported
from sgl_dspy.requests.judgments import judge, judgments_of
from sgl_dspy.requests.lower import SUPPORTED_PARAMS
from sgl_dspy.requests.readable import readable
from sgl_dspy.running.backend_ref import BackendRef
from sgl_dspy.running.candidates import attempt

__all__ = ["SglAsyncEngine", "SglEngine"]


class _EngineHandle:
    """What both engines are: a handle on a backend. See ``SglEngine`` for the arguments."""

    supports_function_calling = True
    supports_reasoning = False
    supports_response_schema = True
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

    def prefetch(self, request: lm15.Request) -> str:
        """Compute everything in front of the last message of a request, and keep it; waits.

        Args:
            request: its last message stands for those that will come.

        Returns:
            A name for ``CacheConfig(resource=...)``. The least recently used of these give way to new ones.

        Raises:
            dspy.lm15.LM15Error: the messages cannot be used, or do not fit.
        """
        with as_lm15_errors():
            backend = self._ref.get()
            ids, namespace = beginning_of(request, backend)
            return self._ref.pins.keep(backend, ids, namespace)[0].resource

    def inspect(self, request: lm15.Request) -> str:
        """The prompt of a request as the model reads it, control tokens spelled out.

        Raises:
            dspy.lm15.LM15Error: the request cannot be used.
        """
        with as_lm15_errors():
            call = prepare(request, self._ref.get(), self._ref.pins)
            return readable(call.prompt.ids, call.codec)

    def score(self, request: lm15.Request, continuations: Sequence[str]) -> list[float]:
        """Log-probabilities of beginnings of the answer, as ``SglLM.score`` says; waits.

        Raises:
            dspy.lm15.LM15Error: the request or a continuation cannot be used, or the engine failed.
        """
        with as_lm15_errors():
            if isinstance(continuations, str) or not continuations or not all(continuations):
                raise InvalidArgumentError("continuations", continuations, "a list of texts, none of them empty")
            call = prepare(request, self._ref.get(), self._ref.pins)
            spans = tuple(call.codec.encode(text) for text in continuations)
            scores = _score(call.backend, ScoreRequest(call.prompt.ids, spans, namespace=call.namespace))
            return [math.fsum(row) for row in scores.token_logprobs]

    def stats(self) -> dict[str, Any]:
        """Counts, as plain values: ``label``, ``is_loaded``, ``kept_prefixes``, and ``engine`` where the backend counts.

        Loads nothing.
        """
        backend = self._ref.peek()
        engine = getattr(backend, "stats", None)
        counts = None if engine is None else {name: value for name, value in asdict(engine()).items() if name != "misses"}
        return {
            "label": self.label,
            "is_loaded": backend is not None,
            "kept_prefixes": len(self._ref.pins),
            "engine": counts,
        }

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

    def _kept(self, call: PreparedCall) -> PreparedCall:
        """Pin what the caller wants to be kept; where there is no room, the answer says so."""
        try:
            prefix, is_new = self._ref.pins.keep(call.backend, call.keeps, call.namespace)
        except PoolExhaustedError as error:
            return call.without("config.cache.retention", "long", str(error))
        return call.kept(prefix, is_new=is_new)

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
            call = self._ready(request)
            judgments = judgments_of(request)
            if judgments:
                return self._judged(judge(judgments, call, request))
            call = self._decided(_unjudged(request, call, "a property of the schema declares no answers"))
            with attempt(request, call, self._ref.flights) as handle:
                return call.response(request, handle.id, self._scored(call, handle.result()))

    def stream(self, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
        """Run one request, event by event; closing the iterator early aborts it. Raises as ``complete``."""
        with as_lm15_errors():
            call = self._decided(_unjudged(request, self._ready(request), "a stream generates its answer"))
            reader = call.events()
            with attempt(request, call, self._ref.flights) as handle:
                yield reader.start(request, handle.id)
                for delta in handle:
                    yield from reader.deltas(delta)
                last = reader.end(self._scored(call, handle.result(0)))
            yield from last

    def _ready(self, request: lm15.Request) -> PreparedCall:
        call = prepare(request, self._ref.get(), self._ref.pins)
        return self._kept(call) if call.keeps else call

    def _decided(self, call: PreparedCall) -> PreparedCall:
        return call if call.is_decided else call.decided(_score(call.backend, call.decision))

    def _scored(self, call: PreparedCall, result: GenResult) -> GenResult:
        scoring = call.scoring(result)
        return result if scoring is None else call.scored(result, _score(call.backend, scoring))

    def _judged(self, steps: Generator[ScoreRequest, ScoreResult, lm15.Response]) -> lm15.Response:
        backend = self._ref.get()
        try:
            request = next(steps)
            while True:
                request = steps.send(_score(backend, request))
        except StopIteration as end:
            response: lm15.Response = end.value
            return response


class SglAsyncEngine(_EngineHandle):
    """The same for an event loop, which it never blocks. ``SglAsyncEngine(engine)`` shares an ``SglEngine``'s backend.

    Arguments and errors are those of ``SglEngine``.
    """

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Run one request; cancelling the task aborts it. Raises as ``SglEngine.complete``."""
        with as_lm15_errors():
            call = await self._ready(request)
            judgments = judgments_of(request)
            if judgments:
                return await self._judged(judge(judgments, call, request))
            call = await self._decided(_unjudged(request, call, "a property of the schema declares no answers"))
            with attempt(request, call, self._ref.flights) as handle:
                return call.response(request, handle.id, await self._scored(call, await handle))

    async def stream(self, request: lm15.Request) -> AsyncIterator[lm15.StreamEvent]:
        """Run one request, event by event; ``aclose`` aborts it. Raises as ``SglEngine.complete``."""
        with as_lm15_errors():
            call = _unjudged(request, await self._ready(request), "a stream generates its answer")
            call = await self._decided(call)
            reader = call.events()
            with attempt(request, call, self._ref.flights) as handle:
                yield reader.start(request, handle.id)
                async for delta in handle:
                    for event in reader.deltas(delta):
                        yield event
                last = reader.end(await self._scored(call, handle.result(0)))
            for event in last:
                yield event

    async def _ready(self, request: lm15.Request) -> PreparedCall:
        call = prepare(request, await self._ref.get_async(), self._ref.pins)
        return await asyncio.to_thread(self._kept, call) if call.keeps else call

    async def _decided(self, call: PreparedCall) -> PreparedCall:
        return call if call.is_decided else call.decided(await _ascore(call.backend, call.decision))

    async def _scored(self, call: PreparedCall, result: GenResult) -> GenResult:
        scoring = call.scoring(result)
        return result if scoring is None else call.scored(result, await _ascore(call.backend, scoring))

    async def _judged(self, steps: Generator[ScoreRequest, ScoreResult, lm15.Response]) -> lm15.Response:
        backend = await self._ref.get_async()
        try:
            request = next(steps)
            while True:
                request = steps.send(await _ascore(backend, request))
        except StopIteration as end:
            response: lm15.Response = end.value
            return response

    async def aclose(self) -> None:
        """Give the lease back, see ``close``."""
        await asyncio.to_thread(self.close)


def _score(backend: Backend, request: ScoreRequest) -> ScoreResult:
    """Score and wait; whoever stops waiting leaves nothing running."""
    handle = backend.score(request)
    try:
        return handle.result()
    finally:
        handle.abort()


async def _ascore(backend: Backend, request: ScoreRequest) -> ScoreResult:
    handle = backend.score(request)
    try:
        return await handle
    finally:
        handle.abort()


def _unjudged(request: lm15.Request, call: PreparedCall, reason: str) -> PreparedCall:
    """The call of a request whose answer is generated, so that there are no probabilities of it."""
    wanted = request.config.probabilities
    if wanted == "required":
        raise unsupported("config.probabilities", f"'required' where {reason}")
    return call if wanted != "if_available" else call.without("config.probabilities", wanted, reason)
