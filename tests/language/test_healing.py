"""Healing: which token of a prompt is taken back, and where a stream stands when the model has spelled it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

import sgl_core.language as sgl
from sgl_core.backend import Capabilities
from sgl_core.errors import InvalidArgumentError
from sgl_core.language.ir import Gen, Heal
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_core.types import GenResult, TurnState

JOINED = 1000  # a space and the letter behind it
TWO_SPACES = 2000


class SpacedCodec(ByteCodec):
    """Bytes, but a space and the letter behind it are one token, and so are two spaces, as in the vocabularies of models."""

    fingerprint = "spaced"
    vocab_size = 2001

    def encode(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for byte in super().encode(text):
            if ids[-1:] == [32] and 97 <= byte < 123:
                ids[-1] = JOINED + byte
            elif ids[-1:] == [32] and byte == 32:
                ids[-1] = TWO_SPACES
            else:
                ids.append(byte)
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        parts: list[int] = []
        for token in ids:
            parts += (32, 32) if token == TWO_SPACES else (32, token - JOINED) if token > JOINED else (token,)
        return super().decode(parts)


class TemplateWithSpace(SpacedCodec):
    """Its turns open with text that ends in a space."""

    def open_turn(self, role: str, turns: TurnState) -> tuple[int | str, ...]:
        return (*super().open_turn(role, turns), f"{role}: ")


def run(*parts: sgl.Expr | str, codec: ByteCodec | None = None, reply: str = "paris") -> tuple[FakeBackend, sgl.ProgramState]:
    """Run a program of these parts on a fake, which it returns closed."""

    @sgl.function
    def program(s):
        for part in parts:
            s += part

    with FakeBackend(lambda ids, params: reply, codec=codec or SpacedCodec()) as backend:
        return backend, program.run(backend=backend, max_new_tokens=100)


def sent(*parts: sgl.Expr | str, codec: ByteCodec | None = None) -> tuple[tuple[int, ...], str]:
    """Ids and text to be healed of the last request."""
    backend, _ = run(*parts, codec=codec)
    return backend.requests[-1].input_ids, backend.requests[-1].heal


def ids_of(text: str) -> tuple[int, ...]:
    return (256, *SpacedCodec().encode(text))


def test_a_space_at_the_end_is_left_to_the_model() -> None:
    assert sent("The capital is ", sgl.gen()) == (ids_of("The capital is"), " ")


def test_the_stream_goes_on_from_the_ids_that_the_model_chose() -> None:
    backend, state = run("It is ", sgl.gen("x"), ".", sgl.gen("y"))
    assert backend.requests[1].input_ids == ids_of("It is paris") + (ord("."),)
    assert state["x"] == "paris"
    assert state.text() == "It is paris.paris"


def test_without_healing_the_prompt_is_encoded_as_it_stands() -> None:
    assert sent("It is ", sgl.gen(heal=False)) == (ids_of("It is "), "")


@pytest.mark.parametrize("text", ["It is", "It is\n", "It is \n", "It is\u00a0", "is.", "  is"])
def test_a_prompt_that_ends_in_anything_but_spaces_or_tabs_stays(text: str) -> None:
    assert sent(text, sgl.gen()) == (ids_of(text), "")


@pytest.mark.parametrize(("text", "heal"), [("a\t", "\t"), ("a   ", " "), ("a    ", "  "), ("a\n ", " "), ("a", ""), ("", "")])
def test_of_a_run_of_blanks_the_last_token_is_taken_back(text: str, heal: str) -> None:
    assert sent("It" + text, sgl.gen()) == (ids_of("It" + text.removesuffix(heal)), heal)


def test_text_in_several_parts_counts_as_one() -> None:
    assert sent("It is", " ", " ", sgl.gen()) == (ids_of("It is"), "  ")


def test_a_value_that_a_program_appends_is_its_own_text() -> None:
    @sgl.function
    def program(s):
        s["blank"] = "is "
        s += "It " + sgl.gen("x", heal=False)
        s += "It " + s["blank"] + sgl.gen("y")

    with FakeBackend(lambda ids, params: "x", codec=SpacedCodec()) as backend:
        program.run(backend=backend, max_new_tokens=100)
    assert backend.requests[-1].heal == " "


@pytest.mark.parametrize("heal", ["space", "token"])
def test_template_text_stays(heal: Heal) -> None:
    prompt = sgl.assistant_begin() + sgl.gen(heal=heal) + sgl.assistant_end()
    codec = TemplateWithSpace()
    assert sent(prompt, codec=codec) == ((256, 261, *codec.encode("assistant: ")), "")
    of_both = sgl.assistant_begin() + " " + sgl.gen(heal=heal)  # one token: the template's space and the author's
    assert sent(of_both, codec=codec) == ((256, 261, *codec.encode("assistant:  ")), "")


@pytest.mark.parametrize("heal", ["space", "token"])
def test_what_was_generated_or_selected_or_written_raw_stays(heal: Heal) -> None:
    for before in (sgl.gen(stop="p"), sgl.select("x", ["a "]), sgl.raw("raw ")):
        assert sent("It is", before, sgl.gen(heal=heal))[1] == ""


@pytest.mark.parametrize("heal", ["space", "token"])
def test_text_that_a_stop_string_cut_out_of_a_token_stays(heal: Heal) -> None:
    class Cutting(FakeBackend):
        def _result(self, *args) -> GenResult:
            return replace(super()._result(*args), text="x ", token_ids=tuple(b"x"), text_behind_ids=" ")

    @sgl.function
    def program(s):
        s += "It is" + sgl.gen("x") + sgl.gen("y", heal=heal)

    with Cutting(codec=SpacedCodec()) as backend:
        program.run(backend=backend, max_new_tokens=100)
    assert (backend.requests[1].input_ids, backend.requests[1].heal) == (ids_of("It isx "), "")


def test_the_last_token_of_a_prompt_stays() -> None:
    class WithoutBegin(SpacedCodec):
        def begin(self) -> tuple[int, ...]:
            return ()

    assert sent(" ", sgl.gen(), codec=WithoutBegin()) == ((32,), "")
    assert sent(" ", sgl.gen()) == ((256,), " ")


@pytest.mark.parametrize("capabilities", [Capabilities(), Capabilities(token_ids=False, heal=True)])
def test_a_backend_that_cannot_heal_gets_the_whole_prompt(capabilities: Capabilities) -> None:
    class Plain(FakeBackend):
        def _check(self, *args) -> None:
            """Also a request without ids, whose segments say it all."""

    Plain.capabilities = capabilities

    @sgl.function
    def program(s):
        s += "It is " + sgl.gen("x")

    with Plain(codec=SpacedCodec()) as backend:
        program.run(backend=backend, max_new_tokens=100)
    assert backend.requests[0].heal == ""
    assert "".join(segment.text for segment in backend.requests[0].segments) in ("", "It is ")


def test_a_word_can_be_healed_on_request() -> None:
    assert sent("http:", sgl.gen(heal="token")) == (ids_of("http"), ":")
    assert sent("It i", sgl.gen(heal="token")) == (ids_of("It"), " i")
    assert sent("It is\n", sgl.gen(heal="token")) == (ids_of("It is\n"), "")


def test_a_character_is_not_cut_in_two() -> None:
    assert sent("caf\u00e9", sgl.gen(heal="token")) == (ids_of("caf\u00e9"), "")


def test_text_that_the_vocabulary_cannot_spell_is_not_healed() -> None:
    class Lossy(SpacedCodec):
        def encode(self, text: str) -> tuple[int, ...]:
            return super().encode(text.replace("\t", ""))

    assert sent("a \t", sgl.gen(), codec=Lossy()) == ((256, *b"a "), "")
    assert sent("\ta ", sgl.gen(), codec=Lossy()) == ((256, *b"a"), " ")


def test_healed_text_that_no_token_spells_in_the_end_is_text_again() -> None:
    class Cutting(FakeBackend):
        """A stop string cuts through the first token, which spelled the healed text, too."""

        def _result(self, request, params, text) -> GenResult:
            result = super()._result(request, params, text)
            return replace(result, text="p", token_ids=(), healed_ids=(), text_behind_ids="p") if request.heal else result

    @sgl.function
    def program(s):
        s += "It is " + sgl.gen("x") + "q" + sgl.gen("y")

    with Cutting(lambda ids, params: "paris", codec=SpacedCodec()) as backend:
        state = program.run(backend=backend, max_new_tokens=100)
    assert backend.requests[1].input_ids == ids_of("It is") + SpacedCodec().encode(" pq")
    assert state.text() == "It is pqparis"


def test_healed_text_behind_an_output_that_a_stop_cut_down_to_nothing_is_healed_again() -> None:
    class Cutting(FakeBackend):
        """A stop string begins in the first token, which spelled the healed text, too."""

        def _result(self, request, params, text) -> GenResult:
            return replace(super()._result(request, params, text), text="", token_ids=(), healed_ids=(), text_behind_ids="")

    @sgl.function
    def program(s):
        s += "It is " + sgl.gen("x", stop="pa") + sgl.gen("y")

    with Cutting(lambda ids, params: "paris", codec=SpacedCodec()) as backend:
        program.run(backend=backend, max_new_tokens=100)
    assert [(request.input_ids, request.heal) for request in backend.requests] == [(ids_of("It is"), " ")] * 2


def test_an_empty_output_leaves_the_healed_text_as_the_model_spelled_it() -> None:
    backend, state = run("It is ", sgl.gen("x"), "q", sgl.gen("y"), reply="")
    assert backend.requests[1].input_ids == ids_of("It is ") + tuple(b"q")
    assert state.text() == "It is q"


def test_forks_heal_the_text_they_have_in_common_and_leave_it_to_the_parent_as_it_was() -> None:
    @sgl.function
    def program(s):
        s += "It is "
        forks = s.fork(2)
        forks += sgl.gen("x")
        forks.join()
        s += "a" + sgl.gen("y")

    with FakeBackend(lambda ids, params: "paris", codec=SpacedCodec()) as backend:
        state = program.run(backend=backend, max_new_tokens=100)
    assert [request.heal for request in backend.requests] == [" ", " ", ""]
    assert {request.input_ids for request in backend.requests[:2]} == {ids_of("It is")}
    assert backend.requests[2].input_ids == ids_of("It is a")
    assert state["x"] == ["paris", "paris"]


def test_streamed_text_holds_the_healed_text_once() -> None:
    @sgl.function
    def program(s):
        s += "It is " + sgl.gen("x")

    with FakeBackend(lambda ids, params: "paris by night", codec=SpacedCodec()) as backend:
        state = program.run(backend=backend, max_new_tokens=100, stream=True)
        assert "".join(state.text_iter()) == "It is paris by night"
        assert "".join(state.text_iter("x")) == "paris by night"


def test_a_select_behind_a_space_sends_it_along_with_the_choices() -> None:
    backend, state = run("It is ", sgl.select("x", ["paris", "rome"]), ".", sgl.gen())
    assert backend.scores[0].input_ids == ids_of("It is")
    assert backend.requests[0].input_ids == ids_of(f"It is {state['x']}.")


def test_the_meta_info_counts_healed_tokens() -> None:
    _, state = run("It is ", sgl.gen("x"), sgl.gen("y"))
    assert state.get_meta_info("x")["healed_tokens"] == 0  # " p" is a token of the output
    _, state = run("It is ", sgl.gen("x"), reply="2")
    assert state.get_meta_info("x")["healed_tokens"] == 1


def test_ways_of_healing_are_three() -> None:
    assert sgl.gen("x", heal="token") == Gen("x", {}, str, "token")
    assert sgl.gen_int("x", heal=False).heal is False
    assert sgl.gen_string("x").heal == "space"
    for wrong in (True, None, "word", 0, ["space"]):
        with pytest.raises(InvalidArgumentError, match="heal"):
            sgl.gen("x", heal=wrong)
    with pytest.raises(InvalidArgumentError, match="heal"):
        sgl.gen("x", choices=["a"], heal="word")
