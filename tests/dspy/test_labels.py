"""The label that keys DSPy's answer cache."""

import re

import pytest
from dspy.clients.lm import _is_openai_reasoning_model

from sgl_core.errors import InvalidArgumentError
from sgl_dspy.labels import check_label, is_label, model_label


def test_a_quantisation_at_the_end_of_the_name_moves_behind_the_at():
    assert re.fullmatch(
        r"sgl/SmolLM2-135M-Instruct@q4_1#[0-9a-f]{8}", model_label("SmolLM2-135M-Instruct.Q4_1", "f", None, None)
    )


def test_a_folder_shows_the_dtype_its_weights_are_stored_in(model_folder):
    assert model_label("tiny", "f", model_folder, None).startswith("sgl/tiny@bfloat16#")


def test_a_dtype_that_was_asked_for_is_shown_and_hashed(model_folder):
    stored, asked = (model_label("tiny", "f", model_folder, dtype) for dtype in (None, "float32"))
    assert asked.startswith("sgl/tiny@float32#")
    assert stored.rpartition("#")[2] != asked.rpartition("#")[2]


def test_other_files_have_another_hash():
    assert model_label("tiny", "one", None, None) != model_label("tiny", "two", None, None)


@pytest.mark.parametrize("name", ["gpt-5-mini", "o1", "org/gpt-5.1-nano", "o3-mini-2025-01-31"])
def test_no_label_is_taken_for_a_model_of_openai(name):
    assert _is_openai_reasoning_model(name)
    assert not _is_openai_reasoning_model(model_label(name, "f", None, None))


@pytest.mark.parametrize("name", ["My model (v2)", "a@b#c", "org/name", "ünï"])
def test_a_label_is_recognised_whatever_the_name(name):
    label = model_label(name, "f", None, None)
    assert is_label(label)
    assert label.count("@") == label.count("#") == 1


@pytest.mark.parametrize("text", ["sgl/x", "name", "org/name", "sgl/x@q8", "sgl/x@q8#12", "/a/folder@q8#0123abcd"])
def test_names_and_paths_are_no_labels(text):
    assert not is_label(text)


def test_a_label_of_other_weights_is_refused_and_both_are_named():
    given, found = model_label("tiny", "one", None, None), model_label("tiny", "two", None, None)
    with pytest.raises(InvalidArgumentError, match="label") as raised:
        check_label(given, found)
    assert given in str(raised.value)
    assert found in str(raised.value)


def test_a_moved_model_keeps_its_label_valid():
    check_label(model_label("old-name", "one", None, None), model_label("new-name", "one", None, None))
