"""A backend without a model: answers are computed from the ids, at once or after a while.

For tests of programs, adapters and of the language itself. It honours budgets, stop strings and patterns, ``n`` and healing,
and reports log-probabilities. Constraints on the text (``regex`` and the like) are for its ``reply`` to honour. It checks
requests as an engine does, so a program that runs here makes requests that an engine takes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, Self, TypeVar

from sgl_core.backend import Capabilities, TextCodec
from sgl_core.errors import (
    ContextLengthError,
    EngineShutdown,
    GrammarError,
    InvalidArgumentError,
    NotYetAvailableError,
    RequestAborted,
)
from sgl_core.handle import RequestHandle
from sgl_core.testing.byte_codec import ByteCodec
from sgl_core.types import (
    SEED_BITS,
    FinishReason,
    GenDelta,
    GenRequest,
    GenResult,
    PrefetchRequest,
    PrefetchResult,
    SamplingParams,
    ScoreRequest,
    ScoreResult,
    TokenLogprob,
    Usage,
)

__all__ = ["FakeBackend"]

RequestT = TypeVar("RequestT", GenRequest, ScoreRequest)
Reply = Callable[[tuple[int, ...], SamplingParams], str]
Fail = Callable[[GenRequest], BaseException | None]

_SYLLABLES: Final = ("ka", "lo", "mi", "ne", "pu", "ra", "si", "to", "ve", "zo", "da", "fe", "gi", "ho", "ju", "be")
_TOKENS_PER_DELTA: Final = 4
_NUM_ALTERNATIVES: Final = 256  # ids below it are looked at for the likeliest
_CONSTRAINTS: Final = ("regex", "json_schema", "grammar", "choices")


class FakeBackend:
    """Implements ``sgl_core.backend.Backend``.

    Args:
        reply: the text for a prompt, text to be healed included; called on one of eight threads, where it may wait, once
            for each of ``n``. None makes words up from the prompt (and from the seed, if the temperature is above 0), and
            refuses constraints.
        latency_s: seconds before a reply is computed; requests wait side by side.
        fail: an error to end a request with instead of a reply, or None.
        codec: vocabulary and template; must not change while requests run.

    Attributes:
        requests: every ``GenRequest`` that was taken, in order, before its reply is computed.
        scores: every ``ScoreRequest`` likewise.
        prefetches: every ``PrefetchRequest`` likewise; nothing is computed for them.
    """

    capabilities = Capabilities(cached_tokens=False, heal=True)

    def __init__(
        self, reply: Reply | None = None, *, latency_s: float = 0.0, fail: Fail | None = None, codec: TextCodec | None = None
    ) -> None:
        """Start no thread yet."""
        self.requests: list[GenRequest] = []
        self.scores: list[ScoreRequest] = []
        self.prefetches: list[PrefetchRequest] = []
        self._codec = codec or ByteCodec()
        self._reply = reply or _made_up
        self._fail = fail
        self._lock = threading.Lock()
        self._pool = _TimedPool(latency_s)
        self._pending: set[_Pending] = set()
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
        self._check_text_params(params)
        return self._take(request, self.requests)

    def score(self, request: ScoreRequest) -> RequestHandle[ScoreResult]:
        """Queue scoring; see ``Backend.score``. A token's score depends on the ids up to it alone."""
        self._check(request.input_ids, None)
        if not request.continuations or not all(request.continuations):
            raise InvalidArgumentError("continuations", "an empty one, or none", "at least one token in each")
        for continuation in request.continuations:
            self._check(continuation, None)
        return self._take(request, self.scores)

    def prefetch(self, request: PrefetchRequest) -> RequestHandle[PrefetchResult]:
        """Record it, and do nothing, successfully."""
        self._check(request.input_ids, None)
        with self._lock:
            self._check_open()
            self.prefetches.append(request)
        handle: RequestHandle[PrefetchResult] = RequestHandle()
        handle.finish(PrefetchResult(Usage(len(request.input_ids), 0, 0)))
        return handle

    def fewest_tokens(self, params: SamplingParams) -> int:
        """Of choices the shortest one's; of other constraints, which nobody compiles here, one token."""
        if params.choices is not None:
            return min(len(self._codec.encode(choice)) for choice in params.choices)
        return int(any(getattr(params, name) is not None for name in _CONSTRAINTS))

    def new_seed(self) -> int:
        """From OS entropy."""
        return secrets.randbits(63)

    def close(self) -> None:
        """End what is pending with EngineShutdown."""
        with self._lock:
            self._is_closed = True
            pending, self._pending = self._pending, set()
        self._pool.clear()
        for handle in pending:
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

    def _check_text_params(self, params: SamplingParams) -> None:
        constraint = next((name for name in _CONSTRAINTS if getattr(params, name) is not None), None)
        if constraint is not None and self._reply is _made_up:
            raise NotYetAvailableError(f"FakeBackend makes up words that fit no {constraint}; give it a reply that does")
        try:
            re.compile(params.stop_regex or "")
        except re.error as error:
            raise GrammarError("stop_regex", f"it is no pattern: {error.msg}") from None

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineShutdown("the backend is closed")

    def _take(self, request: RequestT, record: list[RequestT]) -> _Pending:
        handle = _Pending(self, request)
        with self._lock:
            self._check_open()
            record.append(request)
            self._pending.add(handle)
        self._pool.add(handle)
        return handle

    def _forget(self, handle: _Pending) -> None:
        with self._lock:
            self._pending.discard(handle)

    def _generated(self, request: GenRequest) -> tuple[Any, list[GenDelta]]:
        error = None if self._fail is None else self._fail(request)
        if error is not None:
            raise error
        results = self._completions(request)
        deltas = [delta for index, result in enumerate(results) for delta in _deltas(result, index)]
        return results[0] if request.params.n == 1 else results, deltas

    def _completions(self, request: GenRequest) -> list[GenResult]:
        """``n`` of them; the first is the one that a prompt is computed for."""
        params = request.params
        if params.seed is None and params.temperature > 0:
            params = replace(params, seed=self.new_seed())
        prompt = request.input_ids + self._codec.encode(request.heal)
        results = []
        for index in range(params.n):
            own = replace(params, seed=_seed_of(params, index))
            result = self._result(request, own, self._reply(prompt, own))
            cached = result.usage.prompt_tokens if index else result.usage.cached_tokens
            results.append(replace(result, usage=replace(result.usage, cached_tokens=cached)))
        return results

    def _result(self, request: GenRequest, params: SamplingParams, text: str) -> GenResult:
        codec, heal = self._codec, request.heal
        budget = params.max_new_tokens or self.capabilities.default_max_new_tokens
        budget = min(budget, self.capabilities.context_tokens - len(request.input_ids))
        healed, ids = self._spelled(heal, text)
        reason = FinishReason.STOP
        num_sampled = len(ids) + 1  # end of text is a token, too
        if num_sampled > budget:
            reason, ids, num_sampled = FinishReason.LENGTH, ids[:budget], budget
            text = codec.decode(healed + ids)[len(heal) :]
        stop = _first_stop(text, params)
        if stop is not None:
            num_sampled = len(self._spelled(heal, text[: stop.end])[1])
            reason, text = FinishReason.STOP, text[: stop.start]
            healed, ids = self._spelled(heal, text)
        prompt = request.input_ids + healed
        return GenResult(
            text,
            ids,
            reason,
            Usage(len(prompt), 0, num_sampled),
            matched_stop=None if stop is None else stop.matched,
            seed=params.seed if params.temperature > 0 else None,
            logprobs=None if params.logprobs is None else _logprobs(prompt, ids, params.logprobs),
            prompt_logprobs=_prompt_logprobs(request.input_ids) if params.prompt_logprobs else None,
            healed_ids=healed,
        )

    def _spelled(self, heal: str, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of both as one text: those inside ``heal``, and from the first that is not all of it on."""
        ids = self._codec.encode(heal + text)
        num = 0
        while heal and num < len(ids) and len(self._codec.decode(ids[: num + 1])) <= len(heal):
            num += 1
        return ids[:num], ids[num:]


class _Pending(RequestHandle[Any]):
    """A request that waits for its reply, together with its place in the queue: thousands of them wait at once."""

    __slots__ = ("_backend", "due_s", "request")

    def __init__(self, backend: FakeBackend, request: GenRequest | ScoreRequest) -> None:
        super().__init__()
        self._backend = backend
        self.request = request
        self.due_s = 0.0

    def answer(self) -> None:
        """Compute the reply; whatever goes wrong is the request's error."""
        if self.done():  # aborted while it waited
            return
        deltas: list[GenDelta] = []
        try:
            if isinstance(self.request, ScoreRequest):
                value: Any = _scores(self.request)
            else:
                value, deltas = self._backend._generated(self.request)
        except BaseException as raised:
            self._backend._forget(self)
            self.fail(raised)
            return
        self._backend._forget(self)
        for delta in deltas:
            self.push(delta)
        self.finish(value)

    def abort(self) -> None:
        """End it now; a late reply then has no effect."""
        if self.done():
            return
        self._backend._forget(self)
        if isinstance(self.request, ScoreRequest):
            self.fail(RequestAborted("the scoring was aborted"))
            return
        num = self.request.params.n
        aborted = GenResult("", (), FinishReason.ABORT, Usage(len(self.request.input_ids), 0, 0))
        self.finish(aborted if num == 1 else [aborted] * num)


class _Stop(NamedTuple):
    """Where a text is cut; ordered by what ends first."""

    end: int
    start: int
    matched: str


def _first_stop(text: str, params: SamplingParams) -> _Stop | None:
    found = [_Stop(text.index(stop) + len(stop), text.index(stop), stop) for stop in params.stop if stop in text]
    if params.stop_regex is not None:
        pattern = re.compile(rf"(?:{params.stop_regex})\Z")
        for end in range(1, len(text) + 1):
            match = pattern.search(text, 0, end)
            if match is not None and match.start() < end:
                found.append(_Stop(end, match.start(), match.group()))
                break
    return min(found, default=None)


def _seed_of(params: SamplingParams, index: int) -> int | None:
    if params.seed is None or params.n == 1:
        return params.seed
    return int.from_bytes(_digest((params.seed, index)).digest()[:8], "big") >> (64 - SEED_BITS)


def _logprobs(prompt: Sequence[int], tokens: Sequence[int], num_top: int = 0) -> tuple[TokenLogprob, ...]:
    """Of ``tokens`` behind ``prompt``; each depends on the ids up to it alone."""
    before = _digest(prompt)
    entries = []
    for token in tokens:
        scored = [(other, _logprob(before, other)) for other in range(_NUM_ALTERNATIVES if num_top else 0)]
        top = sorted(scored, key=lambda pair: -pair[1])[:num_top]
        entries.append(TokenLogprob(token, _logprob(before, token), tuple(top)))
        before.update(f",{token}".encode())
    return tuple(entries)


def _scores(request: ScoreRequest) -> ScoreResult:
    rows = (_logprobs(request.input_ids, continuation) for continuation in request.continuations)
    return ScoreResult(tuple(tuple(entry.logprob for entry in row) for row in rows), Usage(len(request.input_ids), 0, 0))


def _prompt_logprobs(prompt: Sequence[int]) -> tuple[TokenLogprob | None, ...]:
    return (None, *_logprobs(prompt[:1], prompt[1:]))


def _logprob(before: hashlib._Hash, token: int) -> float:
    state = before.copy()
    state.update(f",{token}".encode())
    return -0.05 - 8.0 * int.from_bytes(state.digest()[:4], "big") / 2**32


def _made_up(ids: tuple[int, ...], params: SamplingParams) -> str:
    state = _digest(ids)
    if params.temperature > 0:
        state.update(f";{params.seed}".encode())
    syllables = [_SYLLABLES[byte % len(_SYLLABLES)] for byte in state.digest()[:8]]
    return " ".join("".join(syllables[i : i + 2]) for i in range(0, len(syllables), 2))


def _digest(ids: Sequence[int]) -> hashlib._Hash:
    return hashlib.sha256(",".join(str(token) for token in ids).encode())


def _deltas(result: GenResult, index: int) -> list[GenDelta]:
    num = -(-len(result.token_ids) // _TOKENS_PER_DELTA)
    if not num:
        return [GenDelta(result.text, (), index)] if result.text else []
    step = max(1, len(result.text) // num)
    cuts = [*range(0, step * num, step), len(result.text)]
    return [
        GenDelta(
            result.text[cuts[i] : cuts[i + 1]], result.token_ids[i * _TOKENS_PER_DELTA : (i + 1) * _TOKENS_PER_DELTA], index
        )
        for i in range(num)
    ]


class _TimedPool:
    """Runs requests, each the same while after it came, on few daemon threads that come with work and go without it."""

    _MOST = 8
    _IDLE_S = 0.2

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._changed = threading.Condition()
        self._queue: deque[_Pending] = deque()  # by when they are due, as all wait equally long
        self._num_threads = 0
        self._num_idle = 0

    def add(self, handle: _Pending) -> None:
        with self._changed:
            handle.due_s = time.monotonic() + self._delay_s
            self._queue.append(handle)
            self._changed.notify()
            if len(self._queue) > self._num_idle and self._num_threads < self._MOST:  # a woken thread still counts as idle
                self._num_threads += 1
                threading.Thread(target=self._work, name="sgl-fake-backend", daemon=True).start()

    def clear(self) -> None:
        with self._changed:
            self._queue.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while (handle := self._next()) is not None:
            handle.answer()

    def _next(self) -> _Pending | None:
        """The next request when it is due; None when this thread has nothing to do."""
        with self._changed:
            while True:
                wait_s = self._queue[0].due_s - time.monotonic() if self._queue else self._IDLE_S
                if self._queue and wait_s <= 0:
                    return self._queue.popleft()
                self._num_idle += 1
                is_notified = self._changed.wait(wait_s)
                self._num_idle -= 1
                if not is_notified and not self._queue:
                    self._num_threads -= 1
                    return None
