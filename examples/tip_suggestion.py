"""Write two tips on a topic, each by a program of its own; the two run in parallel.

    python examples/tip_suggestion.py
    sgl run examples/tip_suggestion.py --arg topic="sleeping well" --arg 'tips=["a dark room", "fixed hours"]'

The first prints the text, the second the variables and the tokens of the main program.
"""

import sgl_native as sgl


@sgl.function
def expand_tip(s, topic, tip):
    s += sgl.system("You give short, practical advice.")
    s += sgl.user("Topic: " + topic + ". Explain this tip in two sentences: " + tip)
    s += sgl.assistant(sgl.gen("detailed_tip", max_tokens=64, temperature=0))


@sgl.function
def main(s, topic="staying healthy", tips=("balanced diet", "regular exercise")):
    first, second = (expand_tip(topic=topic, tip=tip) for tip in tips)  # two new streams; neither waits for the other
    s += sgl.user("Give me two tips on " + topic + ".")
    s += sgl.assistant(
        f"1. {tips[0]}: "
        + first["detailed_tip"]
        + f"\n2. {tips[1]}: "
        + second["detailed_tip"]
        + "\nIn short: "
        + sgl.gen("summary", max_tokens=32, temperature=0)
    )


if __name__ == "__main__":
    with sgl.Engine() as engine:
        print(main.run(backend=engine).messages()[-1]["content"])
