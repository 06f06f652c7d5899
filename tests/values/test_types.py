"""Values check themselves, and say the argument, what was given and what is expected."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_core.types import GenRequest, SamplingParams

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_new_tokens", [0, -1, 1.5, True, "3", 2**40]),
        ("min_new_tokens", [-1, 0.5, False, None]),
        ("temperature", [NAN, INF, -0.1, True, "1", None, 1e9]),
        ("top_p", [0, 0.0, -1, 1.01, NAN, True]),
        ("top_k", [0, -2, 1.0, True, 2**40]),
        ("min_p", [-0.1, 1.1, NAN]),
        ("frequency_penalty", [-2.1, 2.1, NAN]),
        ("presence_penalty", [-2.1, 2.1, INF]),
        ("repetition_penalty", [0, 2.1, NAN, -1]),
        ("n", [0, 129, True, 1.0]),
        ("stop", [("",), (1,), ("a",) * 33, 3]),
        ("stop_token_ids", [(-1,), ("a",), (True,), 7]),
        ("stop_regex", [3]),
        ("ignore_eos", [1, None, "yes"]),
        ("prompt_logprobs", [1]),
        ("seed", [-1, 2**63, 1.0, True]),
        ("logprobs", [-1, 101, True]),
        ("logit_bias", [{-1: 0.0}, {1: NAN}, {"a": 1.0}, [1], dict.fromkeys(range(1_025), 0.0)]),
        ("regex", [3]),
        ("grammar", [b"x"]),
        ("choices", [(), ("",), (1,), "abc"]),
    ],
)
def test_a_bad_sampling_parameter_is_named_in_its_error(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidArgumentError, match=name) as caught:
            SamplingParams(**{name: value})
        assert caught.value.argument == name
        assert "expected" in str(caught.value)
        assert len(str(caught.value)) < 400


def test_two_constraints_at_once_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentError, match="regex and choices"):
        SamplingParams(regex="a", choices=("a",))


def test_a_minimum_above_the_maximum_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="min_new_tokens"):
        SamplingParams(max_new_tokens=3, min_new_tokens=4)


def test_replace_checks_again_and_sequences_become_tuples() -> None:
    params = SamplingParams(stop="\n", stop_token_ids=[1, 2], choices=["a"])  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids, params.choices) == (("\n",), (1, 2), ("a",))
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert SamplingParams(stop=None).stop == ()  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        dataclasses.replace(params, temperature=NAN)


def test_the_defaults_are_greedy_and_values_are_frozen() -> None:
    params = SamplingParams()
    assert (params.temperature, params.max_new_tokens, params.n) == (0.0, None, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenRequest((1,)).priority = 2  # type: ignore[misc]


def test_a_bias_is_copied_so_that_later_changes_do_not_reach_a_running_request() -> None:
    bias = {1: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[2] = float("nan")
    assert params.logit_bias == {1: 1.0}
