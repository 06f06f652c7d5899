"""Ask the same question eight times, with some chance in the answers, and take the answer that comes most often.

    python examples/langchain_self_consistency.py

Eight equal prompts are computed once and continued eight times, each with a seed of its own.
"""

import re
from collections import Counter

from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate

from sgl_langchain import ChatSgl

NUM_SAMPLES = 8
PROMPT = ChatPromptTemplate(
    [
        ("system", "You solve small problems step by step and end with: The answer is <number>."),
        ("human", "Anna has 3 boxes with 4 pens each. How many pens does she have?"),
        ("ai", "3 boxes with 4 pens are 3 times 4 pens, which is 12. The answer is 12."),
        ("human", "Tom has 10 apples and eats 4 of them. How many are left?"),
        ("ai", "10 apples less 4 apples are 6 apples. The answer is 6."),
        ("human", "{problem}"),
    ]
)
PROBLEM = "There are 2 cars with 5 people each. How many people are there?"


def last_number(answer: AIMessage) -> str:
    numbers = re.findall(r"\d+", answer.text)
    return numbers[-1] if numbers else "none"


def main() -> None:
    chat = ChatSgl(temperature=0.8, max_tokens=48)
    answers = (PROMPT | chat).batch([{"problem": PROBLEM}] * NUM_SAMPLES)
    for answer in answers:
        used = answer.usage_metadata
        cached = used["input_token_details"]["cache_read"]
        print(
            f"{last_number(answer):>4}  {cached:>4} of {used['input_tokens']} prompt tokens cached  {answer.text.strip()[:60]!r}"
        )
    (number, votes), *_ = Counter(map(last_number, answers)).most_common()
    print(f"\n{PROBLEM}\n{number}, say {votes} of {NUM_SAMPLES}")


if __name__ == "__main__":
    main()
