"""The n candidates of one LM call, submitted together although DSPy asks for them one after the other.

``SglLM`` opens a group around a call; the engine's first attempt inside it submits every candidate, so that they ride on one
prefill and are decoded in one batch, and each later attempt takes the next. A retry repeats its own candidate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from sgl_core.backend import Handle
from sgl_core.errors import QueueFull
from sgl_core.types import SEED_BITS, GenResult, Hints
from sgl_dspy.running.flights import Flights
from sgl_dspy.running.leaving import leavable, raise_if_left

__all__ = ["Startable", "attempt", "candidate_group", "candidate_seed"]


class Startable(Protocol):
    """A request that is ready to be submitted, once for each candidate; ``calls.PreparedCall`` is one."""

    @property
    def seed(self) -> int | None:
        """What the caller wants candidates to be reproducible by."""

    @property
    def prompt_len(self) -> int:
        """Tokens that all candidates begin with."""

    def flight_key(self, seed: int | None) -> Hashable | None:
        """Equal for requests that have equal results with this seed; None where chance decides."""

    def start(self, seed: int | None, hints: Hints) -> Handle[GenResult]:
        """Submit it; never waits."""


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

    def begin(self, asked: object, call: Startable, flights: Flights) -> Handle[GenResult]:
        """The next candidate's handle; submits it and those behind it that are not under way."""
        self._asked = asked
        if self._was_refused(self._handles[self._next]):
            self._handles[self._next] = None  # a place was missing when it came along with others; now it is asked for itself
        for index in range(self._next, len(self._handles)):
            if self._handles[index] is None:
                try:
                    self._handles[index] = self._start(call, index, flights)
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

    @staticmethod
    def _was_refused(handle: Handle[GenResult] | None) -> bool:
        """Whether it found the queue full, which the engine says of the later requests of a reply when they come."""
        return handle is not None and handle.done() and isinstance(handle.error(), QueueFull)

    def _start(self, call: Startable, index: int, flights: Flights) -> Handle[GenResult]:
        seed = candidate_seed(call.seed, self._rollout, index)
        hints = Hints(siblings=len(self._handles) - 1 - index, shared_len=call.prompt_len)
        key = call.flight_key(seed)
        return call.start(seed, hints) if key is None else flights.join(key, lambda: call.start(seed, hints))


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
def attempt(asked: object, call: Startable, flights: Flights) -> Iterator[Handle[GenResult]]:
    """One attempt at one candidate; leaving it early aborts it.

    Args:
        asked: DSPy's request, whose identity tells attempts of one call from others.
        call: the same, ready to run.
        flights: what is under way on its backend.
    """
    group = _current.get()
    if group is None or not group.is_for(asked):
        group = _Group(1)
    raise_if_left()
    handle = group.begin(asked, call, flights)
    try:
        with leavable(handle):
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
