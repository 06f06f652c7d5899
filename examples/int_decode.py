"""Generate integers and go on computing with them: in which years were two events, and how many lie between?

    python examples/int_decode.py
    sgl run examples/int_decode.py --arg first="The Berlin Wall fell" --arg second="People first walked on the moon"

gen_int constrains the output to digits, and its variable is an int. The subtraction is host code: sgl.call runs it when both
numbers are there, interpreted or compiled.
"""

import sgl_native as sgl

SHOTS = "Columbus reached America in 1492.\nThe First World War began in 1914.\n"


def years_between(years: list[int]) -> int:
    return max(years) - min(years)


@sgl.function
def int_decode(s, first="The French Revolution began", second="The telephone was invented"):
    s += SHOTS
    forks = s.fork(2)
    for f, event in zip(forks, (first, second), strict=True):
        f += event + " in " + sgl.gen_int("year", max_tokens=4, temperature=0)
    forks.join()
    s["between"] = sgl.call(years_between, s["year"])
    s += "In the " + sgl.call(str, s["between"]) + " years between,"
    s += sgl.gen("meanwhile", max_tokens=32, temperature=0, stop=[".", "\n"])


def main() -> None:
    with sgl.Engine() as engine:
        state = int_decode.run(backend=engine)
        first, second = state["year"]
        print(f"The first was in {first}, the second in {second}.")
        print(f"In the {state['between']} years between,{state['meanwhile']}.")


if __name__ == "__main__":
    main()
