"""From what users submit to what the scheduler gets: every request is checked here, on the caller's thread, and nowhere else.

What passes can run: its ids are the model's, it fits context and pool on its own, and nothing in it can make the engine
thread stumble. Owned by the engine; any thread may call it.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from sgl_core.config import EngineConfig
from sgl_core.errors import ContextLengthError, InvalidArgumentError
from sgl_core.runtime.choice_trie import ChoiceTrie, build_tries
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.constraint import Constraint
from sgl_core.runtime.detokenizer import StreamDecoder
from sgl_core.runtime.grammar.compiler import GrammarCompiler
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.runtime.request import Kind, Request, ScoreGroup
from sgl_core.runtime.startup import ModelFacts
from sgl_core.spans import least_context, plan_spans
from sgl_core.types import SEED_BITS, GenRequest, Hints, PrefetchRequest, SamplingParams, ScoreRequest

__all__ = ["Intake", "SeedSource", "deadline_after"]

_MOST_NODES = 4096
"""Of one trie of choices; more choices are several tries over one prompt."""
_LONGEST_HEAL = 256
_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.05}
"""By dtype, difference of two logits that other batch shapes may turn around."""


class Intake:
    """Checks requests against one model and one configuration.

    Every method raises InvalidArgumentError for the first argument that is out of range, and ContextLengthError for a
    request that can never fit.
    """

    def __init__(self, codec: LocalCodec, facts: ModelFacts, config: EngineConfig) -> None:
        self.seeds = SeedSource(config.seed)
        self._codec = codec
        self._facts = facts
        self._config = config
        self._grammars = GrammarCompiler(Vocabulary(codec.serialised, facts.vocab_size, sorted(facts.eos_ids)))

    @property
    def limit(self) -> tuple[int, str]:
        """Tokens of one request at most, and why. The last token of a generation needs no slot."""
        pool = self._facts.pool_tokens + 1
        if pool < self._facts.context_tokens:
            return pool, f"the KV pool, cache_tokens={self._facts.pool_tokens}"
        return self._facts.context_tokens, "the model's context"

    def prompt_ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Ids of a prompt: text is encoded as it is, behind BOS where the model has one."""
        if isinstance(prompt, str):
            return self._codec.begin() + self._codec.encode(prompt)
        return tuple(_checked_sequence(prompt))

    def score_request(self, prompt: str | Sequence[int], continuations: Sequence[str | Sequence[int]]) -> ScoreRequest:
        """Plan texts so that each is encoded as the model would have read it behind the prompt."""
        if isinstance(prompt, str) and all(isinstance(c, str) and c for c in continuations):
            texts = [c for c in continuations if isinstance(c, str)]
            planned = plan_spans(self._codec, prompt, texts)
            return ScoreRequest(self._codec.begin() + planned.shared or least_context(self._codec), planned.spans)
        spans = tuple(
            self._codec.encode(c) if isinstance(c, str) else tuple(_checked_sequence(c, "continuations")) for c in continuations
        )
        return ScoreRequest(self.prompt_ids(prompt), spans)

    # ---- requests ----------------------------------------------------------------------------------------------------
    def generation(self, request: GenRequest, request_id: str) -> list[tuple[Request, StreamDecoder]]:
        """A generation's completions, ``n`` of them, each with the decoder of its text.

        Where prefixes are shared the others follow the first, which computes the prompt for all.
        """
        params = self._checked_params(request.params)
        self._check_ids("prompt", request.input_ids)
        _check_routing(request.namespace, request.priority, request.hints)
        heal = _checked_heal(request.heal)
        healed = len(heal.encode())  # at most so many tokens
        budget = self._budget(len(request.input_ids) + healed, params.max_new_tokens)
        deadline = deadline_after(request.timeout_s)
        compiled = self._grammars.compile(params, heal=heal)
        if compiled is not None and not compiled.fits(budget):
            raise compiled.refusal(budget)
        stop_regex = None if params.stop_regex is None else self._grammars.stop_regex(params.stop_regex)

        def completion(index: int) -> tuple[Request, StreamDecoder]:
            decoder = self._codec.stream_decoder(
                params.stop,
                prompt_ids=request.input_ids,
                stop_regex=None if stop_regex is None else stop_regex.matcher(),
                skip=heal,
            )
            constraint: Constraint | None = None if compiled is None else compiled.matcher()
            queued = Request(
                id=request_id if not index else f"{request_id}-{index}",
                ids=list(request.input_ids),
                kind=Kind.GENERATE,
                params=self._seeded(params, index),
                max_new_tokens=budget,
                stop_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._facts.eos_ids),
                sink=decoder,
                submitted_at=time.monotonic(),
                constraint=constraint,
                namespace=request.namespace,
                use_tree=self._config.prefix_cache,
                priority=request.priority,
                deadline=deadline,
                hints=request.hints,
            )
            return queued, decoder

        completions = [completion(index) for index in range(params.n)]
        if self._config.prefix_cache:
            completions[0][0].followers = [queued for queued, _ in completions[1:]]
        return completions

    def fewest_tokens(self, params: SamplingParams) -> int:
        """Tokens of the shortest output that the constraint allows; 0 without one."""
        compiled = self._grammars.compile(params)
        return 0 if compiled is None else compiled.least

    @property
    def verify_tolerance(self) -> float:
        """How close two candidates must be for either to be right, as a difference of logits."""
        return 0.0 if self._config.deterministic else _TOLERANCE[self._facts.dtype]

    def replay(self, original: Request, request: GenRequest) -> tuple[Request, StreamDecoder]:
        """The same generation once more, alone and without the cache, to compare with the first."""
        params = replace(original.params, n=1, logprobs=None, prompt_logprobs=False)
        ((queued, decoder),) = self.generation(replace(request, params=params), f"{original.id}-replay")
        queued.use_tree, queued.is_replay, queued.deadline = False, True, original.deadline
        return queued, decoder

    def scoring(self, request: ScoreRequest, request_id: str) -> list[Request]:
        """The choices as tries over one prompt; one, unless they are too many for a step or for the pool."""
        self._check_ids("input_ids", request.input_ids)
        _check_routing(request.namespace, request.priority, request.hints)
        if not isinstance(request.continuations, Sequence) or not request.continuations:
            given = "none" if request.continuations == () else type(request.continuations).__name__
            raise InvalidArgumentError("continuations", given, "a sequence of at least one continuation")
        for continuation in request.continuations:
            self._check_ids("continuations", continuation)
            self._check_fits(len(request.input_ids) + len(continuation) - 1, None)  # its last token is not run
        group = ScoreGroup()
        # Without a prefix cache a scoring still computes its own prompt once: in a namespace that nobody else can have.
        namespace = request.namespace if self._config.prefix_cache else f"\0{request_id}"
        room = max(1, min(_MOST_NODES, self._facts.pool_tokens - len(request.input_ids)))
        requests = []
        for index, trie in enumerate(build_tries([tuple(c) for c in request.continuations], room)):
            queued = self._silent_request(
                f"{request_id}-{index}", list(request.input_ids), Kind.SCORE, namespace, request.timeout_s, branches=trie
            )
            queued.use_tree, queued.priority, queued.hints, queued.group = True, request.priority, request.hints, group
            requests.append(queued)
        return requests

    def prefetch(self, request: PrefetchRequest, request_id: str) -> Request:
        """A prefix to bring in."""
        self._check_ids("prompt", request.input_ids)
        _check_routing(request.namespace, 0, Hints())
        if not isinstance(request.when_idle, bool):
            raise InvalidArgumentError("when_idle", request.when_idle, "True or False")
        self._check_fits(len(request.input_ids), None)
        ids = list(request.input_ids)
        queued = self._silent_request(request_id, ids, Kind.PREFETCH, request.namespace, request.timeout_s)
        queued.when_idle = request.when_idle
        return queued

    def _silent_request(
        self,
        request_id: str,
        ids: list[int],
        kind: Kind,
        namespace: str | None,
        timeout_s: float | None,
        *,
        branches: ChoiceTrie | None = None,
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
            use_tree=self._config.prefix_cache,
            deadline=deadline_after(timeout_s),
            branches=branches,
        )

    # ---- checks ------------------------------------------------------------------------------------------------------
    def _checked_params(self, params: SamplingParams) -> SamplingParams:
        """Check against the vocabulary, and resolve the seed."""
        if not isinstance(params, SamplingParams):
            raise InvalidArgumentError("params", type(params).__name__, "a SamplingParams", "SamplingParams(temperature=0.5)")
        for name in ("stop_token_ids", "logit_bias"):
            tokens = list(getattr(params, name) or ())
            if tokens:
                self._check_ids(name, tokens)
        if params.seed is None and params.temperature > 0.0:
            return replace(params, seed=self.seeds.draw())
        return params

    def _seeded(self, params: SamplingParams, index: int) -> SamplingParams:
        """The parameters of one of ``n`` completions: each draws noise of its own, the first as if it were alone."""
        if not index or params.seed is None:
            return params
        digest = hashlib.blake2b(f"{params.seed}/{index}".encode(), digest_size=8).digest()
        return replace(params, seed=int.from_bytes(digest, "big") >> (64 - SEED_BITS))

    def _check_ids(self, argument: str, ids: Sequence[int]) -> None:
        if isinstance(ids, str | bytes | bytearray) or not isinstance(ids, Sequence):
            raise InvalidArgumentError(argument, type(ids).__name__, "a sequence of token ids")
        if not ids:
            raise InvalidArgumentError(argument, "no tokens", "at least one token")
        vocab = self._facts.vocab_size
        if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < vocab:
            return  # without a step of Python per token
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
                raise InvalidArgumentError(argument, token, f"token ids in [0, {vocab})")

    def _check_fits(self, prompt_tokens: int, max_new_tokens: int | None) -> None:
        limit, what = self.limit
        if prompt_tokens + (max_new_tokens if max_new_tokens is not None else 1) > limit:
            raise ContextLengthError(prompt_tokens, max_new_tokens, limit, what)

    def _budget(self, prompt_tokens: int, max_new_tokens: int | None) -> int:
        """The explicit budget if it fits; the default one, clipped to what fits."""
        self._check_fits(prompt_tokens, max_new_tokens)
        if max_new_tokens is not None:
            return max_new_tokens
        return min(self._config.default_max_new_tokens, self.limit[0] - prompt_tokens)


class SeedSource:
    """Seeds for those who bring none: OS entropy, or a sequence that starts from a given seed."""

    def __init__(self, seed: int | None) -> None:
        """Start the sequence, if there is one."""
        self._state = seed
        self._lock = threading.Lock()

    def draw(self) -> int:
        """The next one; any thread may ask."""
        if self._state is None:
            return secrets.randbits(SEED_BITS)
        with self._lock:
            # splitmix64, Steele et al. 2014: one addition and a mix, full period
            self._state = (self._state + 0x9E3779B97F4A7C15) % 2**64
            z = self._state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return (z ^ (z >> 31)) >> (64 - SEED_BITS)


def deadline_after(seconds: float | None, argument: str = "timeout_s") -> float | None:
    """That many seconds from now on the monotonic clock; None for None.

    Raises:
        InvalidArgumentError: no positive finite number; names ``argument``.
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise InvalidArgumentError(argument, seconds, "a positive number of seconds, or None")
    return time.monotonic() + seconds


def _checked_sequence(ids: Sequence[int], argument: str = "prompt") -> Sequence[int]:
    if not isinstance(ids, Sequence) or isinstance(ids, bytes | bytearray):
        raise InvalidArgumentError(argument, type(ids).__name__, "a str, or a sequence of token ids")
    return ids


def _checked_heal(heal: str) -> str:
    if not isinstance(heal, str):
        raise InvalidArgumentError("heal", type(heal).__name__, "the text that the prompt ended in, as str")
    if len(heal) > _LONGEST_HEAL:
        raise InvalidArgumentError("heal", f"{len(heal)} characters", f"at most {_LONGEST_HEAL}, the text of a token or two")
    if any("\ud800" <= char <= "\udfff" for char in heal):
        raise InvalidArgumentError("heal", "a str with half a surrogate pair", "a str of valid Unicode")
    return heal


def _check_routing(namespace: str | None, priority: int, hints: Hints) -> None:
    """What only the scheduler would stumble over: a key it cannot hash, an order or a count it cannot compare."""
    if namespace is not None and not isinstance(namespace, str):
        raise InvalidArgumentError("namespace", type(namespace).__name__, "a str, or None")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidArgumentError("priority", priority, "an int; higher goes first")
    if not isinstance(hints, Hints):
        raise InvalidArgumentError("hints", type(hints).__name__, "a Hints", "Hints(program_id='a', siblings=3)")
    if hints.program_id is not None and not isinstance(hints.program_id, str):
        raise InvalidArgumentError("hints.program_id", type(hints.program_id).__name__, "a str, or None")
    for name in ("siblings", "shared_len"):
        value = getattr(hints, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidArgumentError(f"hints.{name}", value, "an int of at least 0")
