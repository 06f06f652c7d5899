"""A backend without a model: answers are computed from the ids, at once or after a while.

For tests of programs, adapters and of the language itself. It honours budgets and stop strings, not constraints. It checks requests as an engine does, so a program that runs here
makes requests that an engine takes.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Self

from sgl_core.backend import Capabilities, TextCodec
from sgl_core.errors import ContextLengthError, EngineShutdown, InvalidArgumentError, NotYetAvailableError, RequestAborted
from sgl_core.handle import RequestHandle
from sgl_core.testing.byte_codec import ByteCodec
from sgl_core.types import (
    FinishReason,
    GenDelta,
    GenRequest,
    GenResult,
    PrefetchRequest,
    PrefetchResult,
    SamplingParams,
    ScoreRequest,
    ScoreResult,
    Usage,
)

__all__ = ["FakeBackend"]

Reply = Callable[[tuple[int, ...], SamplingParams], str]
Fail = Callable[[GenRequest], BaseException | None]

_SYLLABLES: Final = ("ka", "lo", "mi", "ne", "pu", "ra", "si", "to", "ve", "zo", "da", "fe", "gi", "ho", "ju", "be")
_TOKENS_PER_DELTA: Final = 4


class FakeBackend:
    """Implements ``sgl_core.backend.Backend``.

    Args:
        reply: the text for a prompt; called on one of eight threads, where it may wait. None makes words up from the
            prompt (and from the seed, if the temperature is above 0).
        latency_s: seconds before a reply is computed; requests wait side by side.
        fail: an error to end a request with instead of a reply, or None.
        codec: vocabulary and template; must not change while requests run.

    Attributes:
        requests: every ``GenRequest`` that was taken, in order, before its reply is computed.
        scores: every ``ScoreRequest`` likewise.
    """

    capabilities = Capabilities(cached_tokens=False)

    def __init__(
        self, reply: Reply | None = None, *, latency_s: float = 0.0, fail: Fail | None = None, codec: TextCodec | None = None
    ) -> None:
        """Start no thread yet."""
        self.requests: list[GenRequest] = []
        self.scores: list[ScoreRequest] = []
        self._codec = codec or ByteCodec()
        self._reply = reply or self._made_up
        self._latency_s = latency_s
        self._fail = fail
        self._lock = threading.Lock()
        self._pool = _TimedPool()
        self._pending: dict[str, tuple[RequestHandle[Any], Any]] = {}
        self._is_closed = False

    def __enter__(self) -> Self:
        """This backend."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def codec(self) -> TextCodec:
        """Bytes, unless another was given."""
        return self._codec

    def submit(self, request: GenRequest) -> RequestHandle[GenResult]:
        """Queue a generation; see ``Backend.submit``."""
        params = request.params
        self._check(request.input_ids, params.max_new_tokens)
        if params.n != 1:
            raise NotYetAvailableError("FakeBackend makes one completion per request; submit it n times")
        aborted = GenResult("", (), FinishReason.ABORT, Usage(len(request.input_ids), 0, 0))
        handle: RequestHandle[GenResult] = RequestHandle(self._abort)
        self._take(handle, aborted, self.requests, request)
        self._pool.run_after(self._latency_s, lambda: self._generate(request, handle))
        return handle

    def score(self, request: ScoreRequest) -> RequestHandle[ScoreResult]:
        """Queue scoring; see ``Backend.score``. A token's score depends on the ids up to it alone."""
        self._check(request.input_ids, None)
        if not request.continuations or not all(request.continuations):
            raise InvalidArgumentError("continuations", "an empty one, or none", "at least one token in each")
        for continuation in request.continuations:
            self._check(continuation, None)
        handle: RequestHandle[ScoreResult] = RequestHandle(self._abort)
        self._take(handle, RequestAborted("the scoring was aborted"), self.scores, request)
        self._pool.run_after(self._latency_s, lambda: self._score(request, handle))
        return handle

    def prefetch(self, request: PrefetchRequest) -> RequestHandle[PrefetchResult]:
        """Do nothing, successfully."""
        self._check(request.input_ids, None)
        with self._lock:
            self._check_open()
        handle: RequestHandle[PrefetchResult] = RequestHandle()
        handle.finish(PrefetchResult(Usage(len(request.input_ids), 0, 0)))
        return handle

    def new_seed(self) -> int:
        """From OS entropy."""
        return secrets.randbits(63)

    def close(self) -> None:
        """End what is pending with EngineShutdown."""
        with self._lock:
            self._is_closed = True
            pending = list(self._pending.values())
            self._pending.clear()
        self._pool.clear()
        for handle, _ in pending:
            handle.fail(EngineShutdown("the backend was closed"))

    def _check(self, ids: Sequence[int], max_new_tokens: int | None) -> None:
        if not ids:
            raise InvalidArgumentError("input_ids", "no ids", "at least one")
        size: int = getattr(self._codec, "vocab_size", 2**31 - 1)
        for token in ids:
            if not 0 <= token < size:
                raise InvalidArgumentError("input_ids", token, f"ids in [0, {size})")
        limit = self.capabilities.context_tokens
        if len(ids) + (max_new_tokens or 0) > limit:
            raise ContextLengthError(len(ids), max_new_tokens, limit, "the context")

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineShutdown("the backend is closed")

    def _take(self, handle: RequestHandle[Any], if_aborted: Any, record: list[Any], request: object) -> None:
        with self._lock:
            self._check_open()
            record.append(request)
            self._pending[handle.id] = (handle, if_aborted)

    def _abort(self, request_id: str) -> None:
        with self._lock:
            handle, outcome = self._pending.pop(request_id, (None, None))
        if handle is None:
            return
        if isinstance(outcome, BaseException):
            handle.fail(outcome)
        else:
            handle.finish(outcome)

    def _ended(self, handle: RequestHandle[Any]) -> None:
        with self._lock:
            self._pending.pop(handle.id, None)

    def _generate(self, request: GenRequest, handle: RequestHandle[GenResult]) -> None:
        if handle.done():  # aborted while it waited
            return
        try:
            error = None if self._fail is None else self._fail(request)
            if error is not None:
                raise error
            params = request.params
            if params.seed is None and params.temperature > 0:
                params = replace(params, seed=self.new_seed())
            result = self._result(request, params, self._reply(request.input_ids, params))
        except BaseException as raised:
            self._ended(handle)
            handle.fail(raised)
            return
        self._ended(handle)
        for delta in _deltas(result):
            handle.push(delta)
        handle.finish(result)

    def _result(self, request: GenRequest, params: SamplingParams, text: str) -> GenResult:
        budget = params.max_new_tokens or self.capabilities.default_max_new_tokens
        budget = min(budget, self.capabilities.context_tokens - len(request.input_ids))
        ids = self._codec.encode(text)
        reason = FinishReason.STOP
        matched: str | None = None
        num_sampled = len(ids) + 1  # end of text is a token, too
        if num_sampled > budget:
            reason, ids, num_sampled = FinishReason.LENGTH, ids[:budget], budget
            text = self._codec.decode(ids)
        found = [stop for stop in params.stop if stop in text]
        if found:
            matched = min(found, key=text.index)
            at = text.index(matched)
            num_sampled = len(self._codec.encode(text[: at + len(matched)]))
            reason, text = FinishReason.STOP, text[:at]
            ids = self._codec.encode(text)
        seed = params.seed if params.temperature > 0 else None
        usage = Usage(len(request.input_ids), 0, num_sampled)
        return GenResult(text, ids, reason, usage, matched_stop=matched, seed=seed)

    def _score(self, request: ScoreRequest, handle: RequestHandle[ScoreResult]) -> None:
        prompt = _digest(request.input_ids)
        rows = []
        for continuation in request.continuations:
            state = prompt.copy()
            row = []
            for token in continuation:
                state.update(f",{token}".encode())
                row.append(-0.05 - 8.0 * int.from_bytes(state.digest()[:4], "big") / 2**32)
            rows.append(tuple(row))
        self._ended(handle)
        handle.finish(ScoreResult(tuple(rows), Usage(len(request.input_ids), 0, 0)))

    def _made_up(self, ids: tuple[int, ...], params: SamplingParams) -> str:
        state = _digest(ids)
        if params.temperature > 0:
            state.update(f";{params.seed}".encode())
        syllables = [_SYLLABLES[byte % len(_SYLLABLES)] for byte in state.digest()[:8]]
        return " ".join("".join(syllables[i : i + 2]) for i in range(0, len(syllables), 2))


def _digest(ids: Sequence[int]) -> hashlib._Hash:
    return hashlib.sha256(",".join(str(token) for token in ids).encode())


def _deltas(result: GenResult) -> list[GenDelta]:
    num = -(-len(result.token_ids) // _TOKENS_PER_DELTA)
    if not num:
        return [GenDelta(result.text, ())] if result.text else []
    step = max(1, len(result.text) // num)
    cuts = [*range(0, step * num, step), len(result.text)]
    return [
        GenDelta(result.text[cuts[i] : cuts[i + 1]], result.token_ids[i * _TOKENS_PER_DELTA : (i + 1) * _TOKENS_PER_DELTA])
        for i in range(num)
    ]


class _TimedPool:
    """Runs callables after a delay, on few daemon threads that come with work and go without it."""

    _MOST = 8
    _IDLE_S = 0.2

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._num_threads = 0
        self._num_idle = 0

    def run_after(self, delay_s: float, task: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._order), task))
            self._changed.notify()
            if len(self._due) > self._num_idle and self._num_threads < self._MOST:  # a woken thread still counts as idle
                self._num_threads += 1
                threading.Thread(target=self._work, name="sgl-fake-backend", daemon=True).start()

    def clear(self) -> None:
        with self._changed:
            self._due.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            task()

    def _next(self) -> Callable[[], None] | None:
        """The next task when it is due; None when this thread has nothing to do."""
        with self._changed:
            while True:
                wait_s = self._due[0][0] - time.monotonic() if self._due else self._IDLE_S
                if self._due and wait_s <= 0:
                    return heapq.heappop(self._due)[2]
                self._num_idle += 1
                is_notified = self._changed.wait(wait_s)
                self._num_idle -= 1
                if not is_notified and not self._due:
                    self._num_threads -= 1
                    return None
