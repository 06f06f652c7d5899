"""Think eight times about one problem, with some chance in it, and take the answer that comes most often.

    python examples/dspy_self_consistency.py

The eight chains of thought are the candidates of one call: the prompt is computed once and continued eight times, each with a
seed of its own. With a seed for all of them, ``SglLM(seed=1)``, they come again.
"""

import dspy

from sgl_dspy import ChatAdapter, SglLM

NUM_SAMPLES = 8
SHOTS = (
    dspy.Example(
        problem="Anna has 3 boxes with 4 pens each. How many pens does she have?",
        reasoning="3 boxes with 4 pens are 3 times 4 pens, which is 12.",
        answer=12,
    ),
    dspy.Example(
        problem="Tom has 10 apples and eats 4 of them. How many are left?",
        reasoning="10 apples less 4 apples are 6 apples.",
        answer=6,
    ),
)
PROBLEM = "There are 2 cars with 5 people each. How many people are there?"


def main() -> None:
    lm = SglLM(max_tokens=64, seed=1, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter())
    solve = dspy.ChainOfThought("problem -> answer: int", n=NUM_SAMPLES, temperature=0.8)
    solve.predict.demos = list(SHOTS)
    completions = solve(problem=PROBLEM).completions
    for reasoning, answer in zip(completions.reasoning, completions.answer, strict=True):
        print(f"{answer:>6}  {reasoning[:80]!r}")
    vote = dspy.majority(completions, normalize=None).answer
    print(f"\n{PROBLEM}\n{vote}, say {completions.answer.count(vote)} of {NUM_SAMPLES}")
    usage = lm.history[-1]["usage"]
    print(f"{usage['prompt_tokens_details']['cached_tokens']:,} of {usage['prompt_tokens']:,} prompt tokens cached")


if __name__ == "__main__":
    main()
