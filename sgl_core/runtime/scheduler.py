"""The scheduler: who runs in the next step, on which slots; a pure step without torch, clock or model.

``schedule()`` gives a plan, the runner runs it, ``update()`` takes the result back and says what happened. The scheduler
owns the waiting and running requests; the tree and the allocator are its own too, so every slot has one owner at any time:
free (allocator), cached (tree) or private (a request). The engine thread alone calls it.

A prompt enters the tree when it is *scheduled*, not when it is done: requests that are admitted later in the same step
match it and ride along, because a step stores all new keys before it attends. A request whose prefix another one is still
prefilling in chunks waits for it instead of computing it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum

from sgl_core.errors import DeadlineExceeded
from sgl_core.runtime.allocator import SlotAllocator
from sgl_core.runtime.metrics import Counters, EngineStats
from sgl_core.runtime.plan import Finished, Progress, StepPlan, StepResult, Work
from sgl_core.runtime.policy import make_policy
from sgl_core.runtime.radix_cache import RadixCache, common_prefix_len
from sgl_core.runtime.request import Kind, Request, State
from sgl_core.runtime.sharing import find_shared_prefixes
from sgl_core.types import FinishReason

__all__ = ["Scheduler"]


class _Admission(Enum):
    ADMITTED = "admitted"
    AWAITS_PREFIX = "another request is computing its prefix"
    NO_ROOM = "no room"


class Scheduler:
    """Decides every step.

    Args:
        num_slots: size of the KV pool, one token a slot.
        max_running: requests in one batch.
        chunk_tokens: prompt tokens a step at most; decodes come on top.
        policy: see ``sgl_core.config.POLICIES``.
    """

    def __init__(self, num_slots: int, *, max_running: int, chunk_tokens: int, policy: str) -> None:
        self.tree = RadixCache()
        self.allocator = SlotAllocator(num_slots)
        self.counters = Counters()
        self._max_running = max_running
        self._chunk_tokens = chunk_tokens
        self._order = make_policy(policy)
        self._waiting: dict[str, Request] = {}
        self._running: dict[str, Request] = {}
        self._free_rows = list(range(max_running - 1, -1, -1))
        self._arrivals = 0

    # ---- the queue ---------------------------------------------------------------------------------------------------
    def add(self, request: Request) -> None:
        """Queue a request. It must fit the pool on its own (the engine checks that at submit)."""
        request.arrival = self._arrivals
        self._arrivals += 1
        self._waiting[request.id] = request

    def abort(self, request_id: str) -> Finished | None:
        """End a request with what it has; None if it is not here any more."""
        request = self._waiting.get(request_id) or self._running.get(request_id)
        if request is None:
            return None
        self.counters.num_aborted += 1
        return self._finish(request, FinishReason.ABORT)

    def expire(self, now: float) -> list[Finished]:
        """End every request whose deadline has passed."""
        late = [r for r in self._requests() if r.deadline is not None and r.deadline <= now]
        return [self._finish(r, None, error=DeadlineExceeded("timeout_s passed before the request was done")) for r in late]

    def fail_all(self, error: Exception) -> list[Finished]:
        """End every request with one error."""
        return [self._finish(r, None, error=error) for r in list(self._requests())]

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._waiting and not self._running

    def _requests(self) -> Iterator[Request]:
        yield from self._running.values()
        yield from self._waiting.values()

    # ---- a step ------------------------------------------------------------------------------------------------------
    def schedule(self, now: float) -> StepPlan | None:
        """Choose what runs now: all decodes, then prompts up to the chunk, running ones before new ones.

        Args:
            now: seconds on the caller's clock, for the requests' timings.

        Returns:
            The plan, whose slots are allocated and whose prefixes are locked; None if nothing can run.
        """
        spans = [(r, r.computed_len, r.target_len) for r in self._running.values() if r.num_generated]
        budget = self._chunk_tokens
        for request in self._running.values():
            if not request.num_generated and budget > 0:
                end = min(request.target_len, request.computed_len + budget)
                spans.append((request, request.computed_len, end))
                budget -= end - request.computed_len
        table_starts = [start for _, start, _ in spans]
        for request, _, end in spans:
            self._give_slots(request, end)
        for request in self._admissions():
            if budget <= 0:
                break
            admission = self._admit(request)
            if admission is _Admission.NO_ROOM:
                break
            if admission is _Admission.ADMITTED:
                request.admitted_at = now
                end = min(request.target_len, request.computed_len + budget)
                budget -= end - request.computed_len
                spans.append((request, request.computed_len, end))
                table_starts.append(0)
                self._give_slots(request, end)
        if not spans:
            return None
        self.counters.num_steps += 1
        shared, covered = find_shared_prefixes([(r.node, start) for r, start, _ in spans])
        works = tuple(
            Work(r, start, end, table_start, shared_len, sample=end == r.target_len and r.kind is Kind.GENERATE)
            for (r, start, end), table_start, shared_len in zip(spans, table_starts, covered, strict=True)
        )
        return StepPlan(works, shared)

    def update(self, plan: StepPlan, result: StepResult, now: float) -> list[Progress | Finished]:
        """Take a step's result back; returns what happened, in the plan's order."""
        events: list[Progress | Finished] = []
        for index, work in enumerate(plan.works):
            request = work.request
            request.computed_len = work.end
            error = result.errors[index]
            if error is not None:
                events.append(self._finish(request, None, error=error))
                continue
            request.logprobs.extend(result.logprobs[index])
            if work.end < request.target_len:
                continue
            token = result.tokens[index]
            if token is None:
                events.append(self._finish(request, FinishReason.STOP))
            else:
                events.extend(self._take_token(request, token, now))
        return events

    def fail_step(self, plan: StepPlan, error: Exception) -> list[Finished]:
        """A step raised: end its requests, and forget all KV that nobody else holds, as this step's was never computed."""
        failed = [self._finish(work.request, None, error=error, keep=False) for work in plan.works]
        self.flush()
        return failed

    def flush(self) -> None:
        """Drop every cached prefix that no running request uses."""
        self.allocator.free(self.tree.reset())

    # ---- admission ---------------------------------------------------------------------------------------------------
    def _admissions(self) -> list[Request]:
        if not self._waiting or not self._free_rows:
            return []
        return self._order(self._waiting.values(), self.tree)

    def _admit(self, request: Request) -> _Admission:
        """Try to move one request from waiting to running: match, lock, then check the room for its whole life."""
        if not self._free_rows:
            return _Admission.NO_ROOM
        matched: list[int] = []
        node = None
        if request.use_tree:
            match = self.tree.match_prefix(request.ids, namespace=request.namespace, limit=request.match_limit)
            matched, node = match.slots, match.node
            if self._is_being_computed(request, len(matched)):
                return _Admission.AWAITS_PREFIX
            self.tree.inc_lock_ref(node)
        request.slots, request.node, request.tree_len = matched, node, len(matched)
        promised = sum(r.remaining_slots for r in self._running.values())
        room = self.allocator.free_count + self.tree.evictable_size - promised
        if request.remaining_slots > room:
            if node is not None:
                self.tree.dec_lock_ref(node)
            request.slots, request.node, request.tree_len = [], None, 0
            return _Admission.NO_ROOM
        request.computed_len = request.cached_len = len(matched)
        request.row = self._free_rows.pop()
        request.state = State.RUNNING
        del self._waiting[request.id]
        self._running[request.id] = request
        for other in self._waiting.values():
            other.overtaken += other.arrival < request.arrival
        self._count_admission(request)
        return _Admission.ADMITTED

    def _is_being_computed(self, request: Request, matched: int) -> bool:
        """Whether a running request has yet to prefill tokens of this request's prefix beyond ``matched``."""
        for leader in self._running.values():
            unfinished = leader.use_tree and len(leader.slots) < leader.target_len and not leader.num_generated
            if unfinished and leader.namespace == request.namespace:
                common = min(common_prefix_len(leader.ids, request.ids), leader.target_len, request.match_limit)
                if common > max(matched, len(leader.slots)):
                    return True
        return False

    def _count_admission(self, request: Request) -> None:
        counters, cached = self.counters, request.cached_len
        if request.kind is Kind.PREFETCH:
            counters.prefetched_tokens += request.prompt_len - cached
            return
        prompt = request.prompt_len
        if request.group is not None:
            if request.group.leader is not None:
                counters.scored_tokens += request.target_len - cached
                return
            request.group.leader = request
            prompt = request.score_from
            counters.scored_tokens += request.target_len - prompt
        counters.prompt_tokens += prompt
        counters.cached_tokens += cached
        counters.prefilled_tokens += prompt - cached

    def _count_unrun(self, request: Request) -> None:
        """Take back what admission counted and a request that ends early never ran."""
        counters = self.counters
        unrun = max(0, request.target_len - request.computed_len) if not request.num_generated else 0
        if request.kind is Kind.PREFETCH:
            counters.prefetched_tokens -= unrun
        elif request.group is not None:
            prompt = max(0, request.score_from - request.computed_len) if request.group.leader is request else 0
            counters.scored_tokens -= unrun - prompt
            counters.prefilled_tokens -= prompt
            counters.cached_tokens += prompt
        else:
            counters.prefilled_tokens -= unrun
            counters.cached_tokens += unrun
            request.cached_len += unrun

    # ---- slots -------------------------------------------------------------------------------------------------------
    def _give_slots(self, request: Request, end: int) -> None:
        """Allocate slots up to ``end``, evicting if needed; prompt tokens join the tree at once."""
        wanted = end - len(request.slots)
        short = wanted - self.allocator.free_count
        if short > 0:
            evicted = self.tree.evict(short)
            self.counters.evicted_tokens += len(evicted)
            self.allocator.free(evicted)
        request.slots = request.slots + self.allocator.allocate(wanted)
        if request.use_tree and end <= request.prompt_len:
            self._publish(request, end)

    def _publish(self, request: Request, end: int) -> None:
        """Hand the leading ``end`` slots to the tree, unless it has part of them already (then they stay private)."""
        ids = request.ids[:end]
        if self.tree.peek_prefix_len(ids, namespace=request.namespace) > request.tree_len:
            return
        inserted = self.tree.insert(ids, request.slots, namespace=request.namespace)
        self.tree.inc_lock_ref(inserted.node)
        if request.node is not None:
            self.tree.dec_lock_ref(request.node)
        request.node, request.tree_len = inserted.node, end

    def _release(self, request: Request, *, keep: bool) -> None:
        """Give everything back: computed tokens to the tree, the rest to the allocator."""
        kept = request.tree_len
        if request.use_tree and keep and request.computed_len > kept:
            done = request.computed_len
            inserted = self.tree.insert(request.ids[:done], request.slots[:done], namespace=request.namespace)
            self.allocator.free(request.slots[kept : max(kept, inserted.present_len)])
            kept = done
        self.allocator.free(request.slots[kept:])
        if request.node is not None:
            self.tree.dec_lock_ref(request.node)
        request.slots, request.node, request.tree_len = [], None, 0
        self._free_rows.append(request.row)
        request.row = -1

    # ---- ends --------------------------------------------------------------------------------------------------------
    def _take_token(self, request: Request, token: int, now: float) -> list[Progress | Finished]:
        self.counters.generated_tokens += 1
        if not request.num_generated:
            request.first_token_at = now
        request.ids.append(token)
        if token in request.stop_ids:
            return [self._finish(request, FinishReason.STOP, matched_stop=token)]
        assert request.sink is not None, "a request that samples has a sink"
        try:
            text = request.sink.push(token)
        except Exception as error:  # one request's text must not end the others
            return [self._finish(request, None, error=error)]
        events: list[Progress | Finished] = [Progress(request, token, text)]
        if request.sink.matched_stop is not None:
            events.append(self._finish(request, FinishReason.STOP, matched_stop=request.sink.matched_stop))
        elif request.num_generated >= request.max_new_tokens:
            events.append(self._finish(request, FinishReason.LENGTH))
        return events

    def _finish(
        self,
        request: Request,
        reason: FinishReason | None,
        *,
        matched_stop: str | int | None = None,
        error: Exception | None = None,
        keep: bool = True,
    ) -> Finished:
        if request.state is State.RUNNING:
            del self._running[request.id]
            self._count_unrun(request)
            self._release(request, keep=keep)
        else:
            del self._waiting[request.id]
            request.cached_len = request.prompt_len  # no token was computed for it
        request.state = State.FINISHED
        if error is None:
            self.counters.num_finished += 1
        else:
            self.counters.num_failed += 1
        return Finished(request, reason, matched_stop, error)

    # ---- what others may know ----------------------------------------------------------------------------------------
    def stats(self) -> EngineStats:
        """A snapshot of all counts."""
        return EngineStats(
            **asdict(self.counters),
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            pool_tokens=self.allocator.num_slots,
            free_tokens=self.allocator.free_count,
            evictable_tokens=self.tree.evictable_size,
            protected_tokens=self.tree.protected_size,
        )

    def reset_counters(self) -> None:
        """Start counting anew."""
        self.counters = Counters()

    def check_invariants(self) -> None:
        """Assert that every slot has exactly one owner and that the locks are the running requests'.

        Raises:
            AssertionError: with the first invariant of reliability that does not hold.
        """
        self.tree.check_invariants()
        self.allocator.check_invariants()
        private = [slot for r in self._running.values() for slot in r.slots[r.tree_len :]]
        cached = [slot for node in self.tree.walk() for slot in node.slots]
        owned = private + cached
        assert len(owned) == len(set(owned)), "a slot has two owners"
        assert not any(self.allocator.is_free(slot) for slot in owned), "a slot in use is free"
        assert len(owned) + self.allocator.free_count == self.allocator.num_slots, "a slot has no owner"
        for request in self._running.values():
            if request.node is not None:
                assert request.node.path_len == request.tree_len, "a request's locked prefix is not its slot table's"
                table = [slot for node in request.node.path() for slot in node.slots]
                assert table == request.slots[: request.tree_len], "a slot table differs from the tree"
        rows = [r.row for r in self._running.values()]
        assert sorted(rows + self._free_rows) == list(range(self._max_running)), "rows leaked"
