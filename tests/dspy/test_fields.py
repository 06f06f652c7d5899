"""Programs of signatures: which step each field gets, and the text around the steps."""

import enum
import json
import re
from typing import Annotated, Any, Literal

import dspy
import pluggy
import pydantic
import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_core.plugins import PluginHookError
from sgl_dspy import plugin
from sgl_dspy.formats import fields
from sgl_dspy.formats.fields import FieldBuilder, ReplyField, reply_program_for, step_for, unplanned_fields
from sgl_dspy.formats.reply_program import Choice, Forced, FreeText, JsonBy, JsonValue, Pattern, ReplyProgram


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


class Customer(pydantic.BaseModel):
    name: str
    age: int


class Tune(dspy.Type):
    notes: str

    def format(self):
        return self.notes


def search(query: str, limit: int = 3) -> str:
    return query * limit


def search_web(query: str) -> str:
    return query


def signature(*annotations, **named):
    outputs = {f"f{index}": annotation for index, annotation in enumerate(annotations)} | named
    made = {name: kind if isinstance(kind, tuple) else (kind, dspy.OutputField()) for name, kind in outputs.items()}
    return dspy.Signature({"question": (str, dspy.InputField()), **made})


def step(annotation, *, is_json=False, **constraints):
    """The step of a field alone in its signature."""
    program = reply_program_for(signature((annotation, dspy.OutputField(**constraints))), is_json=is_json)
    return None if program is None else program.steps[1]


# ---- steps -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("annotation", [str, dspy.Reasoning, dspy.Code, dspy.Code["java"], str | None, str | int | None])
def test_texts_are_written_freely_up_to_the_next_header(annotation):
    found = step(annotation)
    assert isinstance(found, FreeText)
    assert "[[ ##" in found.stop


def test_a_text_ends_where_a_model_recites_the_prompt():
    asked = signature(str)
    prompt = dspy.ChatAdapter().format(asked, [], {"question": "why?"})
    recited = [stop for stop in step(str).stop if stop[1].isalpha()]  # the others are headers and empty fences
    assert recited
    for stop in recited:
        assert any(stop in message["content"] for message in prompt)


def test_no_end_of_a_text_can_stand_where_a_text_begins():
    for stop in step(str).stop:
        assert stop.startswith(("\n", "["))  # a text begins with neither blanks nor a header


@pytest.mark.parametrize("annotation", [str, dspy.Reasoning, dspy.Code])
def test_in_json_a_text_is_a_string_that_is_not_blank(annotation):
    assert step(annotation, is_json=True) == JsonValue("f0", {"type": "string", "pattern": r"\S"})


def test_few_values_are_a_choice():
    assert step(Literal["billing", "bug"]) == Choice("f0", ("billing", "bug"))
    assert step(bool) == Choice("f0", ("True", "False"))
    assert step(Level) == Choice("f0", ("LOW", "HIGH"))


def test_a_choice_that_another_one_begins_with_is_ended_by_what_follows():
    assert step(Literal["bug", "bugs"]) == Choice("f0", ("bug\n\n", "bugs\n\n"))
    assert step(Literal[1, 12], is_json=True) == Choice("f0", ("1\n", "12\n"))


@pytest.mark.parametrize(
    ("annotation", "constraints", "yes", "no"),
    [
        (int, {}, ("0", "-12", "345"), ("1.5", "012", "")),
        (int, {"ge": 1, "le": 5}, ("1", "5"), ("0", "6")),
        (int, {"gt": 1, "lt": 5}, ("2", "4"), ("1", "5")),
        (float, {}, ("0.5", "-3", "12.25"), ("x", "1.", "")),
        (float, {"ge": 0, "le": 1}, ("0", "0.75", "1", "1.0"), ("1.1", "-0.5", "2")),
        (float, {"gt": 0}, ("0.01", "7"), ("0", "0.0", "-1")),
        (int | None, {}, ("None", "3"), ("null", "")),
        (int | float | bool, {}, ("1", "1.5", "True"), ("yes",)),
    ],
)
def test_numbers_are_a_pattern_within_their_bounds(annotation, constraints, yes, no):
    found = step(annotation, **constraints)
    assert isinstance(found, Pattern)
    assert all(re.fullmatch(found.regex, text + "\n\n") for text in yes)
    assert not any(re.fullmatch(found.regex, text + "\n\n") for text in no)


def test_every_number_that_is_allowed_is_read_back():
    found = step(int | None)
    for text in ("None", "-7", "0", "123456789012345678"):
        assert re.fullmatch(found.regex, text + "\n\n")
        parsed = dspy.ChatAdapter().parse(signature(int | None), f"[[ ## f0 ## ]]\n{text}\n\n[[ ## completed ## ]]\n")
        assert parsed == {"f0": None if text == "None" else int(text)}


@pytest.mark.parametrize("constraints", [{"multiple_of": 0.5}, {"ge": 0.5}])
def test_bounds_that_no_pattern_says_are_left_to_a_schema(constraints):
    assert isinstance(step(float, **constraints), JsonValue)


@pytest.mark.parametrize(
    "annotation", [list[str], dict[str, int], dict[str, Any], tuple[int, str], set[int], Customer, str | int]
)
def test_everything_else_is_json_by_its_schema(annotation):
    assert isinstance(step(annotation), JsonValue)
    assert isinstance(step(annotation, is_json=True), JsonValue)


@pytest.mark.parametrize("annotation", [dspy.History, dspy.Image, list[dspy.Image], Tune, Literal["1", 1]])
def test_a_field_that_nobody_can_plan_leaves_the_signature_without_a_program(annotation):
    asked = signature(known=str, other=annotation)
    assert reply_program_for(asked) is None
    assert unplanned_fields(asked) == ("other",)


def test_a_signature_without_outputs_has_no_program():
    assert reply_program_for(signature()) is None


# ---- layout ----------------------------------------------------------------------------------------------------------
def written(program, values):
    """The reply with these values, in order."""
    given = iter(values)
    return "".join(one.text if isinstance(one, Forced) else next(given) for one in program.steps)


def test_a_chat_reply_reads_as_dspy_renders_it():
    asked = signature(str, bool, Literal["a", "b"], str)
    reply = written(reply_program_for(asked), ["so", "True", "b", "yes"])
    assert reply == dspy.ChatAdapter().format_assistant_message_content(asked, {"f0": "so", "f1": True, "f2": "b", "f3": "yes"})


def test_a_json_reply_reads_as_dspy_renders_it():
    asked = signature(str, bool, Literal["a", "b"], int)
    reply = written(reply_program_for(asked, is_json=True), ['"so"', "true", '"b"', "7\n"])
    assert reply == dspy.JSONAdapter().format_assistant_message_content(asked, {"f0": "so", "f1": True, "f2": "b", "f3": 7})


def test_what_ends_a_value_is_not_written_twice():
    asked = signature(int, Literal["a", "ab"], str)
    reply = written(reply_program_for(asked), ["7\n\n", "ab\n\n", "yes"])
    assert reply == dspy.ChatAdapter().format_assistant_message_content(asked, {"f0": 7, "f1": "ab", "f2": "yes"})
    reply = written(reply_program_for(asked, is_json=True), ["7,\n", '"ab"', '"yes"'])
    assert json.loads(reply) == {"f0": 7, "f1": "ab", "f2": "yes"}


def test_forced_texts_and_values_take_turns():
    steps = reply_program_for(signature(str, int, bool, list[int])).steps
    assert [isinstance(one, Forced) for one in steps] == [True, False] * 4 + [True]


# ---- tools -----------------------------------------------------------------------------------------------------------
def test_react_holds_the_arguments_to_the_tool_that_was_chosen():
    react = dspy.ReAct("question -> answer", tools=[search])
    program = reply_program_for(react.react.signature, tools=react.tools)
    arguments = program.steps[-2]
    assert isinstance(arguments, JsonBy)
    assert arguments.by == "next_tool_name"
    assert arguments.schemas["search"]["required"] == ["query"]
    assert arguments.schemas["finish"] == {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }


@pytest.mark.parametrize("is_json", [False, True])
def test_tools_whose_names_begin_alike_keep_their_arguments(is_json):
    react = dspy.ReAct("question -> answer", tools=[search, search_web])
    choice, arguments = reply_program_for(react.react.signature, tools=react.tools, is_json=is_json).steps[3:6:2]
    assert set(arguments.schemas) == set(choice.choices)


def test_without_the_tools_the_arguments_are_any_object():
    react = dspy.ReAct("question -> answer", tools=[search])
    arguments = reply_program_for(react.react.signature).steps[-2]
    assert isinstance(arguments, JsonValue)
    assert arguments.schema["type"] == "object"
    assert list(arguments.schema["patternProperties"].values()) == [{}]


def test_tools_of_other_names_are_not_taken_for_these():
    react = dspy.ReAct("question -> answer", tools=[search])
    program = reply_program_for(react.react.signature, tools={"other": dspy.Tool(search, name="other")})
    assert isinstance(program.steps[-2], JsonValue)


def test_tool_calls_as_text_know_the_tools():
    program = reply_program_for(signature(dspy.ToolCalls), tools={"search": dspy.Tool(search)})
    assert '"const": "search"' in json.dumps(program.steps[1].schema)


# ---- programs --------------------------------------------------------------------------------------------------------
def test_equal_signatures_share_a_program():
    assert reply_program_for(signature(str, int)) is reply_program_for(signature(str, int))


def test_signatures_that_differ_in_a_constraint_do_not():
    assert step(int, ge=0) != step(int, ge=1)


def test_literals_of_equal_but_different_members_do_not():
    assert step(Literal[1]) == Choice("f0", ("1",))
    assert step(Literal[True]) == Choice("f0", ("True",))


def test_an_annotation_that_cannot_be_hashed_is_planned_all_the_same():
    class Note:
        __hash__ = None

    assert isinstance(step(list[Annotated[int, Note()]]), JsonValue)


def test_shared_messages_belong_to_the_call():
    assert reply_program_for(signature(str), shared=(0, 3)).shared == (0, 3)
    assert reply_program_for(signature(str)).shared is None


def test_programs_travel_as_json():
    program = reply_program_for(signature(str, int, Level, Customer, dspy.ToolCalls, dict[str, Any]), shared=(0, 1))
    assert ReplyProgram.from_json(json.loads(json.dumps(program.to_json()))) == program


# ---- plugins ---------------------------------------------------------------------------------------------------------
class Host:
    """Asks one hook and then ours, as the host of the process would."""

    def __init__(self, hook):
        self.hook = hook
        self.asked = []

    def lower(self, node, builder):
        self.asked.append(node.name)
        return self.hook(node, builder)


@pytest.fixture
def host(monkeypatch):
    def install(hook):
        made = Host(hook)
        monkeypatch.setattr(fields, "get_host", lambda: made)
        return made

    return install


def test_a_plugin_plans_a_type_of_its_own(host):
    class Scale(Tune):
        pass

    made = host(lambda node, builder: builder.pattern("[a-g]+") if node.annotation is Scale else None)
    assert reply_program_for(signature(str, Scale)).steps[3] == Pattern("f1", "(?:[a-g]+)\n\n")
    assert made.asked == ["f1"]


def test_a_plugin_can_plan_a_type_like_another(host):
    class Tag(Tune):
        pass

    host(lambda node, builder: builder.like(list[int]))
    assert step(Tag) == JsonValue("f0", {"type": "array", "items": {"type": "integer"}})


@pytest.mark.parametrize("answer", [Forced("text"), FreeText("another"), "text"])
def test_what_is_no_step_of_the_field_is_refused(host, answer):
    host(lambda node, builder: answer)
    node = ReplyField.of("tune", pydantic.fields.FieldInfo.from_annotation(Tune))
    with pytest.raises(PluginHookError, match="sgl_lower"):
        step_for(node)


def test_our_hook_plans_the_types_that_we_know_and_no_others():
    int_field = ReplyField.of("count", pydantic.fields.FieldInfo.from_annotation(int))
    assert isinstance(plugin.sgl_lower(int_field, FieldBuilder("count")), Pattern)
    tune = ReplyField.of("tune", pydantic.fields.FieldInfo.from_annotation(Tune))
    assert plugin.sgl_lower(tune, FieldBuilder("tune")) is None
    assert plugin.sgl_lower(int_field, object()) is None
    assert plugin.sgl_lower(int, FieldBuilder("count")) is None


def test_our_hook_comes_last():
    options = pluggy.PluginManager("sgl_core").parse_hookimpl_opts(plugin, "sgl_lower")
    assert options is None or options["trylast"]


@pytest.mark.parametrize("texts", [(), ("a", ""), "text"])
def test_a_choice_needs_texts(texts):
    with pytest.raises(InvalidArgumentError, match="texts"):
        FieldBuilder("f").choice(texts)
