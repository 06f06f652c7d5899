"""Fixtures of this room: engines without a model that show what reached them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sgl_core.handle import RequestHandle
from sgl_core.testing import FakeBackend
from sgl_core.types import FinishReason, GenDelta, GenRequest, GenResult, Usage


class CountingBackend(FakeBackend):
    """Counts requests in flight; with ``gate`` no answer comes before that many are."""

    width = 64

    def __init__(self, gate: int = 0, **options):
        super().__init__(self._answer, **options)
        self.in_flight = self.most_in_flight = 0
        self._gate = gate
        self._counting = threading.Lock()
        self._enough = threading.Event()

    def submit(self, request: GenRequest) -> RequestHandle[GenResult]:
        with self._counting:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            if self.in_flight >= self._gate:
                self._enough.set()
        handle = super().submit(request)
        handle.add_done_callback(self._ended_one)
        return handle

    def _ended_one(self) -> None:
        with self._counting:
            self.in_flight -= 1

    def _answer(self, ids, params) -> str:
        self._enough.wait(20)
        return self.codec.decode(ids).rpartition("#")[2].strip() or "yes"


class EndlessBackend(FakeBackend):
    """Says one word and goes on until the request is aborted; ``handles`` are all that it gave out."""

    def __init__(self):
        super().__init__()
        self.handles: list[RequestHandle[GenResult]] = []

    def submit(self, request: GenRequest) -> RequestHandle[GenResult]:
        aborted = GenResult("word ", (1,), FinishReason.ABORT, Usage(len(request.input_ids), 0, 1))
        handle: RequestHandle[GenResult] = RequestHandle(lambda _: handle.finish(aborted))
        self.handles.append(handle)
        handle.push(GenDelta("word ", (1,)))
        return handle


@pytest.fixture
def engine() -> Iterator[FakeBackend]:
    with FakeBackend(lambda ids, params: "The tide comes in. It goes out.") as fake:
        yield fake


@pytest.fixture
def endless() -> Iterator[EndlessBackend]:
    with EndlessBackend() as fake:
        yield fake


@pytest.fixture
def counting() -> Iterator[type[CountingBackend]]:
    made = []

    def make(*args, **options):
        made.append(CountingBackend(*args, **options))
        return made[-1]

    yield make
    for backend in made:
        backend.close()
