"""Replies read as they come: what is text, what is a call, what is neither, and that no cut between pieces matters."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_core.chat.tool_reading import CallPiece, InvalidCall, ReplyPiece, ReplyReader, read_reply
from sgl_core.chat.tools import render_call

CALL = '{"name": "get_weather", "arguments": {"location": "Oslo", "days": [1, {"x": "}"}]}}'
ARGUMENTS = {"location": "Oslo", "days": [1, {"x": "}"}]}


@dataclass
class Total:
    """What pieces add up to, without ids."""

    text: str
    calls: list[tuple[str | None, str]]
    invalid: list[tuple[str | None, str, str]]


def total(pieces: Iterable[ReplyPiece]) -> Total:
    text, calls, invalid = "", dict[int, tuple[str | None, str]](), list[InvalidCall]()
    for piece in pieces:
        text += piece.text
        invalid += piece.invalid
        for call in piece.calls:
            name, arguments = calls.get(call.index, (call.name, ""))
            calls[call.index] = (name, arguments + call.arguments)
    return Total(text, list(calls.values()), [(one.name, one.arguments, one.error) for one in invalid])


def read_in(pieces: Iterable[str], *, is_call: bool) -> list[ReplyPiece]:
    reader = ReplyReader(is_call)
    return [*map(reader.feed, pieces), reader.finish()]


# ---- replies that were made to be calls ------------------------------------------------------------------------------
def test_a_call_has_its_name_its_arguments_and_an_id() -> None:
    (call,) = read_reply(CALL, is_call=True).calls
    assert (call.name, call.arguments) == ("get_weather", ARGUMENTS)
    assert call.id.startswith("call_")


def test_each_call_has_an_id_of_its_own() -> None:
    text = f"{CALL}\n</tool_call>\n<tool_call>\n{CALL}"
    ids = {call.id for _ in range(2) for call in read_reply(text, is_call=True).calls}
    assert len(ids) == 4


def test_the_first_piece_comes_with_the_end_of_the_name_and_has_no_arguments() -> None:
    reader = ReplyReader(is_call=True)
    assert reader.feed('{"name": "get_wea') == ReplyPiece()
    (first,) = reader.feed('ther"').calls
    assert (first.index, first.name, first.arguments) == (0, "get_weather", "")


def test_arguments_are_handed_out_as_they_come_and_as_they_stand() -> None:
    reader = ReplyReader(is_call=True)
    reader.feed('{"name": "f", "arguments": ')
    pieces = [reader.feed(text).calls for text in ('{ "a"', ' :"\\u00', 'e9"', " }", "}")]
    assert pieces[:4] == [(CallPiece(0, None, None, text),) for text in ('{ "a"', ' :"\\u00', 'e9"', " }")]
    assert pieces[4] == ()


def test_several_calls_are_numbered_and_leave_no_text() -> None:
    text = '{"name":"a","arguments":{"x":1}}\n</tool_call>\n<tool_call>\n{"name":"b","arguments":{}}\n</tool_call>'
    read = total(read_in([text], is_call=True))
    assert read == Total("", [("a", '{"x":1}'), ("b", "{}")], [])


def test_marks_inside_a_string_are_text_of_that_string() -> None:
    arguments = {"html": '</tool_call> \\" <tool_call>'}
    text = json.dumps({"name": "f", "arguments": arguments})
    assert [call.arguments for call in read_reply(text, is_call=True).calls] == [arguments]


def test_a_call_that_was_aborted_is_invalid_under_the_id_it_was_begun_with() -> None:
    pieces = read_in(['{"name": "f", "arguments": {"a": "x'], is_call=True)
    (begun, _), (invalid,) = pieces[0].calls, pieces[1].invalid
    assert (invalid.id, invalid.name, invalid.error) == (begun.id, "f", "it is cut off")
    assert read_reply('{"name": "f", "arguments": {"a": "x', is_call=True).calls == ()


# ---- free replies ----------------------------------------------------------------------------------------------------
def test_a_free_reply_without_marks_is_text() -> None:
    assert read_reply("2 < 3, and <b>bold</b>.\n", is_call=False).text == "2 < 3, and <b>bold</b>.\n"


def test_text_is_handed_out_at_once_but_for_what_may_begin_a_mark() -> None:
    reader = ReplyReader(is_call=False)
    assert [reader.feed(text).text for text in ("It is", " < 3", " <tool", "box>")] == ["It is", " < 3", "", " <toolbox>"]


def test_what_began_like_a_mark_is_text_in_the_end() -> None:
    assert total(read_in(["so <tool", "_ca"], is_call=False)).text == "so <tool_ca"


def test_a_call_between_marks_is_no_text() -> None:
    reply = read_reply(f"Let me look.\n{render_call('get_weather', ARGUMENTS)}\n", is_call=False)
    assert (reply.text, [call.arguments for call in reply.calls]) == ("Let me look.", [ARGUMENTS])


def test_texts_around_a_call_stay_apart() -> None:
    assert read_reply(f"Before.\n\n{render_call('f', {})}\n\nBehind.", is_call=False).text == "Before.\nBehind."


def test_a_free_call_is_held_until_it_is_whole() -> None:
    reader = ReplyReader(is_call=False)
    assert reader.feed(f"<tool_call>\n{CALL}\n</tool_") == ReplyPiece()
    first, second = reader.feed("call>").calls
    assert (first.name, json.loads(second.arguments)) == ("get_weather", ARGUMENTS)


def test_a_call_that_lacks_only_its_closing_mark_is_a_call() -> None:
    for end in ("", "\n", "\n</tool_c"):
        assert [call.name for call in read_reply(f"<tool_call>\n{CALL}{end}", is_call=False).calls] == ["get_weather"]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"arguments": {"a": 1}, "name": "f"}', {"a": 1}),
        ('{"name": "f", "id": 7, "arguments": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', {"a": 1}),
        ('{"name": "f"}', {}),
    ],
    ids=["order", "other members", "a JSON string", "no arguments"],
)
@pytest.mark.parametrize("is_call", [False, True])
def test_other_spellings_of_a_call_are_read(written: str, arguments: dict[str, Any], is_call: bool) -> None:
    text = written if is_call else f"<tool_call>{written}</tool_call>"
    reply = read_reply(text, is_call=is_call)
    assert [(call.name, call.arguments) for call in reply.calls] == [("f", arguments)]
    assert reply.invalid == ()


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("", "it is cut off"),
        ('{"name": "f", "arguments": {"a": 1', "it is cut off"),
        ('{"name": "f", "arguments": {"a": 1}', "it is cut off"),
        ("get_weather(Oslo)", "no valid JSON"),
        ("{'name': 'f'}", "no valid JSON"),
        ('{"name": "f", "arguments": {"a": "x}\n', "it is cut off"),
        ('{"name": "f"} {"name": "g"}', "no valid JSON"),
        ('[{"name": "f"}]', "another JSON value"),
        ('{"arguments": {}}', "no name"),
        ('{"name": "", "arguments": {}}', "no name"),
        ('{"name": 3, "arguments": {}}', "no name"),
        ('{"name": "f", "arguments": [1]}', "no JSON object"),
        ('{"name": "f", "arguments": "Oslo"}', "no JSON object"),
        ('{"name": "f", "arguments": {"a": NaN}}', "number"),
        ('{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}", "number"),
        ('{"name": "f", "arguments": {"a": ' + "[" * 100_000, "too deep"),
    ],
    ids=lambda value: value[:28],
)
def test_what_is_no_call_is_handed_back_with_what_is_wrong_and_the_rest_is_read(written: str, error: str) -> None:
    reply = read_reply(f"Hm.<tool_call>{written}</tool_call>{render_call('g', {})}", is_call=False)
    assert (reply.text, [call.name for call in reply.calls]) == ("Hm.", ["g"])
    (invalid,) = reply.invalid
    assert error in invalid.error
    assert invalid.arguments == f"<tool_call>{written}".rstrip()


@pytest.mark.parametrize("is_call", [False, True])
def test_a_member_that_stands_twice_counts_as_it_stood_first(is_call: bool) -> None:
    text = '{"name": "a", "arguments": {"x": 1}, "arguments": {"y": 2}, "name": "b"}'
    (call,) = read_reply(text if is_call else f"<tool_call>{text}</tool_call>", is_call=is_call).calls
    assert (call.name, call.arguments) == ("a", {"x": 1})


def test_a_number_too_large_for_a_float_does_not_spoil_a_call() -> None:
    pieces = read_in(['<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>'], is_call=False)
    assert total(pieces) == Total("", [("f", '{"x": 1e999}')], [])


def test_a_free_call_that_is_cut_off_hands_out_no_call() -> None:
    pieces = read_in(['<tool_call>\n{"name": "f", "arg', 'uments": {"a": 1'], is_call=False)
    assert total(pieces) == Total("", [], [("f", '<tool_call>\n{"name": "f", "arguments": {"a": 1', "it is cut off")])


def test_a_reply_that_should_have_been_a_call_and_is_not_is_invalid() -> None:
    reply = read_reply("Hello there", is_call=True)
    assert (reply.text, reply.calls, len(reply.invalid)) == ("", (), 1)


# ---- properties ------------------------------------------------------------------------------------------------------
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
SCRAPS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<tool", "_call>", "</", "<", "\n", " ", "so", '"', "\\", "{", "}", "[", "]", ":", ",", "1"]
    + ['{"name": "f", "arguments": ', '{"name"', '"arguments"', '"f"', '{"a": 1}', CALL, f"<tool_call>\n{CALL}\n</tool_call>"]
)
TEXTS = st.lists(SCRAPS, max_size=12).map("".join)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=6), is_call=st.booleans())
def test_however_a_text_is_cut_its_pieces_add_up_to_the_same(text: str, cuts: list[int], is_call: bool) -> None:
    places = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    assert total(read_in(pieces, is_call=is_call)) == total(read_in([text], is_call=is_call))


@given(text=TEXTS, is_call=st.booleans())
def test_one_character_at_a_time_adds_up_to_the_same(text: str, is_call: bool) -> None:
    assert total(read_in(text, is_call=is_call)) == total(read_in([text], is_call=is_call))


@given(calls=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), min_size=1, max_size=3), is_call=st.booleans())
def test_what_was_rendered_is_read_back(calls: list[dict[str, Any]], is_call: bool) -> None:
    text = "\n".join(render_call("f", arguments) for arguments in calls)
    reply = read_reply(text.removeprefix("<tool_call>\n") if is_call else text, is_call=is_call)
    assert [call.arguments for call in reply.calls] == calls
    assert (reply.text, reply.invalid) == ("", ())
