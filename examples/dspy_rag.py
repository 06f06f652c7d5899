"""Answer questions from documents that a retriever finds; a document that was read for one question is cached for the next.

    python examples/dspy_rag.py

DSPy writes inputs in the order of the signature. ``context`` stands before ``question``, so the prompts of two questions on one
document part behind the document; the other way round they would part before it. ``cache=False`` turns DSPy's cache of whole
answers off, so that every question is computed.
"""

import re

import dspy

from sgl_dspy import ChatAdapter, SglLM

DOCUMENTS = (
    (
        "The ferry to the island leaves at 8:10, 12:30 and 17:40 from the north pier. The crossing takes forty minutes. "
        "Dogs travel free, and bicycles cost two coins. In a storm there is no ferry, and a flag on the pier says so."
    ),
    (
        "The lighthouse was built in 1871 of grey stone and has 212 steps. It is open from May to September, and the keeper "
        "shows the lamp at noon. Children under six may not climb the stairs."
    ),
    (
        "The market is held on Tuesday and Saturday behind the town hall. Fish is sold until nine o'clock, bread until noon. "
        "The baker accepts no cards."
    ),
)
QUESTIONS = (
    "When does the ferry leave?",
    "How many steps has the lighthouse?",
    "How long does the ferry take?",
    "Does the ferry carry dogs?",
    "On which days is the market?",
)


def words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


def retrieve(question: str) -> str:
    """The document that has the most words in common with the question."""
    return max(DOCUMENTS, key=lambda document: len(words(question) & words(document)))


class RAG(dspy.Module):
    """Retrieve, then answer."""

    def __init__(self) -> None:
        super().__init__()
        self.respond = dspy.Predict(dspy.Signature("context, question -> answer", "Answer in one short sentence."))

    def forward(self, question: str) -> dspy.Prediction:
        """Answer from the document that was found."""
        return self.respond(context=retrieve(question), question=question)


def main() -> None:
    lm = SglLM(max_tokens=32, cache=False)
    dspy.configure(lm=lm, adapter=ChatAdapter())
    rag = RAG()
    for question in QUESTIONS:
        answer = rag(question=question).answer
        usage = lm.history[-1]["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        print(f"{cached:>4} of {usage['prompt_tokens']} prompt tokens cached  {question}\n      {answer}")


if __name__ == "__main__":
    main()
