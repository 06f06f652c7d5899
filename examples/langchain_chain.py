"""A LangChain chain on an engine in this process: a batch of letters, and what their shared prompt saved.

    python examples/langchain_chain.py

The system message and the examples are computed once for the whole batch; every answer says how much of its own prompt
came from the cache.
"""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from sgl_langchain import ChatSgl

PROMPT = ChatPromptTemplate(
    [
        ("system", "You read letters to a shop and say in a few words what the customer wants."),
        ("human", "The kettle that I bought in May has a crack, and I would like my money back."),
        ("ai", "A refund for a broken kettle."),
        ("human", "Could you tell me when the blue lamp will be in stock again?"),
        ("ai", "To know when the blue lamp is back."),
        ("human", "{letter}"),
    ]
)
LETTERS = (
    "You sent me a red scarf, but I had ordered the green one.",
    "Please cancel my order, I found the book at my neighbour's.",
    "Is the table also made in oak, and how long does delivery take?",
    "My parcel has not arrived although it was sent two weeks ago.",
    "The chair wobbles. Can you send me a longer screw?",
    "I would like to give this clock to a friend. Do you wrap presents?",
)


def main() -> None:
    chat = ChatSgl(temperature=0, max_tokens=24, stop=["\n"])
    answers = (PROMPT | chat).batch([{"letter": letter} for letter in LETTERS])
    for letter, answer in zip(LETTERS, answers, strict=True):
        used = answer.usage_metadata
        print(f"{used['input_token_details']['cache_read']:>4} of {used['input_tokens']} prompt tokens cached  {letter}")
        print(f"      {answer.text}")

    print("\nThe same chain, streamed:")
    for text in (PROMPT | chat | StrOutputParser()).stream({"letter": LETTERS[0]}):
        print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
