"""Search a tree of thoughts (Yao et al. 2023): propose several next sentences of a story, judge each, go on from the best.

    python examples/tree_of_thought.py           prints the search and what it cost
    sgl cache examples/tree_of_thought.py --svg tree.svg       draws the tree that it leaves in the cache

Proposals are forks, so each costs its own tokens and not those of the story so far. A proposal is judged in a copy of its
branch: the judgement is scored on top of what is cached, and the branch goes on without it.
"""

import sgl_native as sgl

TASK = "Write a story about a girl who finds a map in an old lighthouse."
DEPTH, WIDTH = 3, 3


@sgl.function
def tree_of_thought(s, task=TASK, depth=DEPTH, width=WIDTH):
    s += sgl.system("You write stories, one sentence at a time.")
    s += sgl.user(f"{task} Write the first sentence.")
    branch, story, scores = s, [], []
    for _ in range(depth):
        proposals = branch.fork(width)
        proposals += sgl.assistant(sgl.gen("sentence", max_tokens=40, temperature=0.8, stop=["\n", ". "]))
        judged = [chance_of_good(proposal) for proposal in proposals]
        best = max(range(width), key=judged.__getitem__)
        branch = proposals[best]
        story.append(branch["sentence"])
        scores.append([round(score, 3) for score in judged])
        branch += sgl.user("Write the next sentence.")
    s["story"], s["scores"] = story, scores


def chance_of_good(proposal: sgl.ProgramState) -> float:
    """The probability that the model calls this sentence good rather than bad."""
    judge = proposal.copy()
    judge += sgl.user("Is this sentence good or bad? Answer with one word.")
    judge += sgl.assistant(sgl.select("verdict", ["good", "bad"]))
    good, _ = judge.get_meta_info("verdict")["normalized_scores"]
    return float(good)


def main() -> None:
    with sgl.Engine() as engine:
        state = tree_of_thought.run(backend=engine, seed=7)
        for sentence, scores in zip(state["story"], state["scores"], strict=True):
            print(f"{sentence.rstrip('.')}.   (judged {max(scores)}, best of {scores})")
        stats = engine.stats()
        print(f"prompt tokens: {stats.prompt_tokens:,}, cached: {stats.cached_tokens:,}, computed: {stats.prefilled_tokens:,}")


if __name__ == "__main__":
    main()
