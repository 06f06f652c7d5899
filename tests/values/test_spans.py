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


def test_a_trailing_space_belongs_to_the_choices(codec: LocalCodec) -> None:
    assert plan_spans(codec, "Answer: ", ["yes", "no"]) == plan_spans(codec, "Answer:", [" yes", " no"])
