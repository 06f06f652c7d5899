"""How much of their token budgets requests use, learnt from those that ended; admission promises slots by it. No torch."""

from __future__ import annotations

from sgl_core.runtime.request import Request

__all__ = ["GrowthEstimate"]

_FIRST_SHARE = 0.7
_WEIGHT = 1 / 16
"""Of one ended request in the running mean."""
_LOOKAHEAD_TOKENS = 16
"""Tokens that a request which outgrew its estimate is expected to generate still."""


class GrowthEstimate:
    """The share of its budget that a request is expected to generate.

    A running mean over ended requests. A retraction says that it was too low, and moves it half way to 1.
    """

    def __init__(self) -> None:
        """Start with a cautious share."""
        self.share = _FIRST_SHARE

    def ended(self, request: Request) -> None:
        """A generation came to its own end."""
        self.share += _WEIGHT * (request.num_generated / request.max_new_tokens - self.share)

    def retracted(self) -> None:
        """Slots ran out."""
        self.share = (1 + self.share) / 2

    def expected_slots(self, request: Request) -> int:
        """Slots that a request will ask for beyond those it has: all of its unrun tokens and the likely part of its output."""
        at_most = request.remaining_slots
        unrun = max(0, len(request.ids) - len(request.slots))
        to_come = max(int(self.share * request.max_new_tokens) - request.num_generated, _LOOKAHEAD_TOKENS)
        return min(at_most, unrun + to_come)
