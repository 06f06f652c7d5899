"""Evaluate a few-shot classifier on several threads: its demonstrations are computed once, whatever the size of the set.

    python examples/dspy_few_shot_evaluate.py

The first thread computes the part of the prompt that all examples have in common; the others wait for it instead of computing it
again. The labels are a ``Literal``, so ``ChatAdapter`` lets the model write nothing else.
"""

from typing import Literal

import dspy

from sgl_dspy import ChatAdapter, SglLM

SHOTS = (
    ("The battery lasts for days and it charges quickly.", "keep"),
    ("It broke after a week and nobody answered my letters.", "return"),
    ("Light, quiet, and easy to clean.", "keep"),
    ("The lid leaks and the handle gets too hot to hold.", "return"),
    ("My whole family uses it every morning.", "keep"),
    ("The colour came off in the first wash.", "return"),
    ("I have never owned a better one.", "keep"),
    ("It smells of burnt rubber.", "return"),
)
REVIEWS = (
    ("I would buy it again without thinking twice.", "keep"),
    ("The instructions are wrong and two screws were missing.", "return"),
    ("It does what it promises and looks good.", "keep"),
    ("After a month the screen went dark.", "return"),
    ("The smell never went away.", "return"),
    ("Delivery was fast and everything fits.", "keep"),
    ("The sound is clear even in a noisy room.", "keep"),
    ("I sent it back on the same day.", "return"),
)


class Decide(dspy.Signature):
    """Say what the customer will do."""

    review: str = dspy.InputField()
    decision: Literal["keep", "return"] = dspy.OutputField()


def examples(pairs: tuple[tuple[str, str], ...]) -> list[dspy.Example]:
    return [dspy.Example(review=review, decision=decision).with_inputs("review") for review, decision in pairs]


def is_right(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(example.decision == prediction.decision)


def main() -> None:
    lm = SglLM(max_tokens=32, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter())
    decide = dspy.LabeledFewShot(k=len(SHOTS)).compile(dspy.Predict(Decide), trainset=examples(SHOTS))
    result = dspy.Evaluate(devset=examples(REVIEWS), metric=is_right, num_threads=4)(decide)
    for example, prediction, _ in result.results:
        print(f"{prediction.decision:<7} {example.review}")
    prompt = sum(entry["usage"]["prompt_tokens"] for entry in lm.history)
    cached = sum(entry["usage"]["prompt_tokens_details"]["cached_tokens"] for entry in lm.history)
    print(f"\nright: {result.score} %; {cached:,} of {prompt:,} prompt tokens cached")


if __name__ == "__main__":
    main()
