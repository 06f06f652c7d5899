"""A scheduler, an oracle and a clock, driven step by step from a test, which need not know how an engine's thread does it.

It owns the clock and the record of what happened: which requests came, what was streamed, how each ended.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from sgl_core.errors import DeadlineExceeded, EngineStepError, NumericsError, PoolExhaustedError
from sgl_core.runtime.choice_trie import build_tries
from sgl_core.runtime.plan import Finished, Progress, StepPlan, StepResult
from sgl_core.runtime.request import Kind, PinOrder, Request, ScoreGroup, State
from sgl_core.runtime.scheduler import Scheduler, SchedulerOptions
from sgl_core.testing.faults import PlantedFault
from sgl_core.testing.simulation.oracle import OracleRunner, oracle_continuation, oracle_score
from sgl_core.types import FinishReason, SamplingParams, TokenLogprob

__all__ = ["VOCAB", "Simulation", "TextSink", "tokens"]

VOCAB = 50
"""Tokens of the oracle; few, so that prompts meet by chance too."""


class TextSink:
    """Text of a token is its number and a space.

    Args:
        stop: ends the text at this token, as a stop string would.
        fails_at: raise instead of taking the token of this number, counted from 1.

    Attributes:
        taken: the tokens so far. ``has_failed``: it has raised.
    """

    def __init__(self, stop: int | None = None, fails_at: int | None = None) -> None:
        self.matched_stop: str | None = None
        self.taken: list[int] = []
        self.has_failed = False
        self._stop = stop
        self._fails_at = fails_at

    def push(self, token_id: int) -> str:
        """Take a token.

        Raises:
            RuntimeError: it is the one that was to fail.
        """
        if len(self.taken) + 1 == self._fails_at:
            self.has_failed = True
            raise RuntimeError("the sink was told to fail")
        self.taken.append(token_id)
        if token_id == self._stop:
            self.matched_stop = str(token_id)
        return f"{token_id} "


@lru_cache(maxsize=4096)
def _tokens(n: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(VOCAB), k=n))  # noqa: S311 - test data


def tokens(n: int, seed: int = 0) -> list[int]:
    """The first ``n`` tokens of the sequence number ``seed``: two lengths of one seed are prefixes of each other."""
    return list(_tokens(n, seed))


class Simulation:
    """A scheduler and an oracle, driven step by step; every invariant is checked after everything that happens.

    Args:
        num_slots, max_running, chunk_tokens, policy, options: the scheduler's.

    Attributes:
        scheduler, oracle: what is driven.
        now: the clock, in seconds; a step takes one.
        requests: by id, all that came. ``ends``: by id, how each ended. ``streamed``: by id, the tokens it was seen to get.
        poisoned: ids of requests that make every step they run in raise.
        tolerated: errors that any request may end with; else only the error that was planted for it counts as right.
        seen: how often the interesting things happened.
    """

    def __init__(
        self,
        num_slots: int = 400,
        *,
        max_running: int = 8,
        chunk_tokens: int = 64,
        policy: str = "lpm",
        options: SchedulerOptions = SchedulerOptions(),  # noqa: B008 - frozen
    ) -> None:
        """Start with an empty pool at time 0."""
        self.scheduler = Scheduler(
            num_slots, max_running=max_running, chunk_tokens=chunk_tokens, policy=policy, options=options
        )
        self.oracle = OracleRunner(num_slots, VOCAB)
        self.now = 0.0
        self.requests: dict[str, Request] = {}
        self.ends: dict[str, Finished] = {}
        self.streamed: dict[str, list[int]] = {}
        self.poisoned: set[str] = set()
        self.tolerated: tuple[type[Exception], ...] = ()
        self.seen: Counter[str] = Counter()
        self._planted: dict[str, Exception] = {}
        self._ran: dict[str, set[int]] = {}  # by id: positions that went through the model for it

    # ---- what can happen ---------------------------------------------------------------------------------------------
    def submit(self, prompt: Iterable[int], new: int = 4, *, name: str | None = None, **options: Any) -> Request:
        """Queue a request.

        Args:
            prompt: its ids. ``new``: its budget.
            name: its id; None counts from r0.
            options: fields of ``Request`` that differ from a greedy generation without stops.
        """
        fields = {"sink": TextSink(), "kind": Kind.GENERATE, "stop_ids": frozenset(), "params": SamplingParams(), **options}
        request_id = f"r{len(self.requests)}" if name is None else name
        request = Request(id=request_id, ids=list(prompt), max_new_tokens=new, submitted_at=self.now, **fields)
        for each in (request, *request.followers):
            assert each.id not in self.requests, f"{each.id} was submitted before"
            self.requests[each.id], self.streamed[each.id], self._ran[each.id] = each, [], set()
        self.scheduler.add(request)
        self.check()
        return request

    def submit_many(
        self, prompt: Sequence[int], new: int = 4, *, n: int, name: str | None = None, **options: Any
    ) -> list[Request]:
        """Queue ``n`` completions of one prompt: the first with the others as its followers."""
        first = f"r{len(self.requests)}" if name is None else name
        fields = {"kind": Kind.GENERATE, "stop_ids": frozenset(), "params": SamplingParams(), **options}
        followers = [
            Request(
                id=f"{first}-{i}", ids=[*prompt], max_new_tokens=new, submitted_at=self.now, **{**fields, "sink": TextSink()}
            )
            for i in range(1, n)
        ]
        return [self.submit(prompt, new, name=first, followers=list(followers), **options), *followers]

    def score(
        self,
        prompt: Sequence[int],
        continuations: Sequence[Sequence[int]],
        *,
        max_nodes: int = 1_000,
        name: str | None = None,
        **options: Any,
    ) -> list[Request]:
        """Queue a scoring; a request for each trie."""
        first, group = f"r{len(self.requests)}" if name is None else name, ScoreGroup()
        fields = {"kind": Kind.SCORE, "sink": None, "group": group, **options}
        return [
            self.submit(prompt, 0, name=f"{first}-{index}", branches=trie, **fields)
            for index, trie in enumerate(build_tries([tuple(c) for c in continuations], max_nodes))
        ]

    def step(self, *, raising: bool = False, bad_rows: Sequence[int] = ()) -> StepPlan | None:
        """One turn of the engine's loop.

        Args:
            raising: the forward pass raises, and leaves garbage where it was to write.
            bad_rows: rows of the batch (modulo its length) whose logits are bad.

        Returns:
            What ran; None if there was nothing to run.
        """
        self.now += 1.0
        late = self.scheduler.expire(self.now)
        if late:
            self.note(late)
            self.check()
        plan = self.scheduler.schedule(self.now)
        ended = self.scheduler.collect()
        self.note(ended)
        self.check()
        if plan is None:
            assert self.scheduler.is_idle or ended, "requests wait, nothing runs and nothing ends"
            return None
        try:
            result = self._run(plan, raising=raising)
        except PlantedFault as cause:
            self._fail(plan, cause)
        else:
            result = self._with_bad_rows(plan, result, bad_rows)
            for work in plan.works:
                self._ran[work.request.id].update(range(work.start, work.end))
            self.note(self.scheduler.update(plan, result, self.now))
        self.check()
        return plan

    def drain(self, limit: int = 2_000) -> int:
        """Step until nothing is left; returns the number of steps.

        Raises:
            AssertionError: it takes more than ``limit``.
        """
        steps = 0
        while not self.scheduler.is_idle:
            assert steps < limit, f"the queue does not drain in {limit} steps"
            self.step()
            steps += 1
        return steps

    def abort(self, request_id: str) -> Finished | None:
        """Abort whatever has this id; None if that was not here any more."""
        self.note(self.scheduler.collect())  # a prefetch may have been dropped as it came
        event = self.scheduler.abort(request_id)
        assert (event is None) == (request_id not in self.requests or request_id in self.ends), "an abort hit or missed wrongly"
        if event is not None:
            assert event.request.id == request_id, "an abort ended another request"
            assert event.reason is FinishReason.ABORT, "an abort is not the reason"
            self.note([event])
        self.check()
        return event

    def retract(self, request_id: str) -> bool:
        """Send a request back to the queue; False if it does not run."""
        done = self.scheduler.retract(request_id)
        self.seen["forced retractions"] += done
        self.check()
        return done

    def flush(self) -> None:
        """Drop everything that no running request uses."""
        self.scheduler.flush()
        assert self.scheduler.stats().evictable_tokens == 0, "a flush left something"
        self.check()

    def pin(self, ids: Sequence[int], seconds: float, *, namespace: str | None = None) -> int | None:
        """Pin some ids from now on if they are cached; returns the pin's number, None if they are not or pins hold too much."""
        cached = self.scheduler.tree.locate(ids, namespace=namespace) is not None
        order = PinOrder(self.now + seconds)
        try:
            self.scheduler.check_pin(len(ids), self.now)
        except PoolExhaustedError:
            self.seen["refused pins"] += 1
        else:
            if cached:
                self.scheduler.memory.pin(ids, namespace, order)
                self.seen["pins"] += 1
        self.check()
        return order.number

    def unpin(self, number: int) -> None:
        """End a pin, unless it has ended."""
        self.scheduler.unpin(number, self.now)
        self.check()

    def note(self, events: Iterable[Progress | Finished]) -> None:
        """Record events, as an engine delivers them; a step does it by itself.

        Raises:
            AssertionError: a request ends twice, or goes on after its end, or fails without a planted reason.
        """
        for event in events:
            request_id = event.request.id
            assert request_id not in self.ends, f"{request_id} has an event after its end"
            if isinstance(event, Progress):
                self.streamed[request_id].append(event.token_id)
                continue
            self.ends[request_id] = event
            if event.error is not None:
                assert self._is_due(event), f"{request_id} ended with {event.error!r}, which was not planted for it"
                self.seen["failed"] += 1
            elif event.reason is FinishReason.ABORT:
                self.seen["aborted"] += 1

    def check(self) -> None:
        """Assert the scheduler's invariants, and that it has somebody exactly as long as somebody has not ended."""
        self.scheduler.check_invariants()
        assert self.scheduler.is_idle == (len(self.requests) == len(self.ends)), "a request is neither here nor ended"

    # ---- what must be true at the end --------------------------------------------------------------------------------
    def assert_right(self, request: Request) -> None:
        """Assert that its text is the oracle's, whatever happened to it, and that it was streamed once and in order."""
        prompt, output = request.ids[: request.prompt_len], list(request.output_ids())
        expected = oracle_continuation(prompt, len(output), VOCAB, namespace=request.namespace)
        assert output == expected, f"{request.id} has another text"
        streamed, missing = self.streamed[request.id], len(output) - len(self.streamed[request.id])
        silent = _silent_tokens(self.ends.get(request.id))
        assert missing in silent, f"{request.id} has tokens that were not streamed, or too many"
        assert streamed == output[: len(streamed)], f"{request.id} was streamed another text"
        if isinstance(request.sink, TextSink):
            assert request.sink.taken == streamed, f"the sink of {request.id} took other tokens"

    def assert_nothing_leaked(self) -> None:
        """Assert that nothing is in use any more."""
        stats = self.scheduler.stats()
        assert stats.free_tokens + stats.evictable_tokens == stats.pool_tokens, "slots or locks leaked"

    def assert_all_ended_well(self) -> None:
        """Assert, once drained, that every request ended once and right, that nothing leaked and that the counts add up."""
        assert self.scheduler.is_idle, "something is left"
        assert self.ends.keys() == self.requests.keys(), "a request never ended"
        for request in self.requests.values():
            self.assert_right(request)
            _assert_complete(request, self.ends[request.id])
        self.assert_nothing_leaked()
        self.assert_accounts()

    def assert_accounts(self) -> None:
        """Assert that every token that ran was counted once, as what it was."""
        stats = self.scheduler.stats()
        assert stats.prompt_tokens == stats.cached_tokens + stats.prefilled_tokens, "a prompt token was neither cached nor run"
        writers = [r for r in self.requests.values() if r.num_generated]
        put_out = stats.generated_tokens + stats.jumped_tokens
        assert put_out == sum(r.num_generated for r in writers), "a generated token was not counted once"
        never_run = sum(p not in self._ran[r.id] for r in writers for p in range(r.prompt_len, len(r.ids)))
        assert self.oracle.computed_tokens == stats.total_computed_tokens - never_run, "a token that ran was not counted once"

    # ---- faults ------------------------------------------------------------------------------------------------------
    def _run(self, plan: StepPlan, *, raising: bool) -> StepResult:
        if raising or any(work.request.id in self.poisoned for work in plan.works):
            raise PlantedFault("the forward pass was told to fail")
        return self.oracle.run(plan)

    def _fail(self, plan: StepPlan, cause: PlantedFault) -> None:
        error = EngineStepError(f"the forward pass of this request's batch failed: {cause}")
        error.__cause__ = cause
        self.oracle.spoil(plan)
        self.seen["failed steps"] += 1
        if len(plan.works) == 1:
            request = plan.works[0].request
            self._planted.update((each.id, error) for each in (request, *request.followers))
        ends = self.scheduler.fail_step(plan, error)
        assert len(ends) == (len(plan.works) == 1), "a failed step ended several, or spared the only suspect"
        self.note(ends)

    def _with_bad_rows(self, plan: StepPlan, result: StepResult, bad_rows: Sequence[int]) -> StepResult:
        samples, scored, errors = list(result.samples), list(result.scored), list(result.errors)
        for index in {row % len(plan.works) for row in bad_rows}:
            error = NumericsError("the logits were told to be bad")
            samples[index], scored[index], errors[index] = (), (), error
            request = plan.works[index].request
            self._planted.update((each.id, error) for each in (request, *request.followers))
            self.seen["bad rows"] += 1
        return StepResult(tuple(samples), tuple(scored), tuple(errors))

    def _is_due(self, end: Finished) -> bool:
        """Whether the error it ended with was planted for it."""
        request, error = end.request, end.error
        if isinstance(error, DeadlineExceeded):
            return request.deadline is not None and request.deadline <= self.now
        if isinstance(error, self.tolerated) or error is self._planted.get(request.id):
            return True
        return isinstance(request.sink, TextSink) and request.sink.has_failed


def expected_scores(request: Request) -> list[TokenLogprob]:
    """What the oracle thinks of everything that a scoring asks for, in order."""
    trie, scores = request.branches, []
    assert trie is not None, "a scoring has a trie"
    for row, children in enumerate(trie.children):
        before = [*request.ids[: request.prompt_len], *(trie.tokens[node] for node in trie.path(row - 1))]
        scores += [oracle_score(before, token, namespace=request.namespace) for token in children]
    return scores


def _silent_tokens(end: Finished | None) -> tuple[int, ...]:
    """How many of its last tokens a request may not have streamed: a stop token never, one whose text failed not either."""
    if end is not None and isinstance(end.matched_stop, int):
        return (1,)
    return (0,) if end is None or end.error is None else (0, 1)


def _assert_complete(request: Request, end: Finished) -> None:
    """Assert that an ended request owns nothing and has what its kind of end promises."""
    assert request.state is State.FINISHED, f"{request.id} ended, its state says {request.state}"
    assert (request.slots, request.node, request.row) == ([], None, -1), f"{request.id} ended and owns something"
    if end.error is not None or end.reason is FinishReason.ABORT:
        return
    if request.params.prompt_logprobs:
        known = [oracle_score(request.ids[:i], request.ids[i], namespace=request.namespace) for i in range(1, len(request.ids))]
        assert request.logprobs == known, f"{request.id} has other log-probabilities"
    if request.kind is Kind.SCORE:
        assert request.logprobs == expected_scores(request), f"{request.id} has other scores"
    elif request.kind is Kind.GENERATE and end.reason is FinishReason.LENGTH:
        assert request.num_generated == request.max_new_tokens, f"{request.id} ended before its budget"
    elif request.kind is Kind.GENERATE:
        stopped = end.matched_stop if isinstance(end.matched_stop, int) else int(end.matched_stop or "-1")
        assert request.ids[-1] == stopped, f"{request.id} stopped at another token"
