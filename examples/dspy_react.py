"""An agent that looks things up before it answers: each step begins with what the step before it has left in the cache.

    python examples/dspy_react.py

``ChatAdapter`` lets the model choose among the names of the tools only, and then write arguments by the schema of the tool that
it chose, so even a small model takes steps that can be taken. Demonstrations show it which ones; they are cached as well.
"""

import dspy

from sgl_dspy import ChatAdapter, SglLM

QUESTIONS = ("When does the bus to the harbour leave?", "When does the bus to the airport leave?")
TIMETABLE = {"harbour": "8:10 and 17:40", "airport": "6:00 and 14:30", "market": "9:00 and 11:15", "station": "7:20 and 18:05"}

ANSWER = dspy.Example(
    question="When does the bus to the market leave?",
    trajectory=(
        "[[ ## thought_0 ## ]]\nI look up the market.\n\n[[ ## tool_name_0 ## ]]\ntimetable\n\n"
        '[[ ## tool_args_0 ## ]]\n{"place": "market"}\n\n[[ ## observation_0 ## ]]\n9:00 and 11:15'
    ),
    reasoning="The timetable says: 9:00 and 11:15.",
    answer="The bus leaves at 9:00 and 11:15.",
)


def timetable(place: str) -> str:
    """Say when buses leave for a place, such as harbour, airport or market."""
    return TIMETABLE.get(place.strip().lower(), "there is no such bus")


def look_up(place: str) -> dspy.Example:
    """A first step, as it should be."""
    return dspy.Example(
        question=f"When does the bus to the {place} leave?",
        trajectory="",
        next_thought=f"I look up the {place}.",
        next_tool_name="timetable",
        next_tool_args={"place": place},
    )


def main() -> None:
    lm = SglLM(max_tokens=100, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter())
    agent = dspy.ReAct("question -> answer", tools=[timetable], max_iters=2)
    agent.react.demos = [look_up("station"), look_up("market")]
    agent.extract.predict.demos = [ANSWER]
    for question in QUESTIONS:
        result = agent(question=question)
        took = result.trajectory
        print(question)
        for step in range(sum(name.startswith("tool_name_") for name in took)):
            print(f"  {took[f'tool_name_{step}']}({took[f'tool_args_{step}']}) says: {took[f'observation_{step}']}")
        print(f"  answer: {result.answer}")
        for entry in lm.history:
            usage = entry["usage"]
            print(f"    {usage['prompt_tokens_details']['cached_tokens']:>4} of {usage['prompt_tokens']} prompt tokens cached")
        lm.history.clear()


if __name__ == "__main__":
    main()
