"""``verify=True``: every generation is computed a second time, alone and without the cache, and compared.

Stands between a generation's ticket and its handle, on the engine thread. Deltas stream while the first computation runs;
the result waits for the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from sgl_core.errors import VerificationError
from sgl_core.runtime.request import Request
from sgl_core.runtime.tickets import GenReceiver
from sgl_core.types import FinishReason, GenDelta, GenResult, Verification

__all__ = ["Verifier"]


class _Replays(Protocol):
    def __call__(self, receiver: GenReceiver, /) -> Request:
        """Queue the second computation, whose result goes to ``receiver``; returns its request."""


class Verifier:
    """Holds one result back until it is confirmed.

    Args:
        receiver: gets the result with its ``verification``, or a VerificationError.
        replay: queues the second computation.
        tolerance: candidates whose scores are closer may change places, as batches of other shapes add in other orders; 0
            allows nothing.
    """

    def __init__(self, receiver: GenReceiver, replay: _Replays, tolerance: float) -> None:
        self._receiver = receiver
        self._replay = replay
        self._tolerance = tolerance

    def push(self, delta: GenDelta) -> None:
        """Stream the first computation."""
        self._receiver.push(delta)

    def finish(self, result: GenResult) -> None:
        """Start the second computation; what was aborted has nothing to be compared with."""
        if result.finish_reason is FinishReason.ABORT:
            self._receiver.finish(result)
            return
        second = _Second(lambda again: self._compare(result, again, request), self.fail)
        try:
            request = self._replay(second)
        except Exception as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """One of the two failed."""
        self._receiver.fail(error)

    def _compare(self, first: GenResult, second: GenResult, replay: Request) -> None:
        if second.finish_reason is FinishReason.ABORT:
            self._receiver.finish(first)
            return
        ids, again = ((*result.healed_ids, *result.token_ids) for result in (first, second))
        if ids == again and first.finish_reason == second.finish_reason:
            self._receiver.finish(replace(first, verification=Verification(equal=True)))
            return
        pairs = zip(ids, again, strict=False)
        index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(again)))
        gap = replay.gaps[index] if index < len(replay.gaps) else float("inf")
        if gap < self._tolerance:
            self._receiver.finish(replace(first, verification=Verification(False, index, gap)))
            return
        self.fail(
            VerificationError(
                f"token {index} of the output differs when it is computed again without the cache (the best two scores are "
                f"{gap:.3g} apart, at most {self._tolerance:.3g} is explained by the order of additions)"
            )
        )


class _Second:
    """Receives the second computation, which is not streamed."""

    def __init__(self, done: Callable[[GenResult], None], fail: Callable[[BaseException], None]) -> None:
        self.finish = done
        self.fail = fail

    def push(self, delta: GenDelta) -> None:
        """Nobody waits for these."""
