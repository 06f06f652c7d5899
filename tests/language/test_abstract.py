"""What a value that is not there yet can do, and what it refuses."""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from sgl_core.errors import TraceError
from sgl_core.language.abstract import (
    Abstract,
    AbstractList,
    AbstractValue,
    Origin,
    Refusals,
    is_handed_to_c_code,
    is_list,
    is_text,
    is_value,
    parts_of,
    source_of,
)
from sgl_core.language.ir import Argument, ArgumentValue, ConstantText, Expr, ExprList, Gen, NodeValue, Variable


class Trace:
    """A trace's refusals, and values of it."""

    def __init__(self) -> None:
        self.num_first = 0
        self.refusals = Refusals("judge", self.count)

    def count(self) -> None:
        self.num_first += 1

    def argument(self, name: str = "essay") -> AbstractValue:
        return AbstractValue(Origin(ArgumentValue(name), f"argument {name!r}", name, self.refusals))

    def variable(self, name: str = "x", *, is_number: bool = False) -> AbstractValue:
        return AbstractValue(Origin(NodeValue(3, name), f"variable {name!r}", f's["{name}"]', self.refusals, is_number))

    def gathered(self, *entries: Any) -> AbstractList:
        return AbstractList(entries, Origin(NodeValue(9, "j"), "variable 'j'", 's["j"]', self.refusals))


@pytest.fixture
def trace() -> Trace:
    return Trace()


USES: dict[str, Callable[[Any], object]] = {
    "bool": bool,
    "not": lambda value: not value,
    "and": lambda value: value and 1,
    "int": int,
    "float": float,
    "complex": complex,
    "round": round,
    "floor": math.floor,
    "index": lambda value: [1, 2][value],
    "range": range,
    "len": len,
    "iter": iter,
    "next": next,
    "list": list,
    "reversed": reversed,
    "star": lambda value: [*value],
    "arguments": lambda value: divmod(*value),
    "in": lambda value: "a" in value,
    "member of a list": lambda value: value in ["a", "b"],
    "member of a set": lambda value: value in {"a"},
    "key": lambda value: {value: 1},
    "eq": lambda value: value == "yes",
    "eq reflected": lambda value: "yes" == value,  # noqa: SIM300
    "ne": lambda value: value != "yes",
    "lt": lambda value: value < 3,
    "ge": lambda value: 3 >= value,  # noqa: SIM300
    "hash": hash,
    "sorted": lambda value: sorted([value, value]),
    "str": str,
    "repr": repr,
    "f-string": lambda value: f"a {value}",
    "f-string with a conversion": lambda value: f"{value!r:>10}",
    "format": lambda value: "{}".format(value),  # noqa: UP032
    "percent": lambda value: "%s" % value,  # noqa: UP031
    "print": lambda value: print(value),
    "isinstance": lambda value: isinstance(value, str),
    "isinstance of an ABC": lambda value: isinstance(value, re.Pattern),
    "json": json.dumps,
    "attribute": lambda value: value.strip,
    "method": lambda value: value.strip(),
    "hasattr": lambda value: hasattr(value, "strip"),
    "internals": lambda value: value.nodes(),
    "set attribute": lambda value: setattr(value, "a", 1),
    "subscript": lambda value: value["name"],
    "slice": lambda value: value[:3],
    "set item": lambda value: value.__setitem__(0, 1),
    "minus": lambda value: value - 1,
    "plus a number": lambda value: value + 1,
    "number plus": lambda value: 1 + value,
    "sum": lambda value: sum([value]),
    "times": lambda value: 2 * value,
    "repeat": lambda value: "ab" * value,
    "negative": lambda value: -value,
    "pickle": lambda value: copy.copy(value).__reduce_ex__(4),
    "match text": lambda value: matched(value, "text"),
    "match sequence": lambda value: matched(value, "sequence"),
    "match class": lambda value: matched(value, "class"),
}


def matched(value: Any, how: str) -> str:
    if how == "text":
        match value:
            case "yes":
                return "yes"
    elif how == "sequence":
        match value:
            case [_, _]:
                return "two"
    else:
        match value:
            case int():
                return "int"
    return "nothing"


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
@pytest.mark.parametrize("kind", ["argument", "variable", "text"])
def test_every_use_that_needs_the_value_is_a_trace_error(trace: Trace, kind: str, use: Callable[[Any], object]) -> None:
    value = {"argument": trace.argument(), "variable": trace.variable(), "text": "a" + trace.argument()}[kind]
    with pytest.raises(TraceError) as raised:
        use(value)
    assert raised.value.argument == (None if kind == "variable" else "essay")
    assert trace.refusals.first is raised.value
    assert trace.num_first == 1


def test_a_refusal_has_the_line_of_the_author(trace: Trace) -> None:
    with pytest.raises(TraceError, match=r"test_abstract\.py:\d+: bool\(trace\.argument\(\)\)"):
        bool(trace.argument())


def test_the_line_is_the_authors_even_where_the_standard_library_asks(trace: Trace) -> None:
    with pytest.raises(TraceError, match=r"test_abstract\.py:\d+: json\.dumps\(\[trace\.argument\(\)\]\)"):
        json.dumps([trace.argument()])


def test_an_argument_is_cured_by_making_it_static(trace: Trace) -> None:
    with pytest.raises(TraceError, match=r'judge\.compile\(static=\{"dimensions": \.\.\.\}\)') as raised:
        len(trace.argument("dimensions"))
    assert raised.value.argument == "dimensions"


def test_a_formatted_argument_is_cured_by_adding_it_too(trace: Trace) -> None:
    with pytest.raises(TraceError, match=r'static=.*"text " \+ essay instead of an f-string'):
        f"{trace.argument()}"


def test_a_method_is_cured_by_host_code(trace: Trace) -> None:
    with pytest.raises(TraceError, match=r"sgl\.call\(str\.strip, essay\)"):
        trace.argument().strip()  # type: ignore[attr-defined]
    with pytest.raises(TraceError, match=r'sgl\.call\(lambda value: value\.born, s\["x"\]\)'):
        trace.variable().born  # type: ignore[attr-defined]  # noqa: B018


def test_a_branch_on_a_variable_is_cured_by_fallback(trace: Trace) -> None:
    with pytest.raises(TraceError, match=r'sgl\.call\(fn, s\["x"\]\).*fallback=True'):
        assert trace.variable() == "yes"


def test_a_refusal_never_holds_what_the_value_is_compared_with(trace: Trace) -> None:
    with pytest.raises(TraceError) as raised:
        assert trace.variable() == "a secret of the prompt" + str(1)
    assert "secret of the prompt1" not in str(raised.value)


def test_only_the_first_refusal_is_kept(trace: Trace) -> None:
    for value in (trace.argument("a"), trace.argument("b")):
        with pytest.raises(TraceError):
            bool(value)
    assert trace.refusals.first is not None
    assert trace.refusals.first.argument == "a"
    assert trace.num_first == 1


# ---- adding ----------------------------------------------------------------------------------------------------------
def nodes_of(expr: Expr) -> tuple[Expr, ...]:
    return ExprList().__add__(expr).nodes()


def test_text_and_values_add_up(trace: Trace) -> None:
    text = "a" + trace.argument() + "b" + trace.variable()
    assert nodes_of(text) == (ConstantText("a"), Argument("essay"), ConstantText("b"), Variable(NodeValue(3, "x")))
    assert is_text(text)
    assert len(parts_of(text)) == 4


def test_two_values_add_up(trace: Trace) -> None:
    assert nodes_of(trace.argument() + trace.argument("b")) == (Argument("essay"), Argument("b"))


def test_values_and_expressions_add_up(trace: Trace) -> None:
    gen = Gen("y")
    assert nodes_of(gen + trace.argument()) == (gen, Argument("essay"))
    assert nodes_of(trace.argument() + gen) == (Argument("essay"), gen)
    assert nodes_of("a" + trace.argument() + gen) == (ConstantText("a"), Argument("essay"), gen)


def test_a_number_does_not_add_up_with_text(trace: Trace) -> None:
    with pytest.raises(TraceError, match=r's\["n"\]'):
        "age: " + trace.variable("n", is_number=True)


# ---- lists -----------------------------------------------------------------------------------------------------------
def test_a_gathered_list_has_a_length_entries_and_an_order(trace: Trace) -> None:
    a, b = trace.variable("a"), trace.variable("b")
    values = trace.gathered(a, None, b)
    assert len(values) == 3
    assert bool(values)
    assert [entry is a or entry is b or entry is None for entry in values] == [True] * 3
    assert values[0] is a
    assert values[-1] is b
    assert values[1] is None
    assert [entry is b for entry in reversed(values)] == [True, False, False]
    assert is_list(values[1:])
    assert len(values[1:]) == 2
    assert len(values[::-2]) == 2
    with pytest.raises(IndexError, match="list index out of range"):
        values[3]


@pytest.mark.parametrize(
    "use",
    [
        lambda values: values + values,
        lambda values: [] + values,
        lambda values: "a" + values,
        lambda values: values == [],
        lambda values: f"{values}",
        lambda values: values.append("a"),
        lambda values: "a" in values,
        lambda values: values * 2,
        hash,
        repr,
        json.dumps,
        nodes_of,
    ],
)
def test_a_gathered_list_refuses_all_else(trace: Trace, use: Callable[[Any], object]) -> None:
    with pytest.raises(TraceError, match=r"a list of values to come.*sgl\.call\(\"\\n\"\.join, s\[\"j\"\]\)"):
        use(trace.gathered(trace.variable(), None))


# ---- probes ----------------------------------------------------------------------------------------------------------
def test_unknown_dunders_are_attribute_errors(trace: Trace) -> None:
    value = trace.argument()
    assert not hasattr(value, "__html__")
    assert not hasattr(value, "__wrapped__")
    assert not hasattr(value, "__dict__")
    assert not callable(value)
    assert trace.refusals.first is None


def test_copies_are_the_value_itself(trace: Trace) -> None:
    value = trace.argument()
    assert copy.copy(value) is value
    assert copy.deepcopy([value])[0] is value
    assert inspect.getattr_static(value, "strip", None) is None


def test_our_own_questions_are_answered(trace: Trace) -> None:
    value, text, values = trace.argument(), "a" + trace.argument(), trace.gathered()
    assert [is_value(thing) for thing in (value, text, values, "a")] == [True, False, False, False]
    assert [is_text(thing) for thing in (value, text, values, "a")] == [False, True, False, False]
    assert [is_list(thing) for thing in (value, text, values, "a")] == [False, False, True, False]
    assert all(isinstance(thing, Abstract) for thing in (value, text, values))
    assert source_of(value) == ArgumentValue("essay")


@pytest.mark.parametrize(
    "use",
    [
        lambda value: ", ".join([value]),  # noqa: FLY002
        lambda value: re.match("a", value),
        "abc".startswith,
        lambda value: value(),
        lambda value: "%d" % value,  # noqa: UP031
        lambda value: value in "text",
    ],
)
def test_what_c_code_says_about_a_value_is_recognised(trace: Trace, use: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as raised:
        use(trace.argument())
    assert is_handed_to_c_code(raised.value)


def test_other_type_errors_are_not_taken_for_it() -> None:
    assert not is_handed_to_c_code(TypeError("expected str instance, int found"))
    assert not is_handed_to_c_code(ValueError("AbstractValue"))
    assert not is_handed_to_c_code(TraceError("AbstractValue", "a cure."))
