"""Name an expert for a question first, then answer as that expert would.

    python examples/expert_answer.py
    sgl run examples/expert_answer.py --arg question="How do I keep my plants alive?"

The expert is generated text, and it becomes part of the next turn: a program reads its own variable, and compiled programs
carry it as an edge of the graph.
"""

import sgl_native as sgl

QUESTIONS = ("Why does bread rise?", "How do I fix a flat tyre?")


@sgl.function
def expert_answer(s, question=QUESTIONS[0]):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user("Who is the best person to ask this: " + question)
    s += sgl.assistant("Ask a " + sgl.gen("expert", max_tokens=8, temperature=0, stop=[".", ",", ":", "\n", " who"]))
    s += sgl.user("Imagine that you are a " + s["expert"] + ". In one or two sentences: " + question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=64, temperature=0))


def main() -> None:
    with sgl.Engine() as engine:
        for state in expert_answer.run_batch([(question,) for question in QUESTIONS], backend=engine):
            for message in state.messages()[1:]:
                print(f"{message['role']:>9}: {message['content'].strip()}")
            print()


if __name__ == "__main__":
    main()
