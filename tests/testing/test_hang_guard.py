"""The guard against tests that hang: it ends one whose code under test catches everything that it may catch."""

from __future__ import annotations

import signal

import pytest


def test_the_guard_is_not_caught_as_an_exception() -> None:
    def swallow() -> None:
        try:
            signal.raise_signal(signal.SIGALRM)
        except Exception:
            return

    with pytest.raises(pytest.fail.Exception, match="the test hung for 180 s"):
        swallow()


def test_the_guard_comes_again() -> None:
    _, interval = signal.getitimer(signal.ITIMER_REAL)
    assert interval > 0
