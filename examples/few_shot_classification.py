"""Label eight short reviews with one few-shot prompt: its examples are computed once for the whole batch.

    python examples/few_shot_classification.py
    sgl run examples/few_shot_classification.py --arg review="I would buy it again."

The second labels one review.
"""

import sgl_native as sgl

LABELS = ["positive", "negative"]
SHOTS = (
    ("The battery lasts for days and it charges quickly.", "positive"),
    ("It broke after a week and nobody answered my letters.", "negative"),
    ("Light, quiet, and easy to clean.", "positive"),
    ("The lid leaks and the handle gets too hot to hold.", "negative"),
    ("My whole family uses it every morning.", "positive"),
    ("The colour came off in the first wash.", "negative"),
)
REVIEWS = (
    "I would buy it again without thinking twice.",
    "The instructions are wrong and two screws were missing.",
    "It does what it promises and looks good.",
    "After a month the screen went dark.",
    "The smell never went away.",
    "Delivery was fast and everything fits.",
    "The sound is clear even in a noisy room.",
    "I sent it back on the same day.",
)


@sgl.function
def classify(s, review=REVIEWS[0]):
    s += "Label each review as positive or negative.\n\n"
    for text, label in SHOTS:
        s += f"Review: {text}\nLabel: {label}\n\n"
    s += "Review: " + review + "\nLabel: " + sgl.select("label", LABELS)


def main() -> None:
    with sgl.Engine() as engine:
        states = classify.run_batch([{"review": review} for review in REVIEWS], backend=engine)
        for review, state in zip(REVIEWS, states, strict=True):
            info = state.get_meta_info("label")
            print(f"{state['label']:<9} {info['cached_tokens']:>4} of {info['prompt_tokens']} prompt tokens cached  {review}")
        stats = engine.stats()
        print(f"prompt tokens: {stats.prompt_tokens:,}, cached: {stats.cached_tokens:,}, computed: {stats.prefilled_tokens:,}")


if __name__ == "__main__":
    main()
