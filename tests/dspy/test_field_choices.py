"""Choices: every member of a type has a text that DSPy reads back as that member, or the type has none."""

import enum
import json
from typing import Annotated, Literal

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_dspy.formats.field_choices import members_of, spellings

WORDS = st.text(max_size=6) | st.sampled_from(["yes", " yes ", "'yes'", "[[ ## x ## ]]", "1", "True", "null", "a\nb", "\u2028"])
SCALARS = WORDS | st.integers(-20, 20) | st.booleans() | st.none() | st.binary(max_size=2)


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


class Mood(enum.StrEnum):
    GOOD = "good"
    SPACED = " bad "


class Crossed(enum.Enum):
    A = "B"
    B = "A"


def signature_of(annotation):
    return dspy.Signature({"question": (str, dspy.InputField()), "answer": (annotation, dspy.OutputField())})


def read(text, annotation, *, is_json):
    """By DSPy's own adapters, from a whole reply."""
    if is_json:
        return dspy.JSONAdapter().parse(signature_of(annotation), f'{{\n  "answer": {text}\n}}')["answer"]
    reply = f"[[ ## answer ## ]]\n{text}\n\n[[ ## completed ## ]]\n"
    return dspy.ChatAdapter().parse(signature_of(annotation), reply)["answer"]


def check(annotation, *, is_json):
    """Texts and members are pairs."""
    texts = spellings(annotation, is_json=is_json)
    if texts is not None:
        pairs = [(type(value), value) for value in (read(text, annotation, is_json=is_json) for text in texts)]
        members = [(type(member), member) for member in members_of(annotation)]
        assert pairs == members
    return texts


@settings(deadline=None, max_examples=50)
@given(st.lists(SCALARS, min_size=1, max_size=4, unique_by=lambda value: (type(value), value)), st.booleans())
def test_what_is_chosen_of_a_literal_is_read_back(values, is_json):
    check(Literal[tuple(values)], is_json=is_json)


@settings(deadline=None, max_examples=50)
@given(st.lists(SCALARS, min_size=1, max_size=4, unique_by=lambda value: (type(value), value)), st.booleans())
def test_what_is_chosen_of_an_enum_is_read_back(values, is_json):
    kind = enum.Enum("kind", {f"M{index}": value for index, value in enumerate(values)})
    check(kind, is_json=is_json)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.from_regex(r"[a-z]{1,8}( [a-z]{1,8})?", fullmatch=True), min_size=1, max_size=5, unique=True), st.booleans())
def test_ordinary_words_are_written_as_they_stand(words, is_json):
    texts = check(Literal[tuple(words)], is_json=is_json)
    assert texts == tuple(map(json.dumps, words) if is_json else words)


@pytest.mark.parametrize(
    ("annotation", "chat", "plain_json"),
    [
        (bool, ("True", "False"), ("true", "false")),
        (Literal[1, 2], ("1", "2"), ("1", "2")),
        (Literal["a", 1, True] | None, ("a", "1", "True", "None"), None),
        (Literal[" x ", ""], ('" x "', '""'), ('" x "', '""')),
        (Level, ("LOW", "HIGH"), ("1", "2")),
        (Mood, ("good", "SPACED"), ('"good"', '" bad "')),
        (Crossed, ("B", "A"), ('"B"', '"A"')),
        (Literal["a", "b"] | None, ("a", "b", "None"), ('"a"', '"b"', "null")),
        (Annotated[Literal["a"], "a note"], ("a",), ('"a"',)),
        (type(None), ("None",), ("null",)),
    ],
)
def test_each_kind_of_few_values_has_its_texts(annotation, chat, plain_json):
    assert check(annotation, is_json=False) == chat
    if plain_json is not None:
        assert check(annotation, is_json=True) == plain_json


@pytest.mark.parametrize("annotation", [Literal["1", 1], Literal["a\u2028b"]])
def test_a_member_that_no_text_says_leaves_the_type_without_choices(annotation):
    assert spellings(annotation, is_json=False) is None


@pytest.mark.parametrize("annotation", [str, int, list[bool], bool | int, Literal[tuple(range(1001))]])
def test_types_of_many_values_have_no_choices(annotation):
    assert members_of(annotation) is None
