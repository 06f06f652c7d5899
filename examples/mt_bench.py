"""Ask questions in two turns, as MT-bench does (Zheng et al. 2023): the second builds on what was answered to the first.

    python examples/mt_bench.py
    sgl run examples/mt_bench.py --arg first="Name three fruits." --arg second="Which of them is yellow?"

The second turn continues the token ids of the first, answer included, so it computes little more than its own question.
"""

import sgl_native as sgl

QUESTIONS = (
    ("Write one sentence about the sea at night.", "Now write it again and mention a ship."),
    ("Name two uses of a paper clip.", "Which of the two would a child like better?"),
    ("Explain in one sentence why leaves are green.", "Explain it once more to a five-year-old."),
)


@sgl.function
def mt_bench(s, first=QUESTIONS[0][0], second=QUESTIONS[0][1]):
    s += sgl.system("You are a helpful assistant who answers briefly.")
    s += sgl.user(first) + sgl.assistant(sgl.gen("answer_1", max_tokens=48, temperature=0))
    s += sgl.user(second) + sgl.assistant(sgl.gen("answer_2", max_tokens=48, temperature=0))


def main() -> None:
    with sgl.Engine() as engine:
        for index, state in mt_bench.run_batch(QUESTIONS, backend=engine, as_completed=True):
            for turn, question in enumerate(QUESTIONS[index], start=1):
                info = state.get_meta_info(f"answer_{turn}")
                print(f"> {question}\n{state[f'answer_{turn}'].strip()}")
                print(f"  [{info['cached_tokens']} of {info['prompt_tokens']} prompt tokens cached]\n")


if __name__ == "__main__":
    main()
