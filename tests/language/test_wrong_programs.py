"""Programs with a mistake: the error says what is wrong, in which line of the program, and what to do instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import sgl_core.language as sgl
from sgl_core.errors import (
    InvalidArgumentError,
    ProgramError,
    SglError,
    StreamClosedError,
    TraceError,
    UnknownOptionError,
    VariableNotFoundError,
)
from sgl_core.testing import FakeBackend

Body = Callable[..., Any]


def interpreted(body: Body, *args: object) -> None:
    sgl.function(body).run(*args, backend=FakeBackend(), max_tokens=4)


def compiled(body: Body, *args: object) -> None:
    sgl.function(body).compile().run(*args, backend=FakeBackend(), max_tokens=4)


def mistake_in(body: Body) -> str:
    """The place of the line that is marked as wrong, as errors show it."""
    lines, first = inspect.getsourcelines(body)
    number, text = next((first + at, line) for at, line in enumerate(lines) if "# wrong" in line)
    return f"{__file__}:{number}: {text.strip()}"


def refused_at(body: Body, kind: type[SglError], run: Callable[[], object]) -> str:
    """The message, which has to show the wrong line."""
    with pytest.raises(kind) as caught:
        run()
    assert mistake_in(body) in str(caught.value)
    return str(caught.value)


# ---- the order of things ---------------------------------------------------------------------------------------------
def unset_variable(s: sgl.ProgramState) -> None:
    s += "a" + sgl.gen("a")
    s += "b" + s["b"]  # wrong


def joined_fork(s: sgl.ProgramState) -> None:
    forks = s.fork(2)
    forks += sgl.gen("a")
    forks.join()
    forks[0] += "more"  # wrong


def nested_turns(s: sgl.ProgramState) -> None:
    s += "a"
    s += sgl.user("b" + sgl.assistant("c"))  # wrong


def nested_blocks(s: sgl.ProgramState) -> None:
    with s.user():
        s += "a"
        with s.assistant():  # wrong
            s += "b"


def closed_without_an_open_turn(s: sgl.ProgramState) -> None:
    s += "a"
    s.user_end()  # wrong


def closed_another_turn(s: sgl.ProgramState) -> None:
    s.user_begin()
    s += "a" + sgl.assistant_end()  # wrong


@pytest.mark.parametrize("run", [interpreted, compiled])
@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (unset_variable, VariableNotFoundError, "variable 'b' is not defined in this stream; defined: a"),
        (joined_fork, StreamClosedError, "joined or left; append to the state it was forked from"),
        (nested_turns, ProgramError, "an 'assistant' turn is opened inside a 'user' turn; close it first with s.user_end()"),
        (nested_blocks, ProgramError, "an 'assistant' turn is opened inside a 'user' turn; close it first with s.user_end()"),
        (closed_without_an_open_turn, ProgramError, "no turn is open; open it first with s.user_begin()"),
        (closed_another_turn, ProgramError, "the open turn is 'user'; close that one with s.user_end()"),
    ],
)
def test_a_mistake_of_order_is_refused_with_its_line(
    run: Callable[[Body], None], body: Body, kind: type[SglError], message: str
) -> None:
    assert message in refused_at(body, kind, lambda: run(body))


# ---- values that are not there yet -----------------------------------------------------------------------------------
def formatted_argument(s: sgl.ProgramState, topic: str) -> None:
    s += f"About {topic}." + sgl.gen("a")  # wrong


def formatted_variable(s: sgl.ProgramState, topic: str) -> None:
    s += topic + sgl.gen("a")
    s += f"You said {s['a']}"  # wrong


def walked_argument(s: sgl.ProgramState, topic: list[str]) -> None:
    for one in topic:  # wrong
        s += one


def walked_variable(s: sgl.ProgramState, topic: str) -> None:
    s += topic + sgl.gen("a")
    for letter in s["a"]:  # wrong
        s += letter


def joined_texts(s: sgl.ProgramState, topic: str) -> None:
    forks = s.fork(2)
    forks += topic + sgl.gen("a")
    forks.join()
    s += "\n".join(s["a"])  # wrong


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (formatted_argument, 'formatted_argument.compile(static={"topic": ...}); or write text + value: "text " + topic'),
        (formatted_variable, 'Write text + value: "text " + s["a"] instead of an f-string'),
        (walked_argument, 'walked_argument.compile(static={"topic": ...}); or, to append all of it as one text, use host code'),
        (walked_variable, 'Use host code: sgl.call(fn, s["a"])'),
        (joined_texts, "str.join needs texts, and some of these have no value yet"),
    ],
)
def test_a_value_that_is_not_there_yet_is_refused_with_its_line(body: Body, message: str) -> None:
    interpreted(body, "tea")
    assert message in refused_at(body, TraceError, lambda: sgl.function(body).compile())


def test_the_cure_for_joined_texts_is_host_code() -> None:
    with pytest.raises(TraceError, match=r'Use host code: sgl\.call\("\\n"\.join, values\)\.$'):
        sgl.function(joined_texts).compile()


# ---- wrong types -----------------------------------------------------------------------------------------------------
def appends(s: sgl.ProgramState, topic: Any) -> None:
    s += "a"
    s += topic  # wrong


def test_a_compiled_program_says_where_it_appends_what_is_no_text() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^s \+= \.\.\.: got 'int'") as caught:
        compiled(appends, 7)
    assert caught.value.__notes__ == [f"argument 'topic' is appended at {mistake_in(appends)}"]


def appends_called(s: sgl.ProgramState) -> None:
    s += "a" + sgl.gen("a")
    length = sgl.call(len, s["a"])
    s += length  # wrong


def test_a_compiled_program_says_where_it_appends_a_call_that_gives_no_text() -> None:
    with pytest.raises(InvalidArgumentError, match="got 'int'") as caught:
        compiled(appends_called)
    assert caught.value.__notes__ == [f"a value is appended at {mistake_in(appends_called)}"]


@pytest.mark.parametrize("given", [sgl.gen("x"), sgl.user("hello")])
def test_an_expression_given_to_a_compiled_program_is_refused_instead_of_failing_an_assertion(given: sgl.Expr) -> None:
    interpreted(appends, given)
    message = refused_at(appends, InvalidArgumentError, lambda: compiled(appends, given))
    assert message.startswith(f"argument 'topic': got '{type(given).__name__}', expected text")
    assert message.endswith('Fix it: compile(static={"topic": ...}), or run the program interpreted.')
    sgl.function(appends).compile(static={"topic": given}).run(backend=FakeBackend(), max_tokens=4)


def test_an_expression_made_by_host_code_is_refused_too() -> None:
    def body(s: sgl.ProgramState) -> None:
        s += "a" + sgl.gen("a")
        s += sgl.call(sgl.user, s["a"])

    with pytest.raises(InvalidArgumentError, match=r"^a value: got 'ExprList'.*Use host code that returns text\.$"):
        compiled(body)


def names_a_variable(s: sgl.ProgramState) -> None:
    s[5] = "a"  # type: ignore[index]


def names_a_scope(s: sgl.ProgramState) -> None:
    with s.var_scope(5):  # type: ignore[arg-type]
        s += "a"


def takes_a_fork_that_is_not_there(s: sgl.ProgramState) -> None:
    s.fork(2)[2]


def takes_a_variable_of_all_forks(s: sgl.ProgramState) -> None:
    s.fork(2)["a"]  # type: ignore[index]


@pytest.mark.parametrize("run", [interpreted, compiled])
@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (names_a_variable, InvalidArgumentError, r"^name: got 5, expected a non-empty str\.$"),
        (names_a_scope, InvalidArgumentError, r"^name: got 5, expected a non-empty str\.$"),
        (takes_a_fork_that_is_not_there, IndexError, r"^forks\[2\]: there are 2 forks, and the first is number 0$"),
        (takes_a_variable_of_all_forks, InvalidArgumentError, r"forks\[i\]\['a'\], all of them with s\['a'\] after"),
    ],
)
def test_a_wrong_name_or_number_is_refused(
    run: Callable[[Body], None], body: Body, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(body)


def test_a_gen_knows_its_own_options_where_one_is_misspelt() -> None:
    for misspelt, meant in (("dtyp", "dtype"), ("hael", "heal"), ("choice", "choices"), ("max_token", "max_tokens")):
        with pytest.raises(UnknownOptionError, match=rf"^gen: got '{misspelt}'.* Did you mean '{meant}'\?$"):
            sgl.gen("a", **{misspelt: None})  # type: ignore[call-overload]


def test_select_says_that_choices_are_missing() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^choices: got 'nothing', expected a list of str\.$"):
        sgl.select("a")


# ---- how a program is started ----------------------------------------------------------------------------------------
PROGRAM = sgl.function(appends)


@pytest.mark.parametrize("program", [PROGRAM, PROGRAM.compile()])
def test_a_misspelt_option_of_a_batch_is_refused_at_once_and_not_by_every_item(program: Any) -> None:
    with pytest.raises(UnknownOptionError, match=r"^appends\.run_batch: got 'progres_bar'.*Did you mean 'progress_bar'\?$"):
        program.run_batch([("a",)], progres_bar=True, return_errors=True, backend=FakeBackend())


@pytest.mark.parametrize("program", [PROGRAM, PROGRAM.compile()])
async def test_a_misspelt_option_of_an_async_batch_is_refused_at_once(program: Any) -> None:
    with pytest.raises(UnknownOptionError, match=r"^appends\.arun_batch: got 'as_completed'"):
        await program.arun_batch([("a",)], as_completed=True, return_errors=True, backend=FakeBackend())


@pytest.mark.parametrize("program", [PROGRAM, PROGRAM.compile()])
@pytest.mark.parametrize("batch", [5, "abc", {"topic": "a"}, iter([("a",)])])
async def test_a_batch_that_is_no_list_is_refused(program: Any, batch: object) -> None:
    expected = r"^batch: got '\w+', expected a list of dicts or tuples\."
    with pytest.raises(InvalidArgumentError, match=expected):
        program.run_batch(batch, backend=FakeBackend())
    with pytest.raises(InvalidArgumentError, match=expected):
        await program.arun_batch(batch, backend=FakeBackend())


@pytest.mark.parametrize("static", [["topic"], "topic", 5])
def test_static_arguments_that_are_no_dict_are_refused(static: Any) -> None:
    expected = r'^static: got \'\w+\', expected a dict of arguments\. Write static=\{"name": value\}\.$'
    for take in (PROGRAM.compile, PROGRAM.trace, lambda **given: PROGRAM.cache(FakeBackend(), **given)):
        with pytest.raises(InvalidArgumentError, match=expected):
            take(static=static)


def test_a_proposer_that_proposes_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^proposer: got 'str', expected an object with propose\(region\)\.$"):
        PROGRAM.compile(move="aggressive", proposer="constants first")  # type: ignore[arg-type]


def test_a_misspelt_static_argument_of_cache_is_refused() -> None:
    with pytest.raises(UnknownOptionError, match=r"^appends\.cache: got 'topci'.*Did you mean 'topic'\?$"):
        PROGRAM.cache(FakeBackend(), static={"topci": "a"})


# ---- what SGLang's programs write ------------------------------------------------------------------------------------
def test_methods_of_select_have_sglangs_names() -> None:
    for method in (
        sgl.greedy_token_selection,
        sgl.token_length_normalized,
        sgl.unconditional_likelihood_normalized,
    ):
        assert sgl.select(choices=["a", "b"], choices_method=method).choices_method == method
