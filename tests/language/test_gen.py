"""The primitives: what they accept, and the values that gens give."""

from __future__ import annotations

import pytest

import sgl_core.language as sgl
from sgl_core.errors import InvalidArgumentError, UnknownOptionError
from sgl_core.language.ir import ConstantText, ExprList, Gen, RoleBegin, RoleEnd, Select
from sgl_core.testing import FakeBackend


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


def test_logprobs_are_in_the_meta_info_where_the_backend_reports_them() -> None:
    from dataclasses import replace

    class WithLogprobs(FakeBackend):
        def _result(self, *args):
            return replace(super()._result(*args), logprobs=(-0.5,))

    @sgl.function
    def program(s):
        s += "a" + sgl.gen("x", max_tokens=64, logprobs=1)

    with WithLogprobs() as backend:
        assert program.run(backend=backend).get_meta_info("x")["logprobs"] == (-0.5,)


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
