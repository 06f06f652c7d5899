"""Fork and join."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import sgl_core.language as sgl
from sgl_core.errors import InvalidArgumentError, StreamClosedError
from sgl_core.testing import FakeBackend

OPTIONS = {"temperature": 0, "max_new_tokens": 100}


def run(body, backend: FakeBackend, **options: object) -> sgl.ProgramState:
    return sgl.function(body).run(backend=backend, **{**OPTIONS, **options})


@sgl.function
def essay_judge(s, essay, dimensions):
    s += sgl.system("You judge essays.") + sgl.user("Essay:\n" + essay)
    forks = s.fork(len(dimensions))
    for f, d in zip(forks, dimensions, strict=True):
        f += sgl.user(f"Judge it on {d}.") + sgl.assistant(sgl.gen("judgement", max_tokens=48))
    forks.join()
    judgements = "Summary of the judgements:\n" + sgl.call("\n".join, s["judgement"])
    s += sgl.user(judgements) + sgl.assistant(sgl.gen("summary", max_tokens=64))
    s += sgl.user("Grade it.") + sgl.assistant("Grade: " + sgl.select("grade", ["A", "B", "C", "D"]))


def test_the_essay_judge_shares_its_essay_and_gathers_in_order(backend: FakeBackend) -> None:
    dimensions = ["clarity", "evidence", "style"]
    state = essay_judge.run(essay="An essay.", dimensions=dimensions, backend=backend)
    judged = backend.requests[:3]
    columns = zip(*(request.input_ids for request in judged), strict=False)
    shared = judged[0].input_ids[: next(i for i, column in enumerate(columns) if len(set(column)) > 1)]
    assert backend.codec.decode(shared).count("An essay.") == 1
    assert [request.hints.siblings for request in judged] == [2, 1, 0]
    assert all(0 < request.hints.shared_len <= len(shared) for request in judged[:2])
    assert backend.requests[3].hints.siblings == 0
    assert len({request.hints.program_id for request in backend.requests}) == 1
    assert all(text in state.text() for text in state["judgement"])
    by_prompt = {request.input_ids[len(shared) :]: index for index, request in enumerate(judged)}
    assert len(by_prompt) == 3
    assert state["grade"] in "ABCD"
    assert len(state.get_meta_info("judgement")) == 3


def test_forking_and_writing_wait_for_nothing() -> None:
    gate = threading.Event()

    def body(s):
        s += "a" + sgl.gen("x")
        forks = s.fork(3)
        forks += "b" + sgl.gen("y")
        gate.set()  # the parent's generation waits for this
        forks.join()
        return s["y"]

    with FakeBackend(lambda ids, params: f"{gate.wait(60)}{len(ids)}") as backend:
        assert run(body, backend).ret_value == ["True8"] * 3


def test_a_fork_starts_where_its_parent_was_and_later_text_is_not_its() -> None:
    def body(s):
        s += "one "
        forks = s.fork(2)
        s += "two "
        forks += "three"
        return [fork.text() for fork in forks]

    with FakeBackend() as backend:
        state = run(body, backend)
    assert state.ret_value == ["one three", "one three"]
    assert state.text() == "one two "


def test_a_fork_sees_variables_from_before_and_sets_its_own() -> None:
    def body(s):
        s["a"], s["b"] = 1, 2
        forks = s.fork(2)
        s["b"] = 3
        forks[0]["b"] = 4
        seen = [(fork["a"], fork["b"]) for fork in forks]
        forks.join()
        return seen

    with FakeBackend() as backend:
        state = run(body, backend)
    assert state.ret_value == [(1, 4), (1, 2)]
    assert state["a"] == 1  # inherited, not gathered
    assert state["b"] == [4, None]


def test_join_gives_one_entry_per_fork_in_order_with_meta() -> None:
    def body(s):
        s += "p"
        forks = s.fork(4)
        forks += lambda i: str(i) + sgl.gen("x") + sgl.gen()
        forks.join()

    with FakeBackend(lambda ids, params: chr(ids[2]) if len(ids) == 3 else "!") as backend:
        state = run(body, backend)
    assert state["x"] == ["0", "1", "2", "3"]
    assert [meta["prompt_tokens"] for meta in state.get_meta_info("x")] == [3] * 4
    assert list(state.variables()) == ["x"]


def test_a_fork_that_did_not_set_a_variable_gives_none() -> None:
    def body(s):
        forks = s.fork(3)
        forks[1]["x"] = 7
        forks.join()

    with FakeBackend() as backend:
        state = run(body, backend)
    assert state["x"] == [None, 7, None]
    assert state.get_meta_info("x") == [{}, {}, {}]


def test_writing_to_a_group_takes_one_expression_a_list_or_a_function(backend: FakeBackend) -> None:
    def body(s):
        forks = s.fork(2)
        forks += "x"
        forks += ["a", "b"]
        forks += lambda i: str(i)
        forks[0] += "!"
        with pytest.raises(InvalidArgumentError, match="one for each of 2"):
            forks += ["a"]
        with pytest.raises(InvalidArgumentError, match="the fork itself"):
            forks[0] = forks[1]
        assert len(forks) == 2
        return [fork.text() for fork in forks]

    assert run(body, backend).ret_value == ["xa0!", "xb1"]


def test_writing_to_a_joined_fork_is_refused_and_reading_goes_on(backend: FakeBackend) -> None:
    def body(s):
        forks = s.fork(2)
        forks += "a"
        forks.join()
        fork = forks[0]
        for write in (lambda: fork.__iadd__("b"), lambda: fork.set_var("x", 1), lambda: fork.fork(2)):
            with pytest.raises(StreamClosedError, match="joined"):
                write()
        return fork.text()

    assert run(body, backend).ret_value == "a"


def test_joining_twice_gathers_again(backend: FakeBackend) -> None:
    def body(s):
        forks = s.fork(2)
        forks += lambda i: sgl.gen("x") if i else "t"
        forks.join()
        first = s["x"]
        forks.join()
        return first == s["x"]

    assert run(body, backend).ret_value is True


def test_nested_forks_and_forks_of_forks_keep_their_order(backend: FakeBackend) -> None:
    def body(s):
        outer = s.fork(2)
        for i, fork in enumerate(outer):
            fork += f"{i}"
            inner = fork.fork(2)
            for j, leaf in enumerate(inner):
                leaf += f"{j}"
                leaf["path"] = leaf.text()
            inner.join()
        outer.join()

    assert run(body, backend)["path"] == [["00", "01"], ["10", "11"]]


def test_a_fork_continues_an_open_turn_and_may_close_it(backend: FakeBackend) -> None:
    def body(s):
        s.user_begin()
        s += "pick "
        forks = s.fork(2)
        for i, fork in enumerate(forks):
            fork += str(i)
            fork.user_end()
            fork += sgl.assistant(sgl.gen("x"))
        forks.join()
        s += "none"
        s.user_end()
        return [fork.messages() for fork in forks]

    state = run(body, backend)
    assert [messages[0]["content"] for messages in state.ret_value] == ["pick 0", "pick 1"]
    assert state.messages() == [{"role": "user", "content": "pick none"}]


def test_concatenating_appends_the_forks_own_text_in_order(backend: FakeBackend) -> None:
    def body(s):
        s += "list:"
        forks = s.fork(3)
        forks += lambda i: f" {i}" + sgl.gen("x")
        forks.join(mode="concate_and_append")
        assert "x" not in s
        return [fork["x"] for fork in forks]

    state = run(body, backend)
    first, second, third = state.ret_value
    assert state.text() == f"list: 0{first} 1{second} 2{third}"


def test_concatenating_renders_turns_and_raw_literals_again(backend: FakeBackend) -> None:
    def body(s):
        s += sgl.system("rules")
        forks = s.fork(2)
        for i, fork in enumerate(forks):
            fork += sgl.user(f"question {i}") + sgl.raw("<|user|>")
        forks.join(mode="concate_and_append")
        s += sgl.assistant(sgl.gen("x"))

    state = run(body, backend)
    assert [message["content"] for message in state.messages()[:3]] == ["rules", "question 0", "question 1"]
    ids = backend.requests[-1].input_ids
    assert (ids.count(256), ids.count(259)) == (1, 4)


def test_arguments_of_fork_and_join_are_checked(backend: FakeBackend) -> None:
    def body(s):
        for wrong in (0, -1, True, "2", 1.5):
            with pytest.raises(InvalidArgumentError, match="n: got"):
                s.fork(wrong)
        forks = s.fork()
        with pytest.raises(InvalidArgumentError, match="mode"):
            forks.join("concatenate")
        with pytest.raises(InvalidArgumentError, match="errors"):
            forks.join(errors="ignore")

    run(body, backend)


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads of the system")
def test_two_thousand_live_forks_need_no_more_threads_than_twenty() -> None:
    def threads_with(num_forks: int) -> int:
        gate = threading.Event()
        seen: list[int] = []

        def body(s):
            s += "word " * 200
            forks = s.fork(num_forks)
            forks += lambda i: f"{i}" + sgl.gen("x")
            while len(backend.requests) < num_forks:
                gate.wait(0.01)
            seen.append(num_threads())
            gate.set()
            forks.join()

        with FakeBackend(lambda ids, params: str(gate.wait(60))) as backend:
            assert run(body, backend)["x"] == ["True"] * num_forks
        return seen[0]

    few = threads_with(20)
    assert threads_with(2000) <= few


def test_sixty_four_programs_at_once_keep_their_own_words() -> None:
    def body(s, nonce):
        s += f"nonce {nonce};" + sgl.gen("x")
        forks = s.fork(2)
        forks += lambda i: f"[{i}]" + sgl.gen("y")
        forks.join()

    program = sgl.function(body)
    with FakeBackend(lambda ids, params: "re" + bytes(ids[1:]).decode().partition(";")[0]) as backend:
        states = program.run_batch([(number,) for number in range(64)], backend=backend, num_threads=64, **OPTIONS)
    for number, state in enumerate(states):
        assert state["x"] == f"renonce {number}"
        assert state["y"] == [f"renonce {number}"] * 2
