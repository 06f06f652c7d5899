"""DSPy's optimisers and searches over our LM, with their own adapter and with ours."""

import dspy
import numpy as np
import pytest

from sgl_dspy.adapters import ChatAdapter


class Qa(dspy.Module):
    """At module level, as optimisers read its source."""

    def __init__(self):
        super().__init__()
        self.answer = dspy.ChainOfThought("question -> answer")

    def forward(self, question):
        return self.answer(question=question)


def is_right(example, prediction, trace=None):
    return example.answer == prediction.answer


def right_share(example, prediction):
    return float(example.answer == prediction.answer)


@pytest.fixture(params=[None, ChatAdapter], ids=["plain", "fields"])
def ready(request, lm, fake, echo):
    """An LM that answers by repeating the question, under DSPy's adapter and under ours."""
    fake.script.update(answer=echo, reasoning="because")
    dspy.configure(adapter=None if request.param is None else request.param())
    return lm


def test_bootstrapped_demos_are_the_models_own_answers(ready, answers):
    optimizer = dspy.BootstrapFewShot(metric=is_right, max_bootstrapped_demos=2, max_labeled_demos=1)
    compiled = optimizer.compile(Qa(), trainset=answers(4))
    augmented = [demo for demo in compiled.answer.predict.demos if demo.get("augmented")]
    assert [demo.answer for demo in augmented] == [f"re: {demo.question}" for demo in augmented]
    assert len(augmented) == 2
    assert all(demo.reasoning == "because" for demo in augmented)


def test_further_rounds_of_bootstrapping_draw_fresh_samples(ready, answers, fake):
    optimizer = dspy.BootstrapFewShot(
        metric=lambda example, prediction, trace=None: False, max_bootstrapped_demos=1, max_labeled_demos=0, max_rounds=3
    )
    optimizer.compile(Qa(), trainset=answers(1))
    temperatures = [request.params.temperature for request in fake.requests]
    assert 0.0 in temperatures
    assert 1.0 in temperatures


def test_random_search_evaluates_its_candidates_in_threads(ready, answers):
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        metric=is_right, max_bootstrapped_demos=1, max_labeled_demos=1, num_candidate_programs=1, num_threads=2
    )
    compiled = optimizer.compile(Qa(), trainset=answers(4))
    assert [candidate["score"] for candidate in compiled.candidate_programs] == [100.0] * 4
    assert compiled(question="q9").answer == "re: q9"


def test_copro_writes_instructions_with_n_candidates(ready, fake, answers):
    fake.script.update(
        proposed_instruction=lambda prompt, params: f"Answer by the book, edition {params.seed}.",
        proposed_prefix_for_output_field="Answer:",
    )
    optimizer = dspy.COPRO(metric=is_right, breadth=2, depth=1)
    with dspy.context(lm=ready.copy(seed=3)):
        compiled = optimizer.compile(
            Qa(), trainset=answers(3), eval_kwargs={"num_threads": 1, "display_progress": False, "display_table": False}
        )
    assert compiled(question="q9").answer == "re: q9"
    assert any("Answer by the book" in prompt for prompt in fake.prompts())


def test_simba_runs_its_batches_and_copies(ready, fake, answers):
    fake.script["module_advice"] = {"answer.predict": "Repeat the question."}
    fake.script["discussion"] = "one was right"
    fake.script["answer"] = lambda prompt, params: "re: q0" if params.seed is None or params.seed % 2 else "wrong"
    optimizer = dspy.SIMBA(metric=right_share, bsize=2, num_candidates=2, max_steps=1, max_demos=1, num_threads=2)
    with dspy.context(lm=ready.copy(temperature=1.0, seed=5)):
        compiled = optimizer.compile(Qa(), trainset=answers(4), seed=0)
    assert type(compiled) is Qa
    assert compiled.answer.predict.lm is None or compiled.answer.predict.lm.engine is ready.engine


def test_nearest_neighbours_become_demos(ready, answers, fake):
    def vectors(texts):
        return np.array([[float(text.rpartition("q")[2] or 0), 1.0] for text in texts], dtype=np.float32)

    optimizer = dspy.KNNFewShot(
        k=2, trainset=answers(4), vectorizer=dspy.Embedder(vectors, caching=False), metric=is_right, max_bootstrapped_demos=1
    )
    compiled = optimizer.compile(Qa())
    assert compiled(question="q3").answer == "re: q3"
    assert any("q2" in prompt and "q3" in prompt for prompt in fake.prompts())


def test_best_of_n_takes_the_first_that_is_good_enough(ready):
    rewards = iter([0.0, 1.0, 0.5])
    best = dspy.BestOfN(module=Qa(), N=3, reward_fn=lambda args, prediction: next(rewards), threshold=1.0)
    assert best(question="why").answer == "re: why"
    assert list(rewards) == [0.5]


def test_attempts_of_best_of_n_are_rollouts_with_samples_of_their_own(ready, fake):
    fake.script["answer"] = lambda prompt, params: f"seed {params.seed}"
    seen = []
    best = dspy.BestOfN(
        module=Qa(), N=4, reward_fn=lambda args, prediction: seen.append(prediction.answer) or 0.0, threshold=1.0
    )
    best(question="why")
    assert len(set(seen)) == 4
    seeded = []
    with dspy.context(lm=ready.copy(seed=3)):
        for _ in range(2):
            seen.clear()
            best(question="why")
            seeded.append(list(seen))
    assert seeded[0] == seeded[1]
    assert len(set(seeded[0])) == 4


def test_histories_of_attempts_stay_with_their_copies(ready):
    best = dspy.BestOfN(module=Qa(), N=2, reward_fn=lambda args, prediction: 0.0, threshold=1.0)
    best(question="why")
    assert ready.history == []


def test_several_chains_are_compared(ready, fake):
    fake.script.update(rationale="holistically", verdict="so")
    completions = dspy.ChainOfThought("question -> answer", n=3, temperature=1.0)(question="why").completions
    with pytest.warns(DeprecationWarning, match="prefix"):  # DSPy's own, of its own module
        compare = dspy.MultiChainComparison("question -> answer", M=3)
    compared = compare(completions, question="why")
    assert compared.answer == "re: why"
    assert len(ready.history) == 2


def test_a_majority_of_candidates_is_counted(ready):
    prediction = dspy.ChainOfThought("question -> answer", n=5, temperature=1.0)(question="why")
    assert dspy.majority(prediction.completions).answer == "re: why"
    assert len(ready.history) == 1


def test_an_ensemble_asks_all_its_programs(ready):
    ensemble = dspy.Ensemble(reduce_fn=dspy.majority).compile([Qa(), Qa()])
    assert ensemble(question="why").answer == "re: why"


def test_labelled_demos_need_no_engine(ready, answers, fake):
    compiled = dspy.LabeledFewShot(k=2).compile(Qa(), trainset=answers(3))
    assert len(compiled.answer.predict.demos) == 2
    assert fake.requests == []


def test_an_optimised_program_is_saved_and_loaded_both_ways(ready, answers, tmp_path):
    compiled = dspy.LabeledFewShot(k=2).compile(Qa(), trainset=answers(3))
    compiled.save(str(tmp_path / "program.json"))
    loaded = Qa()
    loaded.load(str(tmp_path / "program.json"))
    assert loaded.dump_state() == compiled.dump_state()
    predict = dspy.LabeledFewShot(k=2).compile(dspy.ChainOfThought("question -> answer"), trainset=answers(3))
    predict.save(str(tmp_path / "whole"), save_program=True)
    whole = dspy.load(str(tmp_path / "whole"), allow_pickle=True)
    assert whole(question="why").answer == "re: why"
    assert len(whole.predict.demos) == 2
