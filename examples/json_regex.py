"""Fill in a character sheet as JSON whose form a regex dictates, and use a field of it in the next sentence.

    python examples/json_regex.py
    sgl run examples/json_regex.py --arg character="a shy dragon"

The model writes what the regex leaves open; the braces and the keys cost it nothing, since the engine appends what is forced.
json_schema does the same from a schema; a regex also fixes the order and the white space.
"""

import json
import operator

import sgl_native as sgl

SHEET = (
    r'\{\n  "name": "[A-Z][a-z]{2,11}",\n'
    r'  "role": "(knight|wizard|thief|healer)",\n'
    r'  "strength": (1[0-9]|[1-9]),\n'
    r'  "carries": \["[a-z ]{3,16}", "[a-z ]{3,16}"\]\n\}'
)


@sgl.function
def json_regex(s, character="a brave girl from the mountains"):
    s += sgl.user("Invent a character for a game: " + character + ". Fill in the sheet as JSON.")
    s += sgl.assistant(sgl.gen("sheet", max_tokens=120, temperature=0, regex=SHEET))
    s["character"] = sgl.call(json.loads, s["sheet"])
    s += sgl.user("Who is " + sgl.call(operator.itemgetter("name"), s["character"]) + "? Answer in one sentence.")
    s += sgl.assistant(sgl.gen("story", max_tokens=40, temperature=0))


def main() -> None:
    with sgl.Engine() as engine:
        state = json_regex.run(backend=engine)
        print(state["sheet"])
        for field, value in state["character"].items():
            print(f"{field:<9} {value!r}")
        print(state["story"].strip())


if __name__ == "__main__":
    main()
