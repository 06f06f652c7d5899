"""The thread that advances streams."""

from __future__ import annotations

import logging
import os
import threading

import pytest

import sgl_core.language as sgl
from sgl_core.language.dispatcher import Dispatcher, post
from sgl_core.testing import ByteCodec, FakeBackend


def test_tasks_run_in_order_on_one_thread() -> None:
    dispatcher, done, seen = Dispatcher(), threading.Event(), []
    for number in range(100):
        dispatcher.post(lambda number=number: seen.append((number, threading.current_thread())))
    dispatcher.post(done.set)
    assert done.wait(60)
    assert [number for number, _ in seen] == list(range(100))
    assert len({thread for _, thread in seen}) == 1


def test_a_task_that_fails_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def fail() -> None:
        raise SystemExit("no")

    with caplog.at_level(logging.ERROR):
        post(fail)
        post(done.set)
        assert done.wait(60)
    assert "dispatcher" in caplog.text


def test_user_code_and_tokenising_keep_to_their_threads() -> None:
    encoders, bodies, repliers = set(), set(), set()

    class Watching(ByteCodec):
        def encode(self, text: str) -> tuple[int, ...]:
            encoders.add(threading.current_thread().name)
            return super().encode(text)

    def reply(ids: tuple[int, ...], params: object) -> str:
        repliers.add(threading.current_thread().name)
        return ""

    @sgl.function
    def program(s):
        bodies.add(threading.current_thread().name)
        s += "a" + sgl.gen("x") + "b" + sgl.select("y", ["c", "d"])

    with FakeBackend(reply, codec=Watching()) as backend:
        program.run(backend=backend, max_new_tokens=5)
    assert "sgl-dispatcher" in encoders
    assert encoders <= {"sgl-dispatcher", "sgl-fake-backend"}  # the fake encodes its own reply
    assert bodies == {threading.current_thread().name}
    assert repliers == {"sgl-fake-backend"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_dispatcher_of_its_own() -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x")

    with FakeBackend(lambda ids, params: "reply") as backend:
        assert program.run(backend=backend, max_new_tokens=5)["x"] == "reply"
    child = os.fork()
    if child == 0:
        # In the child: nothing but a result, whatever happens, and never back into pytest.
        code = 1
        try:
            threading.Timer(60, os._exit, (2,)).start()
            with FakeBackend(lambda ids, params: "reply") as backend:
                code = 0 if program.run(backend=backend, max_new_tokens=5)["x"] == "reply" else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_ten_thousand_streams_of_one_program_end() -> None:
    @sgl.function
    def program(s):
        s += "a"
        forks = s.fork(10_000)
        forks += "b"
        forks.join()

    with FakeBackend() as backend:
        program.run(backend=backend)
