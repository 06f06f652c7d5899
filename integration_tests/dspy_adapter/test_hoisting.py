"""Five judges of one essay on the embedded model: what they share with and without hoisting."""

import asyncio

import dspy
import pytest

from sgl_core.testing.optimum import OfflineTrie
from sgl_dspy.adapters import ChatAdapter
from sgl_dspy.compiled.compiling import compile_module

WAIT_S = 300.0
TOPICS = ("clarity", "evidence", "structure", "style", "originality")
ESSAY = (
    "A city that plants trees along its streets is buying shade on credit, and the interest runs in its favour. In the first "
    "years a young tree costs water, stakes and the patience of drivers who would rather park there. By the tenth year its "
    "crown cools the pavement below by several degrees, and the shops behind it keep their doors open in July. By the "
    "thirtieth it has outlived the officials who signed for it. Critics say that roots lift the paving and that leaves "
    "block the drains, and both are true. Yet a paved street floods as well, and sooner, because nothing in it drinks. The "
    "bill for swept leaves is small beside the bill for a flooded cellar. What cities lack is not money but memory: budgets "
    "are yearly, and trees are not. A council that plants this spring will not be praised for it this spring. The remedy is "
    "to count trees as one counts pipes and bridges, as things that are owned, that wear out and that must be renewed before "
    "they fail. A register of trees, each with its age and state, would turn a kindness into an asset, and nobody cuts an "
    "asset down to save the cost of sweeping. Until then we shall go on planting in wet years and forgetting in dry ones, "
    "and we shall wonder each August why the streets of our grandparents were cooler than our own."
)


class Judges(dspy.Module):
    def __init__(self):
        super().__init__()
        self.judges = [dspy.Predict(dspy.Signature("essay -> score: int, comment", task(topic))) for topic in TOPICS]

    def forward(self, essay):
        return dspy.Prediction(scores=[judge(essay=essay).score for judge in self.judges])

    async def aforward(self, essay):
        judged = await asyncio.gather(*(judge.acall(essay=essay) for judge in self.judges))
        return dspy.Prediction(scores=[one.score for one in judged])


def task(topic):
    return f"Judge the {topic} of the essay, with a score from 1 to 10 and a short comment."


@pytest.fixture
def judges(lm):
    dspy.configure(lm=lm.copy(max_tokens=40), adapter=ChatAdapter())
    return Judges()


class Prompts:
    """The prompts that the engine was asked to continue, each call's first."""

    def __init__(self, engine, monkeypatch):
        self.ids = []
        submit = engine.submit

        def recording(request):
            if not any(request.input_ids[: len(known)] == known for known in self.ids):
                self.ids.append(request.input_ids)
            return submit(request)

        monkeypatch.setattr(engine, "submit", recording)

    def ideal_share(self):
        """Of prompt tokens, those that begin an earlier prompt."""
        trie, shared = OfflineTrie(), 0
        for ids in self.ids:
            shared += trie.prefix_len(ids)
            trie.insert(ids)
        return shared / sum(map(len, self.ids))


def cached_share(entries):
    usages = [entry["usage"] for entry in entries]
    return sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages) / sum(u["prompt_tokens"] for u in usages)


def measured(program, engine, run):
    engine.flush_cache()
    result = run(program)
    assert len(result.scores) == len(TOPICS)
    return cached_share(dspy.settings.lm.history[-len(TOPICS) :])


def one_after_another(program):
    return program(essay=ESSAY)


def all_at_once(program):
    return asyncio.run(asyncio.wait_for(program.acall(essay=ESSAY), WAIT_S))


def test_hoisted_judges_find_most_of_their_prompts_in_the_cache(judges, engine, monkeypatch):
    without = measured(judges, engine, one_after_another)
    hoisted = compile_module(judges, hoist=["essay"])
    prompts = Prompts(engine, monkeypatch)
    share = measured(hoisted, engine, one_after_another)
    ideal = prompts.ideal_share()
    print(f"cached {share:.1%} hoisted, {ideal:.1%} at best, {without:.1%} without")
    assert len(prompts.ids) == len(TOPICS)
    assert without < 0.3
    assert share >= 0.6
    assert abs(share - ideal) <= 0.03


@pytest.mark.parametrize("threads", [1, 5])
def test_judges_in_threads_share_as_well(lm, engine, threads):
    class Threads(Judges):
        def forward(self, essay):
            pairs = [(judge, {"essay": essay}) for judge in self.judges]
            judged = dspy.Parallel(num_threads=threads, disable_progress_bar=True, timeout=0)(pairs)
            return dspy.Prediction(scores=[one.score for one in judged])

    dspy.configure(lm=lm.copy(max_tokens=40))
    assert measured(compile_module(Threads(), hoist=["essay"]), engine, one_after_another) >= 0.58


def test_judges_that_are_gathered_share_as_well(judges, engine):
    assert measured(compile_module(judges, hoist=["essay"]), engine, all_at_once) >= 0.58
