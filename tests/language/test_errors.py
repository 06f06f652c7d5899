"""Failures: every reader sees the original error, nothing hangs and nothing is lost."""

from __future__ import annotations

import pytest

import sgl_core.language as sgl
from sgl_core.errors import NumericsError, RequestAborted, TemplateError
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_core.types import GenRequest

OPTIONS = {"temperature": 0, "max_new_tokens": 100}
MARK = ord("#")


def fail_at_mark(request: GenRequest) -> BaseException | None:
    if MARK not in request.input_ids:
        return None
    error = NumericsError("bad row")
    error.__cause__ = ZeroDivisionError("deep down")
    return error


@pytest.fixture
def failing() -> FakeBackend:
    return FakeBackend(fail=fail_at_mark)


def run(body, backend: FakeBackend, **options: object) -> sgl.ProgramState:
    return sgl.function(body).run(backend=backend, **{**OPTIONS, **options})


def test_run_raises_an_error_that_nobody_read(failing: FakeBackend) -> None:
    with pytest.raises(NumericsError, match="bad row") as caught:
        run(lambda s: s.__iadd__("#" + sgl.gen("x")), failing)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_error_that_was_read_is_not_raised_again_and_stays(failing: FakeBackend) -> None:
    def body(s):
        s += "#" + sgl.gen("x")
        with pytest.raises(NumericsError):
            s["x"]
        return "went on"

    state = run(body, failing)
    assert state.ret_value == "went on"
    assert isinstance(state.error(), NumericsError)


def test_everything_behind_a_failed_node_is_skipped_and_raises_the_same_object(failing: FakeBackend) -> None:
    def body(s):
        s += "#" + sgl.gen("x") + sgl.gen("y") + sgl.select("z", ["a", "b"])
        with s.var_scope("w"):
            s += sgl.user("more")
        errors = []
        for name in ("x", "y", "z", "w"):
            with pytest.raises(NumericsError) as caught:
                s[name]
            errors.append(caught.value)
        for read in (s.text, s.messages, s.variables, lambda: s.get_meta_info("x"), lambda: list(s.text_iter())):
            with pytest.raises(NumericsError) as caught:
                read()
            errors.append(caught.value)
        assert s.error() is errors[0]
        return errors

    errors = run(body, failing).ret_value
    assert all(error is errors[0] for error in errors)
    assert len(failing.requests) == 1
    assert failing.scores == []


def test_values_from_before_the_failure_can_be_read(failing: FakeBackend) -> None:
    def body(s):
        s += "a" + sgl.gen("good") + "#" + sgl.gen("bad")
        good = s["good"]
        assert isinstance(s.error(), NumericsError)
        return good

    assert run(body, failing).ret_value


def test_what_the_body_raises_goes_first_and_everything_has_ended_by_then(failing: FakeBackend) -> None:
    handles = []

    def body(s):
        s += "a" + sgl.gen("x") + "#" + sgl.gen("y")
        handles.append(s.stream.find("x"))
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(body, failing)
    assert handles[0].done()


def test_a_failing_fork_raises_at_its_reader_and_at_join_with_its_cause(failing: FakeBackend) -> None:
    def body(s):
        forks = s.fork(3)
        forks += lambda i: ("#" if i == 1 else "a") + sgl.gen("x")
        with pytest.raises(NumericsError) as at_reader:
            forks[1]["x"]
        with pytest.raises(NumericsError) as at_join:
            forks.join()
        assert at_reader.value is at_join.value
        assert isinstance(at_join.value.__cause__, ZeroDivisionError)
        assert "x" not in s
        return forks[0]["x"]

    assert run(body, failing).ret_value


def test_join_can_keep_errors_in_their_places(failing: FakeBackend) -> None:
    def body(s):
        forks = s.fork(3)
        forks += lambda i: sgl.gen("early") + ("#" if i == 1 else "a") + sgl.gen("x")
        forks[0]["only"] = 5
        forks.join(errors="keep")

    state = run(body, failing)
    first, second, third = state["x"]
    assert isinstance(second, NumericsError)
    assert all(isinstance(text, str) for text in (first, third, *state["early"]))
    assert state["only"] == [5, second, None]


def test_concatenating_with_kept_errors_leaves_failed_forks_out(failing: FakeBackend) -> None:
    def body(s):
        forks = s.fork(3)
        forks += lambda i: ("#" if i == 1 else str(i)) + sgl.gen()
        forks.join("concate_and_append", errors="keep")

    text = run(body, failing).text()
    assert "0" in text
    assert "2" in text
    assert "#" not in text


def test_the_failure_of_a_parent_reaches_forks_that_have_not_started(failing: FakeBackend) -> None:
    def body(s):
        s += "#" + sgl.gen("x")
        forks = s.fork(2)
        forks += "b" + sgl.gen("y")
        nested = forks[0].fork(1)
        nested += sgl.gen("z")
        with pytest.raises(NumericsError) as caught:
            nested[0]["z"]
        with pytest.raises(NumericsError) as at_join:
            forks.join()
        assert caught.value is at_join.value is s.error()

    run(body, failing)


def test_the_error_of_a_fork_that_is_never_joined_surfaces_at_the_end(failing: FakeBackend) -> None:
    def body(s):
        s.fork(1)[0].__iadd__("#" + sgl.gen("x"))

    with pytest.raises(NumericsError):
        run(body, failing)


def test_the_first_unread_error_in_order_of_streams_is_raised() -> None:
    def body(s):
        forks = s.fork(3)
        forks += lambda i: f"{i}" + sgl.gen("x")

    def fail(request: GenRequest) -> BaseException | None:
        return None if request.input_ids[-1] == ord("0") else ArithmeticError(chr(request.input_ids[-1]))

    for _ in range(5):
        with pytest.raises(ArithmeticError, match="1"):
            run(body, FakeBackend(fail=fail))


def test_a_role_that_the_template_refuses_fails_the_stream() -> None:
    class WithoutSystem(ByteCodec):
        def open_turn(self, role, turns):
            if role == "system":
                raise TemplateError("no system role")
            return super().open_turn(role, turns)

    def body(s):
        s += sgl.system("x") + sgl.gen("y")

    with FakeBackend(codec=WithoutSystem()) as backend, pytest.raises(TemplateError):
        run(body, backend)


def test_a_backend_that_refuses_at_submit_fails_the_variable(backend: FakeBackend) -> None:
    def body(s):
        s += "a" + sgl.gen("x", max_tokens=10**6)
        with pytest.raises(ValueError, match="context"):
            s["x"]

    run(body, backend)


def test_a_request_that_somebody_else_aborts_raises_at_its_reader() -> None:
    class Aborting(FakeBackend):
        def submit(self, request):
            handle = super().submit(request)
            handle.abort()
            return handle

    def body(s):
        s += "a" + sgl.gen("x")
        with pytest.raises(RequestAborted, match="'x'"):
            s["x"]

    with Aborting(latency_s=60) as backend:
        run(body, backend)


def test_messages_of_the_languages_errors_hold_no_prompt_text(failing: FakeBackend) -> None:
    def body(s):
        s += "secret"
        s += ["secret"]

    with pytest.raises(ValueError, match="list") as caught:
        run(body, failing)
    assert "secret" not in str(caught.value)
