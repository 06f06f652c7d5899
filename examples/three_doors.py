"""One engine, three doors: a native program, a LangChain chain and a DSPy module share weights and prefixes.

    python examples/three_doors.py

All three lease the default engine, so the weights are loaded once; and as all three begin with the same system message, the
second and the third find in the cache what the first computed.
"""

import dspy
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

import sgl_native as sgl
from sgl_dspy import SglLM
from sgl_langchain import ChatSgl

QUESTION = "Why is the sea salty?"
EXPLAIN = dspy.Signature("question -> answer", "Answer in one short sentence.")


def native(system: str) -> tuple[str, int]:
    """A native program; returns its answer and how many prompt tokens came from the cache."""

    @sgl.function
    def answer(s):
        s += sgl.system(system) + sgl.user(QUESTION) + sgl.assistant(sgl.gen("answer", max_tokens=24, temperature=0))

    state = answer.run()
    return state["answer"], state.get_meta_info("answer")["cached_tokens"]


def langchain(system: str) -> tuple[str, int]:
    """The same as a chain."""
    cached: list[int] = []

    def note(message):
        cached.append(message.usage_metadata["input_token_details"]["cache_read"])
        return message

    prompt = ChatPromptTemplate([("system", "{system}"), ("human", "{question}")])
    chain = prompt | ChatSgl(max_tokens=24) | note | StrOutputParser()
    return chain.invoke({"system": system, "question": QUESTION}), cached[0]


def module() -> tuple[str, int]:
    """The same as a DSPy module, whose adapter writes the system message."""
    lm = SglLM(max_tokens=24, cache=False)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        try:
            text = dspy.Predict(EXPLAIN)(question=QUESTION).answer
        except dspy.AdapterParseError:  # a model this small does not always keep to the format
            text = lm.history[-1]["outputs"][0]
    return text, lm.history[-1]["usage"]["prompt_tokens_details"]["cached_tokens"]


def main() -> int:
    system = dspy.ChatAdapter().format(EXPLAIN, demos=[], inputs={"question": QUESTION})[0]["content"]
    doors = {"native": native(system), "LangChain": langchain(system), "DSPy": module()}
    for name, (text, cached) in doors.items():
        print(f"{name:<10} {cached:>4} prompt tokens from the cache   {text.strip()!r}")
    return 0 if doors["LangChain"][1] and doors["DSPy"][1] else 1


if __name__ == "__main__":
    raise SystemExit(main())
