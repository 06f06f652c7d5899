"""Seven LangChain programs: chains as people write them, and how they are called.

A program gets its models from whoever runs it, and knows nothing else about them: the same code runs on every system. Texts are
made from a seed (see ``prose``), so every run asks the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import prose
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel, RunnablePassthrough

__all__ = ["UNSHARED", "WORKLOADS", "Chain", "LangChainWorkload", "ModelMaker", "build"]

Chain = Runnable[Any, Any]
ModelMaker = Callable[[int], BaseChatModel]
"""Makes a greedy chat model that generates at most so many tokens."""
UNSHARED = "no sharing"


@dataclass(frozen=True, slots=True)
class LangChainWorkload:
    """A program and its inputs.

    Args:
        key: its name in ``WORKLOADS``.
        title: for people.
        num_calls: of a model.
        num_first: of these, the calls whose prompts depend on no answer.
        build: makes the chain; what is compiled is its result.
        drive: runs it and gives the texts that came out.
    """

    key: str
    title: str
    num_calls: int
    num_first: int
    build: Callable[[ModelMaker], Chain]
    drive: Callable[[Chain], list[str]]


def build(key: str, *, scale: float = 1.0, seed: int = 0) -> LangChainWorkload:
    """One of ``WORKLOADS``.

    Args:
        key: its name.
        scale: multiplies the number of inputs (of the chat, its turns); in (0, 1].
        seed: of the texts.
    """
    return WORKLOADS[key](scale, random.Random(f"{key}-{seed}"))


def _share(full: int, scale: float) -> int:
    return max(1, round(full * scale))


def _batch(inputs: Sequence[Any]) -> Callable[[Chain], list[str]]:
    """All inputs at once, with LangChain's default concurrency."""
    return lambda chain: [str(output) for output in chain.batch(list(inputs))]


# ---- few-shot -----------------------------------------------------------------------------------------------------------
_LABELS = {
    "positive": ("It did what it promised from the first day.", "I have bought a second one for my sister."),
    "negative": ("It broke before the month was over.", "Nobody answered my letters, and I want my money back."),
    "mixed": ("The idea is good, and I use it twice a week.", "For this price, though, I had hoped for more care."),
}
_GOODS = ("kettle", "rucksack", "desk lamp", "bicycle pump", "radio", "tent", "pair of boots", "coffee grinder", "umbrella")
_DETAILS = (
    "It came in {days} days, in a box that was {size} times its size.",
    "The handle is made of {stuff}, which surprised me.",
    "We took it along to the coast for {days} days, with sand, rain and three children.",
    "The manual has {days} pages, {size} of them in a language that I can read.",
    "Mine is the {stuff} one, the second smallest of {size}.",
)


def _review(rng: random.Random) -> dict[str, str]:
    label, verdicts = rng.choice(list(_LABELS.items()))
    figures = {"days": rng.randint(3, 19), "size": rng.randint(2, 6), "stuff": rng.choice(("beech", "steel", "felt", "cork"))}
    detail = rng.choice(_DETAILS).format(**figures)
    return {"text": " ".join([f"A {rng.choice(_GOODS)} for my own use.", detail, *verdicts]), "label": label}


def _few_shot(scale: float, rng: random.Random) -> LangChainWorkload:
    examples = [_review(rng) for _ in range(8)]
    inputs = [{"text": _review(rng)["text"]} for _ in range(_share(24, scale))]

    def chain(model: ModelMaker) -> Chain:
        shot = ChatPromptTemplate([("human", "Review: {text}"), ("ai", "{label}")])
        system = "You sort reviews of goods. Answer with one word: positive, negative or mixed."
        shots = FewShotChatMessagePromptTemplate(examples=examples, example_prompt=shot)
        return ChatPromptTemplate([("system", system), shots, ("human", "Review: {text}")]) | model(4) | StrOutputParser()

    title = f"few-shot classification: a batch of {len(inputs)}, 8 shots"
    return LangChainWorkload("few-shot", title, len(inputs), len(inputs), chain, _batch(inputs))


# ---- judges -------------------------------------------------------------------------------------------------------------
_ASPECTS = ("clarity", "evidence", "style")
_READ = [("system", "You are a fair judge of essays.")]


def _judges(scale: float, rng: random.Random) -> LangChainWorkload:
    inputs = [{"essay": prose.essay(rng)} for _ in range(_share(6, scale))]

    def judge(aspect: str, model: ModelMaker) -> Chain:
        asked = f"Essay:\n{{essay}}\n\nJudge the essay on {aspect}, in one or two sentences."
        return ChatPromptTemplate([*_READ, ("human", asked)]) | model(48) | StrOutputParser()

    def chain(model: ModelMaker) -> Chain:
        quoted = "\n".join(f"On {aspect}: {{{aspect}}}" for aspect in _ASPECTS)
        asked = f"Essay:\n{{essay}}\n\nThese are the judgements.\n{quoted}\nSum them up, with a grade from 1 to 10."
        merge = ChatPromptTemplate([*_READ, ("human", asked)]) | model(64) | StrOutputParser()
        judges = RunnableParallel({aspect: judge(aspect, model) for aspect in _ASPECTS})
        return RunnablePassthrough.assign(judgements=judges) | RunnableLambda(_spread) | merge

    num_judged = len(_ASPECTS) * len(inputs)
    title = f"three judges and a merge, on {_count(len(inputs), 'essay')}"
    return LangChainWorkload("judges", title, num_judged + len(inputs), num_judged, chain, _batch(inputs))


def _spread(judged: dict[str, Any]) -> dict[str, Any]:
    return {"essay": judged["essay"], **judged["judgements"]}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ---- self-consistency -----------------------------------------------------------------------------------------------------
def _self_consistency(scale: float, rng: random.Random) -> LangChainWorkload:
    """Greedy, so that answers can be compared: eight equal answers, each of them generated."""
    worked = "\n\n".join("Question: {}\nAnswer: {}".format(*prose.word_problem(rng)) for _ in range(2))
    inputs = [{"question": prose.puzzle(rng)}] * _share(8, scale)

    def chain(model: ModelMaker) -> Chain:
        system = f"You solve problems step by step, and end with the number.\n\n{worked}"
        prompt = ChatPromptTemplate([("system", system), ("human", "Question: {question}")])
        return prompt | model(32) | StrOutputParser() | RunnableLambda(_last_number)

    title = f"self-consistency: {len(inputs)} answers to one question"
    return LangChainWorkload("self-consistency", title, len(inputs), len(inputs), chain, _batch(inputs))


def _last_number(text: str) -> str:
    numbers = re.findall(r"\d+", text)
    return numbers[-1] if numbers else ""


# ---- chat ---------------------------------------------------------------------------------------------------------------
def _chat(scale: float, rng: random.Random) -> LangChainWorkload:
    questions = [prose.opening_question(rng), *(prose.follow_up(rng) for _ in range(_share(6, scale) - 1))]

    def chain(model: ModelMaker) -> Chain:
        system = "You answer briefly, kindly and with numbers where they help."
        prompt = ChatPromptTemplate([("system", system), MessagesPlaceholder("history"), ("human", "{question}")])
        return prompt | model(16)

    def talk(chain: Chain) -> list[str]:
        history: list[BaseMessage] = []
        for question in questions:
            reply: AIMessage = chain.invoke({"history": history, "question": question})
            history = [*history, HumanMessage(question), reply]
        return [str(message.text) for message in history if isinstance(message, AIMessage)]

    return LangChainWorkload("chat", f"a chat of {_count(len(questions), 'turn')}", len(questions), 1, chain, talk)


# ---- RAG ----------------------------------------------------------------------------------------------------------------
class _WordRetriever(BaseRetriever):
    """Finds the documents that have the most rare words in common with a question."""

    documents: list[Document]
    most: int

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        """LangChain's hook for retrievers; ``run_manager`` has nothing to be told."""
        del run_manager
        words = _long_words(query)
        return sorted(self.documents, key=lambda document: -len(words & _long_words(document.page_content)))[: self.most]


def _long_words(text: str) -> set[str]:
    return set(re.findall(r"\w{5,}", text.lower()))


def _rag(scale: float, rng: random.Random) -> LangChainWorkload:
    paragraphs = [paragraph for _ in range(16) for paragraph in prose.essay(rng, sentences=8).split("\n\n")[1:]]
    retriever = _WordRetriever(documents=[Document(paragraph) for paragraph in paragraphs], most=2)
    questions = [prose.opening_question(rng) for _ in range(_share(8, scale))]

    def chain(model: ModelMaker) -> Chain:
        asked = "Context:\n{context}\n\nQuestion: {question}"
        prompt = ChatPromptTemplate([("system", "You answer from the context alone, in one sentence."), ("human", asked)])
        context = retriever | RunnableLambda(_joined)
        return {"context": context, "question": RunnablePassthrough()} | prompt | model(16) | StrOutputParser()

    title = f"RAG: {_count(len(questions), 'question')}, two documents each"
    return LangChainWorkload("RAG", title, len(questions), len(questions), chain, _batch(questions))


def _joined(documents: Sequence[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


# ---- map-reduce -----------------------------------------------------------------------------------------------------------
def _map_reduce(scale: float, rng: random.Random) -> LangChainWorkload:
    num_chunks = _share(8, scale)
    text = "\n\n".join(prose.long_text(rng, sentences=5) for _ in range(num_chunks))

    def chain(model: ModelMaker) -> Chain:
        system = ("system", "You take notes for people in a hurry, in one plain sentence without opinions of your own.")
        mapper = ChatPromptTemplate([system, ("human", "Summarise:\n{chunk}")]) | model(16) | StrOutputParser()
        reducer = ChatPromptTemplate([system, ("human", "Summarise these notes:\n{notes}")]) | model(32) | StrOutputParser()
        return RunnableLambda(_chunks) | mapper.map() | RunnableLambda(_notes) | reducer

    title = f"map-reduce: {_count(num_chunks, 'chunk')} and a summary of the notes"
    return LangChainWorkload("map-reduce", title, num_chunks + 1, num_chunks, chain, lambda chain: [chain.invoke(text)])


def _chunks(text: str) -> list[dict[str, str]]:
    return [{"chunk": paragraph} for paragraph in text.split("\n\n")]


def _notes(summaries: Sequence[str]) -> dict[str, str]:
    return {"notes": "\n".join(f"- {summary}" for summary in summaries)}


# ---- nothing to share -----------------------------------------------------------------------------------------------------
def _no_sharing(scale: float, rng: random.Random) -> LangChainWorkload:
    """System messages that differ from their first words on: what is equal is the template's opening, a few tokens."""
    names = ["Ada", "Bruno", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana"][: _share(8, scale)]
    inputs = [{"name": name, "text": prose.long_text(rng, sentences=6)} for name in names]

    def chain(model: ModelMaker) -> Chain:
        prompt = ChatPromptTemplate([("system", "{name} asks you to be brief."), ("human", "{text}\n\nWhat is the point?")])
        return prompt | model(16) | StrOutputParser()

    title = f"no sharing: {_count(len(inputs), 'prompt')}"
    return LangChainWorkload(UNSHARED, title, len(inputs), len(inputs), chain, _batch(inputs))


WORKLOADS: dict[str, Callable[[float, random.Random], LangChainWorkload]] = {
    "few-shot": _few_shot,
    "judges": _judges,
    "self-consistency": _self_consistency,
    "chat": _chat,
    "RAG": _rag,
    "map-reduce": _map_reduce,
    UNSHARED: _no_sharing,
}
