"""Write the outline of a text first, then all of its parts at the same time (skeleton of thought, Ning et al. 2023).

    python examples/parallel_decoding.py         compiled: prints the graph, then the text
    sgl run examples/parallel_decoding.py --arg topic="learning to swim" --arg points=2

A part continues the outline, which is computed once for all of them. The number of points shapes the graph, so compile wants it
as a static argument.
"""

import sgl_native as sgl

POINTS = 3


@sgl.function
def parallel_decoding(s, topic="staying healthy", points=POINTS):
    s += sgl.system("You give short, practical advice.")
    s += sgl.user("List " + str(points) + " things that help with " + topic + ", a few words each.")
    s += sgl.assistant_begin()
    for i in range(points):
        s += f"{i + 1}." + sgl.gen(f"point_{i}", max_tokens=10, temperature=0, stop=["\n", ".", ":"]) + "\n"
    s += sgl.assistant_end()
    parts = s.fork(points)
    for i, part in enumerate(parts):
        part += sgl.user("Explain this one in a sentence:" + s[f"point_{i}"])
        part += sgl.assistant(sgl.gen("explanation", max_tokens=32, temperature=0))
    parts.join()


def main() -> None:
    compiled = parallel_decoding.compile(static={"points": POINTS})
    print(compiled.graph, end="\n\n")
    with sgl.Engine() as engine:
        state = compiled.run(backend=engine)
        for i, explanation in enumerate(state["explanation"]):
            print(f"{i + 1}. {state[f'point_{i}'].strip()}: {explanation.strip()}")


if __name__ == "__main__":
    main()
