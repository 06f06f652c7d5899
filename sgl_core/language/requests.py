"""From a position and a node to the requests a backend gets. Called by the stream, on the dispatcher's thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgl_core.errors import NotYetAvailableError, ProgramError
from sgl_core.language.healing import GenPrompt
from sgl_core.language.ir import Select
from sgl_core.language.position import Position, TokenRope, pieces_since, segments_of
from sgl_core.spans import ChoiceSpans, encode_alone, least_context, plan_spans
from sgl_core.types import GenRequest, Hints, SamplingParams, ScoreRequest, Segment

if TYPE_CHECKING:
    from sgl_core.language.run import ProgramRun

__all__ = ["PlannedSelect", "generation_request", "score_requests"]


def generation_request(
    run: ProgramRun, position: Position, prompt: GenPrompt, params: SamplingParams, hints: Hints
) -> GenRequest:
    """Continue ``prompt``, which is what ``position`` says.

    Raises:
        ProgramError: there is nothing to continue.
    """
    return GenRequest(
        input_ids=_prompt_ids(run, prompt.ids),
        params=params,
        segments=_segments(run, position),
        namespace=run.namespace,
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
