"""Tokens as bytes, for byte-level vocabularies and for SentencePiece's kind."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from sgl_core.errors import UnsupportedModelError
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.grammar.vocabulary import Vocabulary
from sgl_core.testing.tiny_models import TINY_VOCAB

PIECES = ("▁", "▁a", "a", "b", "c", "▁b", "▁▁", "ab", "▁ab", "é", "{", "}", '"')


@pytest.fixture(scope="module")
def codec(tiny_model_folder: Callable[[str], Path]) -> LocalCodec:
    return LocalCodec.from_folder(tiny_model_folder("llama"))


@pytest.fixture(scope="module")
def byte_level(codec: LocalCodec) -> Vocabulary:
    return Vocabulary(codec.serialised, TINY_VOCAB, [2])


@pytest.fixture(scope="module")
def pieces() -> Vocabulary:
    """Control tokens 0 to 2, bytes from 3 on, then pieces with a space marker; three rows without a token."""
    spellings = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES)
    vocab = {spelling: token for token, spelling in enumerate(spellings)}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "▁"), ("▁a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(spelling, special=True, normalized=False) for spelling in spellings[:3]])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    marker = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([marker, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Vocabulary(tokenizer.to_str(), len(spellings) + 3, [2])


def fewest(vocabulary: Vocabulary, text: bytes) -> int | None:
    """Breadth first over all segmentations."""
    spellings = {vocabulary.token_bytes(token) for token in range(vocabulary.size)} - {b""}
    reached, count = {0}, 0
    while reached and len(text) not in reached:
        reached = {at + len(s) for at in reached for s in spellings if text.startswith(s, at)}
        count += 1
    return count if reached else None


def test_tokens_spell_their_bytes_and_control_tokens_nothing(byte_level: Vocabulary, codec: LocalCodec) -> None:
    for token in codec.encode("the é 12"):
        assert byte_level.token_bytes(token).decode("utf-8", "replace") == codec.decode([token])
    assert {byte_level.token_bytes(token) for token in codec.control_ids} == {b""}


def test_rows_without_a_token_spell_nothing(byte_level: Vocabulary, codec: LocalCodec) -> None:
    assert codec.vocab_size < TINY_VOCAB
    assert byte_level.token_bytes(TINY_VOCAB - 1) == b""


def test_an_end_of_text_spells_nothing_even_if_it_is_an_ordinary_token(codec: LocalCodec) -> None:
    dot = codec.encode(".")[0]
    vocabulary = Vocabulary(codec.serialised, TINY_VOCAB, [2, dot, 2])
    assert vocabulary.eos_ids == (2, dot)
    assert vocabulary.token_bytes(dot) == b""
    assert vocabulary.shortest_spelling(b"a.") is None


def test_pieces_spell_spaces_for_their_marker_and_bytes_for_the_rest(pieces: Vocabulary) -> None:
    assert pieces.token_bytes(259 + PIECES.index("▁ab")) == b" ab"
    assert pieces.token_bytes(3 + 0xC3) == b"\xc3"


def test_inside_a_text_pieces_get_no_space_of_their_own(pieces: Vocabulary) -> None:
    assert pieces.canonical(b"ab a") == [259 + PIECES.index("ab"), 259 + PIECES.index("▁a")]


def test_where_a_byte_and_a_piece_spell_the_same_the_piece_is_used(pieces: Vocabulary) -> None:
    assert pieces.shortest_spelling(b"a\xc3\xa9") == [259 + PIECES.index("a"), 259 + PIECES.index("é")]


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.text(alphabet="the inrgé 12", max_size=12))
def test_the_shortest_spelling_is_the_shortest_of_all_byte_level_ones(byte_level: Vocabulary, text: str) -> None:
    spelled = byte_level.shortest_spelling(text.encode())
    assert spelled is not None
    assert byte_level.text_bytes(spelled) == text.encode()
    assert len(spelled) == fewest(byte_level, text.encode())


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.text(alphabet="ab cé{x", max_size=10))
def test_the_shortest_spelling_is_the_shortest_of_all_pieces(pieces: Vocabulary, text: str) -> None:
    spelled = pieces.shortest_spelling(text.encode())
    assert spelled is not None
    assert pieces.text_bytes(spelled) == text.encode()
    assert len(spelled) == fewest(pieces, text.encode())


def test_the_canonical_spelling_is_the_tokenizers_own(byte_level: Vocabulary, codec: LocalCodec) -> None:
    text = "in the other 12 héros"
    assert byte_level.canonical(text.encode()) == list(codec.encode(text))


def test_a_control_tokens_spelling_as_text_stays_text(byte_level: Vocabulary, codec: LocalCodec) -> None:
    spelled = byte_level.shortest_spelling(b"a<|im_end|>")
    assert spelled is not None
    assert codec.control_ids.isdisjoint(spelled)
    assert byte_level.text_bytes(spelled) == b"a<|im_end|>"
    assert byte_level.canonical(b"a<|im_end|>") in (None, list(codec.encode("a<|im_end|>")))


def test_a_vocabulary_that_knows_a_control_tokens_spelling_as_a_word_has_no_canonical_tokens_for_it(pieces: Vocabulary) -> None:
    assert pieces.canonical(b"</s>") is None
    assert pieces.shortest_spelling(b"</s>") is not None


def test_a_byte_without_a_token_has_no_spelling() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "<e>": 1}, merges=[]))
    tokenizer.add_special_tokens(["<e>"])
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary(tokenizer.to_str(), 2, [1])
    assert vocabulary.shortest_spelling(b"aa") == [0, 0]
    assert vocabulary.shortest_spelling(b"ab") is None
    assert vocabulary.canonical(b"ab") is None


def test_the_empty_text_is_spelled_by_no_tokens(byte_level: Vocabulary) -> None:
    assert byte_level.shortest_spelling(b"") == byte_level.canonical(b"") == []


def test_a_mask_is_whole_words_of_thirty_two_tokens(codec: LocalCodec) -> None:
    assert [Vocabulary(codec.serialised, size, [2]).mask_bytes for size in (320, 321, 352)] == [40, 44, 44]


def test_threads_that_come_at_once_share_one_tokenizer(codec: LocalCodec) -> None:
    vocabulary = Vocabulary(codec.serialised, TINY_VOCAB, [2])
    barrier = threading.Barrier(4)
    seen = []

    def look() -> None:
        barrier.wait(60)
        seen.append(vocabulary.tokenizer)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 4
    assert len(set(map(id, seen))) == 1


def test_a_tokenizer_that_cannot_be_read_is_a_typed_error_when_it_is_needed() -> None:
    vocabulary = Vocabulary("{}", 10, [2])
    with pytest.raises(UnsupportedModelError, match="without a constraint"):
        vocabulary.shortest_spelling(b"a")
