"""Generations that depend on what stands before them: a budget that several share, options that an earlier value decides."""

from collections.abc import Mapping
from typing import Any

import pytest

from sgl_core.errors import ProgramError
from sgl_core.language.ir import AdaptiveGen, ConstantText, Expr, Gen
from sgl_core.language.position import Position, TokenRope, pieces_since, text_of
from sgl_core.language.run import ProgramRun
from sgl_core.testing import FakeBackend

START = tuple(b"prompt: ")


def run(backend: FakeBackend, *nodes: Expr, **options: Any) -> ProgramRun:
    started = ProgramRun(backend, defaults={"temperature": 0.0}, start=Position(TokenRope(START)), **options)
    started.root.submit(nodes)
    started.end_body()
    started.wait()
    return started


def budgets(backend: FakeBackend) -> list[int | None]:
    return [request.params.max_new_tokens for request in backend.requests]


def adaptive(name: str, options: Mapping[str, Any] | None = None, **more: Any) -> AdaptiveGen:
    return AdaptiveGen(name, options or {}, heal=False, **more)


def test_generations_share_what_is_left_of_a_length() -> None:
    with FakeBackend(reply=lambda ids, params: "abcde") as backend:
        run(backend, adaptive("a", max_len=28), ConstantText("12345"), adaptive("b", max_len=28))
    assert budgets(backend) == [28 - 8, 28 - 8 - 5 - 5]


def test_a_smaller_budget_of_its_own_holds() -> None:
    with FakeBackend(reply=lambda ids, params: "abcde") as backend:
        run(backend, adaptive("a", {"max_new_tokens": 3}, max_len=28))
    assert budgets(backend) == [3]


def test_there_is_always_room_for_one_token() -> None:
    with FakeBackend(reply=lambda ids, params: "abcde") as backend:
        run(backend, adaptive("a", max_len=4))
    assert budgets(backend) == [1]


def test_an_earlier_value_decides_about_options() -> None:
    cases = {"x": {"stop": ("!",)}, "y": {"stop": ("?",), "min_new_tokens": 2}}
    with FakeBackend(reply=lambda ids, params: "y") as backend:
        run(backend, Gen("which", {}), ConstantText(" "), adaptive("then", {"top_k": 5}, by="which", cases=cases))
    params = backend.requests[1].params
    assert (params.stop, params.min_new_tokens, params.top_k) == (("?",), 2, 5)


@pytest.mark.parametrize("by", ["which", "nobody"])
def test_a_value_without_options_fails_the_stream(by: str) -> None:
    with FakeBackend(reply=lambda ids, params: "z") as backend:
        done = run(backend, Gen("which", {}), adaptive("then", by=by, cases={"x": {}}))
    assert isinstance(done.root.error, ProgramError)
    assert len(backend.requests) == 1


def test_a_run_may_begin_behind_ids_that_are_no_part_of_its_text() -> None:
    with FakeBackend(reply=lambda ids, params: "out") as backend:
        done = run(backend, ConstantText("in "), adaptive("a"))
    assert backend.requests[0].input_ids == START + tuple(b"in ")
    assert text_of(pieces_since(done.root.position.trail)) == "in out"


def test_the_requests_of_a_run_share_its_deadline() -> None:
    with FakeBackend(reply=lambda ids, params: "out") as backend:
        run(backend, adaptive("a"), adaptive("b"), timeout_s=500.0)
    first, second = (request.timeout_s for request in backend.requests)
    assert first is not None
    assert second is not None
    assert 0 < second <= first <= 500.0
