"""The scheduler: who runs in the next step, on which slots; a pure step without torch, clock or model.

``schedule()`` gives a plan, the runner runs it, ``update()`` takes the result back and says what happened. The scheduler
owns the running requests and, through its waiting queue and its memory, the waiting ones and all slots. The engine thread
alone calls it.

- A prompt enters the tree when it is *scheduled*: requests that are admitted later in the same step match it and ride
  along, because a step stores all new keys before it attends. While a long prompt is prefilled in chunks nobody is
  admitted, so nobody can compute its prefix a second time.
- Admission promises what requests are expected to use, not what they might. When slots run out all the same, the request
  that came last goes back to the queue with its output, and its KV stays in the tree while there is room.
- A prefetch for idle times takes part in a step only when nobody waits, and gives everything back behind it.
- A step that raises is taken apart: all of its requests go back to the queue and are tried alone, and the one that fails
  alone ends with the error.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from sgl_core.errors import DeadlineExceeded, EngineStepError, PoolExhaustedError
from sgl_core.runtime.allocator import SlotAllocator
from sgl_core.runtime.growth import GrowthEstimate
from sgl_core.runtime.memory import KVMemory
from sgl_core.runtime.metrics import CacheMiss, Counters, EngineStats
from sgl_core.runtime.plan import Finished, Progress, Sample, StepPlan, StepResult
from sgl_core.runtime.prefetching import IdlePrefetches, idle_budget
from sgl_core.runtime.radix_cache import RadixCache
from sgl_core.runtime.request import LONGEST_JUMP, Kind, Request, State
from sgl_core.runtime.sharing import find_shared_prefixes
from sgl_core.runtime.span import Span, next_span, work_of
from sgl_core.runtime.taking import take
from sgl_core.runtime.waiting import WaitingQueue
from sgl_core.types import FinishReason

__all__ = ["Scheduler", "SchedulerOptions"]

_log = logging.getLogger(__name__)

_REPORTED_MISSES = 16


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """What comparisons and tenants change; see ``sgl_core.config.EngineConfig`` for the meanings.

    Args:
        seed: of the random policy.
    """

    in_flight_sharing: bool = True
    cascade: bool = True
    cache_levels: int | None = None
    namespace_quota_tokens: int | None = None
    seed: int = 0


class Scheduler:
    """Decides every step.

    Args:
        num_slots: size of the KV pool, one token a slot.
        max_running: requests in one batch.
        chunk_tokens: prompt tokens a step at most; decodes come on top.
        policy: see ``sgl_core.config.POLICIES``.
        options: None is the defaults.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        max_running: int,
        chunk_tokens: int,
        policy: str,
        options: SchedulerOptions | None = None,
    ) -> None:
        options = options or SchedulerOptions()
        tree = RadixCache(quota_tokens=options.namespace_quota_tokens)
        self._waiting = WaitingQueue(policy, tree, options.seed)
        self.memory = KVMemory(tree, SlotAllocator(num_slots), self._waiting, max_levels=options.cache_levels)
        self._prefetches = IdlePrefetches(self.memory)
        self.counters = Counters()
        self._options = options
        self._max_running = max_running
        self._chunk_tokens = chunk_tokens
        self._growth = GrowthEstimate()
        self._running: dict[str, Request] = {}
        # Tried alone after a step of theirs raised, until they have run up to the token where that step ended.
        self._suspects: dict[str, tuple[Request, int]] = {}
        self._ended: list[Finished] = []
        self._misses: deque[CacheMiss] = deque(maxlen=_REPORTED_MISSES)
        self._free_rows = list(range(max_running - 1, -1, -1))
        self._arrivals = 0

    @property
    def tree(self) -> RadixCache:
        """The prefix cache."""
        return self.memory.tree

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Nothing runs, nothing waits, and all ends were collected."""
        return not (self._waiting or self._running or self._prefetches or self._ended)

    # ---- the queue ---------------------------------------------------------------------------------------------------
    def add(self, request: Request, *, at_once: bool = False) -> None:
        """Queue a request; ``at_once``: before all others. It must fit the pool on its own (the engine checks that)."""
        request.arrival = self._arrivals
        self._arrivals += 1
        if not request.when_idle:
            self._waiting.add(request, at_once=at_once)
        elif not self._prefetches.add(request):
            self._end_quietly([request])

    def abort(self, request_id: str) -> Finished | None:
        """End a request with what it has; None if it is not here any more."""
        request = self._waiting.get(request_id) or self._running.get(request_id) or self._prefetches.get(request_id)
        if request is None:
            return None
        return self._finish(request, FinishReason.ABORT)

    def expire(self, now: float) -> list[Finished]:
        """End every request whose deadline has passed, prefetches for idle times without an error; let expired pins go."""
        self.memory.expire_pins(now)
        late = [r for r in self._running.values() if r.deadline is not None and r.deadline <= now]
        late += self._waiting.late(now)
        ends = [self._finish(r, FinishReason.STOP) for r in self._prefetches.expire(now)]
        error = "timeout_s passed before the request was done"
        return ends + [self._finish(r, None, error=DeadlineExceeded(error)) for r in late]

    def fail_all(self, error: Exception) -> list[Finished]:
        """End every request with one error."""
        return [self._finish(r, None, error=error) for r in list(self._requests())]

    def retract(self, request_id: str) -> bool:
        """Send a running request back to the queue, where its turn is now; False if it does not run."""
        request = self._running.get(request_id)
        if request is not None:
            self._retract(request)
        return request is not None

    def collect(self) -> list[Finished]:
        """Take the requests that ended inside ``schedule``."""
        ended, self._ended = self._ended, []
        return ended

    def flush(self) -> None:
        """Drop every cached prefix that no running request uses and no pin keeps."""
        self.memory.flush()

    def check_pin(self, num_tokens: int, now: float) -> None:
        """Whether so many tokens more may be pinned.

        Raises:
            PoolExhaustedError: pins would hold more than half of the pool.
        """
        self.memory.expire_pins(now)
        if not self.memory.may_pin(num_tokens):
            raise PoolExhaustedError(
                f"pin: {num_tokens} tokens on top of the {self.memory.pinned_tokens} pinned ones exceed "
                f"{self.memory.most_pinned_tokens}, half of the KV pool; unpin something or raise cache_tokens"
            )

    def unpin(self, number: int, now: float) -> bool:
        """Let a pinned prefix be evicted in its turn; False if there is no such pin any more."""
        self.memory.expire_pins(now)
        return self.memory.unpin(number)

    def _requests(self) -> Iterator[Request]:
        return chain(self._running.values(), self._waiting, self._prefetches)

    # ---- a step ------------------------------------------------------------------------------------------------------
    def schedule(self, now: float) -> StepPlan | None:
        """Choose what runs now: all decodes, then prompts up to the chunk, running ones before new ones.

        Args:
            now: seconds on the caller's clock, for the requests' timings.

        Returns:
            The plan, whose slots are allocated and whose prefixes are locked; None if nothing can run. Requests that could
            not be given slots because of an error have ended: ``collect`` them.
        """
        if self._suspects:
            spans = self._one_suspect(now)
        else:
            self._make_way()
            spans = self._continue_running()
            self._admit(spans, now)
            self._use_what_is_left(spans, now)
        if not spans:
            return None
        self.counters.num_steps += 1
        ends = [(span.request.node if self._options.cascade else None, span.start) for span in spans]
        shared, covered = find_shared_prefixes(ends)
        works = tuple(work_of(span, shared_len) for span, shared_len in zip(spans, covered, strict=True))
        return StepPlan(works, shared)

    def update(self, plan: StepPlan, result: StepResult, now: float) -> list[Progress | Finished]:
        """Take a step's result back; returns what happened, in the plan's order."""
        events: list[Progress | Finished] = []
        for work, error in zip(plan.works, result.errors, strict=True):
            if error is not None:  # all of them before any other keeps what it has below
                self.memory.hold_spoiled(work.request, work.request.attached_len)
        for index, work in enumerate(plan.works):
            request = work.request
            self.counters.ran(request, work.start, work.end)
            request.computed_len = work.end
            error = result.errors[index]
            if request.when_idle:
                events += self._step_aside(request, work.end, error, keep=not any(result.errors))
                continue
            if error is not None:
                events.append(self._finish(request, None, error=error, keep=False))
                continue
            if not self._options.in_flight_sharing:
                self._publish_computed(request)
            request.logprobs.extend(result.scored[index])
            if work.end == len(request.ids):
                events.extend(self._complete(request, result.samples[index], now))
            if request.id in self._suspects and work.end >= self._suspects[request.id][1]:
                del self._suspects[request.id]
                self._retract(request)  # it has stood the test; the others need the room for theirs
        self.memory.drop_spoiled()
        return events

    def fail_step(self, plan: StepPlan, error: Exception) -> list[Finished]:
        """A step raised: what it should have computed is forgotten, and if it ran one request only, that one ends.

        Several go back to the queue, and the next steps try each of them alone.
        """
        works = [work for work in plan.works if not work.request.when_idle]
        for prefetch in [work.request for work in plan.works if work.request.when_idle]:
            prefetch.state = State.WAITING
            self._release(prefetch, keep=False)
            if works:  # it is not worth trying alone
                self._prefetches.drop(prefetch)
                self._end_quietly([prefetch])
        for work in works:
            self.memory.hold_spoiled(work.request, work.start)
        if len(plan.works) == 1:
            failed = [self._finish(plan.works[0].request, None, error=error, keep=False)]
        else:
            failed = []
            for request in list(self._running.values()):
                self._retract(request)
            self._suspects.update((work.request.id, (work.request, work.end)) for work in works)
        self.memory.drop_spoiled()
        return failed

    def _publish_computed(self, request: Request) -> None:
        """Where prompts do not enter the tree when they are scheduled."""
        try:
            self.memory.publish(request, min(request.computed_len, request.prompt_len))
            self.memory.announce(request)
        except Exception:
            _log.exception("a request's KV could not be shared")

    # ---- running requests --------------------------------------------------------------------------------------------
    def _continue_running(self) -> list[Span]:
        """What running requests do next, with slots for it; retracts until there is room."""
        while True:
            spans = self._running_spans()
            wanted = sum(span.end - len(span.request.slots) for span in spans)
            if wanted <= self.memory.available:
                break
            if len(self._running) > 1 or not self.memory.yield_pin():
                self._growth.retracted()
                self._end_quietly(self._prefetches.drop_all())
                self._retract(self._last_in_rank())
        with contextlib.suppress(Exception):  # where it fails again, growing tells whose slots were lacking
            self.memory.make_room(wanted)
        return [span for span in spans if self._grow(span)]

    def _make_way(self) -> None:
        """Retract running requests for a waiting one of higher priority, if that gets it a row and room in this step."""
        top = self._waiting.top_priority
        lower = [] if top is None else [r for r in self._running.values() if r.priority < top]
        if not lower or (request := self._waiting.best()) is None:
            return
        unrun = sum(len(r.ids) - r.computed_len for r in self._running.values() if r.is_prefilling and r not in lower)
        others = self._promised() - sum(map(self._growth.expected_slots, lower))
        gained = sum(len(r.slots) for r in lower)  # at most, as they may share some
        if unrun >= self._chunk_tokens or not self._fits(request, others - gained):
            return
        while lower and not (self._free_rows and self._fits(request, self._promised())):
            last = self._last_in_rank()
            lower.remove(last)
            self._retract(last)

    def _left_of_chunk(self, spans: list[Span]) -> int:
        return self._chunk_tokens - sum(s.end - s.start for s in spans if s.request.is_prefilling)

    def _promised(self) -> int:
        """Slots that running requests are expected to ask for."""
        return sum(map(self._growth.expected_slots, self._running.values()))

    def _fits(self, request: Request, promised: int) -> bool:
        return self.memory.fits(request, self._growth.expected_slots(request), promised)

    def _last_in_rank(self) -> Request:
        """The running request of the lowest priority that came last."""
        return min(self._running.values(), key=lambda r: (r.priority, -r.arrival))

    def _running_spans(self) -> list[Span]:
        spans, prefills, budget = [], [], self._chunk_tokens
        for request in self._running.values():
            if request.is_prefilling:
                prefills.append(request)
            else:
                spans.append(next_span(request, LONGEST_JUMP, table_start=request.computed_len))
        for request in prefills:
            if budget > 0:
                span = next_span(request, budget, table_start=request.computed_len)
                budget -= span.end - span.start
                spans.append(span)
        return spans

    def _grow(self, span: Span) -> bool:
        """Give a span its slots; a request for which that fails ends, and only that one."""
        try:
            self.memory.grow(span.request, span.end, publish=self._options.in_flight_sharing)
            self.memory.announce(span.request)
        except Exception as error:
            self._end_unscheduled(span.request, error)
            return False
        return True

    def _retract(self, request: Request) -> None:
        """From running back to waiting; its computed tokens go to the tree, from where it takes what is left later."""
        self.counters.num_retractions += 1
        del self._running[request.id]
        self._release(request, keep=True)
        request.state = State.WAITING
        request.computed_len = 0
        if request.branches is not None:
            request.logprobs.clear()  # its nodes run again
        self._waiting.add(request, at_once=True)

    # ---- admission ---------------------------------------------------------------------------------------------------
    def _admit(self, spans: list[Span], now: float) -> None:
        """Add spans of waiting requests, in the policy's order, until the chunk, the rows or the slots are used up."""
        budget, promised = self._left_of_chunk(spans), self._promised()
        while budget > 0 and self._free_rows and (request := self._waiting.best()) is not None:
            try:
                admitted = self._try_admission(request, promised, now)
            except Exception as error:
                self._end_unscheduled(request, error)
                continue
            if not admitted and (self._running or not self.memory.yield_pin()):
                break
            if admitted:
                span = next_span(request, budget, table_start=0)
                if self._grow(span):
                    budget -= span.end - span.start
                    spans.append(span)
                    promised += self._growth.expected_slots(request)

    def _use_what_is_left(self, spans: list[Span], now: float) -> None:
        """Add a span of a prefetch for idle times, if nobody waits and there is a row, and part of the chunk, for it."""
        budget = idle_budget(self._chunk_tokens, self._left_of_chunk(spans), is_alone=not spans)
        while budget > 0 and self._free_rows and not self._waiting and (request := self._prefetches.first()) is not None:
            try:
                end = self._prefetches.begin(request, budget, self._promised())
            except Exception as error:
                self._end_unscheduled(request, error)
                continue
            if end is None:
                self._end_quietly([request])
                continue
            request.row = self._free_rows.pop()
            request.state = State.RUNNING
            request.admitted_at = request.admitted_at or now
            self.counters.attached(request)
            spans.append(Span(request, request.computed_len, end, table_start=0))
            return

    def _step_aside(self, request: Request, end: int, error: Exception | None, *, keep: bool) -> list[Progress | Finished]:
        """A prefetch for idle times gives everything back behind a step; what it computed stays in the tree if ``keep``.

        A row with an error may have written KV that another one read in the same step.
        """
        request.state = State.WAITING
        self._release(request, keep=keep)
        if error is not None:
            return [self._finish(request, None, error=error)]
        if keep and self._prefetches.ran(request, end):
            return [self._finish(request, FinishReason.STOP)]
        return []

    def _end_quietly(self, prefetches: list[Request]) -> None:
        """Prefetches that are over: they end with what was done."""
        self._ended += [self._finish(request, FinishReason.STOP) for request in prefetches]

    def _one_suspect(self, now: float) -> list[Span]:
        """What the next request to try alone runs. Nothing else holds slots meanwhile, so only a pin can be in its way."""
        for request, _ in list(self._suspects.values()):
            if request.state is State.RUNNING:
                span = next_span(request, self._chunk_tokens, table_start=request.computed_len)
            else:
                try:
                    while not self._try_admission(request, 0, now):
                        if not self.memory.yield_pin():
                            raise EngineStepError("a request that ran before does not fit the empty KV pool")
                except Exception as error:
                    self._end_unscheduled(request, error)
                    continue
                span = next_span(request, self._chunk_tokens, table_start=0)
            if self._grow(span):
                return [span]
        return []

    def _try_admission(self, request: Request, promised: int, now: float) -> bool:
        """Move a request from waiting to running, its cached prefix locked, if there is room."""
        if not self._fits(request, promised):
            return False
        continuations = self.memory.attach(request)
        request.computed_len = request.attached_len = request.tree_len
        request.row = self._free_rows.pop()
        request.state = State.RUNNING
        self._waiting.remove(request, admitted=True)
        self._running[request.id] = request
        if request.group is not None and request.group.leader is None:
            request.group.leader = request
        if not request.admitted_at:
            request.admitted_at = now
            request.found_len = request.attached_len
            self._note_miss(request, continuations)
            self._end_quietly(self._prefetches.admitted(request))
        self.counters.attached(request)
        return True

    def _note_miss(self, request: Request, continuations: tuple[int, ...]) -> None:
        """Remember where a prompt left the cache; of a scoring's requests the first speaks for all."""
        cached = request.attached_len
        if request.is_scoring_prompt and self.tree.peek_prefix_len(request.ids, namespace=request.namespace) > cached:
            return  # the cache goes on; it runs again for its log-probabilities
        if request.use_tree and cached < request.match_limit and (request.group is None or request.group.leader is request):
            miss = CacheMiss(request.id, request.prompt_len, cached, request.ids[cached], continuations)
            self._misses.append(miss)

    # ---- ends --------------------------------------------------------------------------------------------------------
    def _complete(self, request: Request, samples: tuple[Sample, ...], now: float) -> list[Progress | Finished]:
        """All tokens of a request have run; the samples are its next token and the first of each follower."""
        if not samples:
            return [self._finish(request, FinishReason.STOP)]
        if not request.first_token_at:
            self.memory.keep_prompt_scores(request)
        followers, request.followers = request.followers, []
        for follower in followers:  # all wait before the first may end: what they share is kept for them
            self._follow(follower, request)
        events = []
        for each, sample in zip([request, *followers], samples, strict=True):
            events += self._take(each, sample, now)
        return events

    def _follow(self, follower: Request, leader: Request) -> None:
        """Queue a request whose first token comes from another one's logits; it finds its prompt cached."""
        follower.admitted_at = leader.admitted_at
        follower.found_len = follower.prompt_len
        follower.logprobs = leader.logprobs[: follower.submitted_len - follower.logprobs_from]
        self.counters.followed(follower)
        self.add(follower, at_once=True)

    def _take(self, request: Request, sample: Sample, now: float) -> list[Progress | Finished]:
        if not request.first_token_at:
            request.first_token_at = now
        taken = take(request, sample, self.counters)
        end = taken.end
        if end is None:
            return [*taken.progress]
        return [*taken.progress, self._finish(request, end.reason, matched_stop=end.matched_stop, error=end.error)]

    def _end_unscheduled(self, request: Request, cause: Exception) -> None:
        error = EngineStepError(f"this request could not be given slots: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        self.memory.hold_spoiled(request, request.computed_len)
        self._ended.append(self._finish(request, None, error=error, keep=False))
        self.memory.drop_spoiled()

    def _finish(
        self,
        request: Request,
        reason: FinishReason | None,
        *,
        matched_stop: str | int | None = None,
        error: Exception | None = None,
        keep: bool = True,
    ) -> Finished:
        self._suspects.pop(request.id, None)
        if request.state is State.RUNNING:
            del self._running[request.id]
            node, hints = request.node, request.hints
            self._release(request, keep=keep and not hints.last_use)
            if hints.last_use and hints.keep_len is not None:
                self.memory.forget(node, max(request.found_len, hints.keep_len))
        elif request.when_idle:
            self._prefetches.remove(request)
        else:
            self._waiting.remove(request)
        request.state = State.FINISHED
        followers, request.followers = request.followers, []
        for follower in followers:  # those that never got a token share its fate
            follower.state = State.FINISHED
            self._count_end(follower, reason)
            self._ended.append(Finished(follower, reason, matched_stop, error))
        if reason not in (None, FinishReason.ABORT) and request.kind is Kind.GENERATE:
            self._growth.ended(request)
        self._count_end(request, reason)
        return Finished(request, reason, matched_stop, error)

    def _count_end(self, request: Request, reason: FinishReason | None) -> None:
        if reason is None:
            self.counters.num_failed += 1
        elif not request.is_replay:
            self.counters.num_finished += 1
            self.counters.num_aborted += reason is FinishReason.ABORT

    def _release(self, request: Request, *, keep: bool) -> None:
        self._free_rows.append(request.row)
        request.row = -1
        try:
            self.memory.release(request, keep=keep)
        except Exception:  # its KV is lost to others, its result is not
            _log.exception("a request's KV could not be kept")

    # ---- what others may know ----------------------------------------------------------------------------------------
    def stats(self) -> EngineStats:
        """A snapshot of all counts."""
        return EngineStats(
            **{name: getattr(self.counters, name) for name in Counters.__slots__},
            evicted_tokens=self.memory.evicted_tokens,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            pool_tokens=self.memory.allocator.num_slots,
            free_tokens=self.memory.allocator.free_count,
            evictable_tokens=self.tree.evictable_size,
            protected_tokens=self.tree.protected_size,
            pinned_tokens=self.memory.pinned_tokens,
            prefetch_useful=self._prefetches.num_useful,
            prefetch_late=self._prefetches.num_late,
            prefetch_dropped=self._prefetches.num_dropped,
            misses=tuple(self._misses),
        )

    def reset_counters(self) -> None:
        """Start counting anew."""
        self.counters = Counters()
        self.memory.evicted_tokens = 0
        self._prefetches.reset_counters()
        self._misses.clear()

    def check_invariants(self) -> None:
        """Assert that every slot has one owner, every lock a holder, and every request one place.

        Raises:
            AssertionError: with the first invariant of reliability that does not hold.
        """
        self._prefetches.check_invariants()
        running = [*self._running.values(), *(r for r in self._prefetches if r.state is State.RUNNING)]
        self.memory.check_invariants(running)
        for request in self._running.values():
            assert request.state is State.RUNNING, "a running request is in another state"
        for request in self._waiting:
            assert request.state is State.WAITING, "a waiting request is in another state"
            assert not request.slots, "a waiting request holds slots"
            assert request.node is None, "a waiting request locks a prefix"
            assert request.id not in self._running, "a request runs and waits"
        assert all(r.state is not State.FINISHED for r, _ in self._suspects.values()), "a suspect has ended"
        rows = [r.row for r in running]
        assert sorted(rows + self._free_rows) == list(range(self._max_running)), "rows leaked"
