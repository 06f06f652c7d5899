"""Log-probabilities of cached prompt tokens, kept beside their KV, so that asking for them does not undo the cache.

A slot stands for one token behind one prefix, and so does its log-probability: it is written when it is first computed, is
good as long as the slot holds that token, and moves with it in the tree without anybody's doing. Owned by ``KVMemory``; it
takes no memory until the first request asks for prompt log-probabilities.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence

from sgl_core.types import TokenLogprob

__all__ = ["PromptScores"]


class PromptScores:
    """One number a slot.

    Args:
        num_slots: of the KV pool.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._values: array[float] | None = None

    def note(self, slots: Sequence[int], logprobs: Iterable[TokenLogprob]) -> None:
        """Keep the log-probabilities of the tokens in ``slots``."""
        if self._values is None:
            self._values = array("d", [math.nan]) * self._num_slots
        for slot, logprob in zip(slots, logprobs, strict=True):
            self._values[slot] = logprob.logprob

    def forget(self, slots: Iterable[int]) -> None:
        """Other tokens come into these slots."""
        if self._values is not None:
            for slot in slots:
                self._values[slot] = math.nan

    def known(self, ids: Sequence[int], slots: Sequence[int]) -> list[TokenLogprob]:
        """Of tokens ``ids`` in ``slots``, as far as all are known."""
        found: list[TokenLogprob] = []
        if self._values is None:
            return found
        for token, slot in zip(ids, slots, strict=True):
            value = self._values[slot]
            if math.isnan(value):
                break
            found.append(TokenLogprob(token, value))
        return found
