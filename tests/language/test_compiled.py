"""Compiled programs: the same results by every way of running them, and what is theirs alone."""

import threading
from dataclasses import replace

import pytest

import sgl_core.language as sgl
from sgl_core.errors import InvalidArgumentError, ProgramError, RequestAborted, TraceError, UnknownOptionError
from sgl_core.language.proposers import HeuristicProposer
from sgl_core.testing import FakeBackend

HANG_S = 30


@sgl.function
def judge(s, essay, dimensions):
    s += sgl.system("You judge.") + sgl.user("Essay: " + essay)
    forks = s.fork(len(dimensions))
    for fork, dimension in zip(forks, dimensions, strict=True):
        fork += sgl.user(f"Judge it on {dimension}.") + sgl.assistant(sgl.gen("judgement", max_tokens=8))
    forks.join()
    s += sgl.user("All: " + sgl.call("; ".join, s["judgement"])) + sgl.assistant(sgl.select("grade", ["good", "bad"]))
    return s["grade"], {"all": s["judgement"]}


DIMENSIONS = {"dimensions": ["clarity", "style"]}


def seen(state):
    return state.text(), state.messages(), state.variables(), state.ret_value


def test_a_compiled_program_does_what_the_interpreted_one_does(backend):
    compiled = judge.compile(static=DIMENSIONS)
    for seed in range(5):
        expected = judge.run(essay="Cats.", **DIMENSIONS, backend=backend, seed=seed)
        assert seen(compiled.run(essay="Cats.", backend=backend, seed=seed)) == seen(expected)


async def test_awaited_and_streamed_and_in_a_batch_it_does_the_same(backend):
    compiled = judge.compile(static=DIMENSIONS)
    expected = seen(judge.run(essay="Cats.", **DIMENSIONS, backend=backend, seed=3))
    assert seen(await compiled.arun(essay="Cats.", backend=backend, seed=3)) == expected
    streamed = compiled.run(essay="Cats.", backend=backend, seed=3, stream=True)
    assert "".join(streamed.text_iter()) == expected[0]
    assert seen(streamed)[:3] == expected[:3]
    (batched,) = compiled.run_batch([("Cats.",)], backend=backend, temperature=0)
    assert seen(batched) == seen(judge.run(essay="Cats.", **DIMENSIONS, backend=backend, temperature=0))
    (awaited,) = await compiled.arun_batch([{"essay": "Cats."}], backend=backend, temperature=0)
    assert seen(awaited) == seen(batched)


def test_the_body_runs_once_however_often_the_graph_does(backend):
    bodies = []

    @sgl.function
    def counted(s, text):
        bodies.append(1)
        s += text + sgl.gen("x", max_tokens=2)

    compiled = counted.compile()
    compiled.run_batch([{"text": str(i)} for i in range(50)], backend=backend)
    assert bodies == [1]


def test_a_thousand_runs_of_a_batch_need_no_thread_each():
    most = []

    def reply(ids, params):
        most.append(threading.active_count())
        return "x"

    @sgl.function
    def chain(s, text):
        s += text + sgl.gen("a", max_tokens=2) + ", " + sgl.gen("b", max_tokens=2)
        forks = s.fork(2)
        forks += sgl.gen("c", max_tokens=2)
        forks.join()
        s += sgl.call("".join, s["c"])

    with FakeBackend(reply) as backend:
        before = threading.active_count()
        states = chain.compile().run_batch([{"text": f"{i}:"} for i in range(1000)], backend=backend)
    assert [state.text() for state in states] == [f"{i}:x, xxx" for i in range(1000)]
    assert max(most) - before < 20


def test_a_batch_keeps_errors_in_their_places_and_notes_which_item_it_was():
    def fail(request):
        return ValueError("no") if b"7" in bytes(t for t in request.input_ids if t < 256) else None

    @sgl.function
    def one(s, text):
        s += text + sgl.gen("x", max_tokens=2)

    with FakeBackend(fail=fail) as backend:
        outcomes = one.compile().run_batch([{"text": str(i)} for i in range(10)], backend=backend, return_errors=True)
    assert [type(outcome).__name__ for outcome in outcomes] == ["ProgramState"] * 7 + ["ValueError"] + ["ProgramState"] * 2
    assert outcomes[7].__notes__ == ["in batch[7]"]


def test_the_same_static_values_give_the_same_compiled_program_and_others_another():
    first = judge.compile(static={"dimensions": ["a", "b"]})
    assert judge.compile(static={"dimensions": ["a", "b"]}) is first
    assert judge.compile(static={"dimensions": ["a"]}) is not first
    assert len(first.graph.streams) == 3


def test_another_value_for_a_static_argument_is_refused_and_the_same_one_taken(backend):
    compiled = judge.compile(static=DIMENSIONS)
    compiled.run(essay="x", dimensions=["clarity", "style"], backend=backend)
    with pytest.raises(InvalidArgumentError, match=r"dimensions: .*static.*compile\(static="):
        compiled.run(essay="x", dimensions=["other"], backend=backend)


def test_an_unknown_static_argument_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownOptionError, match="dimensions"):
        judge.compile(static={"dimension": []})


def test_an_argument_that_is_none_or_a_flag_has_a_graph_of_its_own(backend):
    @sgl.function
    def answer(s, question, context=None, is_short=False):
        if context is not None:
            s += "Context: " + context + "\n"
        s += "Question: " + question
        s += " Briefly:" if is_short is True else ":"
        s += sgl.gen("answer", max_tokens=4)

    compiled = answer.compile()
    for arguments in (
        {"question": "a"},
        {"question": "a", "context": "c"},
        {"question": "a", "context": None, "is_short": True},
        {"question": "a", "context": "c", "is_short": True},
    ):
        expected = answer.run(**arguments, backend=backend, temperature=0)
        assert compiled.run(**arguments, backend=backend, temperature=0).text() == expected.text()
    assert "is_short (True)" in compiled.explain()


def test_a_program_that_cannot_be_traced_runs_interpreted_only_if_asked_and_says_so(backend):
    @sgl.function
    def branching(s):
        s += "a" + sgl.gen("x", max_tokens=2)
        if s["x"] == "yes":
            s += "!"

    with pytest.raises(TraceError, match=r"test_compiled\.py:\d+: if s\[.x.\] =="):
        branching.compile()
    compiled = branching.compile(fallback=True)
    assert compiled.is_interpreted
    with pytest.warns(UserWarning, match="branching runs interpreted"):
        state = compiled.run(backend=backend, temperature=0)
    assert state.text() == branching.run(backend=backend, temperature=0).text()
    assert "interpreted because of line" in compiled.explain()
    assert "interpreted because of line" in branching.explain()


def test_host_code_runs_in_program_order_and_not_behind_what_failed():
    called = []

    def note(value):
        called.append(value)
        return value

    def fail(request):
        return ValueError("second") if bytes(t for t in request.input_ids if t < 256).endswith(b"two") else None

    @sgl.function
    def body(s):
        s += "one" + sgl.gen("a", max_tokens=2)
        first = sgl.call(note, s["a"])
        fork = s.copy()
        fork += "two"
        fork += sgl.gen("b", max_tokens=2)
        sgl.call(note, fork["b"])
        sgl.call(note, first)

    with FakeBackend(lambda ids, params: "x", fail=fail) as backend, pytest.raises(ValueError, match="second"):
        body.compile().run(backend=backend)
    assert called == ["x"]


def test_the_error_of_host_code_is_the_programs_error(backend):
    @sgl.function
    def body(s):
        s += "a" + sgl.gen("x", max_tokens=2)
        s += sgl.call(refuse, s["x"])

    with pytest.raises(KeyError, match="refused"):
        body.compile().run(backend=backend)


def refuse(value):
    raise KeyError("refused")


def test_an_aborted_program_ends_with_request_aborted_and_leaves_nothing_waiting():
    started, release = threading.Event(), threading.Event()

    def reply(ids, params):
        started.set()
        assert release.wait(HANG_S)
        return "late"

    @sgl.function
    def chain(s):
        s += "a" + sgl.gen("x", max_tokens=4)
        other = s.copy()
        other += sgl.gen("y", max_tokens=4)
        s += other["y"] + sgl.call(str.upper, s["x"])

    with FakeBackend(reply) as backend:
        state = chain.compile().run(backend=backend, stream=True)
        assert started.wait(HANG_S)
        state.abort()
        assert isinstance(state.error(), RequestAborted)
        release.set()


def test_a_program_called_inside_a_call_is_refused(backend):
    @sgl.function
    def inner(s):
        s += "b" + sgl.gen("y", max_tokens=2)

    @sgl.function
    def outer(s):
        s += "a" + sgl.gen("x", max_tokens=2)
        sgl.call(lambda value: inner(), s["x"])

    with pytest.raises(ProgramError, match="outside a program"):
        outer.compile().run(backend=backend)


def test_prefetch_sends_what_is_known_and_long_enough(backend):
    @sgl.function
    def ask(s, rules, question):
        s += sgl.system("You know the rules of this game by heart.") + sgl.user(rules + "\n" + question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=4))

    compiled = ask.compile()
    for handle in compiled.prefetch(backend=backend) + compiled.prefetch(rules="Do not run.", backend=backend):
        handle.result(HANG_S)
    short, longer = (request.input_ids for request in backend.prefetches)
    compiled.run(rules="Do not run.", question="Why?", backend=backend)
    prompt = backend.requests[-1].input_ids
    assert prompt[: len(short)] == short
    assert prompt[: len(longer)] == longer
    assert len(short) < len(longer) < len(prompt)
    assert all(request.when_idle for request in backend.prefetches)


def test_prefetch_refuses_an_argument_that_the_program_does_not_have(backend):
    with pytest.raises(InvalidArgumentError, match="essays"):
        judge.compile(static=DIMENSIONS).prefetch(essays="x", backend=backend)


def test_prefetch_once_passed_over_arguments_that_were_too_many_or_given_twice(backend):
    compiled = judge.compile(static=DIMENSIONS)
    with pytest.raises(InvalidArgumentError, match="at most 1"):
        compiled.prefetch("an essay", "another", backend=backend)
    with pytest.raises(InvalidArgumentError, match="one by name"):
        compiled.prefetch("an essay", essay="another", backend=backend)


def test_compile_once_passed_over_a_proposer_that_nobody_asks():
    with pytest.raises(InvalidArgumentError, match=r"proposer: .*Only move="):
        judge.compile(static=DIMENSIONS, proposer=HeuristicProposer())


def test_cache_computes_the_beginning_of_a_program_even_if_it_cannot_be_traced_to_its_end(backend):
    @sgl.function
    def branching(s, question):
        s += "A long beginning that all runs share. " + question
        s += sgl.gen("x", max_tokens=2)
        if s["x"]:
            s += "!"

    length = branching.cache(backend)
    assert length > 20
    assert len(backend.prefetches[-1].input_ids) == length
    assert not backend.prefetches[-1].when_idle


def test_a_gen_that_is_last_to_use_its_prompt_says_so_and_keeps_what_was_written(backend):
    @sgl.function
    def two(s, text):
        s += text + sgl.gen("a", max_tokens=4) + " and " + sgl.gen("b", max_tokens=4)

    two.compile().run(text="Once", backend=backend)
    first, last = (request.hints for request in backend.requests)
    assert not first.last_use
    assert last.last_use
    assert last.keep_len == len(backend.requests[0].input_ids)


def test_equal_greedy_gens_are_asked_for_once_and_sampled_ones_each(backend):
    @sgl.function
    def same(s):
        s += "Say it: "
        forks = s.fork(3)
        forks += sgl.gen("x", max_tokens=4)
        forks.join()

    compiled = same.compile()
    greedy = compiled.run(backend=backend, temperature=0)
    assert len(backend.requests) == 1
    assert len(set(greedy["x"])) == 1
    compiled.run(backend=backend, temperature=1.0)
    assert len(backend.requests) == 4


def test_a_graph_prints_as_a_listing():
    assert "= Fork(" in str(judge.compile(static=DIMENSIONS).graph)


def test_a_program_started_inside_a_body_is_not_run_by_compiling_it(backend):
    @sgl.function
    def other(s):
        s += "a" + sgl.gen("x", max_tokens=2)

    @sgl.function
    def body(s):
        s += other.run(backend=backend)["x"]

    with pytest.raises(TraceError, match=r"other is started inside .*sgl\.call\(other\.run"):
        body.compile()
    assert backend.requests == []


def test_a_flag_with_a_default_may_be_asked_for_its_truth(backend):
    @sgl.function
    def ask(s, question, is_short=False, hint=None):
        if hint:
            s += "Hint: " + hint + "\n"
        s += question + (" Briefly." if is_short else "") + sgl.gen("x", max_tokens=2)

    compiled = ask.compile()
    for arguments in ({}, {"is_short": True}, {"is_short": False}, {"hint": None}):
        expected = ask.run(question="Why?", backend=backend, temperature=0, **arguments).text()
        assert compiled.run(question="Why?", backend=backend, temperature=0, **arguments).text() == expected
    with pytest.raises(TraceError, match="hint"):
        compiled.run(question="Why?", hint="none", backend=backend)


def test_what_forks_have_asked_for_is_not_prefetched_once_more(backend, monkeypatch):
    monkeypatch.setattr(backend, "capabilities", replace(backend.capabilities, shares_in_flight=True))

    @sgl.function
    def ask(s, text):
        s += sgl.user(text)
        forks = s.fork(2)
        forks += sgl.user("Why?") + sgl.assistant(sgl.gen("x", max_tokens=4))
        forks.join()
        s += sgl.user("In short: " + sgl.call("".join, s["x"])) + sgl.assistant(sgl.gen("y", max_tokens=4))

    ask.compile().run(text="A long text that all of them share. " * 10, backend=backend)
    assert [request for request in backend.prefetches if request.when_idle] == []
