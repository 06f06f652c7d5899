"""A model that cannot be fooled: its next token depends on every earlier token *as found in the KV content*.

``OracleRunner`` stands where ``ModelRunner`` stands. Beside each slot it keeps a digest of everything up to that token; a
wrong slot, position, prefix or neighbour changes the text. ``oracle_continuation`` says what the text must be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sgl_core.runtime.plan import StepPlan, StepResult
from sgl_core.runtime.request import Kind

__all__ = ["OracleRunner", "oracle_continuation"]

_START = b"start"


def _extend(digest: bytes, token: int) -> bytes:
    return hashlib.blake2b(digest + token.to_bytes(4, "big"), digest_size=8).digest()


def _next_token(digest: bytes, vocab: int) -> int:
    return int.from_bytes(digest, "big") % vocab


def oracle_continuation(prompt: Sequence[int], count: int, vocab: int) -> list[int]:
    """The ``count`` tokens that the oracle generates behind ``prompt``."""
    digest = _START
    for token in prompt:
        digest = _extend(digest, token)
    out = []
    for _ in range(count):
        out.append(_next_token(digest, vocab))
        digest = _extend(digest, out[-1])
    return out


class OracleRunner:
    """Runs plans without a model.

    Args:
        num_slots: size of the pool.
        vocab: tokens are drawn from ``range(vocab)``.
    """

    def __init__(self, num_slots: int, vocab: int) -> None:
        self._digests: list[bytes | None] = [None] * num_slots
        self._vocab = vocab
        self.computed_tokens = 0
        """Tokens run so far."""

    def run(self, plan: StepPlan) -> StepResult:
        """One step; checks that each work's earlier tokens are computed and that its slots hold its own prefix.

        Raises:
            AssertionError: a token is run twice for one request, or attends to a slot that holds something else.
        """
        tokens: list[int | None] = []
        logprobs: list[tuple[float, ...]] = []
        written: set[int] = set()
        for work in plan.works:
            request = work.request
            assert work.start == request.computed_len, "work does not start where the request stands"
            assert len(request.slots) >= work.end, "a token has no slot"
            digest = _START
            for position in range(work.start):  # what attention would read
                digest = _extend(digest, request.ids[position])
                assert self._digests[request.slots[position]] == digest, "a slot holds another prefix"
            for position in range(work.start, work.end):
                slot = request.slots[position]
                assert slot not in written, "two tokens are written to one slot"
                written.add(slot)
                digest = _extend(digest, request.ids[position])
                self._digests[slot] = digest
            self.computed_tokens += work.end - work.start
            tokens.append(_next_token(digest, self._vocab) if work.sample else None)
            first = max(work.start, request.score_from - 1)
            scored = max(0, work.end - first) if request.kind is Kind.SCORE else 0
            logprobs.append(tuple(-float(request.ids[p + 1]) for p in range(work.end - scored, work.end)))
        return StepResult(tuple(tokens), tuple(logprobs), (None,) * len(plan.works))
