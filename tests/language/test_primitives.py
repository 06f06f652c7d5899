"""Pictures, parts in any order, and what a gen keeps apart: the values that the primitives make."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sgl_core.errors import ContextLengthError, InvalidArgumentError, NotYetAvailableError
from sgl_core.language import assistant_begin, assistant_end, function, gen, raw, select, system, user, user_end
from sgl_core.language.ir import CommutativeMark, ConstantText, ExprList, Gen, Image, RawText, RoleBegin, RoleEnd
from sgl_core.language.primitives import commutative, image, separate_reasoning
from sgl_core.language.requests import refuse_image
from sgl_core.language.sampling import to_context
from sgl_core.testing import FakeBackend

LIMIT = FakeBackend.capabilities.context_tokens
BEGIN, NEXT, END = CommutativeMark("begin"), CommutativeMark("next"), CommutativeMark("end")


# ---- image -----------------------------------------------------------------------------------------------------------
def test_a_picture_is_a_path_an_address_or_bytes() -> None:
    assert image("cat.png") == image(Path("cat.png")) == Image("cat.png")
    assert image("https://example.org/cat.png").source == "https://example.org/cat.png"
    assert image(b"\x89PNG").source == b"\x89PNG"


def test_a_picture_stands_among_text() -> None:
    assert user("What is it? " + image("cat.png")) == ExprList(
        (RoleBegin("user"), ConstantText("What is it? "), Image("cat.png"), RoleEnd("user"))
    )


@pytest.mark.parametrize("wrong", [None, 3, "", b"", ["cat.png"], bytearray(b"\x89PNG"), gen("x")])
def test_anything_else_is_no_picture(wrong: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^source: got .*, expected a path, a URL, or the bytes of a file"):
        image(wrong)  # type: ignore[arg-type]


def test_the_error_about_a_buffer_says_how_to_make_bytes_of_it() -> None:
    with pytest.raises(InvalidArgumentError, match=r"bytes\(\.\.\.\)"):
        image(bytearray(b"\x89PNG"))  # type: ignore[arg-type]


def test_a_backend_without_pictures_refuses_one_when_the_program_runs(backend: FakeBackend) -> None:
    @function
    def program(s):
        s += "Look: " + image("cat.png") + gen("x")

    with pytest.raises(NotYetAvailableError, match=r"FakeBackend takes no pictures.*images=True"):
        program.run(backend=backend)
    assert backend.requests == []


def test_a_backend_with_pictures_is_not_refused() -> None:
    class Seeing(FakeBackend):
        capabilities = replace(FakeBackend.capabilities, images=True)

    refuse_image(Seeing())
    with pytest.raises(NotYetAvailableError, match="FakeBackend"):
        refuse_image(FakeBackend())


# ---- separate_reasoning ----------------------------------------------------------------------------------------------
def test_every_gen_of_an_expression_is_told_the_kind_of_model() -> None:
    expr = separate_reasoning("Q: " + gen("a", max_tokens=5) + select("b", ["x"]) + gen("c", dtype=int), "qwen3")
    assert expr.items == (
        ConstantText("Q: "),
        Gen("a", {"max_new_tokens": 5}, reasoning="qwen3"),
        select("b", ["x"]),
        Gen("c", {}, dtype=int, reasoning="qwen3"),
    )


def test_the_gen_itself_is_left_as_it_was() -> None:
    node = gen("a")
    separate_reasoning(node, "qwen3")
    assert node == Gen("a")


def test_a_gen_without_a_name_has_nothing_to_name_its_reasoning_after() -> None:
    with pytest.raises(InvalidArgumentError, match=r"a name for every gen.*separate_reasoning\(gen\(\"answer\"\)"):
        separate_reasoning(gen("a") + gen(), "qwen3")


@pytest.mark.parametrize("wrong", ["text", None, user("text"), select("b", ["x"])])
def test_an_expression_without_a_gen_has_no_reasoning(wrong: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^expr: got .*, expected an expression with a gen in it"):
        separate_reasoning(wrong, "qwen3")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["qwen", "", None, 3, ["qwen3"]])
def test_an_unknown_kind_of_model_is_refused_with_those_known(wrong: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^model_type: .*deepseek-r1, .*gpt-oss, .*qwen3"):
        separate_reasoning(gen("a"), wrong)  # type: ignore[arg-type]


# ---- commutative -----------------------------------------------------------------------------------------------------
def test_parts_in_any_order_stand_between_marks() -> None:
    assert commutative("a", user("b") + "c", raw("d")).items == (
        BEGIN,
        ConstantText("a"),
        NEXT,
        RoleBegin("user"),
        ConstantText("b"),
        RoleEnd("user"),
        ConstantText("c"),
        NEXT,
        RawText("d"),
        END,
    )


def test_several_groups_may_follow_each_other() -> None:
    marks = [node for node in (commutative("a", "b") + commutative("c", "d")).nodes() if isinstance(node, CommutativeMark)]
    assert marks == [BEGIN, NEXT, END] * 2


@pytest.mark.parametrize("parts", [(), ("a",)])
def test_fewer_than_two_parts_have_no_order(parts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^parts: got {len(parts)}, expected at least two"):
        commutative(*parts)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (commutative("a", "b"), "groups of their own"),
        (gen("x"), "generate nothing.*put it behind"),
        (user(select("x", ["a"])), "generate nothing.*put it behind"),
        (assistant_begin() + "a", "a assistant turn that it does not close.*around the whole of a part"),
        ("a" + user_end(), "the end of a user turn that it does not open"),
        (assistant_begin() + user_end(), "the end of a user turn that it does not open"),
        (assistant_begin() + user("a") + assistant_end(), "a user turn inside a assistant turn"),
        (3, "text or an expression"),
    ],
)
def test_a_part_that_means_something_else_in_another_place_is_refused_by_its_number(part: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"(?s)^parts\[1\]: .*{message}"):
        commutative("first", part)  # type: ignore[arg-type]


def test_running_a_group_appends_its_parts_as_they_stand(backend: FakeBackend) -> None:
    @function
    def program(s):
        s += system(commutative("one ", "two ")) + commutative(user("three"), user("four"))

    @function
    def plain(s):
        s += system("one two ") + user("three") + user("four")

    assert program.run(backend=backend).text() == plain.run(backend=backend).text()


# ---- to_context ------------------------------------------------------------------------------------------------------
def test_the_budget_of_the_whole_context_shows_its_name_and_survives_copies() -> None:
    node = gen("x", to_context)
    assert repr(node.options["max_new_tokens"]) == repr(to_context) == "to_context"
    assert copy.copy(to_context) is copy.deepcopy(to_context) is to_context
    assert json.loads(json.dumps({"max_new_tokens": to_context})) == {"max_new_tokens": to_context}


def budgets(prompt: str, *, in_run: bool = False, **options: object) -> list[int | None]:
    """Budgets of the requests of a program that generates twice."""

    @function
    def program(s):
        s += prompt + gen("x", **({} if in_run else {"max_tokens": to_context}), **options) + gen("y", 3)

    with FakeBackend(lambda ids, params: "ok") as backend:
        program.run(backend=backend, **({"max_tokens": to_context} if in_run else {}))
    return [request.params.max_new_tokens for request in backend.requests]


def test_a_budget_of_the_whole_context_is_what_the_prompt_leaves() -> None:
    assert budgets("abc") == budgets("abc", in_run=True) == [LIMIT - len("<abc"), 3]  # and the token that begins a prompt


def test_healed_text_is_part_of_the_prompt_that_the_budget_leaves_room_for() -> None:
    assert budgets("abc ") == [LIMIT - len("<abc "), 3]


def test_a_prompt_that_fills_the_context_is_refused_by_the_backend() -> None:
    with pytest.raises(ContextLengthError):
        budgets("a" * LIMIT)


def test_reaching_the_context_on_purpose_warns_of_nothing() -> None:
    class Small(FakeBackend):
        capabilities = replace(FakeBackend.capabilities, context_tokens=8)

    @function
    def program(s):
        s += "abc" + gen("x", max_tokens=to_context)

    with Small(lambda ids, params: "0123456789") as backend:
        state = program.run(backend=backend)
    assert state["x"] == "0123"
    assert state.get_meta_info("x")["finish_reason"] == "length"


def test_a_backend_that_takes_no_ids_cannot_know_what_is_left() -> None:
    class TextOnly(FakeBackend):
        capabilities = replace(FakeBackend.capabilities, token_ids=False)
        codec = None

    @function
    def program(s):
        s += "abc" + gen("x", max_tokens=to_context)

    with pytest.raises(NotYetAvailableError, match=r"to_context needs a backend that takes token ids.*number of tokens"):
        program.run(backend=TextOnly())
