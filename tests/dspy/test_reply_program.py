"""Reply programs as JSON: what is written is read again, and nothing else is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_core.errors import InvalidArgumentError
from sgl_dspy.formats.reply_program import Choice, Forced, FreeText, JsonBy, JsonValue, Pattern, ReplyProgram

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
texts = st.text(min_size=1, max_size=8)
steps = st.one_of(
    texts.map(Forced),
    st.builds(FreeText, texts, st.lists(texts, max_size=3).map(tuple)),
    st.builds(Choice, texts, st.lists(texts, min_size=1, max_size=3).map(tuple)),
    st.builds(Pattern, texts, texts),
    st.builds(JsonValue, texts, st.just(SCHEMA)),
)


@given(st.lists(steps, min_size=1, max_size=5), st.none() | st.tuples(st.just(0), st.integers(0, 9)))
def test_json_there_and_back_changes_nothing(some, shared):
    program = ReplyProgram(tuple(some), shared)
    assert ReplyProgram.from_json(json.loads(json.dumps(program.to_json()))) == program


def test_a_schema_by_choice_travels_with_its_choices():
    program = ReplyProgram((Choice("tool", ("add", "end")), JsonBy("args", "tool", {"add": SCHEMA, "end": {"type": "object"}})))
    assert ReplyProgram.from_json(json.loads(json.dumps(program.to_json()))) == program


@pytest.mark.parametrize(
    "wrong",
    [
        (JsonBy("args", "tool", {"add": SCHEMA}),),
        (Choice("tool", ("add", "end")), JsonBy("args", "tool", {"add": SCHEMA})),
        (FreeText("tool"), JsonBy("args", "tool", {"add": SCHEMA})),
        (JsonBy("args", "tool", {"add": SCHEMA}), Choice("tool", ("add",))),
        (),
    ],
)
def test_steps_that_refer_to_nothing_are_refused(wrong):
    with pytest.raises(InvalidArgumentError, match="sgl_program"):
        ReplyProgram(wrong)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {},
        {"v": 2, "reply": [{"text": "x"}]},
        {"v": 1, "reply": []},
        {"v": 1, "reply": [{"text": ""}]},
        {"v": 1, "reply": [{"text": "x"}], "more": 1},
        {"v": 1, "reply": [{"unknown": "x"}]},
        {"v": 1, "reply": [{"choice": "x", "choices": []}]},
        {"v": 1, "reply": [{"choice": "x", "choices": ["a", ""]}]},
        {"v": 1, "reply": [{"json": "x", "by": "y", "schemas": {"a": 1}}]},
        {"v": 1, "reply": [{"text": "x"}], "shared": [2, 1]},
        {"v": 1, "reply": [{"text": "x"}], "shared": 3},
    ],
)
def test_what_is_no_program_is_refused_by_name(plain):
    with pytest.raises(InvalidArgumentError, match="sgl_program"):
        ReplyProgram.from_json(plain)
