"""Which text of a prompt template is constant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.example_selectors import LengthBasedExampleSelector
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import (
    ChatMessagePromptTemplate,
    ChatPromptTemplate,
    FewShotChatMessagePromptTemplate,
    FewShotPromptTemplate,
    FewShotPromptWithTemplates,
    HumanMessagePromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
)
from langchain_core.prompts.structured import StructuredPrompt

from sgl_langchain.translate.prompts import Const, Hole, Messages, Opaque, Turn, segments_of

SHOT = PromptTemplate.from_template("Q: {q} A: {a}")
EXAMPLES = [{"q": "1", "a": "2"}, {"q": "3", "a": "4"}]


def text_of(prompt):
    (turn,) = segments_of(prompt).turns
    return turn.parts


def f_string(template, **partials):
    return text_of(PromptTemplate.from_template(template, partial_variables=partials))


def filled(parts, values):
    """What formatting makes of segments without anything opaque."""
    return "".join(part.text if isinstance(part, Const) else values[part.variable] for part in parts)


def test_an_f_string_is_text_and_holes():
    assert f_string("Hello {name}, {{braces}}!") == (Const("Hello "), Hole("name"), Const(", {braces}!"))


def test_a_hole_knows_its_format():
    assert f_string("{x:.2f}{y!r}") == (Hole("x", ":.2f"), Hole("y", "!r"))


def test_a_partial_text_is_constant_and_a_partial_function_is_not():
    assert f_string("{a} {b}", a="A")[0] == Const("A ")
    assert isinstance(f_string("{a} {b}", a=lambda: "now")[0], Opaque)


def test_no_partial_function_is_called():
    called = []
    segments_of(PromptTemplate.from_template("{a} {b}", partial_variables={"a": lambda: called.append(1) or "x"}))
    assert not called


@pytest.mark.parametrize(
    ("template", "constant"),
    [("Dear {{name}}", "Dear "), ("Dear\n  {{#x}}\nyou\n{{/x}}", "Dear\n"), ("Dear all", "Dear all")],
)
def test_a_mustache_template_is_constant_up_to_its_first_tag(template, constant):
    assert text_of(PromptTemplate.from_template(template, template_format="mustache"))[0] == Const(constant)


@pytest.mark.parametrize(
    ("template", "constant"),
    [("Dear {{ name }}", "Dear "), ("Dear {%- if x %}", "Dear"), ("a\r\nb", "a"), ("Dear all\n", "Dear all")],
)
def test_a_jinja_template_is_constant_up_to_its_first_tag(template, constant):
    prompt = PromptTemplate.from_template("{{ x }}", template_format="jinja2").model_copy(update={"template": template})
    assert text_of(prompt)[0] == Const(constant)


def test_constant_examples_are_part_of_the_text():
    prompt = FewShotPromptTemplate(examples=EXAMPLES, example_prompt=SHOT, prefix="P {p}", suffix="S {s}")
    expected = (Const("P "), Hole("p"), Const("\n\nQ: 1 A: 2\n\nQ: 3 A: 4\n\nS "), Hole("s"))
    assert text_of(prompt) == expected
    assert filled(expected, {"p": "x", "s": "y"}) == prompt.format(p="x", s="y")


def test_an_example_is_a_template_again():
    prompt = FewShotPromptTemplate(examples=[{"q": "{s}", "a": ""}], example_prompt=SHOT, suffix="{s}")
    assert filled(text_of(prompt), {"s": "deep"}) == prompt.format(s="deep")


def test_selected_examples_are_opaque():
    selector = LengthBasedExampleSelector(examples=EXAMPLES, example_prompt=SHOT)
    prompt = FewShotPromptTemplate(example_selector=selector, example_prompt=SHOT, prefix="P ", suffix="{s}")
    assert [type(part) for part in text_of(prompt)] == [Const, Opaque]


def test_pieces_that_are_templates_come_through():
    prompt = FewShotPromptWithTemplates(
        input_variables=["p", "s"],
        examples=EXAMPLES,
        example_prompt=SHOT,
        prefix=PromptTemplate.from_template("P {p}"),
        suffix=PromptTemplate.from_template("S {s}"),
    )
    assert filled(text_of(prompt), {"p": "x", "s": "y"}) == prompt.format(p="x", s="y")


def test_text_with_braces_that_is_formatted_twice_is_opaque():
    prompt = FewShotPromptWithTemplates(
        input_variables=["s"],
        examples=[{"q": "{{x}}", "a": ""}],
        example_prompt=SHOT,
        suffix=PromptTemplate.from_template("S {s}"),
    )
    assert isinstance(text_of(prompt)[0], Opaque)


def test_a_suffix_that_may_be_empty_brings_no_certain_separator():
    suffix = PromptTemplate.from_template("{s}")
    prompt = FewShotPromptWithTemplates(input_variables=["s"], examples=EXAMPLES, example_prompt=SHOT, suffix=suffix)
    constant, rest = text_of(prompt)
    assert isinstance(rest, Opaque)
    assert prompt.format(s="") == constant.text


def test_messages_of_all_kinds_keep_their_order_and_roles():
    prompt = ChatPromptTemplate(
        [
            ("system", "S"),
            MessagesPlaceholder("history", optional=True),
            ChatMessagePromptTemplate.from_template("C", role="critic"),
            AIMessage("fixed"),
            ("human", "{x}"),
        ]
    )
    turns = segments_of(prompt).turns
    assert turns[1] == Messages("history")
    assert [turn.role for turn in turns if isinstance(turn, Turn)] == ["system", "critic", "ai", "human"]


def test_nested_prompts_take_the_partials_of_those_around_them():
    inner = ChatPromptTemplate([("human", "{a} {b}")], partial_variables={"a": "inner"})
    turns = segments_of(ChatPromptTemplate([inner], partial_variables={"b": "outer"})).turns
    assert turns[0].parts == (Const("inner outer"),)


def test_messages_that_a_partial_brings_are_constant():
    prompt = ChatPromptTemplate([MessagesPlaceholder("history"), ("human", "{x}")])
    turns = segments_of(prompt.partial(history=[HumanMessage("one"), AIMessage("two")])).turns
    assert [turn.parts for turn in turns[:2]] == [(Const("one"),), (Const("two"),)]


def test_chat_examples_are_constant_messages_and_selected_ones_opaque():
    shots = ChatPromptTemplate([("human", "{q}"), ("ai", "{a}")])
    constant = FewShotChatMessagePromptTemplate(examples=EXAMPLES, example_prompt=shots)
    selector = LengthBasedExampleSelector(examples=EXAMPLES, example_prompt=SHOT)
    selected = FewShotChatMessagePromptTemplate(example_selector=selector, example_prompt=shots, input_variables=["q"])
    assert [turn.parts[0].text for turn in segments_of(constant).turns] == ["1", "2", "3", "4"]
    assert [type(turn) for turn in segments_of(selected).turns] == [Opaque]


def test_text_blocks_are_one_text_and_a_picture_is_opaque():
    blocks = HumanMessagePromptTemplate.from_template([{"type": "text", "text": "See {x}"}, {"image_url": "{link}"}])
    parts = segments_of(ChatPromptTemplate([blocks])).turns[0].parts
    assert parts[:2] == (Const("See "), Hole("x"))
    assert isinstance(parts[2], Opaque)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_a_structured_prompt_is_a_chat_prompt():
    prompt = StructuredPrompt([("human", "{x}")], {"title": "T", "type": "object", "properties": {}})
    assert segments_of(prompt).turns == (Turn("human", (Hole("x"),)),)


def test_a_prompt_of_an_unknown_class_is_opaque():
    class Mine(ChatPromptTemplate):
        pass

    assert isinstance(segments_of(Mine([("human", "{x}")])).turns[0], Opaque)


@given(
    st.lists(st.one_of(st.text(alphabet="ab {}\n.", max_size=6), st.sampled_from(["\0x", "\0y"])), max_size=6),
    st.text(),
    st.text(),
)
def test_segments_say_what_formatting_gives(parts, x, y):
    template = "".join(f"{{{part[1]}}}" if part[0:1] == "\0" else part.replace("{", "{{").replace("}", "}}") for part in parts)
    prompt = PromptTemplate.from_template(template)
    values = {name: value for name, value in (("x", x), ("y", y)) if name in prompt.input_variables}
    assert filled(text_of(prompt), values) == prompt.format(**values)
