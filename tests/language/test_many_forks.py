"""Ten thousand forks at once: what they cost in threads and in memory."""

import gc
import threading
import tracemalloc

import pytest

from sgl_core.language import function, gen
from sgl_core.testing import FakeBackend

NUM_FORKS = 10_000
MOST_BYTES = 5_000  # a fork, beyond its own text
MOST_THREADS = 40
HANG_S = 120


class Waiting:
    """Replies that all wait until the test lets them go."""

    def __init__(self):
        self.go = threading.Event()

    def __call__(self, ids, params):
        assert self.go.wait(HANG_S)
        return "done"


@pytest.fixture
def held():
    """A backend whose requests stay in flight until ``go``."""
    reply = Waiting()
    with FakeBackend(reply) as backend:
        yield backend, reply.go
        reply.go.set()


def measured(fn):
    """What ``fn`` returns, and the bytes that it leaves allocated."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    result = fn()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return result, after - before


def test_live_forks_with_a_request_each_need_no_thread_each_and_little_memory(held):
    backend, go = held
    found = {}

    @function
    def fan_out(s):
        s += "The prefix that all of them share. "

        def start():
            forks = s.fork(NUM_FORKS)
            for index, fork in enumerate(forks):
                fork += f"{index}:" + gen("answer", max_tokens=4)
            while len(backend.requests) < NUM_FORKS:
                threading.Event().wait(0.01)
            return forks

        forks, found["bytes"] = measured(start)
        found["threads"] = threading.active_count()
        go.set()
        forks.join()

    state = fan_out.run(backend=backend)
    assert state["answer"] == ["done"] * NUM_FORKS
    assert found["threads"] < MOST_THREADS
    assert found["bytes"] / NUM_FORKS < MOST_BYTES


def test_live_forks_of_a_long_prefix_copy_none_of_it(backend):
    found = {}

    @function
    def fan_out(s):
        s += "A prefix of many thousand characters. " * 200
        s += gen("first", max_tokens=4)
        s.sync()
        forks, found["bytes"] = measured(lambda: s.fork(NUM_FORKS))
        for fork in forks:
            fork += "x"
        found["threads"] = threading.active_count()
        forks.join()

    fan_out.run(backend=backend, temperature=0)
    assert found["threads"] < MOST_THREADS
    assert found["bytes"] / NUM_FORKS < 2_000


def test_forks_of_forks_are_as_cheap(backend):
    found = {}

    @function
    def tree(s):
        s += "root "

        def grow():
            groups = [fork.fork(100) for fork in s.fork(100)]
            for group in groups:
                for fork in group:
                    fork += "leaf"
            return groups

        groups, found["bytes"] = measured(grow)
        for group in groups:
            group.join()

    tree.run(backend=backend)
    assert found["bytes"] / NUM_FORKS < 2_500
