"""Answer questions from documents that a retriever finds; a document that was read for one question is cached for the next.

    python examples/langchain_rag.py

What a retriever brings differs from question to question, so little is shared by construction: the system message, and a
document where it comes first again. That is why the documents stand before the question.
"""

import re

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough

from sgl_langchain import ChatSgl

DOCUMENTS = [
    Document(
        "The ferry to the island leaves at 8:10, 12:30 and 17:40 from the north pier. The crossing takes forty minutes. "
        "Dogs travel free, and bicycles cost two coins. In a storm there is no ferry, and a flag on the pier says so."
    ),
    Document(
        "The lighthouse was built in 1871 of grey stone and has 212 steps. It is open from May to September, and the keeper "
        "shows the lamp at noon. Children under six may not climb the stairs."
    ),
    Document(
        "The market is held on Tuesday and Saturday behind the town hall. Fish is sold until nine o'clock, bread until noon. "
        "The baker accepts no cards."
    ),
]
QUESTIONS = (
    "When does the ferry leave?",
    "How many steps has the lighthouse?",
    "How long does the ferry take?",
    "Does the ferry carry dogs?",
    "On which days is the market?",
)
PROMPT = ChatPromptTemplate(
    [
        ("system", "You answer in one short sentence, from the notes that you are given."),
        ("human", "Notes:\n{notes}\n\nQuestion: {question}"),
    ]
)


def words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


class KeywordRetriever(BaseRetriever):
    """Finds the document that has the most words in common with the question."""

    documents: list[Document]

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002  (LangChain passes it by name)
    ) -> list[Document]:
        return [max(self.documents, key=lambda document: len(words(query) & words(document.page_content)))]


def joined(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def main() -> None:
    retriever = KeywordRetriever(documents=DOCUMENTS)
    chain = {"notes": retriever | joined, "question": RunnablePassthrough()} | PROMPT | ChatSgl(max_tokens=24, stop=["\n"])
    for question in QUESTIONS:
        answer = chain.invoke(question)
        used = answer.usage_metadata
        cached = used["input_token_details"]["cache_read"]
        print(f"{cached:>4} of {used['input_tokens']} prompt tokens cached  {question}")
        print(f"      {answer.text.strip()}")


if __name__ == "__main__":
    main()
