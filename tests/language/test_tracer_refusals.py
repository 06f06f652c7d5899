"""What a trace refuses, because a graph of it would mean something else: each with its line and its cure."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress as quietly
from typing import Any

import pytest

from sgl_core import language as sgl
from sgl_core.errors import TraceError, VariableNotFoundError
from sgl_core.language.graph import Graph, Read
from sgl_core.language.ir import ConstantText
from sgl_core.language.state import ProgramState
from sgl_core.testing.graphs import traced


def refused(body: Callable[..., Any], match: str) -> TraceError:
    with pytest.raises(TraceError, match=match) as raised:
        traced(body)
    assert __file__ in raised.value.place
    return raised.value


# ---- branches --------------------------------------------------------------------------------------------------------
def test_a_branch_on_what_was_generated_is_not_the_else_branch() -> None:
    def body(s: ProgramState) -> None:
        s += sgl.gen("x")
        if s["x"] == "yes":
            s += "a"
        else:
            s += "b"

    refused(body, r"variable 'x' is compared.*if s\[\"x\"\] == \"yes\":.*fallback=True")


def test_a_refusal_that_the_body_catches_is_raised_all_the_same() -> None:
    def converted(s: ProgramState, n: Any) -> None:
        try:
            number = int(n)
        except TypeError:
            number = 0
        s += str(number)

    def failed(s: ProgramState, n: Any) -> None:
        try:
            len(n)
        finally:
            raise LookupError("mine")

    assert refused(converted, "converted to a number").argument == "n"
    assert refused(failed, "length").argument == "n"


def test_a_refusal_that_the_standard_library_swallows_is_raised_all_the_same() -> None:
    def body(s: ProgramState, essay: Any) -> None:
        record = logging.makeLogRecord({"msg": "essay %s %s", "args": ("a", essay)})
        with contextlib.suppress(Exception):
            record.getMessage()
        s += "a"

    refused(body, "formatted")


def test_a_loop_over_an_argument_names_it() -> None:
    def body(s: ProgramState, dimensions: Any) -> None:
        for dimension in dimensions:
            s += dimension

    error = refused(body, r"iterated over.*for dimension in dimensions:.*body\.compile\(static=\{\"dimensions\": \.\.\.\}\)")
    assert error.argument == "dimensions"


def test_the_line_is_that_of_the_sub_function_and_the_cure_that_of_the_program() -> None:
    @sgl.function
    def helper(s: ProgramState, tip: Any) -> None:
        s += f"{tip}"

    def judge(s: ProgramState, essay: Any) -> None:
        helper(s, essay)

    refused(judge, r's \+= f"\{tip\}".*judge\.compile\(static=\{"essay"')


# ---- constants -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("use", "option"),
    [
        (lambda s, n: sgl.gen("x", max_tokens=n), r"gen\(\.\.\.\) as max_tokens"),
        (lambda s, n: sgl.gen("x", temperature=n), r"gen\(\.\.\.\) as temperature"),
        (lambda s, n: sgl.gen("x", stop=["a", n]), r"gen\(\.\.\.\) as stop"),
        (lambda s, n: sgl.gen("x", stop=n), r"gen\(\.\.\.\) as stop"),
        (lambda s, n: sgl.gen("x", regex=n), r"gen\(\.\.\.\) as regex"),
        (lambda s, n: sgl.gen("x", json_schema=n), r"gen\(\.\.\.\) as json_schema"),
        (lambda s, n: sgl.gen("x", seed=n), r"gen\(\.\.\.\) as seed"),
        (lambda s, n: sgl.gen("x", logit_bias={1: n}), r"gen\(\.\.\.\) as logit_bias"),
        (lambda s, n: sgl.gen("x", heal=n), r"gen\(\.\.\.\) as heal"),
        (lambda s, n: sgl.gen("x", dtype=n), r"gen\(\.\.\.\) as dtype"),
        (lambda s, n: sgl.gen("x", choices=n), r"gen\(\.\.\.\) as choices"),
        (lambda s, n: sgl.gen(n), r"gen\(\.\.\.\) as name"),
        (lambda s, n: sgl.gen_int("x", max_tokens=n), r"gen_int\(\.\.\.\) as max_tokens"),
        (lambda s, n: sgl.select("x", n), r"select\(\.\.\.\) as choices"),
        (lambda s, n: sgl.select("x", ["a", n]), r"select\(\.\.\.\) as choices"),
        (lambda s, n: sgl.select(n, ["a"]), r"select\(\.\.\.\) as name"),
        (lambda s, n: sgl.select("x", ["a"], choices_method=n), r"select\(\.\.\.\) as choices_method"),
        (lambda s, n: sgl.raw(n), r"raw\(\.\.\.\) as text"),
        (lambda s, n: s.fork(n), r"fork\(\.\.\.\) as n"),
        (lambda s, n: s.fork(1).join(n), r"join\(\.\.\.\) as mode"),
        (lambda s, n: s.fork(1).join(errors=n), r"join\(\.\.\.\) as errors"),
        (lambda s, n: s[n], "s as the name of a variable"),
        (lambda s, n: s.set_var(n, 1), "s as the name of a variable"),
        (lambda s, n: s.var_scope(n), "s as the name of a variable"),
        (lambda s, n: n in s, "s as the name of a variable"),
    ],
)
def test_options_must_be_known(use: Callable[[Any, Any], object], option: str) -> None:
    def body(s: ProgramState, n: Any) -> None:
        use(s, n)

    assert refused(body, rf"argument 'n' is given to {option}.*static=\{{\"n\": \.\.\.\}}").argument == "n"


def test_an_option_that_is_a_variable_asks_for_fallback() -> None:
    def body(s: ProgramState) -> None:
        s += sgl.gen("x")
        s += sgl.gen("y", stop=s["x"])

    assert refused(body, r"variable 'x' is given to gen\(\.\.\.\) as stop.*fallback=True").argument is None


# ---- identity --------------------------------------------------------------------------------------------------------
def call_is_none(s: ProgramState, essay: Any) -> None:
    found = sgl.call(str.strip, essay)
    if found is None:
        s += "a"
    s += "b"


def call_is_none_at_once(s: ProgramState, essay: Any) -> None:
    if sgl.call(str.strip, essay) is not None:
        s += "a"


def kept_error_is_none(s: ProgramState, essay: Any) -> None:
    forks = s.fork(1)
    forks += sgl.gen("x")
    forks.join(errors="keep")
    for entry in s["x"]:
        if entry is None:
            s += "a"
        s += "b"


def flag_is_true(s: ProgramState, essay: Any) -> None:
    s += sgl.gen("x", dtype=bool)
    s += "a" if s["x"] is True else "b"


def type_is_str(s: ProgramState, essay: Any) -> None:
    if type(essay) is str:
        s += "a"
    s += "b"


def argument_is_another_object(s: ProgramState, essay: Any) -> None:
    if essay is Ellipsis:
        s += "a"
    s += "b"


def match_none(s: ProgramState, essay: Any) -> None:
    found = sgl.call(str.strip, essay)
    match found:
        case None:
            s += "a"
    s += "b"


def match_mapping(s: ProgramState, essay: Any) -> None:
    match essay:
        case {"a": _}:
            s += "a"
    s += "b"


@pytest.mark.parametrize(
    "body",
    [
        call_is_none,
        call_is_none_at_once,
        kept_error_is_none,
        flag_is_true,
        type_is_str,
        argument_is_another_object,
        match_none,
        match_mapping,
    ],
)
def test_a_test_of_identity_is_not_false_in_silence(body: Callable[..., None]) -> None:
    refused(body, r"tested with is, type\(\.\.\.\) or a pattern.*(is|match) ")


def test_a_test_of_identity_that_can_be_answered_is() -> None:
    def body(s: ProgramState, essay: Any, tip: Any = None) -> None:
        s += sgl.gen("x")
        text = s["x"]
        forks = s.fork(1)
        if essay is None or text is None or forks is None:
            s += "a"
        if tip is None:
            s += "b"

    assert [node.op for node in traced(body, tip=None).nodes][-1] == ConstantText("b")


# ---- errors that would be caught -------------------------------------------------------------------------------------
def reading(s: ProgramState) -> Any:
    return s["x"]


def typed(s: ProgramState) -> None:
    try:
        s += s["x"]
    except (KeyError, ValueError):
        s += "a"


def bare(s: ProgramState) -> None:
    try:
        s += s["x"]
    except:  # noqa: E722
        s += "a"


def named(s: ProgramState) -> None:
    try:
        s += s["x"]
    except Exception as error:
        s += f"{error}"


def grouped(s: ProgramState) -> None:
    try:
        s += s["x"]
    except* ValueError:
        s += "a"


def outside_of_a_with_block(s: ProgramState) -> None:
    try:
        with s.user():
            s += s["x"]
    except ValueError:
        s += "a"


def outside_of_finally(s: ProgramState) -> None:
    try:
        try:
            s += s["x"]
        finally:
            s += "b"
    except ValueError:
        s += "a"


def in_a_handler(s: ProgramState) -> None:
    try:
        try:
            raise KeyError
        except KeyError:
            s += s["x"]
    except ValueError:
        s += "a"


def in_a_function(s: ProgramState) -> None:
    try:
        s += reading(s)
    except ValueError:
        s += "a"


def in_an_inline_program(s: ProgramState) -> None:
    try:
        sgl.function(reading)(s)
    except ValueError:
        s += "a"


def in_a_generator(s: ProgramState) -> None:
    def values() -> Iterator[Any]:
        try:
            yield s["x"]
        except ValueError:
            yield "a"

    for value in values():
        s += value


def suppressed(s: ProgramState) -> None:
    with contextlib.suppress(ValueError):
        s += s["x"]


def suppressed_by_another_name(s: ProgramState) -> None:
    with s.user(), quietly(ValueError):
        s += s["x"]


def suppressed_by_an_object(s: ProgramState) -> None:
    silence = quietly(ValueError)
    with silence:
        s += s["x"]


@pytest.mark.parametrize(
    "body",
    [
        typed,
        bare,
        named,
        grouped,
        outside_of_a_with_block,
        outside_of_finally,
        in_a_handler,
        in_a_function,
        in_an_inline_program,
        in_a_generator,
        suppressed,
        suppressed_by_another_name,
        suppressed_by_an_object,
    ],
)
def test_a_read_inside_a_handler_is_refused(body: Callable[[ProgramState], None]) -> None:
    def program(s: ProgramState) -> None:
        s += sgl.gen("x")
        body(s)

    catcher = "suppress" if "suppressed" in body.__name__ else "try/except"
    refused(program, rf's\["x"\] is read inside .*{catcher}.*errors="keep"')


def in_finally(s: ProgramState) -> None:
    try:
        s += "a"
    finally:
        s += s["x"]


def under_finally(s: ProgramState) -> None:
    try:
        s += s["x"]
    finally:
        s += "a"


def under_a_with_block(s: ProgramState) -> None:
    with s.user(), contextlib.nullcontext():
        s += s["x"]


def behind_a_handler(s: ProgramState) -> None:
    try:
        s += "a"
    except ValueError:
        s += "b"
    s += s["x"]


def in_else(s: ProgramState) -> None:
    try:
        s += "a"
    except ValueError:
        s += "b"
    else:
        s += s["x"]


def behind_suppress(s: ProgramState) -> None:
    with quietly(ValueError):
        s += "a"
    s += s["x"]


def finally_with_a_handler_inside(s: ProgramState) -> None:
    try:
        s += s["x"]
    finally:
        try:
            s += "a"
        except ValueError:
            s += "b"


@pytest.mark.parametrize(
    "body",
    [in_finally, under_finally, under_a_with_block, behind_a_handler, in_else, behind_suppress, finally_with_a_handler_inside],
)
def test_a_read_that_no_handler_gets_is_recorded(body: Callable[[ProgramState], None]) -> None:
    def program(s: ProgramState) -> None:
        s += sgl.gen("x")
        body(s)

    assert any(isinstance(node.op, Read) for node in traced(program).nodes)


def test_handlers_around_the_trace_are_not_the_programs() -> None:
    def program(s: ProgramState) -> None:
        s += sgl.gen("x")
        s += s["x"]

    try:
        graph: Graph | None = traced(program)
    except ValueError:
        graph = None
    assert graph is not None


def test_a_second_read_inside_a_handler_cannot_fail() -> None:
    def program(s: ProgramState) -> None:
        s += sgl.gen("x")
        s += s["x"]
        typed(s)

    assert len(traced(program).nodes) == 4


def test_a_handler_around_what_fails_in_a_trace_too_works_as_ever() -> None:
    def program(s: ProgramState) -> None:
        try:
            s += s["y"]
        except VariableNotFoundError:
            s += "none"

    assert len(traced(program).nodes) == 1


def test_a_join_or_host_code_inside_a_handler_is_refused() -> None:
    def joined(s: ProgramState) -> None:
        try:
            s.fork(1).join()
        except ValueError:
            s += "a"

    def kept(s: ProgramState) -> None:
        try:
            s.fork(1).join(errors="keep")
        except ValueError:
            s += "a"

    def called(s: ProgramState, essay: Any) -> None:
        try:
            sgl.call(int, essay)
        except ValueError:
            s += "a"

    def appended(s: ProgramState, essay: Any) -> None:
        try:
            s += essay
        except ValueError:
            s += "a"

    refused(joined, "forks are joined inside try/except")
    refused(called, r"sgl\.call\(\.\.\.\) stands inside try/except")
    refused(appended, "may be no text inside try/except")
    assert len(traced(kept).nodes) == 3


def test_a_handler_around_tasks_is_found() -> None:
    async def branch(s: ProgramState) -> Any:
        await asyncio.sleep(0)
        return await s.aget("x")

    async def body(s: ProgramState) -> None:
        s += sgl.gen("x")
        try:
            await asyncio.gather(branch(s))
        except ValueError:
            s += "a"

    refused(body, "is read inside try/except")


def test_a_handler_is_found_without_source() -> None:
    code = "def body(s):\n    s += gen('x')\n    try:\n        s += s['x']\n    except ValueError:\n        s += 'a'\n"
    names: dict[str, Any] = {"gen": sgl.gen}
    exec(code, names)
    with pytest.raises(TraceError, match="try/except"):
        traced(names["body"])


# ---- what runs would share -------------------------------------------------------------------------------------------
def test_host_code_that_holds_a_value_is_refused() -> None:
    def closed_over(s: ProgramState, essay: Any) -> None:
        sgl.call(lambda: essay.strip())

    def by_default(s: ProgramState, essay: Any) -> None:
        sgl.call(lambda text=essay: text.strip())

    def partial(s: ProgramState, essay: Any) -> None:
        sgl.call(functools.partial(str.strip, essay))

    def state(s: ProgramState, essay: Any) -> None:
        sgl.call(lambda: s["x"])

    for body in (closed_over, by_default, partial):
        refused(body, r"holds argument 'essay'.*sgl\.call\(lambda x: \.\.\., value\)")
    refused(state, "holds the state of a program")


def test_host_code_that_changes_an_object_of_the_trace_is_refused() -> None:
    def body(s: ProgramState, essay: Any) -> None:
        seen: list[Any] = []
        sgl.call(seen.append, essay)

    def looking_up(s: ProgramState, essay: Any) -> None:
        s += sgl.call({"a": "b"}.get, essay)

    refused(body, r"sgl\.call\(list\.append, \.\.\.\) changes an object")
    assert len(traced(looking_up).nodes) == 2


@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (lambda s, essay: sgl.call(list, (text for text in [essay])), "an iterator"),
        (lambda s, essay: sgl.call(list, zip([essay], "a", strict=True)), "an iterator"),
        (lambda s, essay: sgl.call(len, {"a": s}), "a state is given"),
        (lambda s, essay: sgl.call(len, s.fork(2)), "holds the state of a program"),
        (lambda s, essay: sgl.call(len, collections.deque([essay])), "type deque that holds argument 'essay'"),
        (lambda s, essay: sgl.call(len, [sgl.user(essay)]), "an expression that holds values"),
        (lambda s, essay: sgl.call(essay, 1), "a value of the trace"),
        (lambda s, essay: sgl.call(asyncio.sleep, 1), "an async function"),
        (lambda s, essay: s.set_var("x", s), "a state is given"),
        (lambda s, essay: s.set_var("x", iter([essay])), "an iterator"),
    ],
)
def test_what_a_graph_cannot_follow_is_refused(fn: Callable[[Any, Any], object], match: str) -> None:
    def body(s: ProgramState, essay: Any) -> None:
        fn(s, essay)

    refused(body, match)


def test_host_code_must_be_callable() -> None:
    with pytest.raises(TypeError, match="'str' object is not callable"):
        traced(lambda s: sgl.call("strip"))  # type: ignore[arg-type]


def test_a_list_that_is_changed_after_a_variable_was_set_to_it_is_refused() -> None:
    def changed(s: ProgramState) -> None:
        words = ["a"]
        s["words"] = {"all": words}
        words.append("b")

    def kept(s: ProgramState) -> None:
        words = ["a", ("b", {"c": 1})]
        s["words"] = words

    with pytest.raises(TraceError, match=r'the dict that s\["words"\] was set to was changed'):
        traced(changed)
    assert len(traced(kept).nodes) == 1


def test_a_state_of_another_program_is_not_returned() -> None:
    others: list[ProgramState] = []
    traced(others.append)
    with pytest.raises(TraceError, match="not its own"):
        traced(lambda s: others[0])
