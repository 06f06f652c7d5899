"""Threads, event loops, stragglers: DSPy's ways to run many calls, and what must be computed only once."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest

from sgl_dspy.lm import SglLM
from sgl_dspy.running.flights import Flights

WAIT_S = 60.0


class Gate:
    """A script's value that nobody gets before the gate opens."""

    def __init__(self, value):
        self._value = value
        self._open = threading.Event()

    def __call__(self, prompt, params):
        assert self._open.wait(WAIT_S)
        return self._value(prompt, params)

    def open(self):
        self._open.set()


@pytest.fixture
def attempts(monkeypatch):
    """Counts attempts that have a request under way."""
    begun = threading.Semaphore(0)
    join = Flights.join

    def counted(self, key, start):
        handle = join(self, key, start)
        begun.release()
        return handle

    monkeypatch.setattr(Flights, "join", counted)
    return begun


def when_begun(attempts, count, then):
    """Calls ``then`` when so many attempts are under way."""

    def wait():
        for _ in range(count):
            assert attempts.acquire(timeout=WAIT_S)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


# ---- one computation -------------------------------------------------------------------------------------------------
def test_a_straggler_that_is_submitted_again_is_computed_once(lm, fake, echo, attempts):
    gate = fake.script["answer"] = Gate(echo)
    predict = dspy.Predict("question -> answer")
    under_way = []

    def count_and_open():
        under_way.append(sum(not handle.done() for handle in fake.handles))
        gate.open()

    opener = when_begun(attempts, 4, count_and_open)  # two items, each of them twice
    results = dspy.Parallel(num_threads=4, timeout=0.01, disable_progress_bar=True)(
        [(predict, {"question": question}) for question in ("a", "b")]
    )
    opener.join(WAIT_S)
    assert [result.answer for result in results] == ["re: a", "re: b"]
    assert under_way == [2]


def test_threads_with_the_same_greedy_question_share_one_computation(lm, fake, echo, attempts):
    gate = fake.script["answer"] = Gate(echo)
    predict = dspy.Predict("question -> answer")
    opener = when_begun(attempts, 6, gate.open)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(contextvars.copy_context().run, lambda: predict(question="why?").answer) for _ in range(6)]
        assert [answer.result(WAIT_S) for answer in asked] == ["re: why?"] * 6
    opener.join(WAIT_S)
    assert fake.computed() == 1
    assert len(lm.history) == 6


def test_samples_are_never_shared(fake):
    lm = SglLM(backend=fake, temperature=1.0, cache=False)
    with ThreadPoolExecutor(6) as pool:
        texts = [text for (text,) in pool.map(lambda _: lm("Hello"), range(6))]
    assert len(set(texts)) == len(fake.requests) == 6


def test_awaited_calls_share_a_greedy_computation_too(lm, fake, attempts):
    gate = fake.script[""] = Gate(lambda prompt, params: "once")
    opener = when_begun(attempts, 5, gate.open)

    async def ask_all():
        return await asyncio.gather(*(lm.acall("Hello", cache=False) for _ in range(5)))

    assert asyncio.run(asyncio.wait_for(ask_all(), WAIT_S)) == [["once"]] * 5
    opener.join(WAIT_S)
    assert fake.computed() == 1


def test_a_caller_who_leaves_does_not_take_the_answer_from_others(lm, fake, attempts):
    gate = fake.script[""] = Gate(lambda prompt, params: "still here")

    async def one_leaves():
        tasks = [asyncio.ensure_future(lm.acall("Hello", cache=False)) for _ in range(2)]
        for _ in tasks:
            assert await asyncio.to_thread(attempts.acquire, timeout=WAIT_S)
        tasks[0].cancel()
        left, stayed = asyncio.gather(tasks[0], return_exceptions=True), tasks[1]
        assert isinstance((await left)[0], asyncio.CancelledError)
        gate.open()
        return await stayed

    assert asyncio.run(asyncio.wait_for(one_leaves(), WAIT_S)) == ["still here"]
    assert fake.computed() == 1


def test_when_all_have_left_the_request_is_aborted(lm, fake, attempts):
    gate = fake.script[""] = Gate(lambda prompt, params: "too late")

    async def all_leave():
        tasks = [asyncio.ensure_future(lm.acall("Hello", cache=False)) for _ in range(2)]
        for _ in tasks:
            assert await asyncio.to_thread(attempts.acquire, timeout=WAIT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(asyncio.wait_for(all_leave(), WAIT_S))
    assert fake.computed() == 0
    gate.open()


def test_candidates_at_temperature_zero_are_one_computation(lm, fake, attempts):
    gate = fake.script[""] = Gate(lambda prompt, params: "same")
    opener = when_begun(attempts, 3, gate.open)
    assert lm("Hello", n=3) == ["same"] * 3
    opener.join(WAIT_S)
    assert fake.computed() == 1


# ---- DSPy's helpers --------------------------------------------------------------------------------------------------
def test_evaluate_asks_every_example_once_whatever_the_threads(lm, fake, echo, answers):
    fake.script["answer"] = echo
    for threads in (1, 4):
        fake.requests.clear()
        evaluate = dspy.Evaluate(
            devset=answers(8), metric=lambda e, p, trace=None: e.answer == p.answer, num_threads=threads, display_progress=False
        )
        assert evaluate(dspy.Predict("question -> answer").deepcopy()).score == 100.0
        dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
        assert len(fake.requests) == 8


def test_parallel_gives_failures_back_as_dspy_does(scripted, echo):
    fake = scripted({"answer": echo}, fail=lambda request: ValueError("bad") if "bad" in seen(request) else None)

    def seen(request):
        return fake.codec.decode(request.input_ids)

    with dspy.context(lm=SglLM(backend=fake)):
        parallel = dspy.Parallel(num_threads=3, disable_progress_bar=True, return_failed_examples=True, max_errors=10)
        predict = dspy.Predict("question -> answer")
        results, failed, raised = parallel([(predict, {"question": name}) for name in ("a", "bad", "c")])
    assert [result and result.answer for result in results] == ["re: a", None, "re: c"]
    assert failed == [{"question": "bad"}] or failed[0][1] == {"question": "bad"}
    assert isinstance(raised[0], dspy.LMUnexpectedError)


def test_usage_is_tracked_for_a_module_that_runs_in_parallel_inside(lm, fake, echo):
    fake.script["answer"] = echo
    dspy.configure(track_usage=True)

    class Fan(dspy.Module):
        def __init__(self):
            super().__init__()
            self.predict = dspy.Predict("question -> answer")

        def forward(self, question):
            pairs = [(self.predict, {"question": f"{question} {i}"}) for i in range(3)]
            results = dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)
            return dspy.Prediction(answers=[result.answer for result in results])

    prediction = Fan()(question="why")
    assert prediction.answers == ["re: why 0", "re: why 1", "re: why 2"]
    assert prediction.get_lm_usage() is not None
    assert len(lm.history) == 3


def test_settings_cross_parallel_but_own_context_variables_do_not(lm, fake, echo):
    """Why our scope rides in DSPy's settings."""
    fake.script["answer"] = echo
    mine = contextvars.ContextVar("mine", default="lost")

    class Looking(dspy.Module):
        def forward(self, question):
            return dspy.Prediction(setting=dspy.settings.get("sgl_contract_key"), variable=mine.get())

    mine.set("kept")
    with dspy.context(sgl_contract_key="there"):
        results = Looking().batch([dspy.Example(question="a").with_inputs("question")] * 2, disable_progress_bar=True)
    assert {(result.setting, result.variable) for result in results} == {("there", "lost")}


def test_other_lms_in_a_context_reach_threads(scripted, echo):
    one, two = scripted({"answer": "one"}), scripted({"answer": "two"})
    dspy.configure(lm=SglLM(backend=one, cache=False))
    predict = dspy.Predict("question -> answer")
    examples = [dspy.Example(question=str(i)).with_inputs("question") for i in range(4)]
    with dspy.context(lm=SglLM(backend=two, cache=False)):
        inside = predict.batch(examples, num_threads=2, disable_progress_bar=True)
    outside = predict.batch(examples, num_threads=2, disable_progress_bar=True)
    assert [result.answer for result in (*inside, *outside)] == ["two"] * 4 + ["one"] * 4


def test_asyncify_and_syncify_lead_to_the_same_answers(lm, fake, echo):
    fake.script["answer"] = echo

    class Awaited(dspy.Module):
        def __init__(self):
            super().__init__()
            self.predict = dspy.Predict("question -> answer")

        async def aforward(self, question):
            return await self.predict.acall(question=question)

    plain = dspy.Predict("question -> answer")
    assert asyncio.run(dspy.asyncify(plain)(question="a")).answer == "re: a"
    assert dspy.syncify(Awaited(), in_place=False)(question="b").answer == "re: b"
    assert dspy.syncify(Awaited())(question="c").answer == "re: c"


def test_one_lm_serves_several_event_loops(lm, fake):
    texts = [asyncio.run(lm.acall(f"Hello {i}")) for i in range(3)]
    assert len({text for (text,) in texts}) == 3


def test_each_tasks_context_is_its_own(scripted):
    lms = {name: SglLM(backend=scripted({"answer": name}), cache=False) for name in ("one", "two", "three")}

    async def ask(name):
        with dspy.context(lm=lms[name]):
            await asyncio.sleep(0)
            return (await dspy.Predict("question -> answer").acall(question="?")).answer

    async def ask_all():
        return await asyncio.gather(*(ask(name) for name in lms))

    assert asyncio.run(ask_all()) == list(lms)
