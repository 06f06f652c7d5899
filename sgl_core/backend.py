"""The seam between language and runtime: what a program needs from whatever runs it.

The language imports this module and no runtime; a runtime implements it and imports no language. A backend is a local
engine, a remote server, a cluster, or the fake in ``sgl_core.testing``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from sgl_core.types import (
    GenDelta,
    GenRequest,
    GenResult,
    PrefetchRequest,
    PrefetchResult,
    SamplingParams,
    ScoreRequest,
    ScoreResult,
    TurnState,
)

__all__ = ["Backend", "Capabilities", "Handle", "TextCodec"]

ResultT_co = TypeVar("ResultT_co", covariant=True)


class Handle(Protocol[ResultT_co]):
    """A request under way. Every method may be called from any thread."""

    @property
    def id(self) -> str:
        """Unique and unguessable."""

    def result(self, timeout: float | None = None) -> ResultT_co:
        """Wait for the result.

        Raises:
            TimeoutError: ``timeout`` seconds passed; the request goes on.
            SglError: the request's own error.
        """

    def done(self) -> bool:
        """Whether a result or an error is there."""

    def error(self) -> BaseException | None:
        """The request's error if it has ended with one; None otherwise, also while it runs."""

    def abort(self) -> None:
        """End the request soon; its result then has finish reason ABORT. No effect on a finished request."""

    def add_done_callback(self, fn: Callable[[], None]) -> None:
        """Call ``fn`` once when done (at once if it is). It runs on the backend's thread: it must be short."""

    def add_delta_callback(self, fn: Callable[[GenDelta], None]) -> None:
        """Call ``fn`` with every delta, those already out first, each once and in order; same rule as above."""

    def __await__(self) -> Generator[Any, None, ResultT_co]:
        """Await the result from any event loop."""

    def __iter__(self) -> Iterator[GenDelta]:
        """Iterate over deltas until done; raises the request's error at the end."""

    def __aiter__(self) -> AsyncIterator[GenDelta]:
        """Like ``__iter__``, without blocking the loop."""


class TextCodec(Protocol):
    """Text to token ids and back. Pure, thread-safe, no torch.

    Turns are rendered in pieces of the model's own template, in order: ids (control tokens) and text, which the caller
    joins with neighbouring text before encoding. Closing pieces may be emitted lazily, with the next opening.
    """

    @property
    def fingerprint(self) -> str:
        """Identifies vocabulary, merges and template."""

    @property
    def knows_tools(self) -> bool:
        """Whether the template takes tools: then the model was trained to call them, see ``sgl_core.chat.tools``."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Program or user text; never yields a control id."""

    def encode_trusted(self, text: str) -> tuple[int, ...]:
        """An author's literal (``sgl.raw``); spellings of control tokens become their ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, control tokens left out."""

    def spell(self, token: int) -> str:
        """The spelling of one control id, for a readable ``state.text()``."""

    def special_spelling(self, text: str) -> str | None:
        """The first spelling of a control token inside ``text``, or None; used for a warning only."""

    def begin(self) -> tuple[int, ...]:
        """What a prompt without turns starts with: BOS or nothing."""

    def open_turn(self, role: str, turns: TurnState) -> tuple[int | str, ...]:
        """Pieces that open a turn of ``role`` after ``turns`` (a default system turn included where there is one).

        Raises:
            TemplateError: there is no template, or it refuses this order of roles.
        """

    def close_turn(self, role: str, turns: TurnState) -> tuple[int | str, ...]:
        """Pieces that close the last turn of ``turns``, as far as they do not depend on what follows."""

    def body_lead(self, role: str, turns: TurnState) -> tuple[int | str, ...]:
        """What stands between ``open_turn(role, turns)`` and a body that is given, and that a generation writes itself."""

    def body_trim(self, role: str, turns: TurnState) -> tuple[bool, bool]:
        """Whether the template drops white space at the left and right end of a given body."""

    def stable_len(self, text: str) -> int:
        """Leading ids of ``encode(text)`` that no continuation of ``text`` can change."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do.

    Args:
        token_ids: takes ids (otherwise it reads segments, and exactness is declared absent).
        score: can score continuations.
        cached_tokens: reports cached tokens.
        heal: honours ``GenRequest.heal``.
        images: takes pictures.
        shares_in_flight: a request whose prefix another one is computing waits for it instead of computing it again.
        context_tokens: prompt and output together fit in this many tokens.
        default_max_new_tokens: budget of a request without one.
    """

    token_ids: bool = True
    score: bool = True
    cached_tokens: bool = True
    context_tokens: int = 8192
    default_max_new_tokens: int = 512
    heal: bool = False
    images: bool = False
    shares_in_flight: bool = False


@runtime_checkable
class Backend(Protocol):
    """Runs requests. ``submit``, ``score`` and ``prefetch`` never block on the model and are safe from any thread."""

    @property
    def codec(self) -> TextCodec | None:
        """The codec of the model, or None for a text-only API."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    def submit(self, request: GenRequest) -> Handle[GenResult]:
        """Queue a generation. With ``n`` above 1 the handle's result is a list of ``n`` results, by index.

        Raises:
            InvalidArgumentError: the request can never run (too long, unknown ids); nothing was queued.
            EngineShutdown: the backend is closed.
        """

    def score(self, request: ScoreRequest) -> Handle[ScoreResult]:
        """Queue scoring; raises as ``submit``."""

    def prefetch(self, request: PrefetchRequest) -> Handle[PrefetchResult]:
        """Queue the computation of a prefix; raises as ``submit``."""

    def fewest_tokens(self, params: SamplingParams) -> int:
        """Tokens of the shortest output known that meets the constraint of ``params``; 0 without one. May compile it, here.

        Raises:
            GrammarError: it is malformed, too large or impossible.
        """

    def new_seed(self) -> int:
        """A fresh program seed (from OS entropy unless the backend was given one)."""

    def close(self) -> None:
        """End all requests with EngineShutdown and free everything; idempotent."""
