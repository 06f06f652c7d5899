"""Stream a LangGraph of two nodes token by token: one writes a draft, the other makes it shorter.

    python examples/langchain_graph_streaming.py

``stream_mode="messages"`` shows what each node's model says while it says it. The second node repeats the conversation of the
first one, so it computes only what is new.
"""

from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from sgl_langchain import ChatSgl

SYSTEM = SystemMessage("You write short texts for a harbour guide, plainly and without ornament.")


def main() -> None:
    chat = ChatSgl(max_tokens=40)

    def draft(state: MessagesState) -> dict[str, list[BaseMessage]]:
        return {"messages": [chat.invoke([SYSTEM, *state["messages"]])]}

    def shorten(state: MessagesState) -> dict[str, list[BaseMessage]]:
        ask = HumanMessage("Now say that in ten words.")
        return {"messages": [ask, chat.invoke([SYSTEM, *state["messages"], ask])]}

    builder = StateGraph(MessagesState)
    builder.add_node(draft)
    builder.add_node(shorten)
    builder.add_edge(START, "draft")
    builder.add_edge("draft", "shorten")
    builder.add_edge("shorten", END)
    graph = builder.compile()

    node = None
    chunks: Any = graph.stream({"messages": [HumanMessage("Describe a lighthouse.")]}, stream_mode="messages")
    for chunk, about in chunks:
        if chunk.type == "human":
            continue
        if about["langgraph_node"] != node:
            node = about["langgraph_node"]
            print(f"{node}: ", end="")
        print(chunk.text, end="", flush=True)
        if used := chunk.usage_metadata:
            print(f"\n  [{used['input_token_details']['cache_read']} of {used['input_tokens']} prompt tokens cached]")


if __name__ == "__main__":
    main()
