"""Patterns of numbers: all that lie inside the bounds, none outside, and an end to their digits."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_dspy.formats.number_patterns import decimal_number, whole_number

BOUND = st.none() | st.integers(-2000, 2000)


def matches(pattern, text):
    return pattern is not None and re.fullmatch(pattern, text) is not None


def inside(value, low, high, is_low_open=False, is_high_open=False):
    above = low is None or value > low or (value == low and not is_low_open)
    return above and (high is None or value < high or (value == high and not is_high_open))


@settings(deadline=None)
@given(BOUND, BOUND, st.integers(-3000, 3000))
def test_an_integer_matches_if_and_only_if_it_lies_inside(low, high, value):
    assert matches(whole_number(low, high), str(value)) == inside(value, low, high)


@settings(deadline=None)
@given(BOUND, BOUND, st.booleans(), st.booleans(), st.integers(-300_000, 300_000), st.integers(1, 3))
def test_a_decimal_matches_if_and_only_if_it_lies_inside(low, high, is_low_open, is_high_open, hundredths, digits):
    text = f"{hundredths / 10**digits:.{digits}f}"
    pattern = decimal_number(low, high, is_low_open=is_low_open, is_high_open=is_high_open)
    if not text.startswith("-0") or float(text):  # minus zero is written as zero
        assert matches(pattern, text) == inside(float(text), low, high, is_low_open, is_high_open)


@pytest.mark.parametrize(("low", "high"), [(None, None), (0, None), (10**17, None), (None, -5), (7, 10**17)])
def test_digits_come_to_an_end(low, high):
    assert not matches(whole_number(low, high), "1" * 19)
    assert not matches(whole_number(low, high), "-" + "1" * 19)


def test_a_decimal_has_six_digits_behind_the_point_at_most():
    assert matches(decimal_number(None, None), "0.123456")
    assert not matches(decimal_number(None, None), "0.1234567")


@pytest.mark.parametrize("text", ["007", "-0", "+1", "1.", ".5", "1e3", ""])
def test_other_spellings_are_left_out(text):
    assert not matches(whole_number(None, None), text)
    assert not matches(decimal_number(None, None), text)


def test_without_numbers_inside_there_is_no_pattern():
    assert whole_number(3, 2) is None
    assert decimal_number(2, 2, is_low_open=True) is None
