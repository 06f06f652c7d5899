"""Values that cross between rooms: frozen, hashable where possible, without behaviour beyond checking themselves.

The language builds requests out of these, backends answer with them, and adapters read them. Nothing here knows torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from sgl_core.errors import InvalidArgumentError

__all__ = [
    "SEED_BITS",
    "FinishReason",
    "GenDelta",
    "GenRequest",
    "GenResult",
    "GrammarCut",
    "Hints",
    "PrefetchRequest",
    "PrefetchResult",
    "SamplingParams",
    "ScoreRequest",
    "ScoreResult",
    "Segment",
    "SegmentKind",
    "Timings",
    "TokenLogprob",
    "TurnState",
    "Usage",
    "Verification",
]

SEED_BITS = 63
"""Seeds are below two to this power."""
_MAX_STOPS = 32
_MAX_LOGIT_BIAS = 1024
_MAX_LOGPROBS = 100
_MAX_N = 128
_MAX_STOP_REGEX_BYTES = 1024


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """An end-of-text token, a stop token, a stop string, a stop regex or the end of a grammar."""
    GRAMMAR = "grammar"
    """The grammar's end, which the model would have missed: the budget would have run out before it, so tokens were chosen
    for the model that complete the output. See ``GenResult.grammar_cut``."""
    LENGTH = "length"
    """``max_new_tokens`` or the context was reached."""
    ABORT = "abort"
    """Aborted; the result holds what had been generated."""


def _number(name: str, value: object, low: float, high: float, *, low_open: bool = False) -> None:
    expected = f"a finite number in {'(' if low_open else '['}{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgumentError(name, value, expected)
    if not math.isfinite(value) or value > high or value < low or (low_open and value == low):
        raise InvalidArgumentError(name, value, expected)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgumentError(name, value, f"an int in [{low}, {high}]")


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidArgumentError(name, value, "True or False")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to pick tokens and when to stop. Checked on construction, so no path can carry a bad value.

    Greedy by default (the language's ``gen`` follows SGLang and uses temperature 1.0). Use ``dataclasses.replace`` to
    derive one from another.

    Args:
        max_new_tokens: tokens to generate at most; None is the engine's default, clipped to what fits.
        min_new_tokens: end-of-text and stop tokens are masked until this many tokens are out.
        temperature: 0 is greedy (ties go to the lowest id).
        top_p: smallest set of tokens whose probability reaches this. ``top_k``: -1 is off. ``min_p``: relative to the
            likeliest token.
        frequency_penalty: subtracted per occurrence in the output. ``presence_penalty``: once. ``repetition_penalty``:
            divides or multiplies logits of every token seen in prompt or output.
        logit_bias: token id -> added to its logit.
        n: number of completions of one prompt.
        stop: strings; the text is cut before the earliest of them.
        stop_token_ids: ids that end the generation, in addition to the model's own.
        stop_regex: a pattern; the text is cut before the match that ends first. A match is at most 1,024 characters long.
        ignore_eos: go on past end-of-text.
        seed: noise is a function of (seed, position); None lets the engine draw one.
        logprobs: report each token's log-probability and this many of the likeliest alternatives. ``prompt_logprobs``:
            report the prompt's tokens' too (without alternatives).
        regex: constrain the text; likewise ``json_schema`` (dict, JSON text or Pydantic class), ``grammar`` (Lark) and
            ``choices``. At most one of the four.

    Raises:
        InvalidArgumentError: for the first field that is out of range.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: str | None = None
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    regex: str | None = None
    json_schema: Any = None
    grammar: str | None = None
    choices: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Normalise sequences to tuples, then check every field."""
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids", "choices"):
            value = getattr(self, name)
            if isinstance(value, list | set | frozenset):
                object.__setattr__(self, name, tuple(value))
        if self.stop is None:
            object.__setattr__(self, "stop", ())
        if self.max_new_tokens is not None:
            _integer("max_new_tokens", self.max_new_tokens, 1, 2**31 - 1)
        _integer("min_new_tokens", self.min_new_tokens, 0, 2**31 - 1)
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InvalidArgumentError("min_new_tokens", self.min_new_tokens, f"at most max_new_tokens={self.max_new_tokens}")
        _number("temperature", self.temperature, 0.0, 1e4)
        _number("top_p", self.top_p, 0.0, 1.0, low_open=True)
        if self.top_k != -1:
            _integer("top_k", self.top_k, 1, 2**31 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 2.0, low_open=True)
        _integer("n", self.n, 1, _MAX_N)
        for name in ("ignore_eos", "prompt_logprobs"):
            _flag(name, getattr(self, name))
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**SEED_BITS - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, _MAX_LOGPROBS)
        self._check_stops()
        self._check_bias()
        self._check_constraint()
        if self.logit_bias is not None:  # a copy: what the caller does to the mapping later must not reach a running request
            object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _check_stops(self) -> None:
        strings = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        if not strings or len(self.stop) > _MAX_STOPS:
            raise InvalidArgumentError("stop", self.stop, f"at most {_MAX_STOPS} non-empty strings")
        if not isinstance(self.stop_token_ids, tuple) or len(self.stop_token_ids) > _MAX_LOGIT_BIAS:
            raise InvalidArgumentError("stop_token_ids", self.stop_token_ids, f"at most {_MAX_LOGIT_BIAS} token ids")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, 2**31 - 1)
        if self.stop_regex is not None:
            if not isinstance(self.stop_regex, str) or not self.stop_regex:
                raise InvalidArgumentError("stop_regex", self.stop_regex, "a non-empty pattern as str")
            size = len(self.stop_regex.encode("utf-8", "surrogatepass"))
            if size > _MAX_STOP_REGEX_BYTES:
                raise InvalidArgumentError("stop_regex", f"{size} bytes", f"at most {_MAX_STOP_REGEX_BYTES} bytes")

    def _check_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > _MAX_LOGIT_BIAS:
            raise InvalidArgumentError(
                "logit_bias", self.logit_bias, f"a mapping of at most {_MAX_LOGIT_BIAS} token ids to numbers"
            )
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, 2**31 - 1)
            _number("logit_bias", bias, -1e4, 1e4)

    def _check_constraint(self) -> None:
        given = [name for name in ("regex", "json_schema", "grammar", "choices") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidArgumentError(" and ".join(given), "both", "at most one of regex, json_schema, grammar, choices")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidArgumentError(name, value, "a str")
        if self.choices is not None and (
            not isinstance(self.choices, tuple) or not self.choices or not all(isinstance(c, str) and c for c in self.choices)
        ):
            raise InvalidArgumentError("choices", self.choices, "a non-empty sequence of non-empty strings")

    @classmethod
    def field_names(cls) -> frozenset[str]:
        """Names of all fields, for checking options before construction."""
        return frozenset(f.name for f in fields(cls))


class SegmentKind(StrEnum):
    """Where a piece of a prompt comes from; only TURN and RAW may yield control tokens."""

    TURN = "turn"
    RAW = "raw"
    TEXT = "text"
    GENERATED = "generated"
    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class Segment:
    """One piece of a prompt, for backends that take text instead of ids.

    Args:
        kind: where it comes from.
        text: its text (for TURN the role's name).
    """

    kind: SegmentKind
    text: str


@dataclass(frozen=True, slots=True)
class TurnState:
    """The turns a stream has opened so far.

    Args:
        roles: role of every turn, in order; a repeated role stands twice.
        is_open: whether the last of them is still open.
    """

    roles: tuple[str, ...] = ()
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Hints:
    """What a program knows and a scheduler may use. Never changes a result.

    Args:
        program_id: requests of one program run share it.
        siblings: further requests with the same prefix that are about to come. ``shared_len``: leading prompt tokens that
            they have in common with this one.
        last_use: nobody will extend this prompt again. ``keep_len``: its leading tokens that other prompts may well begin
            with all the same; None is all of them, which leaves nothing to drop but the output.
    """

    program_id: str | None = None
    siblings: int = 0
    shared_len: int = 0
    last_use: bool = False
    keep_len: int | None = 0


@dataclass(frozen=True, slots=True)
class GenRequest:
    """A generation: continue ``input_ids``.

    Args:
        input_ids: the whole prompt.
        params: sampling parameters.
        segments: the same prompt as text pieces, for text-only backends; empty for those that take ids.
        namespace: prefixes are shared within a namespace only.
        priority: higher first, unless the policy looks at arrivals alone.
        timeout_s: seconds from submit to the end.
        hints: see Hints.
        heal: text behind ``input_ids`` that the caller left to the model to spell: the output's tokens begin with it, in
            whatever tokens fit what follows, and its text begins behind it.
    """

    input_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    segments: tuple[Segment, ...] = ()
    namespace: str | None = None
    priority: int = 0
    timeout_s: float | None = None
    hints: Hints = field(default_factory=Hints)
    heal: str = ""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-probabilities of several continuations of one prompt.

    Args:
        input_ids: the shared prompt, at least one token.
        continuations: token ids of each continuation, each at least one token.
        segments, namespace, priority, timeout_s, hints: as in GenRequest.
    """

    input_ids: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    segments: tuple[Segment, ...] = ()
    namespace: str | None = None
    priority: int = 0
    timeout_s: float | None = None
    hints: Hints = field(default_factory=Hints)


@dataclass(frozen=True, slots=True)
class PrefetchRequest:
    """Compute (or bring back) the KV of a prefix, generating nothing.

    Args:
        input_ids: the prefix.
        namespace: prefixes are shared within a namespace only.
        timeout_s: seconds from submit after which nobody needs it any more.
        when_idle: only with capacity that nothing else could use, and not at all when memory is short: the handle then
            ends all the same, with whatever was computed.
    """

    input_ids: tuple[int, ...]
    namespace: str | None = None
    timeout_s: float | None = None
    when_idle: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request.

    Args:
        prompt_tokens: length of the prompt.
        cached_tokens: prompt tokens whose KV was not computed for this request at its first admission.
        completion_tokens: tokens sampled, the end-of-text token included.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one request: waiting, until its first token, from there to the end."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GenDelta:
    """A piece of a stream; the texts of all deltas concatenate to the result's text.

    Args:
        text: new text; may be empty while UTF-8 or a possible stop string is incomplete.
        token_ids: new tokens.
        index: which of ``n`` completions it belongs to.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """What the model thought of one token, before penalties, grammar and temperature.

    Args:
        token_id: the token.
        logprob: its natural-log probability.
        top: the likeliest tokens and their log-probabilities, likeliest first; as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GrammarCut:
    """Where the budget, not the model, chose tokens so that the output could end as its grammar demands.

    Args:
        num_tokens: sampled tokens that were overruled.
        first_index: index in the output of the first of them.
    """

    num_tokens: int
    first_index: int


@dataclass(frozen=True, slots=True)
class Verification:
    """A generation was computed a second time, alone and without the cache.

    Args:
        equal: whether all ids were the same.
        first_difference: index of the first id that was not; the two candidates were so close there that the order of
            additions decides (an unexplained difference is a VerificationError instead).
        gap: how close: the difference of the two best scores at that step.
    """

    equal: bool
    first_difference: int | None = None
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class GenResult:
    """A finished generation.

    Args:
        text: the output, cut before a stop string, without special tokens.
        token_ids: the output's ids, without the stop token. Where a stop string cuts through a token, only the whole
            tokens before the cut; ``text_behind_ids`` is then the rest of ``text``.
        finish_reason: why it ended.
        usage: token counts.
        matched_stop: the stop string or stop token that ended it, if one did.
        text_behind_ids: see ``token_ids``; usually empty.
        seed: the seed that was used; None for greedy output.
        logprobs: of each of ``token_ids``, when asked for.
        prompt_logprobs: of each of ``GenRequest.input_ids``, when asked for; None for the first, which nothing precedes.
        healed_ids: tokens that spell ``GenRequest.heal`` alone; they belong to the prompt, and ``token_ids`` follow them.
        grammar_cut: where the budget closed the output; None if it did not have to.
        verification: of an engine with ``verify=True``.
        timings: seconds per phase.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    matched_stop: str | int | None = None
    text_behind_ids: str = ""
    seed: int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    healed_ids: tuple[int, ...] = ()
    grammar_cut: GrammarCut | None = None
    verification: Verification | None = None
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Scores of continuations.

    Args:
        token_logprobs: for each continuation, the natural-log probability of each of its tokens.
        usage: the shared prompt; ``completion_tokens`` is 0.
        timings: seconds per phase.
    """

    token_logprobs: tuple[tuple[float, ...], ...]
    usage: Usage
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class PrefetchResult:
    """What a prefetch brought in: tokens of the prefix, and how many were there already."""

    usage: Usage
