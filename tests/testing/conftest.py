"""Fixture of this room: a guard against hanging."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

_GUARD_S = 120


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"the test hung for {_GUARD_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_GUARD_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
