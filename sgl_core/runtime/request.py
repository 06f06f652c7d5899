"""One request inside the runtime: its ids, its slots and where it is on its way. Written by the scheduler alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from sgl_core.runtime.choice_trie import ChoiceTrie
from sgl_core.runtime.constraint import Constraint
from sgl_core.runtime.radix_cache import TreeNode
from sgl_core.types import GrammarCut, Hints, SamplingParams, TokenLogprob

__all__ = ["LONGEST_JUMP", "Kind", "PinOrder", "Request", "ScoreGroup", "State", "TextSink"]

LONGEST_JUMP = 32
"""Tokens that a grammar forces at once, at most; they run like a decode."""


class Kind(Enum):
    """What a request is for."""

    GENERATE = "generate"
    SCORE = "score"
    """Log-probabilities of what ``branches`` says, behind the prompt; generates nothing."""
    PREFETCH = "prefetch"
    """Brings the prefix into the tree; generates nothing."""


class State(Enum):
    """The state machine: WAITING -> RUNNING -> FINISHED; RUNNING -> WAITING when retracted; WAITING -> FINISHED."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class ScoreGroup:
    """The tries of one ScoreRequest; their shared prompt is accounted once, for the first that is admitted."""

    leader: Request | None = None


@dataclass(slots=True, eq=False)
class PinOrder:
    """Asks that a prefetched prefix be pinned before anything can evict it.

    Args:
        expires_at: on the scheduler's clock, seconds; None is never.
        number: of the pin, once it is set; None if pins would have held too much.
    """

    expires_at: float | None
    number: int | None = None


class TextSink(Protocol):
    """Turns a request's tokens into text and looks for its stop strings."""

    def push(self, token_id: int) -> str:
        """Take one token; return text that may be shown now."""

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text, if one did."""


@dataclass(slots=True, eq=False)
class Request:
    """Everything the scheduler knows of one request.

    Args:
        id: unique.
        ids: prompt, then generated tokens, or the nodes of ``branches``.
        kind: what it is for.
        params: sampling parameters; the seed is resolved.
        max_new_tokens: the resolved budget; 0 for SCORE and PREFETCH.
        stop_ids: tokens that end it.
        sink: its text; None for SCORE and PREFETCH.
        branches: SCORE: the choices. ``group``: SCORE: shared by all tries of one scoring.
        followers: requests with the same prompt that start from this one's logits, once they are there (``n`` > 1).
        constraint: what it may output; None is everything.
        namespace: part of the tree's key. ``use_tree``: False shares nothing.
        priority: see GenRequest. ``hints``: see Hints. ``pin``: PREFETCH: see PinOrder.
        deadline: on the scheduler's clock, seconds; None is never.
        is_replay: it only verifies another one; all of its work is accounted as computed again.
        when_idle: PREFETCH: only with what steps have left, see ``IdlePrefetches``.
        arrival: order of submission, unique.
    """

    id: str
    ids: list[int]
    kind: Kind
    params: SamplingParams
    max_new_tokens: int
    stop_ids: frozenset[int]
    sink: TextSink | None
    submitted_at: float
    branches: ChoiceTrie | None = None
    group: ScoreGroup | None = None
    followers: list[Request] = field(default_factory=list)
    constraint: Constraint | None = None
    namespace: str | None = None
    use_tree: bool = True
    priority: int = 0
    deadline: float | None = None
    hints: Hints = field(default_factory=Hints)
    pin: PinOrder | None = None
    is_replay: bool = False
    when_idle: bool = False
    arrival: int = -1
    submitted_len: int = field(init=False)
    """Tokens it came with."""
    prompt_len: int = field(init=False)
    """Of the prompt, healed tokens included; the output follows."""
    state: State = State.WAITING
    row: int = -1
    """Row of the runner's slot table while RUNNING."""
    slots: list[int] = field(default_factory=list)
    """KV slots of the leading tokens: ``slots[:tree_len]`` are the tree's, the rest its own."""
    tree_len: int = 0
    node: TreeNode | None = None
    """The locked end of the tree-owned prefix while RUNNING."""
    computed_len: int = 0
    """Leading tokens whose KV is computed."""
    attached_len: int = 0
    """Of these, those that were there at its last admission."""
    found_len: int = 0
    """``attached_len`` of its first admission: what others had computed."""
    is_announced: bool = False
    """Whether the tree knows of its siblings."""
    covered_len: int = 0
    """Leading tokens that are accounted for, as cached or as run; never falls."""
    given: set[int] = field(default_factory=set)
    """Indices of tokens of its output that were cached, as another one has the same text, and never run for it."""
    prefilled_len: int = 0
    """Prompt tokens that were run for this request first of all."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Gathered so far: SCORE: in the order of the trie; else of the tokens from ``logprobs_from`` on."""
    gaps: list[float] = field(default_factory=list)
    """Where ``wants_gap``: for each token behind ``submitted_len``, how far the second best choice was."""
    cut: GrammarCut | None = None
    admitted_at: float = 0.0
    first_token_at: float = 0.0

    def __post_init__(self) -> None:
        """Fix the prompt's length, and put the trie's nodes behind it."""
        self.submitted_len = self.prompt_len = len(self.ids)
        if self.branches is not None:
            self.ids.extend(self.branches.tokens)

    @property
    def match_limit(self) -> int:
        """Prefix tokens that may come from the cache: the logits behind them must still be computed here."""
        return (self.prompt_len if self.branches is not None else len(self.ids)) - 1

    @property
    def cacheable_len(self) -> int:
        """Leading tokens that stand in one row: nodes of a trie have siblings, and are nobody's prefix."""
        return self.prompt_len if self.branches is not None else len(self.ids)

    @property
    def is_prefilling(self) -> bool:
        """Whether it has yet to run more than a decode step does: one token, or a short run that a grammar forced."""
        return not self.num_generated or len(self.ids) - self.computed_len > LONGEST_JUMP

    @property
    def cached_len(self) -> int:
        """Prompt tokens that were not computed for it at its first admission; final once it has ended."""
        return self.prompt_len - self.prefilled_len

    @property
    def program_id(self) -> str | None:
        """The program run that it belongs to, if it said so."""
        return self.hints.program_id

    @property
    def num_generated(self) -> int:
        """Tokens put out so far."""
        return len(self.ids) - self.prompt_len if self.kind is Kind.GENERATE else 0

    @property
    def wants_gap(self) -> bool:
        """Whether the sampler tells how close each choice of a token was."""
        return self.is_replay

    @property
    def remaining_slots(self) -> int:
        """Slots it may still ask for, beyond those it has. The last token of a generation needs none."""
        total = len(self.ids) if self.kind is not Kind.GENERATE else self.prompt_len + self.max_new_tokens - 1
        return max(0, total - len(self.slots))

    # ---- log-probabilities -------------------------------------------------------------------------------------------
    @property
    def logprobs_from(self) -> int:
        """Index of the first token whose log-probability is reported."""
        return 1 if self.params.prompt_logprobs else self.submitted_len

    @property
    def is_scoring_prompt(self) -> bool:
        """Whether log-probabilities of prompt tokens are wanted that nobody has told yet."""
        return self.params.prompt_logprobs and self.logprobs_from + len(self.logprobs) < self.submitted_len

    def logit_start(self, start: int, end: int, *, sample: bool) -> int:
        """First of the tokens ``start:end`` from which on logits are needed; ``end`` if none are."""
        if self.branches is not None:
            return min(end, max(start, self.prompt_len - 1))
        if self.is_scoring_prompt:
            return min(end, max(start, self.logprobs_from + len(self.logprobs) - 1))
        return end - 1 if sample else end

    def targets(self, position: int) -> tuple[int, ...]:
        """Tokens whose log-probability the logits behind the token at ``position`` tell, as far as somebody wants them."""
        if self.branches is not None:
            return self.branches.children[position - self.prompt_len + 1]
        following = position + 1
        if self.is_scoring_prompt and self.logprobs_from + len(self.logprobs) <= following < self.submitted_len:
            return (self.ids[following],)
        return ()

    def output_ids(self) -> Sequence[int]:
        """Tokens put out so far."""
        return self.ids[self.prompt_len :] if self.kind is Kind.GENERATE else ()
