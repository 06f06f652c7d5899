"""Text of a model, made safe to show."""

import pytest

from sgl_core.testing import ByteCodec
from sgl_native.printable import one_line, readable, shortened, without_controls


def test_escape_sequences_lose_their_control_character():
    assert without_controls("\x1b[31mred\x1b[0m\x07 \x9b2J") == "[31mred[0m 2J"


def test_newlines_tabs_and_every_script_stay():
    text = "two\nlines\twith naïve 日本語 🙂\u00a0"
    assert without_controls(text) == text


def test_half_a_surrogate_pair_goes():
    assert without_controls("a\ud800b") == "ab"


def test_one_line_shows_newlines_and_what_cannot_be_printed():
    assert one_line("a\nb\tc\u00a0d\x00e\ud800") == "a↵b c d·e·"


def test_a_short_text_is_not_shortened():
    assert shortened("123456", 6) == "123456"


@pytest.mark.parametrize("most", [4, 5, 9, 10])
def test_a_long_text_keeps_its_beginning_and_its_end(most):
    text = shortened("abcdefghijklmnopqrstuvwxyz", most)
    assert len(text) == most
    assert text[0] == "a"
    assert text[-1] == "z"
    assert text.count("…") == 1


def test_control_tokens_are_spelled_out_between_the_text():
    codec = ByteCodec()
    ids = codec.encode_trusted("<|begin|><|user|>Hé<|end_user|>\nthere")
    assert readable(codec, ids) == "<|begin|><|user|>Hé<|end_user|>\nthere"
