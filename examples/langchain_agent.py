"""An agent with a tool, as langchain.agents builds it: it calls the tool, reads the result, and answers.

    python examples/langchain_agent.py

Every turn of the loop repeats the conversation so far and adds to it, so all but the end of its prompt is cached; the second
question finds the instructions and the tool there, too. The limit on calls is for small models, which do not always know when
to stop.
"""

from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.tools import tool

from sgl_langchain import ChatSgl

QUESTIONS = ("When does the bus to the harbour leave?", "When does the bus to the airport leave?")
TIMETABLE = {"harbour": "8:10 and 17:40", "airport": "6:00 and 14:30", "market": "every half hour"}


@tool
def timetable(place: str) -> str:
    """Say when buses leave for a place, such as harbour, airport or market."""
    return TIMETABLE.get(place.strip().lower(), "there is no such bus")


def show(message: BaseMessage) -> None:
    if not isinstance(message, AIMessage):
        print(f"{message.type}: {message.text}")
        return
    for call in message.tool_calls:
        print(f"ai: calls {call['name']} with {call['args']}")
    if message.text:
        print(f"ai: {message.text.strip()}")
    if used := message.usage_metadata:
        print(f"    {used['input_token_details']['cache_read']} of {used['input_tokens']} prompt tokens cached")


def main() -> None:
    agent = create_agent(
        ChatSgl(max_tokens=48),
        tools=[timetable],
        system_prompt="You tell travellers when their bus leaves. You look it up first.",
        middleware=[ModelCallLimitMiddleware(run_limit=3, exit_behavior="end")],
    )
    for question in QUESTIONS:
        for message in agent.invoke({"messages": [HumanMessage(question)]})["messages"]:
            show(message)
        print()


if __name__ == "__main__":
    main()
