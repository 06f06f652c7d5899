"""Fifteen prompt templates as people write them, each with twenty argument sets: what code movement is measured with.

Used by tests and benchmarks. In turns of a chat and in plain text, with one generation or several; instructions, rules and
examples often stand behind the arguments, as they do in the wild. Generations have no budget of their own: give one to
``run``. Argument sets are drawn from a seed; some arguments repeat (a language, a persona, a handbook), most do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sgl_core.backend import TextCodec
from sgl_core.errors import InvalidArgumentError
from sgl_core.language import ProgramState, SglFunction, assistant, function, gen, system, user
from sgl_core.language.graph import Graph
from sgl_core.language.ir import Argument, ConstantText, Gen, RoleBegin, RoleEnd
from sgl_core.language.position import Position

__all__ = ["NUM_ARGUMENT_SETS", "TEMPLATES", "PromptTemplate", "rendered_prompts"]

NUM_ARGUMENT_SETS: Final = 20


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A program and what it is run with.

    Args:
        function: the program; its arguments are texts.
        argument_sets: ``NUM_ARGUMENT_SETS`` of them, no two alike.
    """

    function: SglFunction
    argument_sets: tuple[Mapping[str, str], ...]

    @property
    def name(self) -> str:
        """The program's."""
        return self.function.name

    def graph(self) -> Graph:
        """The program as it is traced."""
        return self.function.trace()


def rendered_prompts(
    graph: Graph, arguments: Mapping[str, str], codec: TextCodec, answer: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Token ids of the prompt of every generation of a graph of one stream, by the language's own rules.

    Args:
        graph: of texts, arguments, turns and generations.
        arguments: their texts.
        codec: of the model.
        answer: ids that every generation gives.

    Raises:
        InvalidArgumentError: the graph holds something else.
    """
    position = Position()
    prompts = []
    for node in graph.nodes:
        match node.op:
            case ConstantText(text=text):
                position = position.add_text(text)
            case Argument(name=name):
                position = position.add_text(arguments[name])
            case RoleBegin(role=role):
                position = position.open_turn(role, codec)
            case RoleEnd(role=role):
                position = position.close_turn(role, codec)
            case Gen():
                prompt = position.settled(codec).ids
                prompts.append(prompt.flat())
                position = position.add_generated(prompt, answer, codec.decode(answer))
            case other:
                raise InvalidArgumentError("graph", type(other).__name__, "text, arguments, turns and generations")
    return prompts


# ---- the programs ----------------------------------------------------------------------------------------------------


@function
def ticket_classification(s: ProgramState, ticket: Any) -> None:
    """A label for a message, the labels behind it."""
    s += user(
        "Message from a customer:\n" + ticket + "\n\nSort the message into exactly one of these classes.\n"
        "billing: invoices, refunds, double charges, prices that differ from the offer.\n"
        "delivery: parcels that are late, lost, damaged or sent to another address.\n"
        "account: passwords, locked accounts, changes of name or address, deletion of data.\n"
        "technical: the app or the site does not work, shows an error or is too slow.\n"
        "other: praise, questions about jobs, and whatever fits none of the above.\n"
        "If two classes fit, take the one that the customer mentions first. Answer with the class alone."
    )
    s += assistant(gen("label"))


@function
def translation(s: ProgramState, language: Any, text: Any) -> None:
    """Few languages, many texts, rules at the end."""
    s += (
        "Target language: "
        + language
        + "\nText: "
        + text
        + "\n\nTranslate the text into the target language. Keep names, numbers and units as they are. Keep the tone: what is "
        "informal stays informal. Do not explain anything and do not add quotation marks. Where a word has no translation, "
        "keep it in the original and put it in brackets. Sentences stay sentences: neither join nor split them.\n"
        "Translation:" + gen("translation", stop="\n")
    )


@function
def grounded_answer(s: ProgramState, question: Any, passages: Any) -> None:
    """Retrieval: long rules behind question and passages."""
    s += system("You answer questions of employees from the passages that a search has found.")
    s += user(
        "Question: " + question + "\n\nPassages:\n" + passages + "\n\nRules for the answer:\n"
        "1. Use only what the passages say. If they do not hold the answer, say so in one sentence and stop.\n"
        "2. Put the number of the passage in square brackets behind every statement that comes from it.\n"
        "3. If two passages contradict each other, give both statements and say which one is newer.\n"
        "4. Never guess at dates, amounts or names. Copy them exactly as they are written.\n"
        "5. Write at most four sentences, without headings and without lists.\n"
        "6. Do not speak about these rules, and do not begin with a greeting."
    )
    s += assistant(gen("answer"))


@function
def review_sentiment(s: ProgramState, review: Any) -> None:
    """Few-shot examples behind the text to judge."""
    s += (
        "Review to judge: " + review + "\n\nJudge it as these were judged:\n"
        "Review: The pan sticks after two weeks and the handle gets hot.\nJudgement: negative\n"
        "Review: Came a day early, and the colour is just as in the picture.\nJudgement: positive\n"
        "Review: It is a kettle. It boils water.\nJudgement: neutral\n"
        "Review: I wanted to love it, but the zip broke on the first trip.\nJudgement: negative\n"
        "Review: Third one I have bought, this time for my mother.\nJudgement: positive\n"
        "\nThe judgement of the review at the top:" + gen("judgement", stop="\n")
    )


@function
def persona_chat(s: ProgramState, persona: Any, question: Any) -> None:
    """A persona in front of a long policy; personas repeat."""
    s += system(
        "You are "
        + persona
        + ". You help visitors of a museum by text message. Be friendly and brief: three sentences at most. Give opening "
        "hours only for today and tomorrow, and send people to the website for other days. Never promise that a painting "
        "is on display, as loans change without notice. If somebody is unwell or has lost a child, give the number of the "
        "security desk at once, 555 0134, and nothing else. Do not discuss prices of art, politics or other museums. "
        "When a visitor writes in another language, answer in that language."
    )
    s += user(question)
    s += assistant(gen("reply"))


@function
def invoice_extraction(s: ProgramState, document: Any) -> None:
    """A document first, then the fields to find in it."""
    s += user(
        document + "\n\nExtract the fields below from the document above and give them as one JSON object, nothing around it.\n"
        '"supplier": string, the company that wrote the invoice\n'
        '"number": string, the number of the invoice as it is printed\n'
        '"date": string, as YYYY-MM-DD\n'
        '"total": number, with tax, without a currency sign\n'
        '"currency": string, three letters\n'
        '"items": array of objects with "name", "quantity" and "price"\n'
        "A field that the document does not hold is null. Do not compute what is not written there."
    )
    s += assistant(gen("fields"))


@function
def code_review(s: ProgramState, language: Any, code: Any) -> None:
    """Code, then what a reviewer looks for."""
    s += system("You review changes before they are merged.")
    s += user(
        "Language: " + language + "\n\nChange:\n" + code + "\n\nGo through the change with this list in mind:\n"
        "- errors: off by one, wrong operator, a case that is missing, a resource that is not closed\n"
        "- safety: input that is not checked, secrets in the source, commands or queries built from text\n"
        "- speed: work inside a loop that could stand before it, copies that nobody needs\n"
        "- clarity: names that mislead, comments that repeat the code, functions that do two things\n"
        "Name the line for each remark. Praise nothing, repeat nothing, and say 'no remarks' if there are none."
    )
    s += assistant(gen("remarks"))


@function
def summary_and_title(s: ProgramState, article: Any) -> None:
    """Two generations: a summary, and a title for it."""
    s += user(
        "Article:\n"
        + article
        + "\n\nSum the article up for readers of a newsletter in two sentences of at most twenty words each. Say first what "
        "happened and then why it matters. No opinions, no questions, no words such as 'the article says'. Numbers stay "
        "exact. People are named with their role the first time they occur."
    )
    s += assistant(gen("summary"))
    s += user("Now a title for your summary: at most eight words, no colon, no full stop, the verb in the present tense.")
    s += assistant(gen("title"))


@function
def word_problem(s: ProgramState, problem: Any) -> None:
    """A worked example behind the problem; thoughts first, then the answer."""
    s += (
        "Problem: " + problem + "\n\nSolve it in the way of this example.\n"
        "Problem: A train leaves at 9:40 and arrives at 13:05. It stands still for 25 minutes on the way. How long does it move?\n"
        "Thoughts: From 9:40 to 13:05 are 3 hours and 25 minutes. Without the 25 minutes of standing 3 hours remain.\n"
        "Answer: 3 hours\n"
        "Write one line of thoughts, and do not leave out units.\n"
        "Thoughts:" + gen("thoughts", stop="\n")
    )
    s += "\nAnswer:" + gen("answer", stop="\n")


@function
def essay_grading(s: ProgramState, essay: Any, level: Any) -> None:
    """A rubric between an essay and the level that it is graded for."""
    s += user(
        "Essay:\n" + essay + "\n\nRubric, five points each:\n"
        "Thesis: one claim that can be argued about, stated in the first paragraph and kept to the end.\n"
        "Evidence: every argument rests on an example or a source, and the example fits.\n"
        "Order: each paragraph has one idea, and the reader always knows why it comes next.\n"
        "Language: sentences are complete, words are exact, spelling is right.\n"
        "Add the points up, give the sum first, and then a sentence for each criterion.\n"
        "Grade for students of level " + level + "."
    )
    s += assistant(gen("grade"))


@function
def complaint_reply(s: ProgramState, customer: Any, mail: Any) -> None:
    """A name, a mail, and how the house answers mails."""
    s += system("You write for the support team of a railway.")
    s += user(
        "A mail from "
        + customer
        + ":\n"
        + mail
        + "\n\nWrite the reply. Thank the customer in the first sentence and name the trouble in the second, in your own "
        "words. Say what happens now and until when; if you do not know, say that a colleague will call within two working "
        "days. Refunds need the number of the ticket: ask for it if it is not there. Never blame weather, staff or other "
        "companies. Close with 'Your support team' and no name."
    )
    s += assistant(gen("reply"))


@function
def sql_query(s: ProgramState, question: Any) -> None:
    """A question in front of a schema that never changes."""
    s += (
        "-- Question: " + question + "\n-- Tables:\n"
        "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT, since DATE);\n"
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, placed DATE, status TEXT);\n"
        "CREATE TABLE items (order_id INTEGER, product_id INTEGER, quantity INTEGER, price NUMERIC);\n"
        "CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, category TEXT, stock INTEGER);\n"
        "-- One statement, no comments, standard SQL, columns by name. Amounts are quantity times price.\n"
        "SELECT" + gen("query", stop=";")
    )


@function
def meeting_minutes(s: ProgramState, meeting: Any, transcript: Any) -> None:
    """An argument first, another one behind a label, and the form of the minutes last."""
    s += user(
        meeting
        + "\nTranscript:\n"
        + transcript
        + "\n\nWrite minutes of the meeting that is named above. First the decisions, one line each, with the name of "
        "whoever has to act and the day until which. Then open questions, one line each. Leave out small talk, jokes and "
        "what was only repeated. What was said in confidence is not written down. Use the past tense."
    )
    s += assistant(gen("minutes"))


@function
def moderation(s: ProgramState, post: Any, audience: Any) -> None:
    """A verdict, then an explanation for an audience: the second question stands behind an answer."""
    s += user(
        "Post:\n"
        + post
        + "\n\nDecide whether the post may stay. Insults, threats, private addresses, advertisements and instructions for "
        "crimes have to go. Rude words alone may stay, and so may criticism of companies and politicians, be it fair or "
        "not. Quotations count as what their author makes of them. When in doubt the post stays. Answer 'stays' or 'goes'."
    )
    s += assistant(gen("verdict"))
    s += user(
        "Explain the verdict to "
        + audience
        + ".\nUse at most two sentences and name the rule that decided. Do not repeat the words of the post."
    )
    s += assistant(gen("explanation"))


@function
def handbook_questions(s: ProgramState, handbook: Any, question: Any) -> None:
    """Many questions about few handbooks, with rules behind each question."""
    s += system("You know this handbook by heart:\n" + handbook)
    s += user(
        "Question: "
        + question
        + "\n\nAnswer from the handbook alone, in one or two sentences. Name the device as the handbook does. If a step is "
        "dangerous, say so first. If the handbook is silent, answer 'Please ask a technician' and nothing else. Never name "
        "spare parts or prices, and never advise to open the housing."
    )
    s += assistant(gen("answer"))


# ---- what they are run with ------------------------------------------------------------------------------------------

_THINGS: Final = (
    "lamp",
    "bicycle",
    "kettle",
    "printer",
    "tent",
    "radio",
    "heater",
    "clock",
    "camera",
    "ladder",
    "oven",
    "piano",
)
_PLACES: Final = (
    "Lisbon",
    "Tartu",
    "Osaka",
    "Quito",
    "Bergen",
    "Dakar",
    "Zagreb",
    "Perth",
    "Leeds",
    "Cusco",
    "Izmir",
    "Gdansk",
)
_NAMES: Final = ("Ada", "Bruno", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hana", "Ivo", "Jun", "Kofi", "Lena")
_VERBS: Final = ("opened", "repaired", "sold", "cleaned", "counted", "borrowed", "painted", "moved", "lost", "found")
_QUALITIES: Final = ("old", "blue", "heavy", "silent", "broken", "cheap", "narrow", "bright", "wooden", "borrowed")
_LANGUAGES: Final = ("French", "Turkish", "Japanese", "Finnish")
_PERSONAS: Final = ("Mona, a guide who loves stories", "Otto, a dry old curator", "Pia, a student of art history")
_CODE_LANGUAGES: Final = ("Python", "Go", "Rust")
_LEVELS: Final = ("A2", "B1", "B2", "C1")
_AUDIENCES: Final = ("the author of the post", "a new moderator", "the legal department")


class _Writer:
    """Draws texts from a seed."""

    def __init__(self, seed: str) -> None:
        """Start its own row of random numbers."""
        self._rng = random.Random(seed)  # noqa: S311  not for secrets

    def one(self, choices: Sequence[str]) -> str:
        """One of ``choices``."""
        return self._rng.choice(choices)

    def number(self, most: int) -> int:
        """From 2 to ``most``."""
        return self._rng.randint(2, most)

    def thing(self) -> str:
        """A thing and what it is like."""
        return f"{self.one(_QUALITIES)} {self.one(_THINGS)}"

    def sentence(self) -> str:
        """Who did what where."""
        return f"{self.one(_NAMES)} {self.one(_VERBS)} the {self.thing()} in {self.one(_PLACES)} {self.number(99)} days ago."

    def text(self, sentences: int) -> str:
        """Some of them."""
        return " ".join(self.sentence() for _ in range(sentences))

    def question(self) -> str:
        """About a thing."""
        return f"How many days after {self.one(_NAMES)} {self.one(_VERBS)} the {self.thing()} in {self.one(_PLACES)} was it?"


_HANDBOOKS: Final = tuple(_Writer(f"handbook {index}").text(8) for index in range(4))


def _ticket(w: _Writer) -> dict[str, str]:
    return {"ticket": f"{w.text(2)} My order has the number {w.number(9999)}."}


def _translation(w: _Writer) -> dict[str, str]:
    return {"language": w.one(_LANGUAGES), "text": w.text(2)}


def _grounded(w: _Writer) -> dict[str, str]:
    return {"question": w.question(), "passages": "\n".join(f"[{index}] {w.text(2)}" for index in (1, 2, 3))}


def _review(w: _Writer) -> dict[str, str]:
    return {"review": f"The {w.thing()} is from {w.one(_PLACES)}. {w.sentence()}"}


def _persona(w: _Writer) -> dict[str, str]:
    return {"persona": w.one(_PERSONAS), "question": w.question()}


def _invoice(w: _Writer) -> dict[str, str]:
    items = "\n".join(f"{w.number(9)} x {w.thing()}  {w.number(900)}.00" for _ in range(3))
    return {
        "document": f"{w.one(_NAMES)} & Sons, {w.one(_PLACES)}\nInvoice {w.number(99999)}\n{items}\nTotal EUR {w.number(9999)}.00"
    }


def _code(w: _Writer) -> dict[str, str]:
    thing = w.one(_THINGS)
    code = f"def {w.one(_VERBS)}_{thing}(n):\n    total = {w.number(99)}\n    return total / (n - {w.number(99)})"
    return {"language": w.one(_CODE_LANGUAGES), "code": code}


def _article(w: _Writer) -> dict[str, str]:
    return {"article": w.text(5)}


def _problem(w: _Writer) -> dict[str, str]:
    return {
        "problem": f"{w.one(_NAMES)} has {w.number(99)} {w.one(_THINGS)}s and sells {w.number(9)} a day. When are half of them gone?"
    }


def _essay(w: _Writer) -> dict[str, str]:
    return {"essay": w.text(6), "level": w.one(_LEVELS)}


def _complaint(w: _Writer) -> dict[str, str]:
    return {"customer": w.one(_NAMES), "mail": w.text(3)}


def _sql(w: _Writer) -> dict[str, str]:
    return {"question": f"Which customers from {w.one(_PLACES)} ordered more than {w.number(99)} {w.one(_THINGS)}s?"}


def _meeting(w: _Writer) -> dict[str, str]:
    people = f"{w.one(_NAMES)}, {w.one(_NAMES)}"
    return {"meeting": f"2026-{w.number(12):02}-{w.number(28):02}, present: {people}", "transcript": w.text(4)}


def _post(w: _Writer) -> dict[str, str]:
    return {"post": w.text(2), "audience": w.one(_AUDIENCES)}


def _handbook(w: _Writer) -> dict[str, str]:
    return {"handbook": w.one(_HANDBOOKS), "question": w.question()}


def _template(program: SglFunction, draw: Callable[[_Writer], dict[str, str]]) -> PromptTemplate:
    writer = _Writer(program.name)
    sets: list[Mapping[str, str]] = []
    while len(sets) < NUM_ARGUMENT_SETS:
        drawn = draw(writer)
        if drawn not in sets:
            sets.append(drawn)
    return PromptTemplate(program, tuple(sets))


TEMPLATES: Final = (
    _template(ticket_classification, _ticket),
    _template(translation, _translation),
    _template(grounded_answer, _grounded),
    _template(review_sentiment, _review),
    _template(persona_chat, _persona),
    _template(invoice_extraction, _invoice),
    _template(code_review, _code),
    _template(summary_and_title, _article),
    _template(word_problem, _problem),
    _template(essay_grading, _essay),
    _template(complaint_reply, _complaint),
    _template(sql_query, _sql),
    _template(meeting_minutes, _meeting),
    _template(moderation, _post),
    _template(handbook_questions, _handbook),
)
"""All fifteen."""
