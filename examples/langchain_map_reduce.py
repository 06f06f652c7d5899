"""Summarise a text of several parts: each part on its own, all at once, and then the summaries.

    python examples/langchain_map_reduce.py

The parts run as one batch, as wide as the engine. Their prompts share the instructions, and so does the last one.
"""

from pathlib import Path

from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from sgl_langchain import ChatSgl, compile_runnable

ESSAY = (Path(__file__).parent / "essay.txt").read_text(encoding="utf-8")
EDITOR = (
    "You are an editor. You read what you are given with care, leave out what is not important, add nothing of your own, "
    "and say the rest again in one plain sentence that a child can follow."
)
PROMPT = ChatPromptTemplate([("system", EDITOR), ("human", "Summarise this:\n\n{text}")])


def split(essay: str) -> list[dict[str, str]]:
    """Five paragraphs behind the title, one each."""
    return [{"text": paragraph} for paragraph in essay.split("\n\n")[1:6]]


def collected(summaries: list[str]) -> dict[str, str]:
    return {"text": "\n".join(f"- {summary.strip()}" for summary in summaries)}


def main() -> None:
    summary = PROMPT | ChatSgl(max_tokens=32, stop=["\n"]) | StrOutputParser()
    chain = compile_runnable(split | summary.map() | collected | summary)
    with get_usage_metadata_callback() as usage:
        for part in split(ESSAY):
            print(f"part: {part['text'][:60].strip()}...")
        print(f"\nsummary: {chain.invoke(ESSAY).strip()}")
    (used,) = usage.usage_metadata.values()
    cached = used["input_token_details"]["cache_read"]
    print(f"\n{cached:,} of {used['input_tokens']:,} prompt tokens of all calls came from the cache")


if __name__ == "__main__":
    main()
