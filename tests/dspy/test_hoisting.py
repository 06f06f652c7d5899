"""Layouts of prompts: shared inputs first, and inputs in another order."""

import dspy
import pytest

from sgl_core.testing import FakeBackend
from sgl_dspy.adapters import ChatAdapter, JSONAdapter
from sgl_dspy.formats.hoisting import LAYOUT_KEY, Layout, arranged, input_of
from sgl_dspy.formats.reply_program import PROGRAM_KEY
from sgl_dspy.lm import SglLM

ESSAY = "It was a dark and stormy night."
JUDGE = dspy.Signature("topic, essay -> score: int, comment", "Judge the essay.")
OTHER = dspy.Signature("essay, rubric -> passed: bool", "Check the essay.")
HOIST = Layout(hoisted=(("essay", "<class 'str'>"),))


def formatted(layout, signature, demos=(), adapter=None, **inputs):
    with dspy.context(**{LAYOUT_KEY: layout}):
        return (adapter or ChatAdapter()).format(signature, list(demos), inputs)


def told(messages):
    return "\n".join(f"<{message['role']}> {message['content']}" for message in messages)


def stock(signature, demos=(), **inputs):
    return dspy.ChatAdapter().format(signature, list(demos), inputs)


def test_without_a_layout_prompts_are_dspys():
    assert formatted(None, JUDGE, topic="style", essay=ESSAY) == stock(JUDGE, topic="style", essay=ESSAY)
    assert formatted(Layout(), JUDGE, topic="style", essay=ESSAY) == stock(JUDGE, topic="style", essay=ESSAY)


@pytest.mark.parametrize("adapter", [ChatAdapter(), JSONAdapter()], ids=["chat", "json"])
def test_predictors_with_a_hoisted_input_begin_alike(adapter):
    one = told(formatted(HOIST, JUDGE, adapter=adapter, topic="style", essay=ESSAY))
    other = told(formatted(HOIST, OTHER, adapter=adapter, essay=ESSAY, rubric="strict"))
    end = one.index(ESSAY) + len(ESSAY)
    assert one[:end] == other[:end]
    assert one[end:] != other[end:]


def test_the_whole_task_stands_behind_the_shared_input():
    system, user = formatted(HOIST, JUDGE, topic="style", essay=ESSAY)
    stock_system, stock_user = stock(JUDGE, topic="style")
    assert system["role"] == "system"
    assert user["content"] == f"[[ ## essay ## ]]\n{ESSAY}\n\n{stock_system['content']}\n\n{stock_user['content']}"


def test_demos_are_turns_with_values_of_their_own():
    demos = [{"topic": "logic", "essay": "Another.", "score": 3, "comment": "weak"}]
    messages = formatted(HOIST, JUDGE, demos, topic="style", essay=ESSAY)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    first, answer, last = (message["content"] for message in messages[1:])
    assert first.startswith(f"[[ ## essay ## ]]\n{ESSAY}\n\n")
    assert first.endswith("[[ ## topic ## ]]\nlogic\n\n[[ ## essay ## ]]\nAnother.")
    assert "weak" in answer
    assert last.startswith("The value of `essay` for this request is the one that this conversation begins with.\n\n")
    assert ESSAY not in last


def test_a_history_stands_behind_the_task():
    signature = dspy.Signature("essay, history: dspy.History, question -> answer")
    history = dspy.History(messages=[{"question": "Who?", "answer": "Nobody."}])
    messages = formatted(HOIST, signature, essay=ESSAY, history=history, question="Why?")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"].index(ESSAY) < messages[1]["content"].index("Who?")
    assert "Why?" in messages[-1]["content"]


def test_pictures_beside_a_hoisted_input_stay_parts():
    signature = dspy.Signature("essay, picture: dspy.Image -> answer")
    picture = dspy.Image("data:image/png;base64,AAAA")
    user = formatted(HOIST, signature, essay=ESSAY, picture=picture)[-1]
    kinds = [part["type"] for part in user["content"]]
    assert kinds[0] == "text"
    assert "image_url" in kinds
    assert user["content"][0]["text"].startswith(f"[[ ## essay ## ]]\n{ESSAY}")


def test_an_input_with_another_annotation_is_not_hoisted():
    signature = dspy.Signature("essay: list[str] -> answer")
    assert formatted(HOIST, signature, essay=[ESSAY]) == stock(signature, essay=[ESSAY])


def test_an_input_that_is_not_given_is_not_hoisted():
    assert formatted(HOIST, JUDGE, topic="style") == stock(JUDGE, topic="style")


def test_several_hoisted_inputs_stand_in_the_order_of_the_layout():
    layout = Layout(hoisted=(input_of(OTHER, "rubric"), input_of(OTHER, "essay")))
    text = told(formatted(layout, OTHER, essay=ESSAY, rubric="strict"))
    assert text.index("strict") < text.index(ESSAY) < text.index("Your input fields are")


def test_inputs_can_be_reordered_everywhere_in_a_prompt():
    demos = [{"topic": "logic", "essay": "Another.", "score": 3, "comment": "weak"}]
    text = told(formatted(Layout(first=("essay",)), JUDGE, demos, topic="style", essay=ESSAY))
    reordered = dspy.Signature("essay, topic -> score: int, comment", "Judge the essay.")
    assert text == told(stock(reordered, demos, topic="style", essay=ESSAY))


def test_inputs_in_order_already_leave_the_signature_as_it_is():
    assert Layout(first=("topic", "absent")).reordered(JUDGE) is JUDGE


def test_a_layout_inside_another_adds_to_it():
    inner, outer = Layout(HOIST.hoisted, ("b",)), Layout((("topic", "<class 'str'>"),), ("a", "b"))
    assert inner.inside(outer) == Layout((*outer.hoisted, *HOIST.hoisted), ("a", "b"))
    assert inner.inside(None) is inner


def test_what_other_calls_begin_with_ends_before_a_hoisted_input():
    with FakeBackend(reply=lambda ids, params: "fine") as fake:
        lm = SglLM(backend=fake, cache=False)
        demos = [{"essay": "Another.", "rubric": "lax", "remark": "weak"}]
        signature = dspy.Signature("essay, rubric -> remark")
        with dspy.context(**{LAYOUT_KEY: HOIST}):
            ChatAdapter()(lm, {}, signature, demos, {"essay": ESSAY, "rubric": "strict"})
        ChatAdapter()(lm, {}, signature, demos, {"essay": ESSAY, "rubric": "strict"})
    shared = [entry["kwargs"]["metadata"][PROGRAM_KEY]["shared"] for entry in lm.history]
    assert shared == [[0, 1], [0, 3]]


def test_inputs_and_demos_of_the_caller_are_not_changed():
    inputs, demos = {"topic": "style", "essay": ESSAY}, []
    with dspy.context(**{LAYOUT_KEY: HOIST}):
        arranged(ChatAdapter(), dspy.ChatAdapter().format, JUDGE, demos, inputs)
    assert inputs == {"topic": "style", "essay": ESSAY}
    assert demos == []
