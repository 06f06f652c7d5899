"""Hold a conversation of several turns: each question costs only its own tokens, because what was said before is cached.

    python examples/multi_turn_chat.py          prints answers as they are generated, and what each turn cost
    sgl run examples/multi_turn_chat.py --arg 'questions=["Name a tree.", "Where does it grow?"]'

sgl chat is the same with you as the one who asks.
"""

import sgl_native as sgl

SYSTEM = "You answer in one short sentence."
QUESTIONS = (
    "Name an animal that lives in the sea.",
    "What does it eat?",
    "How big does it get?",
    "Tell me a fun fact about it.",
)


@sgl.function
def multi_turn_chat(s, questions=QUESTIONS):
    s += sgl.system(SYSTEM)
    for number, question in enumerate(questions):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen(f"answer_{number}", max_tokens=48, temperature=0))


def main() -> None:
    with sgl.Engine() as engine:
        state = multi_turn_chat.run(backend=engine, stream=True)
        for number, question in enumerate(QUESTIONS):
            print(f"\n> {question}")
            for piece in state.text_iter(f"answer_{number}"):
                print(piece, end="", flush=True)
            info = state.get_meta_info(f"answer_{number}")
            new = info["prompt_tokens"] - info["cached_tokens"]
            print(f"\n  [{info['cached_tokens']} prompt tokens cached, {new} new]")


if __name__ == "__main__":
    main()
