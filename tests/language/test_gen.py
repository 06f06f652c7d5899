"""The primitives: what they accept, and the values that gens give."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import sgl_core.language as sgl
from sgl_core.errors import GrammarError, InvalidArgumentError, NotYetAvailableError, UnknownOptionError
from sgl_core.language.ir import ConstantText, ExprList, Gen, RoleBegin, RoleEnd, Select
from sgl_core.testing import FakeBackend
from sgl_core.types import FinishReason, GenResult, GrammarCut, Verification


def value_of(expr: sgl.Expr, reply: str) -> sgl.ProgramState:
    @sgl.function
    def program(s):
        s += "prompt"
        s += expr

    with FakeBackend(lambda ids, params: reply) as backend:
        return program.run(backend=backend, max_new_tokens=400)


def test_an_expression_is_a_flat_list_of_frozen_nodes() -> None:
    expr = "a" + sgl.gen("x", stop=["."]) + sgl.user("b")
    assert expr == ExprList(
        (ConstantText("a"), Gen("x", {"stop": (".",)}), RoleBegin("user"), ConstantText("b"), RoleEnd("user"))
    )


def test_adding_anything_but_text_and_expressions_is_refused() -> None:
    for wrong in (3, None, ["a"], b"a"):
        with pytest.raises(InvalidArgumentError, match="str"):
            sgl.gen("x") + wrong
    with pytest.raises(InvalidArgumentError, match="user"):
        sgl.user(3)


def test_the_callers_stop_list_is_copied() -> None:
    stops = ["."]
    node = sgl.gen("x", stop=stops)
    stops.append("!")
    assert node.options["stop"] == (".",)


def test_max_tokens_is_a_short_name_and_both_names_are_too_many() -> None:
    assert sgl.gen("x", 5).options == sgl.gen("x", max_new_tokens=5).options == {"max_new_tokens": 5}
    assert sgl.gen("x", 5, min_tokens=2).options["min_new_tokens"] == 2
    with pytest.raises(InvalidArgumentError, match="max_tokens and max_new_tokens"):
        sgl.gen("x", 5, max_new_tokens=5)


def test_errors_name_an_option_as_it_was_typed() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^max_tokens: got 0"):
        sgl.gen("x", 0)
    with pytest.raises(InvalidArgumentError, match=r"^max_new_tokens: got 0"):
        sgl.gen("x", max_new_tokens=0)
    with pytest.raises(InvalidArgumentError, match=r"^min_tokens: got 5, expected at most max_tokens=3"):
        sgl.gen("x", 3, min_tokens=5)
    with pytest.raises(InvalidArgumentError, match=r"^min_new_tokens: got 5, expected at most max_tokens=3"):
        sgl.gen("x", 3, min_new_tokens=5)


def test_options_that_are_none_are_not_set() -> None:
    assert sgl.gen("x", None, stop=None, temperature=None).options == {}


def test_unknown_options_and_bad_values_show_where_they_are_written() -> None:
    with pytest.raises(UnknownOptionError, match="top_p"):
        sgl.gen("x", topp=0.5)
    with pytest.raises(InvalidArgumentError, match="temperature"):
        sgl.gen("x", temperature=-1)
    with pytest.raises(InvalidArgumentError, match=r"s\.fork"):
        sgl.gen("x", n=2)
    with pytest.raises(InvalidArgumentError, match="name"):
        sgl.gen("")
    with pytest.raises(InvalidArgumentError, match="dtype"):
        sgl.gen("x", dtype=list)


@pytest.mark.parametrize(
    ("dtype", "reply", "value"),
    [(int, " 12 ", 12), (float, "1.5", 1.5), (bool, "True", True), (bool, "false ", False), (str, "12", "12")],
)
def test_dtype_gives_the_typed_value(dtype: type, reply: str, value: object) -> None:
    state = value_of(sgl.gen("x", dtype=dtype), reply)
    assert state["x"] == value
    assert type(state["x"]) is dtype
    assert state.get_meta_info("x").get("raw_text", reply) == reply
    assert state.text() == "prompt" + reply


@pytest.mark.parametrize("dtype", [int, float, bool])
def test_text_that_does_not_read_as_the_type_is_an_error_without_the_text(dtype: type) -> None:
    with pytest.raises(InvalidArgumentError, match=f"reads as {dtype.__name__}") as caught:
        value_of(sgl.gen("x", dtype=dtype), "secret")
    assert "secret" not in str(caught.value)


def test_gen_int_asks_for_digits_and_gives_an_int() -> None:
    node = sgl.gen_int("x", 8)
    assert (node.dtype, node.options["max_new_tokens"]) == (int, 8)
    assert "[0-9]" in node.options["regex"]
    assert sgl.gen_int("x", regex="[1-3]").options["regex"] == "[1-3]"
    assert value_of(node, "-7")["x"] == -7


def test_gen_string_gives_text() -> None:
    assert value_of(sgl.gen_string("x", 8), "abc")["x"] == "abc"


def test_gen_with_choices_is_a_select() -> None:
    assert sgl.gen("x", choices=["a", "b"], max_tokens=3) == sgl.select("x", ["a", "b"])
    assert isinstance(sgl.gen(choices=["a"], choices_method="greedy_token_selection"), Select)
    with pytest.raises(UnknownOptionError):
        sgl.gen("x", choices=["a"], topp=1)


def test_unnamed_gens_have_variables_of_their_own(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen(max_tokens=64) + sgl.gen(max_tokens=64) + sgl.gen("named", max_tokens=64)

    assert list(program.run(backend=backend).variables()) == ["named"]
    assert len({request.input_ids for request in backend.requests}) == 3


def test_raw_takes_only_a_str() -> None:
    for wrong in (3, sgl.gen("x"), b"<|user|>"):
        with pytest.raises(TypeError, match="raw"):
            sgl.raw(wrong)


def test_call_runs_at_once_and_its_value_can_be_added() -> None:
    assert sgl.call(", ".join, ["a", "b"]) == "a, b"
    assert "x: " + sgl.call(str.upper, "y") == "x: Y"


def test_what_an_engine_constrains_and_reports_reaches_it(backend: FakeBackend) -> None:
    options = {"stop_regex": "b+", "logprobs": 2, "prompt_logprobs": True, "min_p": 0.1}
    constraints = ({"regex": "a"}, {"json_schema": '{"type": "null"}'}, {"grammar": "start: /a/"})

    @sgl.function
    def program(s):
        s += "a"
        for constraint in constraints:
            s += sgl.gen(**options, **constraint)

    with FakeBackend(lambda ids, params: "a") as replying:
        program.run(backend=replying, max_new_tokens=8)
    for request, constraint in zip(replying.requests, constraints, strict=True):
        for name, value in {**options, **constraint}.items():
            assert getattr(request.params, name) == value
    with pytest.raises(NotYetAvailableError, match="regex"):
        program.run(backend=backend)


def test_two_constraints_are_refused_where_they_are_written() -> None:
    with pytest.raises(InvalidArgumentError, match="regex and json_schema"):
        sgl.gen("x", regex="a", json_schema={})


def test_the_callers_schema_is_copied() -> None:
    schema = {"enum": ["a"]}
    node = sgl.gen("x", json_schema=schema)
    schema["enum"].append("b")
    assert json.loads(node.options["json_schema"]) == {"enum": ["a"]}


def test_a_schema_that_json_cannot_express_is_refused_where_it_is_written() -> None:
    endless: dict[str, object] = {}
    endless["items"] = endless
    deep: dict[str, object] = {}
    for _ in range(5_000):
        deep = {"items": deep}
    for schema in (endless, deep, {"const": float("nan")}, {"const": {1}}):
        with pytest.raises(GrammarError, match="json_schema"):
            sgl.gen("x", json_schema=schema)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"return_logprob": True}, {"logprobs": 0}),
        ({"return_logprob": True, "top_logprobs_num": 3, "return_text_in_logprobs": True}, {"logprobs": 3}),
        ({"return_logprob": True, "logprob_start_len": -1}, {"logprobs": 0}),
        ({"return_logprob": True, "logprob_start_len": 0}, {"logprobs": 0, "prompt_logprobs": True}),
        ({"return_logprob": False, "top_logprobs_num": 0}, {"logprobs": None, "prompt_logprobs": False}),
        ({"return_logprob": None, "return_text_in_logprobs": False}, {}),
    ],
)
def test_log_probabilities_can_be_asked_for_as_in_sglang(given: dict[str, Any], options: dict[str, Any]) -> None:
    assert sgl.gen("x", **given).options == options


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"return_logprob": 1}, "return_logprob"),
        ({"return_text_in_logprobs": "yes"}, "return_text_in_logprobs"),
        ({"return_logprob": True, "top_logprobs_num": -1}, "top_logprobs_num"),
        ({"return_logprob": True, "top_logprobs_num": True}, "top_logprobs_num"),
        ({"return_logprob": True, "logprob_start_len": 5}, "logprob_start_len"),
        ({"return_logprob": True, "logprob_start_len": False}, "logprob_start_len"),
        ({"top_logprobs_num": 2}, "top_logprobs_num.*return_logprob=True"),
        ({"return_logprob": False, "logprob_start_len": 0}, "logprob_start_len.*return_logprob=True"),
        ({"return_logprob": True, "logprobs": 2}, "return_logprob and logprobs"),
    ],
)
def test_what_sglangs_spelling_leaves_open_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        sgl.gen("x", **given)


def test_a_gen_can_do_without_the_log_probabilities_that_its_program_asks_for(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x") + sgl.gen("y", return_logprob=False)

    state = program.run(backend=backend, max_new_tokens=64, return_logprob=True, logprob_start_len=0)
    assert len(state.get_meta_info("x")["logprobs"]) == state.get_meta_info("x")["completion_tokens"] - 1
    assert len(state.get_meta_info("x")["prompt_logprobs"]) == state.get_meta_info("x")["prompt_tokens"]
    assert state.get_meta_info("y")["logprobs"] is state.get_meta_info("y")["prompt_logprobs"] is None


def test_the_meta_info_says_of_each_token_its_text_and_the_likeliest_others() -> None:
    @sgl.function
    def program(s):
        s += "ab" + sgl.gen("x", logprobs=2, prompt_logprobs=True)

    with FakeBackend(lambda ids, params: "cd") as backend:
        meta = program.run(backend=backend).get_meta_info("x")
    assert [(entry["token_id"], entry["text"]) for entry in meta["logprobs"]] == [(99, "c"), (100, "d")]
    assert meta["prompt_logprobs"][0] is None
    assert [entry["text"] for entry in meta["prompt_logprobs"][1:]] == ["a", "b"]
    assert [len(entry["top"]) for entry in meta["logprobs"]] == [2, 2]
    assert meta["logprobs"][0]["top"][0]["logprob"] >= meta["logprobs"][0]["top"][1]["logprob"]
    assert json.loads(json.dumps(meta["logprobs"]))[0]["logprob"] <= 0.0


def test_the_meta_info_says_where_the_budget_closed_the_output_and_how_it_was_verified() -> None:
    class Closing(FakeBackend):
        def _result(self, *args) -> GenResult:
            return replace(
                super()._result(*args),
                finish_reason=FinishReason.GRAMMAR,
                grammar_cut=GrammarCut(num_tokens=2, first_index=5),
                verification=Verification(equal=False, first_difference=3, gap=1e-6),
            )

    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=64)

    with Closing() as backend, FakeBackend() as plain:
        meta, other = (program.run(backend=each).get_meta_info("x") for each in (backend, plain))
    assert meta["finish_reason"] == "grammar"
    assert meta["grammar_cut"] == {"num_tokens": 2, "first_index": 5}
    assert meta["verification"] == {"equal": False, "first_difference": 3, "gap": 1e-6}
    assert other["grammar_cut"] is other["verification"] is other["logprobs"] is None


def test_options_that_only_disagree_together_fail_the_gen(backend: FakeBackend) -> None:
    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", min_tokens=10)

    with pytest.raises(InvalidArgumentError, match="min_new_tokens"):
        program.run(backend=backend, max_new_tokens=5)


def test_every_role_has_its_begin_and_end() -> None:
    pairs = [
        (sgl.system, sgl.system_begin, sgl.system_end),
        (sgl.user, sgl.user_begin, sgl.user_end),
        (sgl.assistant, sgl.assistant_begin, sgl.assistant_end),
    ]
    for whole, begin, end in pairs:
        assert whole("x").items == (begin(), ConstantText("x"), end())
        assert begin().role == end().role == whole.__name__
