"""What one request runs in one step, while the scheduler puts the step together. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from sgl_core.runtime.plan import Work
from sgl_core.runtime.request import Kind, Request

__all__ = ["Span", "next_span", "work_of"]

_MOST_LOGIT_ROWS = 256
"""Of one request in one step: the logits of a row are as large as the vocabulary."""


@dataclass(slots=True)
class Span:
    """Tokens of a running request that are to run; the runner's table has its slots before ``table_start``."""

    request: Request
    start: int
    end: int
    table_start: int


def next_span(request: Request, budget: int, *, table_start: int) -> Span:
    """The tokens that a request runs next, at most ``budget`` of them."""
    start = request.computed_len
    end = min(len(request.ids), start + budget)
    end = min(end, request.logit_start(start, end, sample=False) + _MOST_LOGIT_ROWS)
    return Span(request, start, end, table_start)


def work_of(span: Span, shared_len: int) -> Work:
    """A span as the runner gets it; ``shared_len``: see ``Work``."""
    request = span.request
    sample = span.end == len(request.ids) and request.kind is Kind.GENERATE
    logit_start = request.logit_start(span.start, span.end, sample=sample)
    return Work(request, span.start, span.end, span.table_start, shared_len, logit_start, sample)
