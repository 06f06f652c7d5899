"""Choices are scored on the tokens that the model would have read: prompt and choice encoded as one string."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgl_core.runtime.codec import LocalCodec
from sgl_core.spans import plan_spans


@pytest.fixture(scope="module")
def codec(embedded_folder: Path) -> LocalCodec:
    return LocalCodec.from_folder(embedded_folder)


@pytest.mark.parametrize(
    ("tail", "choices"),
    [
        ("Answer: ", ["yes", "no", "maybe"]),
        ("Answer:", [" yes", " no", " maybe"]),
        ("link is http", ["://a", "s://a"]),
        ("The word is un", ["happy", "able", "der", "til"]),
        ("I live in ", ["New", "New York", "New York City", "Newark", "New York"]),
        ("", ["a", "b"]),
        ("x", ["y"]),
        ("ends with a newline\n", ["\n", "\nmore"]),
    ],
)
def test_prompt_and_span_are_the_whole_text_and_no_span_is_empty(codec: LocalCodec, tail: str, choices: list[str]) -> None:
    planned = plan_spans(codec, tail, choices)
    assert len(planned.spans) == len(choices)
    for choice, span in zip(choices, planned.spans, strict=True):
        assert span
        assert planned.shared + span == codec.encode(tail + choice)


LONG = "Each of these 1,234 words' tokens\tis \u00e7a va? \u4f60\u597d \U0001f600  twice.\r\n\r\n  " * 40


class Counting:
    """A codec that counts the characters it is given."""

    def __init__(self, codec: LocalCodec) -> None:
        self._codec = codec
        self.num_chars = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._codec, name)

    def encode(self, text: str) -> tuple[int, ...]:
        self.num_chars += len(text)
        return self._codec.encode(text)


@pytest.mark.parametrize("end", ["", " ", "  ", "\n", "The word is un", "don", "\x04", "Total: 1"])
def test_a_long_prompt_is_encoded_once_and_not_with_every_choice(codec: LocalCodec, end: str) -> None:
    choices = [f"{kind}{number}" for kind in ("a", " b", "'t", "\n", "") for number in range(40)]
    counting = Counting(codec)
    planned = plan_spans(counting, LONG + end, choices)  # type: ignore[arg-type]
    assert [planned.shared + span for span in planned.spans] == [codec.encode(LONG + end + choice) for choice in choices]
    assert counting.num_chars < 2 * len(LONG) + 100 * len(choices)


def test_a_prompt_that_the_vocabulary_cannot_spell_is_encoded_as_a_whole(codec: LocalCodec) -> None:
    assert codec.decode(codec.encode("a\x04b")) == "ab"
    planned = plan_spans(codec, "a\x04b is one ", ["two", "three"])
    assert planned.shared + planned.spans[0] == codec.encode("a\x04b is one two")


def test_a_trailing_space_belongs_to_the_choices(codec: LocalCodec) -> None:
    assert plan_spans(codec, "Answer: ", ["yes", "no"]) == plan_spans(codec, "Answer:", [" yes", " no"])
