"""Token ids are the truth: exactness of prompts, and the shared structures that make forks cheap."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sgl_core.language as sgl
from sgl_core.backend import Capabilities, Handle
from sgl_core.language.position import Position, TokenRope
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_core.types import GenRequest, GenResult, SegmentKind, TurnState

ROLES = ("system", "user", "assistant")
OPTIONS = {"max_new_tokens": 200}

texts = st.text("abcxyz \n", max_size=8)
constants = st.one_of(
    texts.map(lambda text: ("text", text)),
    st.tuples(st.sampled_from(ROLES), texts),
    st.just(("raw", "<|user|>raw")),
)


def append(s: sgl.ProgramState, kind: str, text: str) -> None:
    if kind == "text":
        s += text
    elif kind == "raw":
        s += sgl.raw(text)
    else:
        s += getattr(sgl, kind)(text)


def whole_ids(codec: ByteCodec, parts: list[tuple[str, str]]) -> tuple[int, ...]:
    """Ids of constants by the naive way: all pieces in a row, neighbouring text joined, then encoded."""
    pieces: list[int | str] = []
    roles: tuple[str, ...] = ()
    for kind, text in parts:
        if kind == "raw":
            pieces += ["", *codec.encode_trusted("<|user|>"), *codec.encode("raw")]
        elif kind == "text":
            pieces.append(text)
        else:
            pieces += [*codec.open_turn(kind, TurnState(roles)), text]
            roles = (*roles, kind)
            pieces += codec.close_turn(kind, TurnState(roles, is_open=True))
    ids: list[int] = []
    text = ""
    for piece in [*pieces, 256]:
        if isinstance(piece, str):
            text += piece
        else:
            ids += codec.encode(text)
            text = ""
            ids.append(piece)
    ids = [token for token in ids if token != 256]
    return (256, *ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(constants, max_size=8))
def test_ids_of_constants_are_those_of_the_whole_text_encoded_at_once(merging_codec: ByteCodec, parts) -> None:
    @sgl.function
    def program(s):
        for kind, text in parts:
            append(s, kind, text)
        s += sgl.gen("x", heal=False)

    with FakeBackend(codec=merging_codec) as backend:
        program.run(backend=backend, **OPTIONS)
        assert backend.requests[0].input_ids == whole_ids(merging_codec, parts)


class RecordingBackend(FakeBackend):
    """Keeps the results, in order of the requests."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.handles: list[Handle[GenResult]] = []

    def submit(self, request: GenRequest) -> Handle[GenResult]:
        self.handles.append(super().submit(request))
        return self.handles[-1]


gens = st.sampled_from(["space", "token", False]).map(lambda heal: ("gen", heal))
steps = st.lists(st.one_of(constants, gens, st.just(("select", "")), st.just(("fork", ""))), max_size=10)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_every_request_extends_what_its_stream_sent_and_received_before(merging_codec: ByteCodec, parts) -> None:
    """The prefix cache can always serve a program its own history."""
    streams: list[sgl.ProgramState] = []

    @sgl.function
    def program(s):
        number = 0
        for kind, text in parts:
            streams[:] = [s]
            if kind == "gen":
                s += sgl.gen(f"v{number}", heal=text)
                s[f"v{number}"]
                number += 1
            elif kind == "select":
                s += sgl.select(None, ["ab", "b", "\n"])
                s.sync()
            elif kind == "fork":
                s = s.fork(1)[0]
            else:
                append(s, kind, text)
        s += sgl.gen("last")

    reply = "ab cd"
    with RecordingBackend(lambda ids, params: reply, codec=merging_codec) as backend:
        program.run(backend=backend, **OPTIONS)
        results = [handle.result(0) for handle in backend.handles]
        for before, result, after in zip(backend.requests, results, backend.requests[1:], strict=False):
            history = before.input_ids + result.healed_ids + result.token_ids
            assert after.input_ids[: len(history)] == history
        last = backend.requests[-1].input_ids
        assert all(last[: len(request.input_ids)] == request.input_ids for request in backend.scores)


def test_text_behind_a_generation_is_encoded_alone(merging_codec: ByteCodec) -> None:
    @sgl.function
    def program(s):
        s += "q" + sgl.gen("x") + "c" + "d" + sgl.gen("y")

    with FakeBackend(lambda ids, params: "a", codec=merging_codec) as backend:
        program.run(backend=backend, **OPTIONS)
        encode = merging_codec.encode
        assert encode("acd") != encode("a") + encode("cd")
        assert backend.requests[1].input_ids == (256, *encode("q"), *encode("a"), *encode("cd"))


def test_text_that_a_stop_string_cut_out_of_a_token_joins_what_follows(merging_codec: ByteCodec) -> None:
    from dataclasses import replace

    class Cutting(FakeBackend):
        def _result(self, *args):
            return replace(super()._result(*args), text="xya", token_ids=merging_codec.encode("xy"), text_behind_ids="a")

    @sgl.function
    def program(s):
        s += "q" + sgl.gen("x") + "c" + sgl.gen("y")

    with Cutting(codec=merging_codec) as backend:
        state = program.run(backend=backend, **OPTIONS)
        encode = merging_codec.encode
        assert backend.requests[1].input_ids == (256, *encode("q"), *encode("xy"), *encode("ac"))
    assert state.text() == "qxyacxya"


def test_a_prompt_begins_once_whatever_comes_first(backend: FakeBackend) -> None:
    firsts: list[Callable[[], object]] = [
        lambda: "text",
        lambda: sgl.user("turn"),
        lambda: "text" + sgl.user("turn"),
        lambda: sgl.raw("raw"),
        lambda: sgl.raw("<|begin|>raw"),
        lambda: sgl.raw("raw") + sgl.user("turn"),
        lambda: "",
    ]
    for first in firsts:

        @sgl.function
        def program(s, first=first):
            s += first() + sgl.gen("x")

        program.run(backend=backend, **OPTIONS)
        ids = backend.requests[-1].input_ids
        assert (ids[0], ids.count(256)) == (256, 1)


class SegmentBackend(FakeBackend):
    """Reads segments, as a text-only API does."""

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities, token_ids=False)

    def submit(self, request: GenRequest) -> Handle[GenResult]:
        assert request.input_ids == ()
        return super().submit(dataclasses.replace(request, input_ids=(1,)))


def test_segments_say_where_each_piece_comes_from() -> None:
    backend = SegmentBackend()

    @sgl.function
    def program(s):
        s += "a" + sgl.user("b" + sgl.raw("c") + "d" + "e") + sgl.gen("x") + "f" + sgl.gen("y")

    state = program.run(backend=backend, **OPTIONS)
    kinds = SegmentKind
    assert [(segment.kind, segment.text) for segment in backend.requests[1].segments] == [
        (kinds.TEXT, "a"),
        (kinds.TURN, "user"),
        (kinds.TEXT, "b"),
        (kinds.RAW, "c"),
        (kinds.TEXT, "de"),
        (kinds.GENERATED, state["x"]),
        (kinds.TEXT, "f"),
    ]


@given(st.lists(st.lists(st.integers(0, 99), max_size=4).map(tuple), max_size=6), st.data())
def test_a_rope_is_the_concatenation_of_its_parts_whenever_it_is_flattened(parts, data) -> None:
    ropes = [TokenRope()]
    for part in parts:
        ropes.append(ropes[-1].extend(part))
    order = data.draw(st.permutations(range(len(ropes))))
    for index in order:
        expected = tuple(token for part in parts[:index] for token in part)
        assert ropes[index].flat() == expected
        assert ropes[index].length == len(expected)


def test_flattening_a_shared_rope_once_serves_all_that_grow_from_it() -> None:
    base = TokenRope((1,)).extend((2,)).extend((3,))
    children = [base.extend((i,)) for i in range(3)]
    assert base.flat() is base.flat()
    assert [child.flat() for child in children] == [(1, 2, 3, 0), (1, 2, 3, 1), (1, 2, 3, 2)]


def test_a_very_long_history_is_flattened_without_recursion() -> None:
    rope = TokenRope()
    for number in range(20_000):
        rope = rope.extend((number,))
    assert rope.flat() == tuple(range(20_000))


def test_positions_are_values_that_no_step_changes() -> None:
    codec = ByteCodec()
    start = Position()
    after = start.add_text("a").open_turn("user", codec)
    assert (start.ids.flat(), start.tail, start.trail, start.turns) == ((), "", None, TurnState())
    assert after.turns == TurnState(("user",), is_open=True)
    with pytest.raises(AttributeError):
        start.tail = "b"
