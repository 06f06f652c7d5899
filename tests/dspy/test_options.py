"""Options of ours on their way through DSPy."""

import json

import pytest
from pydantic import BaseModel

from sgl_core.errors import InvalidArgumentError
from sgl_dspy.requests.options import moved, own_options


class Person(BaseModel):
    name: str


def test_keywords_that_dspy_knows_stay_where_they_are():
    assert moved({"temperature": 1, "metadata": {"run": 1}}, {}) == {"temperature": 1, "metadata": {"run": 1}}


def test_ours_go_into_the_metadata_and_leave_the_rest_of_it():
    given = {"top_p": 0.5, "regex": "a", "metadata": {"run": 1}}
    assert moved(given, {}) == {"top_p": 0.5, "metadata": {"run": 1, "sgl_options": {"regex": "a"}}}
    assert given["metadata"] == {"run": 1}


def test_a_call_adds_to_the_defaults_of_its_lm_and_overrides_them():
    defaults = {"metadata": {"run": 1, "sgl_options": {"regex": "a", "min_p": 0.5}}}
    found = moved({"min_p": 0.1, "metadata": {"sgl_program": {}}}, defaults)
    assert found == {"metadata": {"run": 1, "sgl_program": {}, "sgl_options": {"regex": "a", "min_p": 0.1}}}


def test_metadata_of_a_call_keeps_the_options_of_its_lm():
    assert moved({"metadata": {"run": 2}}, {"metadata": {"sgl_options": {"regex": "a"}}}) == {
        "metadata": {"run": 2, "sgl_options": {"regex": "a"}}
    }


def test_none_takes_a_default_back():
    assert moved({"regex": None}, {"metadata": {"sgl_options": {"regex": "a"}}}) == {"metadata": None}


def test_values_are_json():
    found = moved({"json_schema": Person, "choices": ("a", "b"), "stop_token_ids": {3}}, {})["metadata"]["sgl_options"]
    assert json.loads(json.dumps(found)) == {
        "json_schema": Person.model_json_schema(),
        "choices": ["a", "b"],
        "stop_token_ids": [3],
    }


def test_metadata_that_is_no_dict_is_an_error():
    with pytest.raises(InvalidArgumentError, match="metadata"):
        moved({"regex": "a", "metadata": "run 7"}, {})


def test_no_options_are_none():
    assert own_options(None) == {}
