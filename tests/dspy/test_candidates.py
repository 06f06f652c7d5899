"""The n candidates of one call: submitted together, different, reproducible with a seed, aborted when nobody wants them."""

import asyncio
import threading
from contextlib import suppress

import dspy
import pytest
from dspy.clients import execution

from sgl_core.errors import EngineStepError, QueueFull
from sgl_core.testing import FakeBackend
from sgl_dspy import SglEngine, SglLM
from sgl_dspy.adapters import ChatAdapter
from sgl_dspy.running.candidates import candidate_seed

WAIT_S = 60.0


def seeds(backend):
    return [request.params.seed for request in backend.requests]


def test_all_candidates_are_under_way_before_the_first_is_answered():
    together = threading.Barrier(5)

    def reply(ids, params):
        together.wait(WAIT_S)  # passes only when five requests run at once
        return "met"

    assert SglLM(backend=FakeBackend(reply=reply))("Hello", n=5, temperature=1.0) == ["met"] * 5


def test_all_candidates_of_an_awaited_call_are_under_way_together():
    together = threading.Barrier(5)

    def reply(ids, params):
        together.wait(WAIT_S)
        return "met"

    assert asyncio.run(SglLM(backend=FakeBackend(reply=reply)).acall("Hello", n=5, temperature=1.0)) == ["met"] * 5


def test_candidates_have_one_prompt_and_say_how_many_follow(backend):
    SglLM(backend=backend)("Hello", n=3, temperature=1.0)
    assert len({request.input_ids for request in backend.requests}) == 1
    assert [request.hints.siblings for request in backend.requests] == [2, 1, 0]


def test_greedy_candidates_are_computed_once(backend):
    texts = SglLM(backend=backend)("Hello", n=3)
    assert len(texts) == 3
    assert len(set(texts)) == 1
    assert len(backend.requests) == 1


def test_candidates_differ_and_come_in_order(backend):
    lm = SglLM(backend=backend, cache=False)
    texts = lm("Hello", n=4, temperature=1.0, seed=7)
    assert len(set(texts)) == 4
    assert lm("Hello", n=2, temperature=1.0, seed=7) == texts[:2]


def test_candidates_without_a_seed_are_fresh_in_every_call(backend):
    lm = SglLM(backend=backend, cache=False, temperature=1.0)
    texts = lm("Hello", n=4) + lm("Hello", n=4)
    assert len(set(texts)) == 8
    assert seeds(backend) == [None] * 8


def test_a_rollout_has_candidates_of_its_own(backend):
    lm = SglLM(backend=backend, temperature=1.0, seed=7)
    texts = [lm("Hello", n=2, rollout_id=rollout) for rollout in (None, 1, 2)]
    assert len({text for pair in texts for text in pair}) == 6
    again = SglLM(backend=backend, temperature=1.0, seed=7, rollout_id=2, cache=False)
    assert again("Hello", n=2) == texts[2]


def test_the_first_candidate_is_the_one_that_a_plain_engine_makes(backend):
    plain = dspy.LM("sgl/x", engine=SglEngine(backend), temperature=1.0, max_tokens=1000, seed=7, cache=False)
    assert SglLM(backend=backend, temperature=1.0, seed=7, cache=False)("Hello", n=3)[:1] == plain("Hello")


def test_seeds_of_candidates_are_stable_valid_and_distinct():
    all_seeds = [candidate_seed(3, rollout, index) for rollout in (None, 0, 1) for index in range(50)]
    assert all_seeds == [candidate_seed(3, rollout, index) for rollout in (None, 0, 1) for index in range(50)]
    assert len(set(all_seeds)) == 150
    assert all(0 <= seed < 2**63 for seed in all_seeds)
    assert candidate_seed(None, 1, 2) is None


def test_n_as_a_default_counts_and_can_be_overridden(backend):
    lm = SglLM(backend=backend, n=3)
    assert len(lm("Hello")) == 3
    assert len(lm("Hello", n=1)) == 1


def test_a_typed_request_has_one_answer_whatever_the_default(backend, ask):
    lm = SglLM(backend=backend, n=3)
    assert lm(ask(model=lm.model)).text
    assert lm(request=ask("Other", model=lm.model)).text
    assert len(backend.requests) == 2


@pytest.mark.parametrize("bad", [0, -1, "2", True, 1.5])
def test_a_bad_n_is_refused_before_anything_runs(backend, bad):
    with pytest.raises(ValueError, match="n must be"):
        SglLM(backend=backend)("Hello", n=bad)
    assert backend.requests == []


def test_usage_of_all_candidates_is_summed_in_one_history_entry(backend):
    lm = SglLM(backend=backend)
    texts = lm("Hello", n=3, temperature=1.0)
    assert len(lm.history) == 1
    assert lm.history[0]["outputs"] == texts
    assert lm.history[0]["usage"]["prompt_tokens"] == 3 * len(backend.requests[0].input_ids)


def test_a_retry_repeats_its_own_candidate(monkeypatch):
    second = candidate_seed(7, None, 1)
    outcomes = iter([EngineStepError("once"), None])
    fake = FakeBackend(fail=lambda request: next(outcomes) if request.params.seed == second else None)
    monkeypatch.setattr(execution, "_delay", lambda error, attempt: 0.0)
    texts = SglLM(backend=fake, temperature=1.0, seed=7, num_retries=1)("Hello", n=3)
    assert seeds(fake) == [7, second, candidate_seed(7, None, 2), second]
    assert len(set(texts)) == 3


def test_a_full_queue_makes_later_candidates_wait_for_their_turn():
    class Narrow(FakeBackend):
        def submit(self, request):
            if self._pending:
                raise QueueFull("one at a time")
            return super().submit(request)

    fake = Narrow(latency_s=0.01)
    assert len(SglLM(backend=fake, temperature=1.0)("Hello", n=3)) == 3


class Crowded(FakeBackend):
    """The second and the third request find the queue full, while the first one runs."""

    def __init__(self):
        self.refused = threading.Semaphore(0)
        super().__init__(reply=lambda ids, params: "text", fail=self._is_full)

    def _is_full(self, request):
        place = next(place for place, other in enumerate(self.requests) if other is request)
        if place == 0:
            assert all(self.refused.acquire(timeout=WAIT_S) for _ in range(2))
        return QueueFull("full") if place in (1, 2) else None

    def submit(self, request):
        handle = super().submit(request)
        if request in self.requests[1:3]:
            handle.add_done_callback(self.refused.release)
        return handle


def test_a_candidate_whose_reply_found_the_queue_full_is_asked_for_in_its_turn():
    ask = dspy.Predict("question -> answer")
    with dspy.context(lm=SglLM(backend=Crowded(), temperature=1.0), adapter=ChatAdapter()):
        assert ask(question="Hello", config={"n": 3}).completions.answer == ["text"] * 3


class Held(FakeBackend):
    """The first request fails when it is told to; all others wait for ever."""

    def __init__(self):
        self.go_on = threading.Event()
        self.handles = []
        super().__init__(fail=self._first_fails)

    def _first_fails(self, request):
        is_first = request is self.requests[0]
        assert is_first or self.go_on.wait(WAIT_S)
        return EngineStepError("a step failed") if is_first else None

    def submit(self, request):
        self.handles.append(super().submit(request))
        return self.handles[-1]

    def reasons(self):
        return [handle.result(0).finish_reason for handle in self.handles[1:]]


def test_a_call_that_fails_aborts_its_other_candidates():
    fake = Held()
    with pytest.raises(dspy.LMServerError):
        SglLM(backend=fake, temperature=1.0)("Hello", n=3)
    assert fake.reasons() == ["abort", "abort"]
    fake.go_on.set()


def test_an_awaited_call_that_is_cancelled_aborts_its_candidates():
    fake = FakeBackend(latency_s=WAIT_S)
    handles = []
    submit = fake.submit
    fake.submit = lambda request: handles.append(submit(request)) or handles[-1]

    async def start_and_cancel():
        task = asyncio.ensure_future(SglLM(backend=fake, temperature=1.0).acall("Hello", n=3))
        while len(handles) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(start_and_cancel(), WAIT_S))
    assert [handle.result(0).finish_reason for handle in handles] == ["abort"] * 3
    fake.close()


def test_calls_in_threads_do_not_mix_their_candidates():
    fake = FakeBackend(reply=lambda ids, params: fake.codec.decode(ids).strip()[-2:], latency_s=0.01)
    lm = SglLM(backend=fake, temperature=1.0)
    answers = {}

    def call(name):
        answers[name] = lm(name, n=4)

    threads = [threading.Thread(target=call, args=(f"{i:02}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert answers == {f"{i:02}": [f"{i:02}"] * 4 for i in range(12)}
