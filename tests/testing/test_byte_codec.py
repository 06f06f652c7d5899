from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_core.errors import InvalidArgumentError, TemplateError
from sgl_core.testing import ByteCodec
from sgl_core.types import TurnState

CODEC = ByteCodec()


@given(st.text())
def test_any_text_survives_and_holds_no_control_id(text: str) -> None:
    ids = CODEC.encode(text)
    assert CODEC.decode(ids) == text.encode("utf-8", errors="replace").decode()
    assert all(token < 256 for token in ids)


def test_an_incomplete_character_decodes_to_a_replacement() -> None:
    assert CODEC.decode(CODEC.encode("é")[:1]) == "\ufffd"


def test_trusted_text_yields_the_spelled_ids_in_place() -> None:
    assert CODEC.encode_trusted("a<|user|>b<|end_user|>") == (97, 259, 98, 260)


def test_only_the_first_turn_begins_the_prompt() -> None:
    assert CODEC.open_turn("user", TurnState()) == (256, 259)
    assert CODEC.open_turn("assistant", TurnState(("user",))) == (261,)


def test_a_closed_turn_ends_in_text_that_joins_what_follows() -> None:
    assert CODEC.close_turn("user", TurnState(("user",), is_open=True)) == (260, "\n")


def test_an_unknown_role_is_a_template_error_naming_the_known_ones() -> None:
    with pytest.raises(TemplateError, match="assistant"):
        CODEC.open_turn("tool", TurnState())


def test_only_control_ids_have_a_spelling() -> None:
    assert CODEC.spell(256) == "<|begin|>"
    with pytest.raises(InvalidArgumentError, match="token"):
        CODEC.spell(97)
