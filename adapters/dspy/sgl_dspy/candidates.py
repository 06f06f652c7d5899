"""The n candidates of one LM call, submitted together although DSPy asks for them one after the other.

``SglLM`` opens a group around a call; the engine's first attempt inside it submits every candidate, so that they ride on one
prefill and are decoded in one batch, and each later attempt takes the next. A retry repeats its own candidate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

from sgl_core.backend import Backend, Handle
from sgl_core.errors import QueueFull
from sgl_core.types import SEED_BITS, GenRequest, GenResult, Hints

__all__ = ["attempt", "candidate_group", "candidate_seed"]


class _Group:
    """Used by one call, which makes its attempts one after the other."""

    def __init__(self, size: int, rollout: object = None) -> None:
        self._rollout = rollout
        self._next = 0
        self._asked: object = None
        self._handles: list[Handle[GenResult] | None] = [None] * size

    def is_for(self, asked: object) -> bool:
        """Whether ``asked`` is the request of this call (all its attempts bring the same object) and candidates are left."""
        return self._next < len(self._handles) and (self._asked is None or self._asked is asked)

    def begin(self, asked: object, request: GenRequest, backend: Backend) -> Handle[GenResult]:
        """The next candidate's handle; submits it and those behind it that are not under way."""
        self._asked = asked
        for index in range(self._next, len(self._handles)):
            if self._handles[index] is None:
                try:
                    self._handles[index] = backend.submit(self._candidate(request, index))
                except QueueFull:
                    if index == self._next:
                        raise
                    break  # its turn comes
        handle = self._handles[self._next]
        assert handle is not None, "submitted above"
        return handle

    def succeed(self) -> None:
        """Go on with the next one."""
        self._next += 1

    def give_up(self) -> None:
        """Abort the attempt; the next one submits this candidate again."""
        handle, self._handles[self._next] = self._handles[self._next], None
        if handle is not None:
            handle.abort()

    def close(self) -> None:
        """Abort what nobody took."""
        for handle in self._handles[self._next :]:
            if handle is not None:
                handle.abort()

    def _candidate(self, request: GenRequest, index: int) -> GenRequest:
        seed = candidate_seed(request.params.seed, self._rollout, index)
        hints = Hints(siblings=len(self._handles) - 1 - index, shared_len=len(request.input_ids))
        return replace(request, params=replace(request.params, seed=seed), hints=hints)


_current: ContextVar[_Group | None] = ContextVar("sgl_dspy_candidates", default=None)


@contextmanager
def candidate_group(size: int, rollout: object) -> Iterator[None]:
    """Inside, attempts at one request are the ``size`` candidates of one call.

    Args:
        size: DSPy's ``n``.
        rollout: DSPy's ``rollout_id``; with a seed, each rollout has candidates of its own.
    """
    group = _Group(size, rollout)
    token = _current.set(group)
    try:
        yield
    finally:
        _current.reset(token)
        group.close()


@contextmanager
def attempt(asked: object, request: GenRequest, backend: Backend) -> Iterator[Handle[GenResult]]:
    """One attempt at one candidate; leaving it early aborts it.

    Args:
        asked: DSPy's request, whose identity tells attempts of one call from others.
        request: the same, lowered.
        backend: where it runs.
    """
    group = _current.get()
    if group is None or not group.is_for(asked):
        group = _Group(1)
    handle = group.begin(asked, request, backend)
    try:
        yield handle
    except BaseException:
        group.give_up()
        raise
    group.succeed()


def candidate_seed(seed: int | None, rollout: object, index: int) -> int | None:
    """The seed of a candidate: none without a seed, the seed itself for the first one, and a digest for all others."""
    if seed is None or (index == 0 and rollout is None):
        return seed
    digest = hashlib.blake2b(f"{seed} {rollout} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)
