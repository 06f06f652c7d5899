"""Let an optimiser collect demonstrations, save the program that it made, and load it again.

    python examples/dspy_bootstrap.py

``BootstrapFewShot`` runs the program on its training set and keeps what the metric likes. Its prompts begin with the same
demonstrations, so most of each is cached. What is saved is a file of DSPy's, without anything of ours in it.
"""

import tempfile
from pathlib import Path
from typing import Literal

import dspy

from sgl_dspy import ChatAdapter, SglLM

TRAINING = (
    ("What is the boiling point of water?", "science"),
    ("Who painted the Night Watch?", "art"),
    ("How many legs has a spider?", "science"),
    ("What is a sonnet?", "art"),
    ("Why does iron rust?", "science"),
    ("Which key is the Moonlight Sonata in?", "art"),
)


class Sort(dspy.Signature):
    """Sort the question into a subject."""

    question: str = dspy.InputField()
    subject: Literal["science", "art"] = dspy.OutputField()


def is_right(example: dspy.Example, prediction: dspy.Prediction, _trace: object = None) -> bool:
    return bool(example.subject == prediction.subject)


def main() -> None:
    lm = SglLM(max_tokens=60, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter())
    training = [dspy.Example(question=question, subject=subject).with_inputs("question") for question, subject in TRAINING]
    optimiser = dspy.BootstrapFewShot(metric=is_right, max_bootstrapped_demos=2, max_labeled_demos=4)
    sort = optimiser.compile(dspy.ChainOfThought(Sort), trainset=training)
    demos = sort.predict.demos
    print(f"{len(demos)} demonstrations, {sum('reasoning' in demo for demo in demos)} of them with the model's own reasoning")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "sort.json")
        sort.save(file)
        loaded = dspy.ChainOfThought(Sort)
        loaded.load(file)
    print(f"loaded again: {loaded(question='Who wrote Hamlet?').subject}")

    for entry in lm.history:
        usage = entry["usage"]
        print(f"{usage['prompt_tokens_details']['cached_tokens']:>4} of {usage['prompt_tokens']} prompt tokens cached")


if __name__ == "__main__":
    main()
