"""Three judges read one essay side by side, and a fourth sums up what they said: the essay is computed once.

    python examples/langchain_three_judges.py

The judges are the branches of a RunnableParallel. ``program`` prints the chain as the fork/join program that it amounts to.
"""

from pathlib import Path

from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough

from sgl_langchain import ChatSgl, compile_runnable

ESSAY = (Path(__file__).parent / "essay.txt").read_text(encoding="utf-8")
DIMENSIONS = ("clarity", "evidence", "style")
CRITIC = ("system", "You are a critic who is brief and fair.")


def judged(dimension: str, chat: ChatSgl) -> Runnable[dict[str, str], str]:
    prompt = ChatPromptTemplate(
        [CRITIC, ("human", f"Essay:\n{{essay}}\n\nJudge the {dimension} of this essay in one sentence.")]
    )
    return prompt | chat | StrOutputParser()


def main() -> None:
    chat = ChatSgl(max_tokens=32)
    notes = "".join(f"\n{name}: {{{name}}}" for name in DIMENSIONS)
    verdict = ChatPromptTemplate(
        [CRITIC, ("human", f"Essay:\n{{essay}}\n\nWhat three judges said:{notes}\n\nGive your verdict.")]
    )
    chain = compile_runnable(
        RunnablePassthrough.assign(**{name: judged(name, chat) for name in DIMENSIONS})
        | RunnablePassthrough.assign(verdict=verdict | chat | StrOutputParser())
    )
    print(chain.program())

    with get_usage_metadata_callback() as usage:
        result = chain.invoke({"essay": ESSAY})
    for name in (*DIMENSIONS, "verdict"):
        print(f"{name}: {result[name].strip()}")
    (used,) = usage.usage_metadata.values()
    cached = used["input_token_details"]["cache_read"]
    print(f"\n{cached:,} of {used['input_tokens']:,} prompt tokens of the four calls came from the cache")


if __name__ == "__main__":
    main()
