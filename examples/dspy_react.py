"""An agent that looks things up before it answers: each step is a fork of what the steps before it have left in the cache.

    python examples/dspy_react.py

``ChatAdapter`` lets the model choose among the names of the tools only, and then write arguments by the schema of the tool that
it chose, so even a small model takes steps that can be taken. Which one it takes is its own affair; two demonstrations help.
"""

import dspy

from sgl_dspy import ChatAdapter, SglLM

QUESTIONS = ("When does the bus to the harbour leave?", "When does the bus to the airport leave?")
STEPS = (
    dspy.Example(
        question="When does the bus to the market leave?",
        trajectory="",
        next_thought="I look up the market.",
        next_tool_name="timetable",
        next_tool_args={"place": "market"},
    ),
    dspy.Example(
        question="When does the bus to the market leave?",
        trajectory="[[ ## observation_0 ## ]]\nevery half hour",
        next_thought="I know when it leaves.",
        next_tool_name="finish",
        next_tool_args={},
    ),
)
TIMETABLE = {"harbour": "8:10 and 17:40", "airport": "6:00 and 14:30", "market": "every half hour"}


def timetable(place: str) -> str:
    """Say when buses leave for a place, such as harbour, airport or market."""
    return TIMETABLE.get(place.strip().lower(), "there is no such bus")


def main() -> None:
    lm = SglLM(max_tokens=120, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter())
    agent = dspy.ReAct("question -> answer", tools=[timetable], max_iters=2)
    agent.react.demos = list(STEPS)
    for question in QUESTIONS:
        result = agent(question=question)
        print(question)
        steps = (name.removeprefix("tool_name_") for name in result.trajectory if name.startswith("tool_name_"))
        for step in steps:
            tool, arguments, observation = (
                result.trajectory[f"{name}_{step}"] for name in ("tool_name", "tool_args", "observation")
            )
            print(f"  {tool}({arguments}) says: {observation}")
        print(f"  answer: {result.answer}")
        for entry in lm.history:
            usage = entry["usage"]
            print(f"    {usage['prompt_tokens_details']['cached_tokens']:>4} of {usage['prompt_tokens']} prompt tokens cached")
        lm.history.clear()


if __name__ == "__main__":
    main()
