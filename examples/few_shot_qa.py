"""Answer short questions behind a few examples: the examples are computed once for the whole batch.

    python examples/few_shot_qa.py
    sgl run examples/few_shot_qa.py --arg question="What is the opposite of wet?"

The program is compiled: each question is a value for the same graph, and the batch needs no thread for each of its items.
"""

import sgl_native as sgl

SHOTS = (
    ("Which animal gives us wool?", "The sheep."),
    ("Which colour do blue and yellow make?", "Green."),
    ("What is the opposite of cold?", "Hot."),
    ("Where do bees live?", "In a hive."),
)
QUESTIONS = (
    "Which animal gives us milk?",
    "What is the opposite of high?",
    "Where do birds raise their young?",
    "Which season comes after winter?",
)


@sgl.function
def few_shot_qa(s, question=QUESTIONS[0]):
    s += "Each question has one short answer.\n\n"
    for asked, answer in SHOTS:
        s += f"Q: {asked}\nA: {answer}\n\n"
    s += "Q: " + question + "\nA:" + sgl.gen("answer", max_tokens=12, temperature=0, stop="\n")


def main() -> None:
    compiled = few_shot_qa.compile()
    with sgl.Engine() as engine:
        states = compiled.run_batch([{"question": question} for question in QUESTIONS], backend=engine)
        for question, state in zip(QUESTIONS, states, strict=True):
            info = state.get_meta_info("answer")
            cost = f"{info['cached_tokens']} of {info['prompt_tokens']} prompt tokens cached"
            print(f"{question:<36} {state['answer'].strip():<20} {cost}")


if __name__ == "__main__":
    main()
