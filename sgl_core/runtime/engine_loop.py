"""The engine thread: takes commands, steps, delivers. All torch work happens on it, loading included.

(A second thread that ran torch would get an OpenMP team of its own, and both would spin.) Commands are callables that run
between two steps, so nothing here needs a lock but the inbox's door.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from sgl_core.errors import EngineError, EngineShutdown, EngineStepError, QueueFull
from sgl_core.runtime.metrics import EngineStats
from sgl_core.runtime.model_runner import ModelRunner
from sgl_core.runtime.plan import Finished, Progress
from sgl_core.runtime.request import Request
from sgl_core.runtime.scheduler import Scheduler
from sgl_core.runtime.tickets import Ticket

__all__ = ["EngineLoop", "Machine"]

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the thread drives."""

    scheduler: Scheduler
    runner: ModelRunner


class EngineLoop:
    """Runs one machine on one thread until closed.

    Args:
        build: makes the machine, on the thread; its error is raised by ``start``.
    """

    def __init__(self, build: Callable[[], Machine]) -> None:
        self._build = build
        self._pid = os.getpid()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._door = threading.Lock()
        self._end: EngineError | None = None
        self._ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._tickets: dict[str, Ticket] = {}
        self._pending_adds = 0
        self._machine: Machine | None = None
        self._stats: EngineStats | None = None
        self._thread = threading.Thread(target=self._main, name="sgl-engine", daemon=True)

    # ---- from any thread ---------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the thread and wait until the machine is built."""
        self._thread.start()
        try:
            error = self._ready.get()
        except BaseException:  # an interrupt: nobody will ever hold this loop, so its thread must not outlive the wait
            self.close()
            raise
        if error is not None:
            self._thread.join()
            raise error

    def post(self, command: Callable[[], None]) -> None:
        """Run ``command`` on the engine thread, between two steps.

        Raises:
            EngineError: the engine is closed, dead, or the parent process's.
        """
        self._check_process()
        with self._door:
            self._check_open()
            self._inbox.put(command)

    def add(self, requests: list[Request], tickets: Mapping[str, Ticket], *, max_queued: int | None = None) -> None:
        """Queue requests.

        Args:
            tickets: by request id, where the events of these and of their followers go.
            max_queued: see below; None is no limit. Requests with ``when_idle`` are not counted.

        Raises:
            QueueFull: more than ``max_queued`` would wait. An empty queue takes any number that belongs together.
            EngineError: the engine is closed, dead, or the parent process's.
        """
        num_counted = sum(not request.when_idle for request in requests)

        def command() -> None:
            scheduler, started = self._running_machine.scheduler, time.perf_counter()
            self._tickets.update(tickets)
            for request in requests:
                scheduler.add(request)
            scheduler.counters.scheduling_s += time.perf_counter() - started
            with self._door:
                self._pending_adds -= num_counted

        self._check_process()
        with self._door:
            self._check_open()
            waiting = self.num_queued
            if num_counted and max_queued is not None and waiting and waiting + len(tickets) > max_queued:
                raise QueueFull(
                    f"max_queued={max_queued}: {waiting} requests wait already; try again later or raise max_queued"
                )
            self._pending_adds += num_counted
            self._inbox.put(command)

    def abort(self, request_ids: list[str]) -> None:
        """End requests soon; no effect on those that are done."""

        def command() -> None:
            for request_id in request_ids:
                event = self._running_machine.scheduler.abort(request_id)
                if event is not None:
                    self._deliver([event])

        try:
            self.post(command)
        except EngineError:
            return  # closed: everything has ended already

    def call(self, fn: Callable[[Machine], ValueT]) -> ValueT:
        """Run ``fn`` on the engine thread, between two steps, and return its value or raise its error.

        In a callback, which is on that thread between two steps already, it runs at once.
        """
        if threading.current_thread() is self._thread:
            value = fn(self._running_machine)
            self._snapshot()
            return value
        done: Future[ValueT] = Future()

        def command() -> None:
            try:
                done.set_result(fn(self._running_machine))
            except BaseException as error:  # it belongs to the caller, not to the engine
                done.set_exception(error)

        self.post(command)
        return done.result()

    @property
    def num_queued(self) -> int:
        """Requests that are not admitted yet."""
        machine = self._machine
        return self._pending_adds + (machine.scheduler.num_waiting if machine is not None else 0)

    def stats(self) -> EngineStats:
        """The snapshot of the last step; results are delivered after the snapshot that counts them."""
        assert self._stats is not None, "start() has returned"
        return self._stats

    def close(self) -> None:
        """End all requests with EngineShutdown and the thread with them; idempotent, and nothing in a forked child."""
        if os.getpid() != self._pid:
            return  # the thread is the parent's, and the locks may be held for ever
        with self._door:
            if self._end is None:
                self._end = EngineShutdown("the engine is closed")
                self._inbox.put(lambda: None)  # wakes the thread
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def check_may_wait(self) -> None:
        """Whether the calling thread may wait for a request.

        Raises:
            EngineError: it is the engine's own, in a callback: nothing would go on while it waits.
        """
        if threading.current_thread() is self._thread:
            raise EngineError(
                "a callback runs on the engine's thread and must not wait for a request; hand it to another thread"
            )

    def _check_open(self) -> None:
        if self._end is not None:
            raise type(self._end)(*self._end.args) from self._end

    def _check_process(self) -> None:
        """Before any lock: in a forked child the thread is missing, and the locks may be held for ever."""
        if os.getpid() != self._pid:
            raise EngineError("an engine does not survive os.fork(); create a new Engine in the child process")

    # ---- on the engine thread ----------------------------------------------------------------------------------------
    @property
    def _running_machine(self) -> Machine:
        assert self._machine is not None, "start() has returned"
        return self._machine

    def _main(self) -> None:
        try:
            self._machine = self._build()
            self._snapshot()
        except BaseException as error:  # whatever it is, it belongs to the thread that waits in start()
            self._ready.put(error)
            return
        self._ready.put(None)
        try:
            while self._end is None:
                self._take_commands()
                if self._end is None:
                    self._step()
            end = self._end
        except BaseException as error:  # a bug of ours: nobody may wait for ever because of it
            end = EngineError(f"the engine thread failed: {type(error).__name__}: {error}")
            end.__cause__ = error
            with self._door:
                self._end = end
        self._shut_down(end)

    def _take_commands(self) -> None:
        """Run what is in the inbox; sleep on it while there is nothing to step."""
        wait = self._running_machine.scheduler.is_idle
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return
            command()
            self._snapshot()
            wait = False

    def _step(self) -> None:
        scheduler, runner = self._running_machine.scheduler, self._running_machine.runner
        started = time.perf_counter()
        late = scheduler.expire(time.monotonic())
        plan = scheduler.schedule(time.monotonic())
        scheduled = time.perf_counter()
        events: list[Progress | Finished] = [*late, *scheduler.collect()]
        if plan is None:
            if not events and not scheduler.is_idle:
                raise RuntimeError("requests wait, nothing runs and nothing can be admitted")
            self._deliver(events)
            return
        result, error = None, None
        running = time.perf_counter()
        try:
            result = runner.run(plan)
        except Exception as cause:
            error = EngineStepError(f"the forward pass of this request failed: {type(cause).__name__}: {cause}")
            error.__cause__ = cause
        ran = time.perf_counter()
        if error is not None:
            events += scheduler.fail_step(plan, error)
        else:
            assert result is not None, "a step that did not raise has a result"
            events += scheduler.update(plan, result, time.monotonic())
        scheduler.counters.model_s += ran - running
        scheduler.counters.scheduling_s += scheduled - started + time.perf_counter() - ran
        self._deliver(events)

    def _deliver(self, events: Sequence[Progress | Finished]) -> None:
        if not events:
            return
        self._snapshot()
        now = time.monotonic()
        for event in events:
            ticket = self._tickets[event.request.id]
            if isinstance(event, Progress):
                ticket.progress(event)
            else:
                ticket.finished(event, now)
                del self._tickets[event.request.id]  # not before: a ticket that fails is told of the engine's end

    def _snapshot(self) -> None:
        self._stats = self._running_machine.scheduler.stats()

    def _shut_down(self, end: EngineError) -> None:
        """Every waiter gets the reason; commands that slipped in before the door closed still run."""
        while not self._inbox.empty():
            with contextlib.suppress(Exception):  # the machine may be broken; the tickets below are what counts
                self._inbox.get_nowait()()
        with contextlib.suppress(Exception):
            self._deliver(self._running_machine.scheduler.fail_all(end))
        with contextlib.suppress(Exception):
            self._running_machine.runner.close()
        for ticket in list(self._tickets.values()):
            ticket.fail(end)
        self._tickets.clear()
        self._machine = None
