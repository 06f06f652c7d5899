"""From a position and a node to the requests a backend gets. Called by the stream, on the dispatcher's thread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sgl_core.backend import Backend
from sgl_core.errors import NotYetAvailableError, ProgramError
from sgl_core.language.healing import GenPrompt
from sgl_core.language.ir import Select
from sgl_core.language.position import Position, TokenRope, pieces_since, segments_of
from sgl_core.language.sampling import to_context
from sgl_core.spans import ChoiceSpans, encode_alone, least_context, plan_spans
from sgl_core.types import GenRequest, Hints, SamplingParams, ScoreRequest, Segment

if TYPE_CHECKING:
    from sgl_core.language.run import ProgramRun

__all__ = ["PlannedSelect", "generation_request", "refuse_image", "score_requests"]


def generation_request(
    run: ProgramRun,
    position: Position,
    prompt: GenPrompt,
    params: SamplingParams,
    hints: Hints,
    *,
    max_len: int | None = None,
) -> GenRequest:
    """Continue ``prompt``, which is what ``position`` says, to at most ``max_len`` tokens, prompt included.

    Raises:
        ProgramError: there is nothing to continue.
        NotYetAvailableError: the budget is what the context leaves, and the backend does not say what that is.
    """
    ids = _prompt_ids(run, prompt.ids)
    return GenRequest(
        input_ids=ids,
        params=_budgeted(params, run.backend, len(ids) + len(prompt.heal.encode()), max_len),  # a token has at least a byte
        segments=_segments(run, position),
        namespace=run.namespace,
        timeout_s=run.remaining_s(),
        hints=hints,
        heal=prompt.heal,
    )


@dataclass(frozen=True, slots=True)
class PlannedSelect:
    """A select's requests: the choices behind the prompt, then (for one method) the choices alone.

    Args:
        prompt: ids before the spans.
        spans: see ``ChoiceSpans``.
        requests: one or two.
    """

    prompt: TokenRope
    spans: ChoiceSpans
    requests: tuple[ScoreRequest, ...]


def score_requests(run: ProgramRun, position: Position, node: Select, hints: Hints) -> PlannedSelect:
    """Plan a select.

    Raises:
        ProgramError: there is nothing before the choices.
        NotYetAvailableError: the backend cannot score.
    """
    if not run.backend.capabilities.score:
        raise NotYetAvailableError("this backend cannot score choices; use gen(..., regex=...) or another backend")
    spans = plan_spans(run.codec, position.tail, node.choices)
    prompt = position.begun(run.codec).ids.extend(spans.shared)
    request = ScoreRequest(
        input_ids=_prompt_ids(run, prompt) if prompt.flat() or not position.tail else least_context(run.codec),
        continuations=spans.spans,
        segments=_segments(run, position),
        namespace=run.namespace,
        hints=hints,
    )
    if node.choices_method != "unconditional_likelihood_normalized":
        return PlannedSelect(prompt, spans, (request,))
    alone = ScoreRequest(
        input_ids=least_context(run.codec),
        continuations=encode_alone(run.codec, node.choices),
        namespace=run.namespace,
        hints=hints,
    )
    return PlannedSelect(prompt, spans, (request, alone))


def refuse_image(backend: Backend) -> None:
    """Refuse a picture where the backend takes none.

    Raises:
        NotYetAvailableError: it takes none.
    """
    if not backend.capabilities.images:
        raise NotYetAvailableError(
            f"{type(backend).__name__} takes no pictures; describe the picture in text, or run the program on a backend whose "
            "capabilities have images=True"
        )


def _budgeted(params: SamplingParams, backend: Backend, prompt_tokens: int, max_len: int | None) -> SamplingParams:
    """The parameters with the budget that ``to_context`` or ``max_len`` stand for.

    A prompt that leaves no room in the context is the backend's to refuse. ``max_len`` always leaves room for one token.
    """
    if max_len is not None:
        room = max(1, max_len - prompt_tokens)
        return replace(params, max_new_tokens=room if params.max_new_tokens is None else min(params.max_new_tokens, room))
    if params.max_new_tokens != to_context:
        return params
    if not backend.capabilities.token_ids:
        raise NotYetAvailableError(
            "max_tokens=to_context needs a backend that takes token ids, as only that knows how long the prompt is; "
            "give a number of tokens"
        )
    return replace(params, max_new_tokens=max(1, backend.capabilities.context_tokens - prompt_tokens))


def _segments(run: ProgramRun, position: Position) -> tuple[Segment, ...]:
    """For a backend that reads them; gathering them for every request makes a long stream quadratic."""
    return () if run.backend.capabilities.token_ids else segments_of(pieces_since(position.trail))


def _prompt_ids(run: ProgramRun, prompt: TokenRope) -> tuple[int, ...]:
    if not run.backend.capabilities.token_ids:
        return ()  # it reads the segments
    ids = prompt.flat()
    if not ids:
        raise ProgramError("there is no text before the first gen or select; append some, or open a turn, first")
    return ids
