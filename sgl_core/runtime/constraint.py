"""What a grammar is to sampler and scheduler: allowed tokens, then a verdict on the one that was sampled. No torch.

The sampler asks for the mask and, with the token it picked, for a verdict, which changes nothing. The scheduler commits the
verdict when it takes the step's result back, so a step that fails leaves the constraint where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Constraint", "Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a sampled token.

    Args:
        tokens: what is emitted: the sampled token, or the one that overrules it, then tokens that the grammar forces. Empty
            where the output is complete as it stands and the sampled token would have made it too long to complete.
        ended: the output is complete; nothing more is sampled.
        overruled: another token than the sampled one was emitted, or none, because of the budget.
        num_healed: leading ``tokens`` that spell nothing but healed prompt text; they belong to the prompt.
        released: from here on everything is allowed; the constraint is done.
        state: the constraint's own; for ``commit``.
    """

    tokens: tuple[int, ...]
    ended: bool = False
    overruled: bool = False
    num_healed: int = 0
    released: bool = False
    state: object = field(default=None, repr=False)


class Constraint(Protocol):
    """What one request may output. One owner; not thread-safe, but may move between threads from call to call."""

    def mask(self) -> NDArray[np.uint8]:
        """Allowed tokens now, one bit each, lowest first: ``[4 * ceil(vocab / 32)]``; the caller may keep it.

        Raises:
            GrammarError: the grammar allows nothing or has met a limit.
        """

    def propose(self, token: int, remaining: int, *, jump: bool = True) -> Verdict:
        """What to do with a sampled token that ``mask`` allows. Changes nothing.

        Args:
            remaining: tokens that may still be emitted, this one included; at least 1.
            jump: add what the grammar forces; False where every token must be drawn, as its log-probability is wanted.

        Raises:
            GrammarError: as ``mask``.
        """

    def commit(self, verdict: Verdict) -> None:
        """Go where the last ``propose`` led. Call it once for a verdict, and for none but the latest."""
