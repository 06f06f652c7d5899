"""BestOfN: what DSPy's loop would return, from attempts that run at the same time."""

import asyncio
import re
import threading

import dspy
import pytest

from sgl_core.testing import FakeBackend
from sgl_dspy import SglLM
from sgl_dspy.best_of_n import BestOfN, run_best_of_n
from sgl_dspy.running.candidates import candidate_seed
from sgl_dspy.running.leaving import Exit

WAIT_S = 60.0
SEED = 11
HELD = 3600.0
"""Seconds that a request takes which nobody waits for."""


class Answering(FakeBackend):
    """Answers with a number that its seed decides; ``meet`` requests come together, or none of them is answered."""

    def __init__(self, meet: int = 1, **options):
        super().__init__(reply=self._number, **options)
        self._together = threading.Barrier(meet)

    def _number(self, ids, params):
        self._together.wait(WAIT_S)
        return f"[[ ## answer ## ]]\n{params.seed % 1000}\n\n[[ ## completed ## ]]\n"


class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question):
        return self.ask(question=question)

    async def aforward(self, question):
        return await self.ask.acall(question=question)


def seeded(backend, **options):
    lm = SglLM(backend=backend, seed=SEED, cache=False, **options)
    dspy.configure(lm=lm)
    return lm


def answers_of(num):
    """What attempts ``0 .. num-1`` answer."""
    with Answering() as fake:
        lm = seeded(fake, temperature=1.0)
        texts = [lm(f"{i}", rollout_id=i) for i in range(num)]
    return [int(re.search(r"\d+", text)[0]) for [text] in texts]


def number(args, prediction):
    return int(prediction.answer)


def run(best, kind, **inputs):
    return best(**inputs) if kind == "threads" else asyncio.run(asyncio.wait_for(best.acall(**inputs), WAIT_S))


both_ways = pytest.mark.parametrize("kind", ["threads", "tasks"])


# ---- the same outcome ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("speculate", [1, 2, 3, 4, 9, None])
def test_the_prediction_is_that_of_dspys_loop_wherever_the_winner_stands(rank, speculate):
    threshold = answers_of(4)[rank]
    with Answering() as fake:
        seeded(fake)
        expected = dspy.BestOfN(Program(), 4, number, threshold)(question="why?")
        found = BestOfN(Program(), 4, number, threshold, speculate=speculate)(question="why?")
    assert found.answer == expected.answer
    assert found.toDict() == expected.toDict()


@both_ways
def test_the_best_of_all_wins_where_none_is_good_enough(kind):
    expected = max(answers_of(5))
    with Answering(meet=5) as fake:
        seeded(fake)
        assert run(BestOfN(Program(), 5, number, 1e9), kind, question="why?").answer == str(expected)


@both_ways
def test_the_same_seed_gives_the_same_prediction_again(kind):
    with Answering() as fake:
        seeded(fake)
        best = BestOfN(Program(), 4, number, 1e9)
        assert run(best, kind, question="why?").answer == run(best, kind, question="why?").answer


@both_ways
def test_every_rollout_is_run_once(kind):
    with Answering() as fake:
        seeded(fake)
        run(BestOfN(Program(), 6, number, 1e9, speculate=2), kind, question="why?")
        assert len({request.params.seed for request in fake.requests}) == len(fake.requests) == 6
        assert {request.params.temperature for request in fake.requests} == {1.0}


def test_rollouts_go_on_from_that_of_the_lm():
    with Answering() as fake:
        seeded(fake, rollout_id=7, temperature=1.0)
        stock = dspy.BestOfN(Program(), 3, number, 1e9)(question="why?")
        assert BestOfN(Program(), 3, number, 1e9)(question="why?").answer == stock.answer


@both_ways
def test_rewards_are_looked_at_in_order_on_the_callers_thread_and_not_behind_the_winner(kind):
    numbers = answers_of(6)
    seen, threads = [], set()

    def reward(args, prediction):
        seen.append(int(prediction.answer))
        threads.add(threading.current_thread())
        return float(len(seen))

    with Answering() as fake:
        seeded(fake)
        found = run(BestOfN(Program(), 6, reward, 3.0), kind, question="why?")
    assert seen == numbers[:3]
    assert found.answer == str(numbers[2])
    assert threads == {threading.current_thread()}


def test_the_reward_function_gets_the_inputs():
    with Answering() as fake:
        seeded(fake)
        given = []
        BestOfN(Program(), 2, lambda args, p: given.append(args) or 0.0, 1.0)(question="why?")
    assert given == [{"question": "why?"}] * 2


def test_no_attempt_at_all_is_no_prediction():
    with Answering() as fake:
        seeded(fake)
        assert BestOfN(Program(), 0, number, 1.0)(question="why?") is None
        assert fake.requests == []


# ---- at the same time ------------------------------------------------------------------------------------------------
@both_ways
def test_all_attempts_are_under_way_together(kind):
    with Answering(meet=4) as fake:  # answers only when four requests run at once
        seeded(fake)
        assert run(BestOfN(Program(), 4, number, 1e9), kind, question="why?") is not None


@both_ways
def test_as_many_attempts_run_ahead_as_are_asked_for(kind):
    started = []
    with Answering() as fake:
        seeded(fake)
        run(
            BestOfN(Program(), 6, lambda args, p: started.append(len(fake.requests)) or 0.0, 1.0, speculate=2),
            kind,
            question="q",
        )
    assert all(n <= min(index + 2, 6) for index, n in enumerate(started))
    assert started[-1] == 6


def test_one_at_a_time_is_dspys_own_loop(capsys):
    with FakeBackend(reply=lambda ids, params: "no field") as fake:
        seeded(fake)
        BestOfN(Program(), 1, number, 1.0, speculate=1)(question="why?")
    assert "BestOfN: Attempt 1 failed" in capsys.readouterr().out


def test_another_lm_is_asked_one_at_a_time_unless_the_caller_says_otherwise():
    running = []
    most = []

    class Elsewhere:
        supports_function_calling = False

        def complete(self, request):
            running.append(request)
            most.append(len(running))
            try:
                return dspy.lm15.Response(
                    id="1",
                    model=request.model,
                    message=dspy.lm15.Message.assistant("[[ ## answer ## ]]\n1"),
                    finish_reason="stop",
                    usage=dspy.lm15.Usage(1, 1),
                )
            finally:
                running.pop()

    dspy.configure(lm=dspy.LM("elsewhere/x", engine=Elsewhere(), cache=False))
    assert BestOfN(Program(), 3, number, 1e9)(question="why?").answer == "1"
    assert most == [1, 1, 1]


def test_attempts_of_a_streamed_program_come_one_after_the_other():
    with Answering() as fake:
        seeded(fake)
        best = BestOfN(Program(), 3, lambda args, p: float(len(fake.requests)), 1.0)
        streaming = dspy.streamify(best, stream_listeners=[dspy.streaming.StreamListener("answer", predict=best.module.ask)])

        async def last():
            return [item async for item in streaming(question="why?")][-1]

        assert isinstance(asyncio.run(asyncio.wait_for(last(), WAIT_S)), dspy.Prediction)
        assert len(fake.requests) == 1


# ---- those that are left ---------------------------------------------------------------------------------------------
class Holding(Answering):
    """Answers the first rollout once ``num`` requests are under way, and the others never."""

    def __init__(self, num):
        super().__init__()
        self.handles = []
        self._num = num
        self._all_there = threading.Event()
        self._never = FakeBackend(latency_s=HELD)

    def submit(self, request):
        is_first = request.params.seed == candidate_seed(SEED, 0, 0)
        handle = super().submit(request) if is_first else self._never.submit(request)
        with self._lock:
            self.handles.append(handle)
            if len(self.handles) == self._num:
                self._all_there.set()
        return handle

    def reasons(self):
        return sorted(handle.result(0).finish_reason for handle in self.handles)

    def release(self):
        """Let the thread go that computes the first answer."""
        self._all_there.set()

    def close(self):
        super().close()
        self._never.close()

    def _number(self, ids, params):
        assert self._all_there.wait(WAIT_S)
        return super()._number(ids, params)


@both_ways
def test_requests_behind_the_winner_are_aborted(kind):
    with Holding(4) as fake:
        seeded(fake)
        found = run(BestOfN(Program(), 4, lambda args, p: 1.0, 1.0), kind, question="why?")
        assert found.answer == str(candidate_seed(SEED, 0, 0) % 1000)
        assert fake.reasons() == ["abort", "abort", "abort", "stop"]


def test_an_attempt_that_has_been_left_begins_no_further_request(monkeypatch):
    gate, left, leave = threading.Event(), [], Exit.leave

    def leave_and_tell(way_out):
        leave(way_out)
        left.append(way_out)
        if len(left) == 2:
            gate.set()

    monkeypatch.setattr(Exit, "leave", leave_and_tell)

    class TwoSteps(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question):
            first = self.ask(question=question)
            if self.ask.lm.kwargs["rollout_id"] == 0:
                return first
            assert gate.wait(WAIT_S)
            for _ in range(3):
                try:
                    self.ask(question="again")
                except Exception:  # a program that forgives whatever happens
                    continue
            return first

    with Answering(meet=2) as fake:
        seeded(fake)
        BestOfN(TwoSteps(), 2, lambda args, p: 1.0, 1.0)(question="why?")
        assert len(fake.requests) == 2


@both_ways
def test_attempts_that_are_left_show_no_failure_and_cost_no_fail_count(kind, caplog):
    with Holding(3) as fake:
        seeded(fake)
        best = BestOfN(Program(), 3, lambda args, p: 1.0, 1.0)
        run(best, kind, question="why?")
    assert best.fail_count == 3
    assert caplog.records == []


def test_an_interrupted_search_leaves_its_attempts():
    def interrupt(args, prediction):
        raise KeyboardInterrupt

    with Holding(3) as fake:
        seeded(fake)
        with pytest.raises(KeyboardInterrupt):
            BestOfN(Program(), 3, interrupt, 1.0)(question="why?")
        assert fake.reasons() == ["abort", "abort", "stop"]


def test_a_cancelled_search_aborts_its_attempts():
    with Holding(4) as fake:  # there are three, so none is answered
        seeded(fake)

        async def start_and_cancel():
            task = asyncio.create_task(BestOfN(Program(), 3, number, 1.0).acall(question="why?"))
            while len(fake.handles) < 3:
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(asyncio.wait_for(start_and_cancel(), WAIT_S))
        assert fake.reasons() == ["abort"] * 3
        fake.release()


# ---- traces, usage, failures -----------------------------------------------------------------------------------------
@both_ways
def test_only_the_winners_trace_is_kept_with_its_own_predictor(kind):
    def reward(args, prediction):
        dspy.settings.trace.append("the reward function's")
        return number(args, prediction)

    expected = max(answers_of(4))
    with Answering() as fake:
        seeded(fake)
        with dspy.context(trace=[]):
            found = run(BestOfN(Program(), 4, reward, 1e9), kind, question="why?")
            trace = list(dspy.settings.trace)
    [(predictor, inputs, prediction)] = trace
    assert isinstance(predictor, dspy.Predict)
    assert inputs == {"question": "why?"}
    assert prediction is found
    assert prediction.answer == str(expected)


@both_ways
def test_usage_of_all_attempts_that_were_answered_is_counted(kind):
    with Answering(meet=4) as fake:
        lm = seeded(fake)
        with dspy.track_usage() as usage:
            run(BestOfN(Program(), 4, lambda args, p: 1.0, 2.0), kind, question="why?")
        total = usage.get_total_tokens()[lm.model]
        assert total["prompt_tokens"] == sum(len(request.input_ids) for request in fake.requests)
        assert len(fake.requests) == 4


def failing(rollouts):
    class Failing(Program):
        def forward(self, question):
            rollout = self.ask.lm.kwargs["rollout_id"]
            if rollout in rollouts:
                raise LookupError(f"attempt {rollout}")
            return super().forward(question)

    return Failing


FAILURES = [((0,), None), ((0, 1), None), ((1, 2), 2), ((0, 1, 2, 3), None), ((1, 2, 3), 1), ((2, 3), 1), ((0, 1, 2), 2)]


@pytest.mark.parametrize(("rollouts", "fail_count"), FAILURES)
def test_failures_are_counted_forgiven_and_raised_as_in_dspys_loop(rollouts, fail_count):
    def outcome(best):
        try:
            prediction = best(question="why?")
        except LookupError as error:
            return str(error), best.fail_count
        return prediction and prediction.answer, best.fail_count

    with Answering() as fake:
        seeded(fake)
        module = failing(rollouts)
        expected = outcome(dspy.BestOfN(module(), 4, number, 1e9, fail_count))
        assert outcome(BestOfN(module(), 4, number, 1e9, fail_count)) == expected


def test_a_reward_function_that_fails_is_a_failed_attempt():
    def reward(args, prediction):
        if int(prediction.answer) == first:
            raise ZeroDivisionError
        return number(args, prediction)

    first, *others = answers_of(3)
    with Answering() as fake:
        seeded(fake)
        best = BestOfN(Program(), 3, reward, 1e9)
        assert best(question="why?").answer == str(max(others))
    assert best.fail_count == 2


def test_a_failure_is_logged_with_its_attempt(caplog):
    with Answering() as fake:
        seeded(fake)
        BestOfN(failing((1,))(), 2, number, 1e9)(question="why?")
    assert [record.message for record in caplog.records] == ["BestOfN: attempt 2 failed with rollout id 1: attempt 1"]


# ---- the class -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "2"])
def test_a_bad_number_at_once_is_refused_when_it_is_made(bad):
    with pytest.raises(ValueError, match="speculate"):
        BestOfN(Program(), 2, number, 1.0, speculate=bad)


@pytest.mark.parametrize("bad", [-1, True, 1.5, "2"])
def test_a_bad_number_of_attempts_is_refused_when_it_is_made(bad):
    with pytest.raises(ValueError, match=r"^N: "):
        BestOfN(Program(), bad, number, 1.0)


@pytest.mark.parametrize("bad", [Program, print])
def test_what_is_no_module_is_refused_when_it_is_made(bad):
    with pytest.raises(ValueError, match=r"^module: "):
        BestOfN(bad, 2, number, 1.0)


def test_it_copies_and_saves_as_dspys_own(tmp_path):
    best = BestOfN(Program(), 3, number, 1.0, speculate=2)
    stock = dspy.BestOfN(Program(), 3, number, 1.0)
    assert best.deepcopy().speculate == 2
    assert isinstance(best, dspy.BestOfN)
    assert best.dump_state() == {**stock.dump_state(), **best.dump_state()}
    assert best.dump_state().keys() == stock.dump_state().keys()


def test_an_instance_of_dspys_own_runs_ahead_too():
    with Answering(meet=3) as fake:
        seeded(fake)
        best = dspy.BestOfN(Program(), 3, number, 1e9)
        assert run_best_of_n(best, {"question": "why?"}).answer == str(max(answers_of(3)))


def test_a_search_inside_a_search():
    with Answering() as fake:
        seeded(fake)
        inner = BestOfN(Program(), 2, number, 1e9)
        found = BestOfN(inner, 2, number, 1e9)(question="why?")
        assert found.answer == dspy.BestOfN(dspy.BestOfN(Program(), 2, number, 1e9), 2, number, 1e9)(question="why?").answer


def test_searches_in_threads_of_parallel_do_not_mix():
    with Answering() as fake:
        seeded(fake)
        best = BestOfN(Program(), 3, number, 1e9)
        pairs = [(best, {"question": f"q{i}"}) for i in range(6)]
        found = dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)
    assert {prediction.answer for prediction in found} == {str(max(answers_of(3)))}


# ---- DSPy's other ways to make candidates ----------------------------------------------------------------------------
class Reasoning(FakeBackend):
    """Answers alike, for a reason of its own; five requests come together, or none is answered."""

    def __init__(self, meet):
        super().__init__(reply=self._in_format)
        self._together = threading.Barrier(meet)

    def _in_format(self, ids, params):
        is_comparison = "reasoning_attempt_1" in self.codec.decode(ids)
        if not is_comparison:
            self._together.wait(WAIT_S)
        reason = "rationale" if is_comparison else "reasoning"
        fields = {reason: f"because of {params.seed}", "answer": f"{(params.seed or 0) % 2}"}
        body = "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in fields.items())
        return f"{body}\n\n[[ ## completed ## ]]\n"


def test_five_candidates_of_self_consistency_are_submitted_at_once():
    with Reasoning(meet=5) as fake:
        seeded(fake)
        prediction = dspy.ChainOfThought("question -> answer", n=5)(question="why?")
        votes = list(prediction.completions.answer)
        assert dspy.majority(prediction).answer == max(("0", "1"), key=votes.count)
        assert len(set(prediction.completions.reasoning)) == len(fake.requests) == 5


@pytest.mark.filterwarnings("ignore:The 'prefix' argument:DeprecationWarning")  # DSPy's module uses it itself
def test_five_candidates_of_a_comparison_are_submitted_at_once():
    with Reasoning(meet=5) as fake:
        seeded(fake)
        candidates = dspy.ChainOfThought("question -> answer", n=5)(question="why?").completions
        compare = dspy.MultiChainComparison("question -> answer", M=5)
        assert compare([candidates[i] for i in range(5)], question="why?").rationale.startswith("because of")
        assert len(fake.requests) == 6


@pytest.mark.parametrize("is_async", [False, True])
def test_a_search_inside_an_attempt_that_is_left_is_left_with_it(is_async):
    hold, held = threading.Event(), []

    def reply(ids, params):
        if params.seed != candidate_seed(SEED, 0, 0):
            held.append(hold.wait(WAIT_S))
        return "[[ ## answer ## ]]\n1\n\n[[ ## completed ## ]]\n"

    with FakeBackend(reply=reply) as fake:
        seeded(fake)
        search = BestOfN(BestOfN(Program(), 2, number, 1.0), 2, number, 1.0)
        found = asyncio.run(search.acall(question="x")) if is_async else search(question="x")
        assert (found.answer, held) == ("1", [])
        hold.set()
