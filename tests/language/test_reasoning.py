"""Reasoning apart from the answer: where outputs are split, and what a stream goes on from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_core.errors import InvalidArgumentError
from sgl_core.language import function, gen
from sgl_core.language.healing import GenPrompt
from sgl_core.language.position import Position, text_of
from sgl_core.language.position import pieces_since as pieces
from sgl_core.language.primitives import separate_reasoning
from sgl_core.language.reasoning import MODEL_TYPES, continued_answer, reasoning_name, split_reasoning
from sgl_core.testing import ByteCodec, FakeBackend
from sgl_core.types import FinishReason, GenResult, Usage

FULL = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")
THINKING = [name for name, one in MODEL_TYPES.items() if one.spellings[0].start == "<think>"]
INSIDE = [name for name, one in MODEL_TYPES.items() if one.begins_inside]
OUTSIDE = [name for name in MODEL_TYPES if name not in INSIDE]

plain = st.text("ab \n<>/", max_size=12).filter(lambda text: "<think>" not in text and "</think>" not in text)
fragments = st.lists(st.sampled_from(["<think>", "</think>", "a", "b ", "\n", "<", "think>"]), max_size=8).map("".join)


# ---- splitting -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_stands_between_the_markers_is_the_reasoning(model_type: str) -> None:
    for markers in MODEL_TYPES[model_type].spellings:
        assert split_reasoning(f"{markers.start}hm{markers.end}Paris.", model_type) == ("hm", "Paris.")


@pytest.mark.parametrize("model_type", THINKING)
def test_line_ends_beside_a_marker_belong_to_it_and_other_white_space_does_not(model_type: str) -> None:
    output = "\n<think>\n  one\n\ntwo \n</think>\n\n  Paris.\n"
    assert split_reasoning(output, model_type) == ("  one\n\ntwo ", "  Paris.\n")


@pytest.mark.parametrize("model_type", THINKING)
def test_an_end_without_a_start_ends_what_the_prompt_had_begun(model_type: str) -> None:
    assert split_reasoning("hm\n</think>\nParis.", model_type) == ("hm", "Paris.")


@pytest.mark.parametrize("model_type", THINKING)
def test_reasoning_that_is_cut_short_has_no_answer(model_type: str) -> None:
    assert split_reasoning("<think>\nhm, ", model_type) == ("hm, ", "")


@pytest.mark.parametrize("model_type", OUTSIDE)
def test_without_markers_everything_is_the_answer(model_type: str) -> None:
    assert split_reasoning("\nParis.\n", model_type) == ("", "\nParis.\n")


@pytest.mark.parametrize("model_type", INSIDE)
def test_without_markers_a_model_that_begins_inside_was_cut_short(model_type: str) -> None:
    assert split_reasoning("\nhm, ", model_type) == ("\nhm, ", "")


@pytest.mark.parametrize("model_type", THINKING)
def test_doubled_start_markers_count_as_one_and_a_second_end_marker_is_text(model_type: str) -> None:
    assert split_reasoning("<think>\n<think>a</think>b</think>c", model_type) == ("a", "b</think>c")


def test_a_start_marker_inside_an_answer_is_text() -> None:
    assert split_reasoning("Write <think> first.", "qwen3") == ("", "Write <think> first.")


def test_empty_reasoning_leaves_the_answer() -> None:
    assert split_reasoning("<think>\n\n</think>\n\nParis.", "qwen3") == ("", "Paris.")


@pytest.mark.parametrize(("start", "end"), [FULL, ("analysis", "assistantfinal")])
def test_the_channels_of_gpt_oss_are_found_with_and_without_control_tokens(start: str, end: str) -> None:
    assert split_reasoning(f"{start}hm{end}Paris.", "gpt-oss") == ("hm", "Paris.")
    assert split_reasoning(f"{start}hm", "gpt-oss") == ("hm", "")


@pytest.mark.parametrize("label", ["<|channel|>final<|message|>", "final"])
def test_gpt_oss_may_answer_at_once(label: str) -> None:
    assert split_reasoning(f"{label}Paris.", "gpt-oss") == ("", "Paris.")


def test_an_end_marker_that_is_a_word_counts_only_behind_its_start() -> None:
    assert split_reasoning("The assistantfinal channel.", "gpt-oss") == ("", "The assistantfinal channel.")


def test_an_unknown_kind_of_model_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="model_type: got 'gpt-5', expected one of deepseek-r1"):
        split_reasoning("Paris.", "gpt-5")


@settings(deadline=None)
@given(reasoning=plain, answer=plain, model_type=st.sampled_from(THINKING))
def test_both_parts_come_back_but_for_line_ends_at_the_markers(reasoning: str, answer: str, model_type: str) -> None:
    expected = (reasoning.strip("\r\n"), answer.lstrip("\r\n"))
    assert split_reasoning(f"<think>{reasoning}</think>{answer}", model_type) == expected


def overlapping(text: str, where: str) -> list[range]:
    """Every place where a text stands, as the range of its characters."""
    starts = (index for index in range(len(where) + 1) if where.startswith(text, index))
    return [range(start, start + len(text)) for start in starts]


@settings(deadline=None)
@given(output=fragments, model_type=st.sampled_from(list(MODEL_TYPES)))
def test_nothing_is_made_up_and_the_answer_is_the_end_of_the_output(output: str, model_type: str) -> None:
    reasoning, answer = split_reasoning(output, model_type)
    assert output.endswith(answer)
    before = output.removesuffix(answer)
    others = [before[: found.start] + before[found.stop :] for found in overlapping(reasoning, before)]
    assert any(other.replace("<think>", "").replace("</think>", "").strip() == "" for other in others)


@settings(deadline=None)
@given(output=fragments, model_type=st.sampled_from(THINKING))
def test_an_end_marker_never_stays_in_the_reasoning(output: str, model_type: str) -> None:
    assert "</think>" not in split_reasoning(output, model_type)[0]


# ---- what a stream goes on from --------------------------------------------------------------------------------------
def result_of(ids: tuple[int, ...], codec: ByteCodec, behind: str = "") -> GenResult:
    return GenResult(codec.decode(ids) + behind, ids, FinishReason.STOP, Usage(1, 0, len(ids)), text_behind_ids=behind)


def ids_of(position: Position, codec: ByteCodec) -> tuple[int, ...]:
    """Its settled ids behind the beginning of the prompt."""
    begin = codec.begin()
    ids = position.ids.flat()
    assert ids[: len(begin)] == begin
    return ids[len(begin) :]


def continued_from(codec: ByteCodec, result: GenResult, answer: str) -> Position:
    position = Position().add_text("Q:")
    return continued_answer(position, codec, GenPrompt(position.settled(codec).ids), result, answer)


def test_an_answer_keeps_the_ids_that_were_generated_for_it() -> None:
    codec = ByteCodec()
    after = continued_from(codec, result_of(codec.encode("<think>hm</think>Paris"), codec), "Paris")
    assert (ids_of(after, codec), after.tail) == (codec.encode("Q:Paris"), "")
    assert text_of(pieces(after.trail)) == "Q:Paris"


def test_an_answer_of_characters_of_several_tokens_keeps_its_ids() -> None:
    codec = ByteCodec()
    answer = "\N{GRINNING FACE}\N{GRINNING FACE}\u65e5\u672c, d\u00e9j\u00e0 vu"
    after = continued_from(codec, result_of(codec.encode(f"<think>\u65e5</think>{answer}"), codec), answer)
    assert (ids_of(after, codec), after.tail) == (codec.encode(f"Q:{answer}"), "")


def test_an_answer_that_begins_inside_a_token_is_text_to_be_encoded_once(merging_codec: ByteCodec) -> None:
    ids = (*merging_codec.encode("</think>\n"), *merging_codec.encode("is"))
    assert len(merging_codec.encode("is")) == 1
    after = continued_from(merging_codec, result_of(ids, merging_codec), "s")
    assert (ids_of(after, merging_codec), after.tail) == (merging_codec.encode("Q:"), "s")


def test_characters_that_a_stop_cut_off_stay_text_behind_the_ids() -> None:
    codec = ByteCodec()
    result = result_of(codec.encode("</think>Par"), codec, behind="is")
    kept, cut = continued_from(codec, result, "Paris"), continued_from(codec, result, "s")
    assert (ids_of(kept, codec), kept.tail) == (codec.encode("Q:Par"), "is")
    assert (ids_of(cut, codec), cut.tail) == (codec.encode("Q:"), "s")


def test_reasoning_that_was_cut_short_leaves_the_prompt() -> None:
    codec = ByteCodec()
    after = continued_from(codec, result_of(codec.encode("<think>hm"), codec), "")
    assert (ids_of(after, codec), after.tail) == (codec.encode("Q:"), "")


def test_an_output_without_reasoning_goes_on_as_any_other() -> None:
    codec = ByteCodec()
    after = continued_from(codec, result_of(codec.encode("Paris"), codec), "Paris")
    assert (ids_of(after, codec), after.tail) == (codec.encode("Q:Paris"), "")


def test_a_long_output_is_searched_with_few_decodings() -> None:
    class Counting(ByteCodec):
        calls = 0

        def decode(self, ids):
            self.calls += 1
            return super().decode(ids)

    codec = Counting()
    result = result_of(codec.encode("a" * 4000 + "</think>" + "b" * 4000), codec)
    codec.calls = 0
    after = continued_from(codec, result, "b" * 4000)
    assert after.tail == ""
    assert codec.calls <= 13 + 12  # halves of 8,008, and those looked at one by one


@settings(deadline=None)
@given(reasoning=plain, answer=st.text("ab\u00e9\u65e5 \n", max_size=12))
def test_a_stream_goes_on_from_the_prompt_and_the_answer(merging_codec: ByteCodec, reasoning: str, answer: str) -> None:
    result = result_of(merging_codec.encode(f"<think>{reasoning}</think>{answer}"), merging_codec)
    _, kept = split_reasoning(result.text, "qwen3")
    after = continued_from(merging_codec, result, kept)
    assert merging_codec.decode(after.ids.flat()) + after.tail == f"Q:{kept}"
    assert text_of(pieces(after.trail)) == f"Q:{kept}"


# ---- in a program ----------------------------------------------------------------------------------------------------
@function
def capital(s, **options):
    s += "Capital: " + separate_reasoning(gen("city", **options), "qwen3") + "."
    s += " River: " + gen("river", max_tokens=64)


def test_a_gen_defines_the_answer_and_its_reasoning() -> None:
    with FakeBackend(lambda ids, params: "<think>\nFrance.\n</think>\n\nParis") as backend:
        state = capital.run(backend=backend, max_tokens=64)
    assert (state["city"], state[reasoning_name("city")]) == ("Paris", "France.")
    assert state.get_meta_info("city")["raw_text"] == "<think>\nFrance.\n</think>\n\nParis"
    assert state.text().startswith("Capital: Paris. River: ")


def test_what_follows_reads_the_prompt_as_it_was_written_and_the_answer_alone() -> None:
    with FakeBackend(lambda ids, params: "<think>France.</think>Paris") as backend:
        capital.run(backend=backend, max_tokens=64)
    first, second = backend.requests
    codec = backend.codec
    assert (codec.decode(first.input_ids), first.heal) == ("Capital:", " ")
    assert codec.decode(second.input_ids) + second.heal == "Capital: Paris. River: "


def test_the_type_of_the_variable_is_read_from_the_answer() -> None:
    with FakeBackend(lambda ids, params: "<think>6 * 7</think>\n42") as backend:
        assert capital.run(backend=backend, max_tokens=64, dtype=int)["city"] == 42
