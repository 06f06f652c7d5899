"""An agent that looks things up before it answers: each step begins with what the step before it has left in the cache.

    python examples/dspy_react.py

``ChatAdapter`` lets the model choose among the names of the tools only, and then write arguments by the schema of the tool that
it chose, so even a small model takes steps that can be taken. Demonstrations show it which ones; they are cached as well.
"""

import dspy

from sgl_dspy import ChatAdapter, SglLM

QUESTIONS = ("When does the bus to the harbour leave?", "When does the bus to the airport leave?")
TIMETABLE = {"harbour": "8:10 and 17:40", "airport": "6:00 and 14:30", "market": "every half hour"}
MARKET = "When does the bus to the market leave?"
LOOKED_UP = "[[ ## thought_0 ## ]]\nI look up the market.\n\n[[ ## observation_0 ## ]]\nevery half hour"
STEPS = (
    dspy.Example(
        question=MARKET,
        trajectory=LOOKED_UP,
        next_thought="Now I know when it leaves.",
        next_tool_name="finish",
        next_tool_args={},
    ),
    dspy.Example(
        question=MARKET,
        trajectory="",
        next_thought="I look up the market.",
        next_tool_name="timetable",
        next_tool_args={"place": "market"},
    ),
)
ANSWER = dspy.Example(
    question=MARKET,
    trajectory=LOOKED_UP,
    reasoning="The timetable says: every half hour.",
    answer="It leaves every half hour.",
)


def timetable(place: str) -> str:
    """Say when buses leave for a place, such as harbour, airport or market."""
    return TIMETABLE.get(place.strip().lower(), "there is no such bus")


def main() -> None:
    lm = SglLM(max_tokens=100, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter())
    agent = dspy.ReAct("question -> answer", tools=[timetable], max_iters=2)
    agent.react.demos = list(STEPS)
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
