"""Evaluations in the caller's thread: it runs whichever can go on, and waits only when none can.

A model call costs no thread: its end puts the evaluation back into the inbox. Host code that may block runs right here when
nothing else could go on meanwhile, else in a small pool of threads, with a copy of the caller's context.
"""

from __future__ import annotations

import contextvars
import heapq
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Self, cast

from langchain_core.runnables.config import set_config_context

from sgl_core.backend import Handle
from sgl_langchain.gates import Slot
from sgl_langchain.programs.calls import Asked, Calls
from sgl_langchain.programs.effects import Ask, Effect, Evaluation, Failure, Host, Load, Outcome, Pause, Together
from sgl_langchain.scope import in_flight

__all__ = ["Waiting"]

_MOST_THREADS: Final = 32


class Waiting:
    """Drives evaluations; a context manager, which leaves nothing under way behind.

    Args:
        calls: where models are asked.
        max_threads: for host code that may block; None is as many as are wanted, up to 32.
    """

    def __init__(self, calls: Calls, max_threads: int | None = None) -> None:
        """Nothing runs yet."""
        self._calls = calls
        self._max_threads = max_threads or _MOST_THREADS
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # from other threads: what goes on
        self._ready: deque[tuple[_Task, Any, BaseException | None]] = deque()
        self._asked: dict[_Task, tuple[Slot, Asked | None]] = {}
        self._timers: list[tuple[float, int, _Task]] = []
        self._num_timers = 0
        self._num_active = 0  # tasks that have begun and are not waiting for others
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        """This driver."""
        return self

    def __exit__(self, *_: object) -> None:
        """Abort what is still under way; threads of host code are waited for, as LangChain's pools wait."""
        for slot, asked in self._asked.values():
            if asked is not None:
                asked.abort()
            slot.release()
        self._asked.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, evaluation: Evaluation) -> Any:
        """The output of one evaluation, or its error."""
        for _, outcome in self.each([evaluation], None):
            if isinstance(outcome, Failure):
                raise outcome.error
            return outcome
        raise AssertionError("an evaluation ends")

    def each(self, evaluations: Sequence[Evaluation], limit: int | None) -> Iterator[tuple[int, Outcome]]:
        """Places and outcomes of several, as they end; they go on while the caller asks for the next one."""
        ended: deque[tuple[int, Outcome]] = deque()
        group = _Group(evaluations, limit, lambda index, outcome: ended.append((index, outcome)))
        self._start(group)
        try:
            for _ in evaluations:
                while not ended:
                    self._step()
                yield ended.popleft()
        finally:
            group.close()

    # ---- going on ----------------------------------------------------------------------------------------------------
    def _step(self) -> None:
        """Let one evaluation go on, or wait until one can."""
        if self._ready:
            self._advance(*self._ready.popleft())
            return
        try:
            resume = self._inbox.get(timeout=self._until_timer())
        except queue.Empty:
            _, _, task = heapq.heappop(self._timers)
            self._ready.append((task, None, None))
        else:
            resume()

    def _until_timer(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _advance(self, task: _Task, value: Any, error: BaseException | None) -> None:
        """Run one evaluation up to its next effect."""
        try:
            effect = task.evaluation.send(value) if error is None else task.evaluation.throw(error)
        except StopIteration as stop:
            self._end(task, stop.value)
        except Exception as raised:
            self._end(task, Failure(raised))
        else:
            self._carry_out(task, effect)

    def _carry_out(self, task: _Task, effect: Effect) -> None:
        match effect:
            case Ask():
                self._ask(task, effect, in_flight())
            case Host():
                self._call(task, effect)
            case Load():
                self._ready.append((task, None, None))  # a thread may block: the call itself loads
            case Pause(seconds=seconds):
                self._num_timers += 1
                heapq.heappush(self._timers, (time.monotonic() + seconds, self._num_timers, task))
            case Together():
                self._fork(task, effect)

    def _end(self, task: _Task, outcome: Outcome) -> None:
        self._num_active -= 1
        task.group.ended(task.index, outcome)
        self._start(task.group)

    # ---- several at once ---------------------------------------------------------------------------------------------
    def _fork(self, task: _Task, effect: Together) -> None:
        outcomes: list[Outcome] = [None] * len(effect.evaluations)
        if not outcomes:
            self._ready.append((task, outcomes, None))
            return
        num_left = len(outcomes)

        def note(index: int, outcome: Outcome) -> None:
            nonlocal num_left
            outcomes[index] = outcome
            num_left -= 1
            if not num_left:
                self._num_active += 1
                self._ready.append((task, outcomes, None))

        self._num_active -= 1
        self._start(_Group(effect.evaluations, effect.limit, note))

    def _start(self, group: _Group) -> None:
        for task in group.startable():
            self._num_active += 1
            self._ready.append((task, None, None))

    # ---- model calls -------------------------------------------------------------------------------------------------
    def _ask(self, task: _Task, ask: Ask, slot: Slot) -> None:
        """Start the call once every gate around lets it pass."""
        self._asked[task] = slot, None
        if slot.ask(lambda: self._inbox.put(partial(self._ask, task, ask, slot))):
            asked = self._calls.start(ask)
            self._asked[task] = slot, asked
            slot.track(cast("Handle[Any]", asked))
            asked.add_done_callback(lambda: self._inbox.put(partial(self._answered, task, asked, slot)))

    def _answered(self, task: _Task, asked: Asked, slot: Slot) -> None:
        self._asked.pop(task, None)
        slot.check()
        try:
            result = asked.result()
        except BaseException as error:
            if self._calls.is_cancelled():
                raise
            self._ready.append((task, None, error))
        else:
            self._ready.append((task, result, None))

    # ---- host code ---------------------------------------------------------------------------------------------------
    def _call(self, task: _Task, host: Host) -> None:
        if self._num_active == 1 and not self._ready:
            self._ready.append((task, *_called(host)))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._max_threads, thread_name_prefix="sgl-langchain")
        context = contextvars.copy_context()

        def work() -> None:
            try:
                value, error = context.run(_called, host)
            except BaseException as raised:  # SystemExit: it ends the program, in the caller's thread
                self._inbox.put(partial(_raise, raised))
            else:
                self._inbox.put(partial(self._ready.append, (task, value, error)))

        self._pool.submit(work)


class _Task:
    """One evaluation, and where its outcome goes."""

    __slots__ = ("evaluation", "group", "index")

    def __init__(self, evaluation: Evaluation, group: _Group, index: int) -> None:
        self.evaluation = evaluation
        self.group = group
        self.index = index


class _Group:
    """Evaluations of which so many may have begun and not ended.

    Args:
        evaluations: in the order in which they begin.
        limit: None is all of them.
        ended: told the place and the outcome of each.
    """

    def __init__(self, evaluations: Sequence[Evaluation], limit: int | None, ended: Callable[[int, Outcome], None]) -> None:
        self._evaluations = evaluations
        self._room = limit or len(evaluations)
        self._num_begun = 0
        self._told = ended

    def startable(self) -> Generator[_Task, None, None]:
        """Those that may begin now."""
        while self._room and self._num_begun < len(self._evaluations):
            self._room -= 1
            self._num_begun += 1
            yield _Task(self._evaluations[self._num_begun - 1], self, self._num_begun - 1)

    def ended(self, index: int, outcome: Outcome) -> None:
        """One has ended."""
        self._room += 1
        self._told(index, outcome)

    def close(self) -> None:
        """Close those that have not ended."""
        for evaluation in self._evaluations:
            evaluation.close()


def _raise(error: BaseException) -> None:
    raise error


def _called(host: Host) -> tuple[Any, BaseException | None]:
    """Run host code as a step of LangChain's runs; its value, or its error."""
    try:
        with set_config_context(host.config) as context:
            return context.run(partial(host.runnable.invoke, host.value, host.config, **host.kwargs)), None
    except Exception as error:
        return None, error
