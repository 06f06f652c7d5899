"""A conversation of many turns as one program: each turn continues the token ids of those before it.

Called by ``sgl chat``. The history is a stream of the language, so what was generated is never encoded again and a new turn
finds all of it in the prefix cache. A turn is a copy of the history that becomes the history when it succeeds; of one that is
aborted, what the person saw is appended as text instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from sgl_core.backend import Backend, Capabilities, Handle, TextCodec
from sgl_core.language import ProgramState, assistant, function, gen, system, user
from sgl_core.types import (
    FinishReason,
    GenRequest,
    GenResult,
    PrefetchRequest,
    PrefetchResult,
    SamplingParams,
    ScoreRequest,
    ScoreResult,
)
from sgl_native.records import CallUsage

__all__ = ["Conversation", "hold_conversation"]

_ANSWER = "answer"


class Conversation:
    """The turns so far. Made by ``hold_conversation``; used by one thread.

    Attributes:
        usages: tokens of every answer, in order; of an aborted one nothing is known.
    """

    def __init__(self, start: ProgramState, backend: _AbortableBackend) -> None:
        self.usages: list[CallUsage] = []
        self._start = start
        self._history = start
        self._backend = backend

    def ask(self, text: str, show: Callable[[str], None]) -> CallUsage:
        """Say something and wait for the answer.

        ``KeyboardInterrupt`` aborts the answer. What was shown of it then stays in the history, as text.

        Args:
            text: what the person says.
            show: called with the answer, piece by piece.

        Returns:
            Tokens of this turn; with finish reason "abort", only zeros.

        Raises:
            SglError: the turn failed; the history is as it was before.
        """
        self._backend.begin_turn()
        turn = self._history.copy()
        shown: list[str] = []
        try:
            turn += user(text) + assistant(gen(_ANSWER))
            for piece in turn.text_iter(_ANSWER):
                shown.append(piece)
                show(piece)
        except KeyboardInterrupt:
            self._backend.abort_turn()
            turn.error()  # wait for its end; the error then counts as read
            self._keep(text, "".join(shown))
            return CallUsage(_ANSWER, 0, 0, 0, FinishReason.ABORT.value)
        self._history = turn
        usage = _usage(turn)
        self.usages.append(usage)
        return usage

    def reset(self) -> None:
        """Forget every turn; the system prompt stays."""
        self._history = self._start
        self.usages.clear()

    def totals(self) -> CallUsage:
        """All answers together."""
        counts = [(usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens) for usage in self.usages]
        prompt, cached, generated = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
        return CallUsage("total", prompt, cached, generated, finish_reason=None)

    def _keep(self, text: str, answer: str) -> None:
        if answer:
            self._history = self._history.copy()
            self._history += user(text) + assistant(answer)


def hold_conversation(
    backend: Backend, talk: Callable[[Conversation], None], *, system_prompt: str | None, params: SamplingParams
) -> None:
    """Open a conversation on ``backend`` and let ``talk`` lead it; returns when ``talk`` does.

    Args:
        backend: borrowed.
        talk: says things with ``Conversation.ask`` until it has had enough.
        system_prompt: None leaves the model its own, if it has one.
        params: temperature, budget of an answer and seed; nothing else is read.

    Raises:
        TemplateError: the model has no chat template, or refuses a system prompt.
    """
    abortable = _AbortableBackend(backend)
    _conversation.run(
        talk,
        abortable,
        system_prompt,
        backend=abortable,
        seed=params.seed,
        temperature=params.temperature,
        max_new_tokens=params.max_new_tokens,
    )


@function
def _conversation(
    s: ProgramState, talk: Callable[[Conversation], None], abortable: _AbortableBackend, system_prompt: str | None
) -> None:
    if system_prompt is not None:
        s += system(system_prompt)
    first_turn = s.copy()
    first_turn.user_begin()
    error = first_turn.error()
    if error is not None:  # a template that cannot hold a conversation is better known before the first question
        s.error()
        raise error
    talk(Conversation(s, abortable))


def _usage(turn: ProgramState) -> CallUsage:
    meta = turn.get_meta_info(_ANSWER)
    return CallUsage(
        _ANSWER, meta["prompt_tokens"], meta["cached_tokens"], meta["completion_tokens"], str(meta["finish_reason"])
    )


class _AbortableBackend:
    """A backend in front of another one, which can abort the generation of the turn, submitted already or not."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._handle: Handle[GenResult] | None = None
        self._is_aborted = False

    def begin_turn(self) -> None:
        with self._lock:
            self._handle, self._is_aborted = None, False

    def abort_turn(self) -> None:
        with self._lock:
            self._is_aborted = True
            handle = self._handle
        if handle is not None:
            handle.abort()

    # ---- sgl_core.backend.Backend ------------------------------------------------------------------------------------
    @property
    def codec(self) -> TextCodec | None:
        return self._backend.codec

    @property
    def capabilities(self) -> Capabilities:
        return self._backend.capabilities

    def submit(self, request: GenRequest) -> Handle[GenResult]:
        handle = self._backend.submit(request)
        with self._lock:
            self._handle = handle
            is_aborted = self._is_aborted
        if is_aborted:
            handle.abort()
        return handle

    def score(self, request: ScoreRequest) -> Handle[ScoreResult]:
        return self._backend.score(request)

    def prefetch(self, request: PrefetchRequest) -> Handle[PrefetchResult]:
        return self._backend.prefetch(request)

    def fewest_tokens(self, params: SamplingParams) -> int:
        return self._backend.fewest_tokens(params)

    def new_seed(self) -> int:
        return self._backend.new_seed()

    def close(self) -> None:
        """Nothing: the backend is borrowed."""
