"""The engine: what programs, adapters and users talk to. It checks requests and hands them to the engine thread.

It owns nothing but its thread; every method may be called from any thread.
"""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import fields, replace
from types import TracebackType
from typing import Self, overload

from sgl_core.backend import Capabilities, Handle
from sgl_core.config import EngineConfig
from sgl_core.errors import ContextLengthError, InvalidArgumentError, NotYetAvailableError, QueueFull
from sgl_core.handle import RequestHandle
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.engine_loop import EngineLoop, Machine
from sgl_core.runtime.metrics import EngineStats
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.runtime.request import Kind, Request, ScoreGroup
from sgl_core.runtime.snapshot import TreeSnapshot, take_snapshot
from sgl_core.runtime.startup import ModelFacts, assemble, load
from sgl_core.runtime.tickets import GenTicket, PrefetchTicket, ScoreTicket, Ticket
from sgl_core.spans import least_context, plan_spans
from sgl_core.types import (
    GenRequest,
    GenResult,
    PrefetchRequest,
    PrefetchResult,
    SamplingParams,
    ScoreRequest,
    ScoreResult,
)

__all__ = ["Engine"]

_SEED_BITS = 63
_NOT_YET = ("stop_regex", "logprobs", "prompt_logprobs", "regex", "json_schema", "grammar", "choices")


class Engine:
    """A RadixAttention engine on one model, with a thread of its own. Implements ``sgl_core.backend.Backend``.

    Args:
        model: None for the embedded SmolLM2-135M-Instruct, a folder, a ``.gguf`` file, or a Hugging Face name.
        loaded: a model that is in memory already, instead of ``model`` (tests, notebooks).
        options: the other fields of ``sgl_core.config.EngineConfig``.

    Raises:
        UnknownOptionError: an option that EngineConfig does not have; names the nearest.
        InvalidArgumentError: an option is out of range.
        ModelError: the model cannot be found, read or served.
    """

    def __init__(self, model: str | None = None, *, loaded: LoadedModel | None = None, **options: object) -> None:
        """Load the model; returns when the engine is ready."""
        self.config = EngineConfig.from_options(model=model, **options)
        if self.config.deterministic:
            raise NotYetAvailableError(
                "deterministic=True is not available yet; use dtype='float32', whose texts rarely differ"
            )
        self._seeds = _SeedSource(self.config.seed)
        self._codec: LocalCodec
        self._facts: ModelFacts
        config = self.config

        def build() -> Machine:
            parts, codec = (loaded, LocalCodec(loaded.tokenizer)) if loaded is not None else load(config)
            machine, facts = assemble(parts, config)
            built.append((codec, facts))
            return machine

        built: list[tuple[LocalCodec, ModelFacts]] = []
        self._loop = EngineLoop(build)
        self._loop.start()
        self._codec, self._facts = built.pop()
        # The thread holds the loop, not the engine, so an engine that is dropped without close() ends its thread too.
        # At the interpreter's end it runs too: a daemon thread inside torch must not meet that.
        self._finalizer = weakref.finalize(self, EngineLoop.close, self._loop)

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """An engine with these options."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(config)})

    # ---- what it is --------------------------------------------------------------------------------------------------
    @property
    def codec(self) -> LocalCodec:
        """Text to token ids and back."""
        return self._codec

    @property
    def width(self) -> int:
        """Requests that run at once: ``max_running``."""
        return self.config.max_running

    @property
    def capabilities(self) -> Capabilities:
        """What programs may expect."""
        return Capabilities(context_tokens=self._limit()[0], default_max_new_tokens=self.config.default_max_new_tokens)

    @property
    def facts(self) -> ModelFacts:
        """The model and the pool, in numbers."""
        return self._facts

    def stats(self) -> EngineStats:
        """Counts since the start or the last reset; counts every request whose result is out."""
        return self._loop.stats()

    def reset_stats(self) -> None:
        """Start counting anew."""
        self._loop.call(lambda machine: machine.scheduler.reset_counters())

    def flush_cache(self) -> None:
        """Drop every cached prefix that no running request uses."""
        self._loop.call(lambda machine: machine.scheduler.flush())

    def tree(self) -> TreeSnapshot:
        """What the prefix cache holds now, as a copy to look at; ``codec.decode`` makes a node's ids readable.

        Raises:
            EngineError: the engine is closed.
        """
        return self._loop.call(lambda machine: take_snapshot(machine.scheduler.tree))

    def check_invariants(self) -> None:
        """Assert, between two steps, that every slot has one owner; for tests and for a doubtful mind.

        Raises:
            AssertionError: with the invariant that does not hold.
        """
        self._loop.call(lambda machine: machine.scheduler.check_invariants())

    # ---- requests ----------------------------------------------------------------------------------------------------
    def submit(
        self,
        prompt: str | Sequence[int] | GenRequest,
        params: SamplingParams | None = None,
        *,
        namespace: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Handle[GenResult]:
        """Queue a generation.

        Args:
            prompt: text (encoded as it is: BOS where the model has one, no chat template), token ids, or a GenRequest, which
                is taken as it is.
            params: how to sample; None is greedy with the default budget. Must be None with a GenRequest.
            namespace: prefixes are shared within one namespace only.
            priority: higher first.
            timeout_s: seconds until the request ends with DeadlineExceeded.

        Returns:
            A handle: wait, await, iterate over deltas, abort.

        Raises:
            InvalidArgumentError: an argument is out of range, or the request can never fit (ContextLengthError).
            QueueFull: ``max_queued`` requests wait already.
            EngineError: the engine is closed.
        """
        if isinstance(prompt, GenRequest):
            if params is not None:
                raise InvalidArgumentError("params", params, "None with a GenRequest", "Put them into the GenRequest.")
            request = prompt
        else:
            ids = self._prompt_ids(prompt)
            params = SamplingParams() if params is None else params
            request = GenRequest(ids, params, namespace=namespace, priority=priority, timeout_s=timeout_s)
        params = self._checked_params(request.params)
        self._check_ids("prompt", request.input_ids)
        budget = self._budget(len(request.input_ids), params.max_new_tokens)
        handle: RequestHandle[GenResult] = RequestHandle(lambda request_id: self._loop.abort([request_id]))
        decoder = self._codec.stream_decoder(params.stop, prompt_ids=request.input_ids)
        queued = Request(
            id=handle.id,
            ids=list(request.input_ids),
            kind=Kind.GENERATE,
            params=params,
            max_new_tokens=budget,
            stop_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._facts.eos_ids),
            sink=decoder,
            submitted_at=time.monotonic(),
            namespace=request.namespace,
            use_tree=self.config.prefix_cache,
            priority=request.priority,
            deadline=_deadline(request.timeout_s),
        )
        self._queue([queued], GenTicket(handle, decoder))
        return handle

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[GenResult]:
        """Generate for a list of prompts and wait for all; one for each, in order.

        Args:
            prompts: texts or token ids. ``params``: one for all, or one each.

        Raises:
            InvalidArgumentError: a prompt or its parameters cannot be used; none of the others goes on.
            SglError: the first error by position, once all have ended.
        """
        if isinstance(prompts, str):
            raise InvalidArgumentError(
                "prompts", "a str", "a list of prompts", "For one prompt use [prompt] or submit(prompt)."
            )
        each = [params] * len(prompts) if params is None or isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise InvalidArgumentError("params", f"{len(each)} params", f"one, or as many as prompts ({len(prompts)})")
        handles: list[Handle[GenResult]] = []
        try:
            for prompt, one in zip(prompts, each, strict=True):
                handles.append(self.submit(prompt, one))
        except BaseException:
            for handle in handles:
                handle.abort()
            raise
        for handle in handles:
            _wait(handle)
        return [handle.result(0) for handle in handles]

    @overload
    def score(self, prompt: ScoreRequest, continuations: None = None) -> Handle[ScoreResult]: ...
    @overload
    def score(self, prompt: str | Sequence[int], continuations: Sequence[str | Sequence[int]]) -> list[float]: ...
    def score(
        self, prompt: str | Sequence[int] | ScoreRequest, continuations: Sequence[str | Sequence[int]] | None = None
    ) -> list[float] | Handle[ScoreResult]:
        """Log-probabilities of continuations of one prompt, whose KV is computed once.

        Args:
            prompt: text or ids; or a ScoreRequest, which is queued and answered with a handle.
            continuations: texts (encoded together with the prompt, as the model would have read them) or ids.

        Returns:
            For each continuation the sum of the natural-log probabilities of its tokens; a handle for a ScoreRequest.

        Raises:
            InvalidArgumentError: there are no continuations, one is empty, or prompt and continuation do not fit.
            EngineError: the engine is closed.
        """
        if isinstance(prompt, ScoreRequest):
            return self._submit_score(prompt)
        if not continuations or isinstance(continuations, str):
            raise InvalidArgumentError("continuations", continuations, "a non-empty list of texts or token ids")
        result = self._submit_score(self._score_request(prompt, continuations)).result()
        return [sum(logprobs) for logprobs in result.token_logprobs]

    def prefetch(
        self, prompt: str | Sequence[int] | PrefetchRequest, *, namespace: str | None = None
    ) -> Handle[PrefetchResult]:
        """Compute a prefix now, so that later prompts which begin with it find it cached.

        Args:
            prompt: text, ids or a PrefetchRequest. ``namespace``: as for ``submit``.

        Raises:
            InvalidArgumentError: the prefix is empty or does not fit.
            EngineError: the engine is closed.
        """
        if not isinstance(prompt, PrefetchRequest):
            prompt = PrefetchRequest(self._prompt_ids(prompt), namespace=namespace)
        self._check_ids("prompt", prompt.input_ids)
        self._check_fits(len(prompt.input_ids), None)
        handle: RequestHandle[PrefetchResult] = RequestHandle(lambda request_id: self._loop.abort([request_id]))
        queued = self._silent_request(handle.id, list(prompt.input_ids), Kind.PREFETCH, prompt.namespace, prompt.timeout_s)
        self._queue([queued], PrefetchTicket(handle))
        return handle

    def new_seed(self) -> int:
        """A fresh seed: from OS entropy, or the next of ``Engine(seed=k)``'s sequence."""
        return self._seeds.draw()

    # ---- end ---------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """End all requests with EngineShutdown and free the model; idempotent."""
        self._finalizer()

    def __enter__(self) -> Self:
        """The engine itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close it."""
        self.close()

    # ---- private -----------------------------------------------------------------------------------------------------
    def _queue(self, requests: list[Request], ticket: Ticket) -> None:
        _check_routing(requests[0])
        limit = self.config.max_queued
        if limit is not None and self._loop.num_queued + len(requests) > limit:
            raise QueueFull(f"max_queued={limit} requests wait already; try again later or raise max_queued")
        self._loop.add(requests, ticket)

    def _prompt_ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return self._codec.begin() + self._codec.encode(prompt)
        if not _holds_ids(prompt):
            raise InvalidArgumentError("prompt", type(prompt).__name__, "a str, or a sequence of token ids")
        return tuple(prompt)

    def _score_request(self, prompt: str | Sequence[int], continuations: Sequence[str | Sequence[int]]) -> ScoreRequest:
        if isinstance(prompt, str) and all(isinstance(c, str) and c for c in continuations):
            texts = [c for c in continuations if isinstance(c, str)]
            planned = plan_spans(self._codec, prompt, texts)
            return ScoreRequest(self._codec.begin() + planned.shared or least_context(self._codec), planned.spans)
        spans = tuple(self._codec.encode(c) if isinstance(c, str) else tuple(c) for c in continuations)
        return ScoreRequest(self._prompt_ids(prompt), spans)

    def _submit_score(self, request: ScoreRequest) -> Handle[ScoreResult]:
        self._check_ids("input_ids", request.input_ids)
        if not request.continuations:
            raise InvalidArgumentError("continuations", request.continuations, "at least one continuation")
        for continuation in request.continuations:
            self._check_ids("continuations", continuation)
            self._check_fits(len(request.input_ids) + len(continuation) - 1, None)  # its last token is not run
        ids: list[str] = []
        handle: RequestHandle[ScoreResult] = RequestHandle(lambda _: self._loop.abort(ids))
        group = ScoreGroup()
        prompt_len = len(request.input_ids)
        # Without a prefix cache a scoring still computes its own prompt once: in a namespace that nobody else can have.
        namespace = request.namespace if self.config.prefix_cache else f"\0{handle.id}"
        requests = []
        for index, continuation in enumerate(request.continuations):
            queued = self._silent_request(
                f"{handle.id}-{index}", [*request.input_ids, *continuation], Kind.SCORE, namespace, request.timeout_s
            )
            queued.use_tree, queued.priority = True, request.priority
            queued.score_from, queued.group = prompt_len, group
            requests.append(queued)
        ids.extend(r.id for r in requests)
        self._queue(requests, ScoreTicket(handle, requests, prompt_len, None if self.config.prefix_cache else self.flush_cache))
        return handle

    def _silent_request(
        self, request_id: str, ids: list[int], kind: Kind, namespace: str | None, timeout_s: float | None
    ) -> Request:
        """A request that generates nothing."""
        return Request(
            id=request_id,
            ids=ids,
            kind=kind,
            params=SamplingParams(),
            max_new_tokens=0,
            stop_ids=frozenset(),
            sink=None,
            submitted_at=time.monotonic(),
            namespace=namespace,
            use_tree=self.config.prefix_cache,
            deadline=_deadline(timeout_s),
        )

    def _checked_params(self, params: SamplingParams) -> SamplingParams:
        """Refuse what this engine cannot do yet, and resolve the seed."""
        if not isinstance(params, SamplingParams):
            raise InvalidArgumentError("params", type(params).__name__, "a SamplingParams", "SamplingParams(temperature=0.5)")
        for name in _NOT_YET:
            if getattr(params, name) not in (None, False):
                raise NotYetAvailableError(f"{name} is not available in this version's engine; leave it out")
        if params.n != 1:
            raise NotYetAvailableError(
                f"n={params.n} is not available yet; submit the prompt {params.n} times (it is computed once)"
            )
        for name in ("stop_token_ids", "logit_bias"):
            tokens = list(getattr(params, name) or ())
            if tokens:
                self._check_ids(name, tokens)
        if params.seed is None and params.temperature > 0.0:
            return replace(params, seed=self.new_seed())
        return params

    def _check_ids(self, argument: str, ids: Sequence[int]) -> None:
        if not ids:
            raise InvalidArgumentError(argument, "no tokens", "at least one token")
        vocab = self._facts.vocab_size
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
                raise InvalidArgumentError(argument, token, f"token ids in [0, {vocab})")

    def _limit(self) -> tuple[int, str]:
        """Tokens of one request at most, and why. The last token of a generation needs no slot."""
        pool = self._facts.pool_tokens + 1
        if pool < self._facts.context_tokens:
            return pool, f"the KV pool, cache_tokens={self._facts.pool_tokens}"
        return self._facts.context_tokens, "the model's context"

    def _check_fits(self, prompt_tokens: int, max_new_tokens: int | None) -> None:
        limit, what = self._limit()
        if prompt_tokens + (max_new_tokens if max_new_tokens is not None else 1) > limit:
            raise ContextLengthError(prompt_tokens, max_new_tokens, limit, what)

    def _budget(self, prompt_tokens: int, max_new_tokens: int | None) -> int:
        """The explicit budget if it fits; the default one, clipped to what fits."""
        self._check_fits(prompt_tokens, max_new_tokens)
        if max_new_tokens is not None:
            return max_new_tokens
        return min(self.config.default_max_new_tokens, self._limit()[0] - prompt_tokens)


class _SeedSource:
    """Seeds for those who bring none: OS entropy, or a sequence that starts from a given seed."""

    def __init__(self, seed: int | None) -> None:
        self._state = seed
        self._lock = threading.Lock()

    def draw(self) -> int:
        if self._state is None:
            return secrets.randbits(_SEED_BITS)
        with self._lock:
            # splitmix64, Steele et al. 2014: one addition and a mix, full period
            self._state = (self._state + 0x9E3779B97F4A7C15) % 2**64
            z = self._state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return (z ^ (z >> 31)) >> (64 - _SEED_BITS)


def _deadline(timeout_s: float | None) -> float | None:
    if timeout_s is None:
        return None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < float("inf"):
        raise InvalidArgumentError("timeout_s", timeout_s, "a positive number of seconds, or None")
    return time.monotonic() + timeout_s


def _holds_ids(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray)


def _check_routing(request: Request) -> None:
    """What only the scheduler would stumble over: it must never meet a key it cannot hash or an order it cannot compare."""
    if request.namespace is not None and not isinstance(request.namespace, str):
        raise InvalidArgumentError("namespace", type(request.namespace).__name__, "a str, or None")
    if isinstance(request.priority, bool) or not isinstance(request.priority, int):
        raise InvalidArgumentError("priority", request.priority, "an int; higher goes first")


def _wait(handle: Handle[GenResult]) -> None:
    """Wait for the end, whatever it is."""
    ended = threading.Event()
    handle.add_done_callback(ended.set)
    ended.wait()
