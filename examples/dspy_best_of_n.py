"""Write four slogans at once and keep the one that a reward likes best.

    python examples/dspy_best_of_n.py

``BestOfN`` returns what ``dspy.BestOfN`` would. Its attempts run side by side on one prefill; rewards are still looked at in
order, and when one is good enough the attempts behind it are given up.
"""

import dspy

from sgl_dspy import BestOfN, ChatAdapter, SglLM

NUM_ATTEMPTS = 4
SHOTS = (
    dspy.Example(topic="a shoe shop", slogan="Walk further, and smile."),
    dspy.Example(topic="a bank for farmers", slogan="We wait for rain with you."),
)
TOPICS = ("a bakery at the harbour", "a lighthouse that one can sleep in")


def brevity(_inputs: dict[str, str], prediction: dspy.Prediction) -> float:
    """1.0 for a slogan of at most six words, less for a longer one."""
    return min(1.0, 6 / len(prediction.slogan.split()))


def main() -> None:
    lm = SglLM(max_tokens=40, seed=1, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter(), track_usage=True)
    write = dspy.Predict(dspy.Signature("topic -> slogan", "Write a short slogan."))
    write.demos = list(SHOTS)
    best = BestOfN(module=write, N=NUM_ATTEMPTS, reward_fn=brevity, threshold=1.0, speculate=NUM_ATTEMPTS)
    for topic in TOPICS:
        prediction = best(topic=topic)
        (usage,) = prediction.get_lm_usage().values()
        print(f"{topic}: {prediction.slogan!r}, reward {brevity({}, prediction):.2f}")
        print(f"  {usage['prompt_tokens_details']['cached_tokens']} of {usage['prompt_tokens']} prompt tokens cached")


if __name__ == "__main__":
    main()
