"""A bounded number of jobs at once, without threads."""

from concurrent.futures import CancelledError, Future

import pytest

from sgl_core.language.window import Window


class Jobs:
    """Jobs that end when the test says so; counts how many have begun."""

    def __init__(self):
        self.begun = []

    def job(self, name):
        def start():
            future = Future()
            self.begun.append((name, future))
            return future

        return start


def test_no_more_jobs_begin_than_the_window_has_room_for():
    jobs, window = Jobs(), Window(2)
    outcomes = [window.submit(jobs.job(name)) for name in "abcd"]
    assert [name for name, _ in jobs.begun] == ["a", "b"]
    jobs.begun[1][1].set_result("B")
    assert [name for name, _ in jobs.begun] == ["a", "b", "c"]
    assert outcomes[1].result(0) == "B"


def test_an_error_is_the_outcome_of_its_job_alone():
    jobs, window = Jobs(), Window(1)
    outcomes = [window.submit(jobs.job(name)) for name in "ab"]
    jobs.begun[0][1].set_exception(KeyError("a"))
    jobs.begun[1][1].set_result("B")
    assert isinstance(outcomes[0].exception(0), KeyError)
    assert outcomes[1].result(0) == "B"


def test_a_job_that_cannot_start_leaves_room_for_the_next():
    jobs, window = Jobs(), Window(1)

    def fail():
        raise ValueError("no")

    failed, other = window.submit(fail), window.submit(jobs.job("b"))
    assert isinstance(failed.exception(0), ValueError)
    jobs.begun[0][1].set_result("B")
    assert other.result(0) == "B"


def test_a_job_that_somebody_cancels_before_it_begins_leaves_the_others_their_turn():
    jobs, window = Jobs(), Window(1)
    outcomes = [window.submit(jobs.job(name)) for name in "abc"]
    assert outcomes[1].cancel()
    jobs.begun[0][1].set_result("A")
    assert [name for name, _ in jobs.begun] == ["a", "c"]


def test_ten_thousand_jobs_that_end_at_once_do_not_nest():
    def start():
        future = Future()
        future.set_result(1)
        return future

    window = Window(1)
    blocker = Future()
    first = window.submit(lambda: blocker)
    outcomes = [window.submit(start) for _ in range(10_000)]
    blocker.set_result(0)
    assert first.result(0) == 0
    assert sum(outcome.result(0) for outcome in outcomes) == 10_000


def test_after_shutdown_what_has_begun_goes_on_and_nothing_begins():
    jobs, window = Jobs(), Window(1)
    begun, waiting = window.submit(jobs.job("a")), window.submit(jobs.job("b"))
    window.shutdown()
    jobs.begun[0][1].set_result("A")
    assert begun.result(0) == "A"
    with pytest.raises(CancelledError):
        waiting.result(0)
    assert len(jobs.begun) == 1
