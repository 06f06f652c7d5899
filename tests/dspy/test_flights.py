"""Equal requests under way are one computation, with a handle for each caller."""

import threading

import pytest

from sgl_core.errors import EngineStepError, QueueFull, RequestAborted
from sgl_core.handle import RequestHandle
from sgl_core.types import FinishReason, GenDelta, GenResult, Usage
from sgl_dspy.running.flights import Flights

WAIT_S = 60.0
RESULT = GenResult("text", (1,), FinishReason.STOP, Usage(1, 0, 1))
ABORTED = GenResult("te", (1,), FinishReason.ABORT, Usage(1, 0, 1))


class Producer:
    """Submits handles and finishes them by hand."""

    def __init__(self) -> None:
        self.handles: list[RequestHandle[GenResult]] = []
        self.aborted: list[str] = []

    def start(self) -> RequestHandle[GenResult]:
        handle: RequestHandle[GenResult] = RequestHandle(self.abort)
        self.handles.append(handle)
        return handle

    def abort(self, id_: str) -> None:
        self.aborted.append(id_)
        self.handles[-1].finish(ABORTED)


def test_two_callers_ride_on_one_request():
    flights, producer = Flights(), Producer()
    seats = [flights.join("k", producer.start) for _ in range(2)]
    producer.handles[0].finish(RESULT)
    assert [seat.result(WAIT_S) for seat in seats] == [RESULT, RESULT]
    assert len(producer.handles) == 1
    assert seats[0].id != seats[1].id


def test_other_requests_fly_on_their_own():
    flights, producer = Flights(), Producer()
    flights.join("a", producer.start)
    flights.join("b", producer.start)
    assert len(producer.handles) == 2


def test_nothing_is_kept_after_it_has_landed():
    flights, producer = Flights(), Producer()
    flights.join("k", producer.start)
    producer.handles[0].finish(RESULT)
    flights.join("k", producer.start)
    assert len(producer.handles) == 2


def test_who_comes_late_gets_the_text_from_its_beginning():
    flights, producer = Flights(), Producer()
    flights.join("k", producer.start)
    producer.handles[0].push(GenDelta("te", (1,)))
    late = flights.join("k", producer.start)
    producer.handles[0].push(GenDelta("xt", (2,)))
    producer.handles[0].finish(RESULT)
    assert "".join(delta.text for delta in late) == "text"


def test_the_request_goes_on_for_those_who_stay():
    flights, producer = Flights(), Producer()
    leaves, stays = (flights.join("k", producer.start) for _ in range(2))
    leaves.abort()
    with pytest.raises(RequestAborted):
        leaves.result(WAIT_S)
    assert producer.aborted == []
    producer.handles[0].finish(RESULT)
    assert stays.result(WAIT_S) is RESULT


def test_the_last_one_to_leave_ends_it():
    flights, producer = Flights(), Producer()
    seats = [flights.join("k", producer.start) for _ in range(2)]
    for seat in seats:
        seat.abort()
    assert producer.aborted == [producer.handles[0].id]
    assert seats[1].result(WAIT_S) is ABORTED
    flights.join("k", producer.start)
    assert len(producer.handles) == 2


def test_an_error_is_everybodys():
    flights, producer = Flights(), Producer()
    seats = [flights.join("k", producer.start) for _ in range(2)]
    producer.handles[0].fail(EngineStepError("step"))
    for seat in seats:
        with pytest.raises(EngineStepError):
            seat.result(WAIT_S)


def test_a_request_that_is_refused_leaves_nothing_behind():
    flights, producer = Flights(), Producer()

    def refuse():
        raise QueueFull("full")

    with pytest.raises(QueueFull):
        flights.join("k", refuse)
    flights.join("k", producer.start)
    assert len(producer.handles) == 1


def test_who_starts_a_twin_by_chance_takes_the_first_ones_flight():
    flights, producer = Flights(), Producer()
    inside, go_on = threading.Event(), threading.Event()
    seats = []

    def slow_start():
        inside.set()
        assert go_on.wait(WAIT_S)
        return producer.start()

    slow = threading.Thread(target=lambda: seats.append(flights.join("k", slow_start)))
    slow.start()
    assert inside.wait(WAIT_S)
    seats.append(flights.join("k", producer.start))
    go_on.set()
    slow.join(WAIT_S)
    first, twin = producer.handles
    assert producer.aborted == [twin.id]
    first.finish(RESULT)
    assert [seat.result(WAIT_S) for seat in seats] == [RESULT, RESULT]


def test_a_caller_whom_two_threads_abort_at_once_leaves_once(monkeypatch):
    flights, producer = Flights(), Producer()
    leaving, staying = (flights.join("k", producer.start) for _ in range(2))
    fail = RequestHandle.fail

    def fail_late(handle, error):
        handle.abort()  # the other thread's, which comes while the first one's is under way
        fail(handle, error)

    monkeypatch.setattr(RequestHandle, "fail", fail_late)
    leaving.abort()
    assert producer.aborted == []
    producer.handles[0].finish(RESULT)
    assert staying.result(WAIT_S) is RESULT
