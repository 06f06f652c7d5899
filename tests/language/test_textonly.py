"""The codec of backends without one."""

from __future__ import annotations

from sgl_core.language.textonly import TextOnlyCodec
from sgl_core.types import TurnState


def test_it_has_no_ids_and_no_text_of_its_own() -> None:
    codec = TextOnlyCodec()
    turns = TurnState(("user",), is_open=True)
    assert codec.encode("a") == codec.encode_trusted("<|a|>") == codec.begin() == ()
    assert codec.open_turn("user", TurnState()) == codec.close_turn("user", turns) == ()
    assert codec.decode((1, 2)) == codec.spell(1) == ""
    assert codec.special_spelling("<|a|>") is None
    assert codec.stable_len("a") == 0
