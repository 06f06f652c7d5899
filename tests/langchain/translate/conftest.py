"""Fixtures of this room: models on an engine without one, and the chains that the listings and the explanations are about."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnableParallel, RunnablePassthrough

from sgl_core.testing import FakeBackend
from sgl_langchain import ChatSgl, SglLLM


@pytest.fixture
def chat(engine: FakeBackend) -> ChatSgl:
    return ChatSgl(engine=engine)


@pytest.fixture
def llm(engine: FakeBackend) -> SglLLM:
    return SglLLM(engine=engine)


@pytest.fixture
def ask(chat: ChatSgl) -> Callable[..., Any]:
    """``ask(*messages)`` -> a prompt, the model and a parser as a chain."""
    return lambda *messages: ChatPromptTemplate(messages) | chat | StrOutputParser()


def retriever(question: str) -> list[str]:
    return [question]


def format_docs(docs: list[str]) -> str:
    return "\n".join(docs)


def split(text: str) -> list[str]:
    return text.split(".")


def to_notes(parts: list[str]) -> str:
    return "\n".join(parts)


def last_number(text: str) -> int:
    return len(text)


def is_billing(state: dict[str, str]) -> bool:
    return state["label"] == "billing"


@pytest.fixture
def chains(chat: ChatSgl, ask: Callable[..., Any]) -> SimpleNamespace:
    """One chain of each kind that prompts commonly come in."""
    shots = FewShotChatMessagePromptTemplate(
        examples=[{"text": "It broke.", "label": "bad"}, {"text": "I like it.", "label": "good"}],
        example_prompt=ChatPromptTemplate([("human", "Review: {text}"), ("ai", "{label}")]),
    )
    rules = ("system", "You judge essays.")
    essay = "Essay:\n{essay}\n\n"
    judges = {name: ask(rules, ("human", f"{essay}Judge the essay on {name}.")) for name in ("clarity", "evidence", "style")}
    merge = ask(rules, ("human", essay + "Clarity: {clarity}\nEvidence: {evidence}\nStyle: {style}\nYour verdict?"))
    mapper = ask(("system", "You are brief."), ("human", "Summarise:\n{chunk}"))
    reducer = ask(("system", "You are brief."), ("human", "Merge the notes:\n{notes}"))
    label = ChatPromptTemplate([("system", "You answer letters."), ("human", "What is it about?\n{text}")])
    arm = {name: ask(("system", "You answer letters."), ("human", name + "\n{text}")) for name in ("Refund:", "Thank:")}
    return SimpleNamespace(
        few_shot=ask(("system", "You label reviews."), shots, ("human", "Review: {text}")),
        judges=RunnablePassthrough.assign(**judges) | RunnablePassthrough.assign(verdict=merge),
        rag={"context": RunnableLambda(retriever) | format_docs, "question": RunnablePassthrough()}
        | ask(("human", "Answer from the context.\n\nContext:\n{context}\n\nQuestion: {question}")),
        map_reduce=RunnableLambda(split)
        | mapper.map()
        | RunnableParallel(partials=RunnablePassthrough(), summary=RunnableLambda(to_notes) | reducer),
        consistency=ChatPromptTemplate([("human", "Solve: {problem}")])
        | chat.bind(temperature=0.8)
        | StrOutputParser()
        | last_number,
        router=RunnablePassthrough.assign(label=label | chat.bind(choices=["billing", "other"]) | StrOutputParser())
        | RunnableBranch((is_billing, arm["Refund:"]), arm["Thank:"]),
    )
