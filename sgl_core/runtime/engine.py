"""The engine: what programs, adapters and users talk to. It hands checked requests to the engine thread.

It owns nothing but its thread; every method may be called from any thread.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from sgl_core.backend import Capabilities, Handle
from sgl_core.config import EngineConfig
from sgl_core.errors import InvalidArgumentError, PoolExhaustedError
from sgl_core.handle import RequestHandle
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.engine_loop import EngineLoop, Machine
from sgl_core.runtime.intake import Intake, deadline_after
from sgl_core.runtime.metrics import CacheMiss, EngineStats
from sgl_core.runtime.model_loader import LoadedModel
from sgl_core.runtime.pinning import PinnedPrefix
from sgl_core.runtime.request import PinOrder, Request
from sgl_core.runtime.snapshot import TreeSnapshot, take_snapshot
from sgl_core.runtime.startup import ModelFacts, assemble, load
from sgl_core.runtime.tickets import Completions, GenReceiver, GenTicket, PrefetchTicket, ScoreTicket, Ticket
from sgl_core.runtime.verification import Verifier
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

ResultT = TypeVar("ResultT")


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
        self._codec: LocalCodec
        self._facts: ModelFacts
        self._intake: Intake
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
        self._intake = Intake(self._codec, self._facts, self.config)
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
        return Capabilities(
            heal=True,
            shares_in_flight=self.config.prefix_cache and self.config.in_flight_sharing,
            context_tokens=self._intake.limit[0],
            default_max_new_tokens=self.config.default_max_new_tokens,
        )

    @property
    def facts(self) -> ModelFacts:
        """The model and the pool, in numbers."""
        return self._facts

    def info(self) -> dict[str, Any]:
        """What the engine is and has done, as plain values without any text of a prompt.

        Returns:
            model, architecture, fingerprint, device, dtype, num_layers, vocab_size, context_tokens; pool (tokens,
            bytes_per_token); options (of ``EngineConfig``); template (notes, and whether turns render exactly); stats.
        """
        facts, stats = self._facts, self.stats()
        names = ("architecture", "fingerprint", "device", "dtype", "num_layers", "vocab_size")
        return {
            "model": facts.name,
            **{name: getattr(facts, name) for name in names},
            "context_tokens": self.capabilities.context_tokens,
            "pool": {"tokens": facts.pool_tokens, "bytes_per_token": facts.bytes_per_token},
            "options": {field.name: getattr(self.config, field.name) for field in fields(self.config)},
            "template": {"notes": list(self._codec.template_notes), "turns_exact": self._codec.turns_exact},
            "stats": {field.name: getattr(stats, field.name) for field in fields(stats) if field.name != "misses"},
        }

    def stats(self) -> EngineStats:
        """Counts since the start or the last reset; counts every request whose result is out.

        ``misses`` tell where the last prompts left the cache, the differing tokens as text.
        """
        stats = self._loop.stats()
        return replace(stats, misses=tuple(map(self._explain, stats.misses)))

    def _explain(self, miss: CacheMiss) -> CacheMiss:
        return replace(
            miss, prompt_text=self._text_of(miss.prompt_token), cache_texts=tuple(map(self._text_of, miss.cache_tokens))
        )

    def _text_of(self, token: int) -> str:
        try:
            return self._codec.decode([token]) or self._codec.spell(token)
        except InvalidArgumentError:  # a row of the embedding that the tokenizer does not use
            return f"token {token}"

    def reset_stats(self) -> None:
        """Start counting anew."""
        self._loop.call(lambda machine: machine.scheduler.reset_counters())

    def flush_cache(self) -> None:
        """Drop every cached prefix that no running request uses and no pin keeps."""
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
            ids = self._intake.prompt_ids(prompt)
            params = SamplingParams() if params is None else params
            request = GenRequest(ids, params, namespace=namespace, priority=priority, timeout_s=timeout_s)
        request_ids: list[str] = []
        aborted = threading.Event()

        def abort(_: str) -> None:
            aborted.set()
            self._loop.abort(request_ids)

        handle = self._new_handle(abort)
        completions = self._intake.generation(request, handle.id)
        request_ids.extend(queued.id for queued, _ in completions)
        collected = Completions(handle, len(completions)) if len(completions) > 1 else None
        tickets: dict[str, Ticket] = {}
        for index, (queued, decoder) in enumerate(completions):
            receiver: GenReceiver = handle if collected is None else collected.part(index)
            if self.config.verify:
                receiver = self._verifier(queued, request, receiver, request_ids, aborted)
            tickets[queued.id] = GenTicket(receiver, decoder, index)
        followers = {follower.id for queued, _ in completions for follower in queued.followers}
        leaders = [queued for queued, _ in completions if queued.id not in followers]
        self._loop.add(leaders, tickets, max_queued=self.config.max_queued)
        return handle

    def _verifier(
        self, original: Request, request: GenRequest, receiver: GenReceiver, ids: list[str], aborted: threading.Event
    ) -> Verifier:
        """Stands before ``receiver``; ``ids`` gets the replay's, so that an abort ends it too.

        One that was asked for as the first computation ended comes before the replay is queued, and would miss it.
        """
        queued, decoder = self._intake.replay(original, request)  # here, on the caller's thread, as it checks and compiles
        ids.append(queued.id)

        def replay(second: GenReceiver) -> Request:
            self._loop.add([queued], {queued.id: GenTicket(second, decoder)})
            if aborted.is_set():
                self._loop.abort([queued.id])
            return queued

        return Verifier(receiver, replay, self._intake.verify_tolerance)

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
        self._loop.check_may_wait()
        handles: list[Handle[GenResult]] = []
        try:
            for prompt, one in zip(prompts, each, strict=True):
                handles.append(self.submit(prompt, one))
            for handle in handles:
                _wait(handle)
        except BaseException:
            for handle in handles:
                handle.abort()
            raise
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
        result = _result(self._submit_score(self._intake.score_request(prompt, continuations)))
        return [sum(logprobs) for logprobs in result.token_logprobs]

    def prefetch(
        self,
        prompt: str | Sequence[int] | PrefetchRequest,
        *,
        namespace: str | None = None,
        timeout_s: float | None = None,
        when_idle: bool = False,
    ) -> Handle[PrefetchResult]:
        """Compute a prefix now, so that later prompts which begin with it find it cached.

        Args:
            prompt: text, ids or a PrefetchRequest, which is taken as it is.
            namespace: as for ``submit``.
            timeout_s: seconds until the prefetch ends with DeadlineExceeded; with ``when_idle`` see there.
            when_idle: only with capacity that nothing else could use. It steps aside for every other request, and what is
                cached of the prefix is kept until a prompt begins with it, or for ``timeout_s``, as long as nobody needs
                the room. If time runs out or memory is short, the handle ends with what was done, and without an error.

        Raises:
            InvalidArgumentError: the prefix is empty or does not fit.
            QueueFull: ``max_queued`` requests wait already; not with ``when_idle``.
            EngineError: the engine is closed.
        """
        if not isinstance(prompt, PrefetchRequest):
            ids = self._intake.prompt_ids(prompt)
            prompt = PrefetchRequest(ids, namespace=namespace, timeout_s=timeout_s, when_idle=when_idle)
        return self._prefetch(prompt, None)

    def pin(self, prompt: str | Sequence[int], *, ttl_s: float | None = None, namespace: str | None = None) -> PinnedPrefix:
        """Compute a prefix and keep it: it is not evicted until unpinned or expired. Waits until it is computed.

        Pins hold at most half of the KV pool, and the oldest gives way rather than keep the only request that is left
        from running.

        Args:
            prompt: text or ids, as for ``submit``.
            ttl_s: seconds after which it is an ordinary cached prefix again; None is never.
            namespace: as for ``submit``.

        Returns:
            What was pinned; also a context manager that unpins at its end.

        Raises:
            PoolExhaustedError: pins would hold more than half of the pool.
            InvalidArgumentError: the prefix is empty or does not fit, or ``ttl_s`` is no positive number.
            EngineError: the engine is closed.
        """
        self._loop.check_may_wait()
        if not self.config.prefix_cache:
            raise InvalidArgumentError("prefix_cache", False, "True, as there is nothing to keep a prefix in without it")
        order = PinOrder(deadline_after(ttl_s, "ttl_s"))
        request = PrefetchRequest(self._intake.prompt_ids(prompt), namespace=namespace)
        num_tokens = len(request.input_ids)
        self._loop.call(lambda machine: machine.scheduler.check_pin(num_tokens, time.monotonic()))
        usage = _result(self._prefetch(request, order)).usage
        if order.number is None:
            raise PoolExhaustedError("pin: meanwhile others pinned half of the KV pool; unpin something or raise cache_tokens")
        return PinnedPrefix(self._unpin, order.number, num_tokens, usage.cached_tokens)

    def _unpin(self, number: int) -> bool:
        return self._loop.call(lambda machine: machine.scheduler.unpin(number, time.monotonic()))

    def fewest_tokens(self, params: SamplingParams) -> int:
        """Tokens of the shortest output known that meets a constraint; see ``Backend.fewest_tokens``."""
        return self._intake.fewest_tokens(params)

    def new_seed(self) -> int:
        """A fresh seed: from OS entropy, or the next of ``Engine(seed=k)``'s sequence."""
        return self._intake.seeds.draw()

    # ---- end ---------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """End all requests with EngineShutdown and free the model; idempotent. Waits for the engine's thread."""
        self._loop.close()

    def __enter__(self) -> Self:
        """The engine itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close it."""
        self.close()

    # ---- private -----------------------------------------------------------------------------------------------------
    def _new_handle(self, on_abort: Callable[[str], None]) -> RequestHandle[Any]:
        return RequestHandle(on_abort, before_waiting=self._loop.check_may_wait)

    def _prefetch(self, request: PrefetchRequest, pin: PinOrder | None) -> Handle[PrefetchResult]:
        handle = self._new_handle(lambda request_id: self._loop.abort([request_id]))
        queued = self._intake.prefetch(request, handle.id)
        queued.pin = pin
        self._loop.add([queued], {queued.id: PrefetchTicket(handle)}, max_queued=self.config.max_queued)
        return handle

    def _submit_score(self, request: ScoreRequest) -> Handle[ScoreResult]:
        ids: list[str] = []
        handle = self._new_handle(lambda _: self._loop.abort(ids))
        requests = self._intake.scoring(request, handle.id)
        ids.extend(r.id for r in requests)
        clean_up = None if self.config.prefix_cache else self.flush_cache
        ticket = ScoreTicket(handle, requests, len(request.input_ids), clean_up)
        self._loop.add(requests, dict.fromkeys(ids, ticket), max_queued=self.config.max_queued)
        return handle


def _result(handle: Handle[ResultT]) -> ResultT:
    """Wait; who stops waiting (a keyboard interrupt) leaves nothing running."""
    try:
        return handle.result()
    except BaseException:
        handle.abort()
        raise


def _wait(handle: Handle[GenResult]) -> None:
    """Wait for the end, whatever it is."""
    ended = threading.Event()
    handle.add_done_callback(ended.set)
    ended.wait()
