"""Evaluate a few-shot classifier on several threads: its demonstrations are computed once, whatever the size of the set.

    python examples/dspy_few_shot_evaluate.py

The first thread computes the part of the prompt that all examples have in common; the others wait for it instead of computing it
again. The labels are a ``Literal``, so ``ChatAdapter`` lets the model write nothing else.
"""

from typing import Literal

import dspy

from sgl_dspy import ChatAdapter, SglLM

SHOTS = (
    ("The battery lasts for days and it charges quickly.", "positive"),
    ("It broke after a week and nobody answered my letters.", "negative"),
    ("Light, quiet, and easy to clean.", "positive"),
    ("The lid leaks and the handle gets too hot to hold.", "negative"),
    ("My whole family uses it every morning.", "positive"),
    ("The colour came off in the first wash.", "negative"),
    ("I have never owned a better one.", "positive"),
    ("It smells of burnt rubber.", "negative"),
)
REVIEWS = (
    ("I would buy it again without thinking twice.", "positive"),
    ("The instructions are wrong and two screws were missing.", "negative"),
    ("It does what it promises and looks good.", "positive"),
    ("After a month the screen went dark.", "negative"),
    ("The smell never went away.", "negative"),
    ("Delivery was fast and everything fits.", "positive"),
    ("The sound is clear even in a noisy room.", "positive"),
    ("I sent it back on the same day.", "negative"),
)


class Judge(dspy.Signature):
    """Say how the customer likes it."""

    review: str = dspy.InputField()
    mood: Literal["positive", "negative"] = dspy.OutputField()


def examples(pairs: tuple[tuple[str, str], ...]) -> list[dspy.Example]:
    return [dspy.Example(review=review, mood=mood).with_inputs("review") for review, mood in pairs]


def is_right(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(example.mood == prediction.mood)


def main() -> None:
    lm = SglLM(max_tokens=32, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter())
    judge = dspy.LabeledFewShot(k=len(SHOTS)).compile(dspy.Predict(Judge), trainset=examples(SHOTS))
    result = dspy.Evaluate(devset=examples(REVIEWS), metric=is_right, num_threads=4)(judge)
    for example, prediction, _ in result.results:
        print(f"{prediction.mood:<9} {example.review}")
    prompt = sum(entry["usage"]["prompt_tokens"] for entry in lm.history)
    cached = sum(entry["usage"]["prompt_tokens_details"]["cached_tokens"] for entry in lm.history)
    print(f"\nright: {result.score} %; {cached:,} of {prompt:,} prompt tokens cached")


if __name__ == "__main__":
    main()
