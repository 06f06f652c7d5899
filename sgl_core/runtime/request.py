"""One request inside the runtime: its ids, its slots and where it is on its way. Written by the scheduler alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from sgl_core.runtime.radix_cache import TreeNode
from sgl_core.types import Hints, SamplingParams

__all__ = ["Kind", "PinOrder", "Request", "ScoreGroup", "State", "TextSink"]


class Kind(Enum):
    """What a request is for."""

    GENERATE = "generate"
    SCORE = "score"
    """One continuation: log-probabilities of ``ids[score_from:]``; generates nothing."""
    PREFETCH = "prefetch"
    """Brings the prefix into the tree; generates nothing."""


class State(Enum):
    """The state machine: WAITING -> RUNNING -> FINISHED; RUNNING -> WAITING when retracted; WAITING -> FINISHED."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class ScoreGroup:
    """The continuations of one ScoreRequest; their shared prompt is accounted once, for the first that is admitted."""

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
        ids: prompt, then generated tokens.
        kind: what it is for.
        params: sampling parameters; the seed is resolved.
        max_new_tokens: the resolved budget; 0 for SCORE and PREFETCH.
        stop_ids: tokens that end it.
        sink: its text; None for SCORE and PREFETCH.
        score_from: SCORE: index of the first scored token, at least 1. ``group``: SCORE: shared by all continuations.
        namespace: part of the tree's key. ``use_tree``: False shares nothing.
        priority: see GenRequest. ``hints``: see Hints. ``pin``: PREFETCH: see PinOrder.
        deadline: on the scheduler's clock, seconds; None is never.
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
    score_from: int = 0
    group: ScoreGroup | None = None
    namespace: str | None = None
    use_tree: bool = True
    priority: int = 0
    deadline: float | None = None
    hints: Hints = field(default_factory=Hints)
    pin: PinOrder | None = None
    arrival: int = -1
    prompt_len: int = field(init=False)
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
    prefilled_len: int = 0
    """Prompt tokens that were run for this request first of all."""
    logprobs: list[float] = field(default_factory=list)
    """SCORE: natural-log probabilities gathered so far."""
    admitted_at: float = 0.0
    first_token_at: float = 0.0

    def __post_init__(self) -> None:
        """Fix the prompt's length."""
        self.prompt_len = len(self.ids)

    @property
    def target_len(self) -> int:
        """Tokens to run before the next token can be sampled, or before the request is complete."""
        return len(self.ids) - 1 if self.kind is Kind.SCORE else len(self.ids)

    @property
    def match_limit(self) -> int:
        """Prefix tokens that may come from the cache: the logits behind them must still be computed here."""
        return (self.score_from if self.kind is Kind.SCORE else len(self.ids)) - 1

    @property
    def is_prefilling(self) -> bool:
        """Whether it has yet to run more than the one token of a decode step."""
        return not self.num_generated or self.target_len - self.computed_len > 1

    @property
    def shared_prompt_len(self) -> int:
        """Tokens that count as its prompt: of a continuation, those before the scored ones."""
        return self.score_from if self.kind is Kind.SCORE else self.prompt_len

    @property
    def cached_len(self) -> int:
        """Prompt tokens that were not computed for it at its first admission; final once it has ended."""
        return self.shared_prompt_len - self.prefilled_len

    @property
    def program_id(self) -> str | None:
        """The program run that it belongs to, if it said so."""
        return self.hints.program_id

    @property
    def num_generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.ids) - self.prompt_len

    @property
    def remaining_slots(self) -> int:
        """Slots it may still ask for, beyond those it has. The last token of a generation or a continuation needs none."""
        total = self.prompt_len if self.kind is Kind.PREFETCH else self.prompt_len + self.max_new_tokens - 1
        return max(0, total - len(self.slots))

    def output_ids(self) -> Sequence[int]:
        """Tokens sampled so far."""
        return self.ids[self.prompt_len :]
