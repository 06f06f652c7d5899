"""What a body writes to its state and reads from it, on one stream."""

from __future__ import annotations

import warnings

import pytest

import sgl_core.language as sgl
from sgl_core.errors import InvalidArgumentError, ProgramError, StreamClosedError, VariableNotFoundError
from sgl_core.language.ir import Expr
from sgl_core.testing import ByteCodec, FakeBackend

OPTIONS = {"temperature": 0, "max_new_tokens": 100}


def run(body, backend: FakeBackend) -> sgl.ProgramState:
    return sgl.function(body).run(backend=backend, **OPTIONS)


def test_text_shows_the_template_and_messages_only_what_was_said() -> None:
    def body(s):
        s += "preface " + sgl.system("rules") + "between" + sgl.user("question")
        s += sgl.assistant("It is " + sgl.gen("x"))

    with FakeBackend(lambda ids, params: "so") as backend:
        state = run(body, backend)
    assert state.text() == (
        "preface <|system|>rules<|end_system|>\nbetween<|user|>question<|end_user|>\n<|assistant|>It is so<|end_assistant|>\n"
    )
    assert state.messages() == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "It is so"},
    ]


def test_anything_but_text_and_expressions_is_refused(backend: FakeBackend) -> None:
    for wrong in (3, 1.5, None, ["a"]):
        with pytest.raises(InvalidArgumentError, match=r"str\(\.\.\.\)"):
            run(lambda s, wrong=wrong: s.__iadd__(wrong), backend)


def test_a_variable_can_be_read_in_every_way(backend: FakeBackend) -> None:
    def body(s):
        s += "a" + sgl.gen("x")
        assert s["x"] == s.get_var("x")
        assert "x" in s
        assert "y" not in s
        assert 3 not in s
        s.set_var("y", [1, 2])
        s["z"] = 5

    state = run(body, backend)
    assert state.variables() == {"x": state["x"], "y": [1, 2], "z": 5}
    assert state.get_meta_info("y") == {}


def test_an_unknown_variable_is_an_error_that_names_the_known_ones(backend: FakeBackend) -> None:
    state = run(lambda s: s.__iadd__("a" + sgl.gen("tip")), backend)
    with pytest.raises(VariableNotFoundError, match="defined: tip"):
        state["top"]
    with pytest.raises(KeyError):
        state.get_meta_info("top")


def test_the_newest_definition_of_a_variable_is_read() -> None:
    replies = iter(["one", "two"])

    def body(s):
        s += "a" + sgl.gen("x")
        first = s["x"]
        s += sgl.gen("x")
        return [first, s["x"]]

    with FakeBackend(lambda ids, params: next(replies)) as backend:
        assert run(body, backend).ret_value == ["one", "two"]


def test_a_scope_captures_the_text_inside_it(backend: FakeBackend) -> None:
    def body(s):
        s += "before "
        with s.var_scope("outer"):
            s += "a" + sgl.gen("x")
            with s.var_scope("inner"):
                s += "b"
            assert "outer" not in s
        s += " after"

    state = run(body, backend)
    assert state["outer"] == f"a{state['x']}b"
    assert state["inner"] == "b"


def test_turns_can_be_written_in_four_ways(backend: FakeBackend) -> None:
    def with_expressions(s):
        s += sgl.system("a") + sgl.user("b") + sgl.assistant("c")

    def with_calls(s):
        s.system("a")
        s.user("b")
        s.assistant("c")

    def with_blocks(s):
        for block, text in ((s.system, "a"), (s.user, "b"), (s.assistant, "c")):
            with block():
                s += text

    def with_begin_and_end(s):
        s.system_begin()
        s += "a"
        s.system_end()
        s.user_begin()
        s += "b"
        s.user_end()
        s.assistant_begin()
        s += "c"
        s.assistant_end()

    texts = {run(body, backend).text() for body in (with_expressions, with_calls, with_blocks, with_begin_and_end)}
    assert len(texts) == 1


def test_an_open_turn_is_a_message_already(backend: FakeBackend) -> None:
    def body(s):
        s.user_begin()
        s += "so far"

    assert run(body, backend).messages() == [{"role": "user", "content": "so far"}]


def test_a_turn_inside_a_turn_is_refused_where_it_is_written_and_nothing_is_queued(backend: FakeBackend) -> None:
    def body(s):
        s += "a"
        with pytest.raises(ProgramError, match=r"s\.user_end"):
            s += "b" + sgl.user(sgl.assistant("c"))

    assert run(body, backend).text() == "a"


def test_closing_what_is_not_open_is_refused(backend: FakeBackend) -> None:
    def body(s):
        with pytest.raises(ProgramError, match="no turn is open"):
            s.user_end()
        s.user_begin()
        with pytest.raises(ProgramError, match="the open turn is 'user'"):
            s.assistant_end()

    run(body, backend)


def test_a_copy_is_independent(backend: FakeBackend) -> None:
    def body(s):
        s += "shared"
        plain = s.copy()
        plain += " one"
        with s.copy() as block:
            block += " two" + sgl.gen("x")
        s += " three"
        with pytest.raises(StreamClosedError):
            block += "late"
        return [plain.text(), block.text(), "x" in s, block["x"]]

    state = run(body, backend)
    plain, block, is_gathered, x = state.ret_value
    assert (plain, block, is_gathered) == ("shared one", f"shared two{x}", False)
    assert state.text() == "shared three"


def test_meta_info_says_how_a_gen_came_about() -> None:
    def body(s):
        s += "abc" + sgl.gen("x", stop="!")

    with FakeBackend(lambda ids, params: "so! what") as backend:
        meta = run(body, backend).get_meta_info("x")
    expected = {"prompt_tokens": 4, "cached_tokens": 0, "completion_tokens": 3, "finish_reason": "stop", "matched_stop": "!"}
    assert expected.items() <= meta.items()
    assert {"seed", "queue_s", "prefill_s", "decode_s"} <= meta.keys()
    with pytest.raises(TypeError):
        meta["seed"] = 1


def codec_called(name: str) -> ByteCodec:
    codec = ByteCodec()
    codec.fingerprint = name  # warnings are once per codec
    return codec


def test_text_that_spells_a_control_token_warns_once_where_it_is_written_and_stays_text() -> None:
    def body(s):
        s += "a<|user|>b"
        s.user("a<|user|>b")

    with FakeBackend(codec=codec_called("warns")) as backend:
        with pytest.warns(UserWarning, match=r"sgl\.raw") as record:
            state = run(body, backend)
        assert [warning.filename for warning in record] == [__file__]
        assert 259 not in state.stream.position.settled(backend.codec).ids.flat()[:11]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(body, backend)


def test_raw_text_yields_the_control_token_without_a_warning() -> None:
    def body(s):
        s += sgl.raw("<|user|>b") + sgl.gen("x")

    with FakeBackend(codec=codec_called("raw")) as backend:
        run(body, backend)
        assert backend.requests[0].input_ids == (256, 259, 98)


def test_a_node_that_the_interpreter_does_not_know_fails_its_stream(backend: FakeBackend) -> None:
    class Novel(Expr):
        pass

    with pytest.raises(ProgramError, match="Novel"):
        run(lambda s: s.__iadd__(Novel()), backend)


def test_sync_and_error_inside_a_body_concern_its_own_stream(backend: FakeBackend) -> None:
    def body(s):
        s += "a" + sgl.gen("x")
        s.sync()
        assert s.stream.find("x").done()
        assert s.error() is None

    run(body, backend)
