"""Decide with select which tool a question needs, call it in Python, and answer with what it said.

    python examples/tool_use.py
    sgl run examples/tool_use.py --arg question="When is the bus to the harbour?"

Which way the program goes depends on what the model chose, so there is no one graph for it: explain() names that line, and
compile(fallback=True) interprets the program.
"""

import datetime

import sgl_native as sgl

QUESTIONS = ("Which day of the week is 2024-02-29?", "When does the bus to the harbour leave?", "Why is the sky blue?")
TIMETABLE = {"harbour": "8:10 and 17:40", "airport": "6:00 and 14:30", "market": "every half hour"}
EXAMPLES = """\
Each question names the tool that helps to answer it.

Question: Which day of the week is 1999-12-31?
Tool: weekday
Input: 1999-12-31
Result: Friday
Answer: It is a Friday.

Question: When does the bus to the airport leave?
Tool: timetable
Input: airport
Result: 6:00 and 14:30
Answer: It leaves at 6:00 and 14:30.

Question: Why do cats purr?
Tool: none
Answer: Because they feel well.

"""


def weekday(date: str) -> str:
    """The day of the week of a date."""
    try:
        return f"{datetime.date.fromisoformat(date.strip()):%A}"
    except ValueError:
        return "not a date"


def timetable(place: str) -> str:
    """When buses leave for a place."""
    return TIMETABLE.get(place.strip().lower(), "no such bus")


TOOLS = {"weekday": weekday, "timetable": timetable}


@sgl.function
def tool_use(s, question=QUESTIONS[0]):
    s += EXAMPLES + "Question: " + question + "\nTool: " + sgl.select("tool", [*TOOLS, "none"])
    if s["tool"] != "none":
        s += "\nInput:" + sgl.gen("input", max_tokens=12, temperature=0, stop="\n")
        s["result"] = sgl.call(TOOLS[s["tool"]], s["input"])
        s += "\nResult: " + s["result"]
    s += "\nAnswer:" + sgl.gen("answer", max_tokens=24, temperature=0, stop="\n")


def main() -> None:
    with sgl.Engine() as engine:
        for question, state in zip(QUESTIONS, tool_use.run_batch([(q,) for q in QUESTIONS], backend=engine), strict=True):
            print(question)
            print(f"  {state['tool']}:{state['input']} -> {state['result']}" if "input" in state else "  no tool")
            print(f"  {state['answer'].strip()}")
    print(f"\n{tool_use.explain()}")


if __name__ == "__main__":
    main()
