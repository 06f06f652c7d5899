"""DSPy's own modules, helpers and files over the adapter, unchanged."""

import asyncio
import re
import threading

import dspy
import pytest

from sgl_core.testing import FakeBackend
from sgl_dspy import SglEngine, SglLM

WAIT_S = 60.0


class Answering(FakeBackend):
    """Answers in ChatAdapter's format: ``answer`` repeats the question, ``reasoning`` shows the seed."""

    def __init__(self, **options):
        super().__init__(reply=self._in_format, **options)

    def _in_format(self, ids, params):
        prompt = self.codec.decode(ids)
        question = re.findall(r"\[\[ ## question ## \]\]\n(.*?)\n", prompt)[-1]
        fields = {"reasoning": f"with seed {params.seed}", "answer": f"re: {question}"}
        wanted = re.findall(r"`\[\[ ## (\w+) ## \]\]`", prompt.rpartition("Respond with")[2])
        body = "\n\n".join(f"[[ ## {name} ## ]]\n{fields[name]}" for name in wanted if name in fields)
        return f"{body}\n\n[[ ## completed ## ]]\n"


@pytest.fixture
def answering():
    with Answering() as fake:
        yield fake


@pytest.fixture
def lm(answering):
    lm = SglLM(backend=answering)
    dspy.configure(lm=lm)
    return lm


class Rag(dspy.Module):
    def __init__(self):
        super().__init__()
        self.answer = dspy.ChainOfThought("question -> answer")

    def forward(self, question):
        return self.answer(question=question)


def test_predict_and_chain_of_thought(lm):
    assert dspy.Predict("question -> answer")(question="why?").answer == "re: why?"
    prediction = dspy.ChainOfThought("question -> answer")(question="how?")
    assert (prediction.answer, prediction.reasoning) == ("re: how?", "with seed None")


def test_n_candidates_are_completions_of_one_call(lm, answering):
    module = dspy.ChainOfThought("question -> answer", n=4, seed=11)
    prediction = module(question="how?")
    assert len(set(prediction.completions.reasoning)) == 4
    assert len(answering.requests) == 4
    assert len(lm.history) == 1
    assert [request.params.temperature for request in answering.requests] == [0.7] * 4


def test_parallel_and_batch_keep_inputs_and_answers_together(lm):
    module = Rag()
    questions = [f"q{i}" for i in range(12)]
    pairs = [(module, {"question": question}) for question in questions]
    parallel = dspy.Parallel(num_threads=6, disable_progress_bar=True)(pairs)
    batch = module.batch([dspy.Example(question=q).with_inputs("question") for q in questions], disable_progress_bar=True)
    expected = [f"re: {question}" for question in questions]
    assert [p.answer for p in parallel] == [p.answer for p in batch] == expected


def test_threads_of_parallel_are_in_flight_together():
    together = threading.Barrier(6)

    class Meeting(Answering):
        def _in_format(self, ids, params):
            together.wait(WAIT_S)
            return super()._in_format(ids, params)

    dspy.configure(lm=SglLM(backend=Meeting()))
    module = dspy.Predict("question -> answer")
    pairs = [(module, {"question": f"q{i}"}) for i in range(6)]
    assert len(dspy.Parallel(num_threads=6, disable_progress_bar=True)(pairs)) == 6


def test_acall_and_asyncify(lm):
    module = Rag()

    async def both():
        return await asyncio.gather(module.answer.acall(question="one"), dspy.asyncify(module)(question="two"))

    assert [p.answer for p in asyncio.run(both())] == ["re: one", "re: two"]


def test_evaluate(lm):
    devset = [dspy.Example(question=f"q{i}", answer=f"re: q{i}").with_inputs("question") for i in range(6)]
    evaluate = dspy.Evaluate(devset=devset, metric=lambda e, p, trace=None: e.answer == p.answer, num_threads=3)
    assert evaluate(Rag()).score == 100.0


def test_a_bootstrapped_program_carries_demos(lm):
    trainset = [dspy.Example(question=f"q{i}", answer=f"re: q{i}").with_inputs("question") for i in range(3)]
    optimizer = dspy.BootstrapFewShot(metric=lambda e, p, trace=None: e.answer == p.answer, max_bootstrapped_demos=2)
    compiled = optimizer.compile(Rag(), trainset=trainset)
    assert len(compiled.answer.predict.demos) >= 2


def test_best_of_n_and_a_deep_copied_program_run_on_the_same_engine(lm, answering):
    module = Rag()
    module.set_lm(lm)
    best = dspy.BestOfN(module=module.deepcopy(), N=2, reward_fn=lambda args, p: 0.0, threshold=1.0)
    assert best(question="why?").answer == "re: why?"
    assert len(answering.requests) == 2


def test_usage_is_tracked_with_cached_tokens_where_they_are_counted():
    class Counting(Answering):
        capabilities = type(FakeBackend.capabilities)(cached_tokens=True)

    lm = SglLM(backend=Counting())
    dspy.configure(lm=lm, track_usage=True)
    usage = dspy.Predict("question -> answer")(question="why?").get_lm_usage()[lm.model]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["completion_tokens"] > 0


def test_a_plain_lm_over_an_engine_is_correct_too(answering):
    plain = dspy.LM("sgl/x", engine=SglEngine(answering))
    with dspy.context(lm=plain):
        assert dspy.Predict("question -> answer")(question="why?").answer == "re: why?"
        predictions = dspy.ChainOfThought("question -> answer", n=3)(question="how?")
    assert len(predictions.completions.answer) == 3


def test_json_adapter_needs_no_schema_from_us():
    fake = FakeBackend(reply=lambda ids, params: '{"answer": "42"}')
    with dspy.context(lm=SglLM(backend=fake), adapter=dspy.JSONAdapter()):
        assert dspy.Predict("question -> answer")(question="why?").answer == "42"


# ---- files -----------------------------------------------------------------------------------------------------------
def test_a_program_with_its_lm_is_saved_and_loaded_without_loading_weights(engines, model_folder, tmp_path):
    module = Rag()
    module.set_lm(SglLM(str(model_folder), temperature=0.5))
    module.save(str(tmp_path / "program.json"))
    loaded = Rag()
    loaded.load(str(tmp_path / "program.json"), allow_unsafe_lm_state=True)
    lm = loaded.answer.predict.lm
    assert type(lm) is SglLM
    assert (lm.model, lm.kwargs["temperature"]) == (module.answer.predict.lm.model, 0.5)
    assert engines == []


def test_a_program_without_an_lm_is_saved_whatever_is_configured(lm, tmp_path):
    Rag().save(str(tmp_path / "program.json"))
    loaded = Rag()
    loaded.load(str(tmp_path / "program.json"))
    assert loaded(question="why?").answer == "re: why?"


def test_a_whole_program_is_saved_with_its_lm_as_a_handle(engines, model_folder, tmp_path):
    module = dspy.Predict("question -> answer")
    module.set_lm(SglLM(str(model_folder)))
    module.save(str(tmp_path / "program"), save_program=True)
    loaded = dspy.load(str(tmp_path / "program"), allow_pickle=True)
    assert loaded.lm.model == module.lm.model
    assert engines == []


# ---- streams ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("is_async", [True, False])
def test_a_listener_hears_the_field_in_pieces(lm, is_async):
    class Program(dspy.Module):
        def __init__(self):
            super().__init__()
            self.predict = dspy.ChainOfThought("question -> answer")

        def forward(self, question):
            return self.predict(question=question)

        async def aforward(self, question):
            return await self.predict.acall(question=question)

    streaming = dspy.streamify(
        Program(),
        stream_listeners=[dspy.streaming.StreamListener(signature_field_name="answer")],
        is_async_program=is_async,
    )

    async def collect():
        return [item async for item in streaming(question="a rather long question about streaming")]

    items = asyncio.run(asyncio.wait_for(collect(), WAIT_S))
    chunks = [item.chunk for item in items if isinstance(item, dspy.streaming.StreamResponse)]
    assert len(chunks) > 2
    assert "".join(chunks).strip() == "re: a rather long question about streaming"
    assert isinstance(items[-1], dspy.Prediction)


def test_a_stream_that_the_user_leaves_aborts_its_request():
    class Endless(Answering):
        def submit(self, request):
            self.handle = super().submit(request)
            self.handle.push(self.first_delta())
            return self.handle

        @staticmethod
        def first_delta():
            from sgl_core.types import GenDelta

            return GenDelta("[[ ## answer ## ]]\nfirst words", ())

    fake = Endless(latency_s=WAIT_S)
    dspy.configure(lm=SglLM(backend=fake))
    streaming = dspy.streamify(dspy.Predict("question -> answer"), is_async_program=True)

    async def leave_after_the_first():
        stream = streaming(question="why?")
        await anext(stream)
        await stream.aclose()

    asyncio.run(asyncio.wait_for(leave_after_the_first(), WAIT_S))
    assert fake.handle.result(WAIT_S / 2).finish_reason == "abort"
    fake.close()
