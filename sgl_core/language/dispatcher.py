"""The one thread that advances all streams of this process.

Completion callbacks come from backends' threads, which have better things to do than tokenising; they only post here. Ten
thousand streams therefore need one thread, and everything a stream does is serial without holding locks. User code never
runs here.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

__all__ = ["Dispatcher", "post"]

_log = logging.getLogger(__name__)


class Dispatcher:
    """Runs posted callables in order, in one daemon thread that starts with the first."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def post(self, task: Callable[[], None]) -> None:
        """Run ``task`` soon; never blocks. What it raises is logged and ends nothing."""
        self._tasks.put(task)
        if self._thread is None:
            self._ensure_thread()

    def _ensure_thread(self) -> None:
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sgl-dispatcher", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                task()
            except BaseException:
                _log.exception("a task of the dispatcher failed")
            del task  # it may be the last reference to a whole program


_dispatcher = Dispatcher()


def post(task: Callable[[], None]) -> None:
    """Run ``task`` soon on the process's dispatcher."""
    _dispatcher.post(task)


def _start_afresh() -> None:
    global _dispatcher
    _dispatcher = Dispatcher()  # threads do not survive a fork of the process, and the queue's lock may be held


os.register_at_fork(after_in_child=_start_afresh)
