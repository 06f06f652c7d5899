"""Streaming text against full decodes, and stop strings against a search over the whole text."""

import random
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.detokenizer import StreamDecoder

SCRIPTS = {
    "arabic": "مرحبا بالعالم",
    "armenian": "Բարեւ աշխարհ",
    "bengali": "ওহে বিশ্ব",
    "chinese": "你好，世界。",
    "combining": "e\u0301a\u0308 n\u0303o\u0302\u0323",
    "czech": "Příliš žluťoučký kůň",
    "devanagari": "नमस्ते दुनिया",
    "emoji": "🙂🚀 ok 🇪🇺",
    "english": " the quick brown fox\n\n  jumps",
    "ethiopic": "ሰላም ልዑል",
    "georgian": "გამარჯობა",
    "gothic": "𐌷𐌰𐌹𐌻𐍃",
    "greek": "Γειά σου Κόσμε",
    "hebrew": "שלום עולם",
    "japanese": "こんにちは、カタカナ",
    "korean": "안녕하세요 세계",
    "mathematical": "∀x∈ℝ: ⌈𝑥⌉ = −⌊−𝑥⌋",
    "replacement": "a\ufffdb\ufffd",
    "russian": "Привет, мир",
    "tamil": "வணக்கம் உலகம்",
    "thai": "สวัสดีชาวโลก",
    "tibetan": "བཀྲ་ཤིས",
    "vietnamese": "Xin chào thế giới",
    "zero_width_joiner": "👩‍👩‍👧‍👦 👨🏽‍💻 क्‍ष",
}


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    """Few merges: most characters outside ASCII fall into several tokens, and some tokens hold parts of two characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*SCRIPTS.values(), "the END the END\n\nthe quick", "abc.END" * 9], trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("工具", normalized=False)])
    return tokenizer


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """Llama 2's shape: a space marker, a dummy space in front, bytes for what is not in the vocabulary."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz."]
    pieces += ["th", "▁th", "the", "▁the", "he", "▁a"]
    merges = [("t", "h"), ("▁", "th"), ("th", "e"), ("▁th", "e"), ("h", "e"), ("▁", "a")]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


def control_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(token for token, entry in tokenizer.get_added_tokens_decoder().items() if entry.special)


def stream(tokenizer: Tokenizer, ids: Sequence[int], stops: tuple[str, ...] = ()) -> tuple[StreamDecoder, str]:
    decoder = StreamDecoder(tokenizer, stops, control_ids=control_ids(tokenizer))
    pieces = [decoder.push(token) for token in ids]
    return decoder, "".join(pieces) + decoder.finish()


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per byte, whatever could be merged."""
    return [token for char in text for token in tokenizer.encode(char, add_special_tokens=False).ids]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_split_of_every_script_streams_to_the_full_text(script: str, byte_level: Tokenizer) -> None:
    text = SCRIPTS[script]
    for cut in range(len(text) + 1):
        ids = byte_level.encode(text[:cut]).ids + byte_level.encode(text[cut:]).ids
        decoder, joined = stream(byte_level, ids)
        assert joined == decoder.text == byte_level.decode(ids) == text
        assert (decoder.kept_tokens, decoder.text_behind_ids, decoder.matched_stop) == (len(ids), "", None)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_incomplete_character_is_ever_handed_out(script: str, byte_level: Tokenizer) -> None:
    decoder = StreamDecoder(byte_level)
    text = ""
    for token in byte_level.encode(SCRIPTS[script]).ids:
        text += decoder.push(token)
        assert SCRIPTS[script].startswith(text)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 334), max_size=40))
def test_random_ids_stream_to_their_full_decode(byte_level: Tokenizer, ids: list[int]) -> None:
    _, joined = stream(byte_level, ids)
    assert joined == byte_level.decode(ids, skip_special_tokens=True)


def test_incomplete_bytes_at_the_end_become_the_replacement_character(byte_level: Tokenizer) -> None:
    ids = letters(byte_level, "ok🚀")[:-1]
    decoder = StreamDecoder(byte_level)
    assert "".join(map(decoder.push, ids)) == "ok"
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""
    assert decoder.text == byte_level.decode(ids)


def test_the_first_space_of_byte_level_text_is_kept(byte_level: Tokenizer) -> None:
    assert stream(byte_level, byte_level.encode(" the").ids)[1] == " the"


def test_control_tokens_and_padding_rows_have_no_text(byte_level: Tokenizer) -> None:
    end = byte_level.token_to_id("<|end|>")
    the = byte_level.encode("the").ids
    decoder, joined = stream(byte_level, [end, *the, end, 10**6, *the])
    assert joined == "thethe"
    assert decoder.kept_tokens == 2 * len(the) + 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_byte_fallback_vocabularies_stream_to_the_full_text(script: str, sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode(SCRIPTS[script], add_special_tokens=False).ids
    decoder, joined = stream(sentencepiece, ids)
    assert joined == decoder.text == sentencepiece.decode(ids)


def test_text_behind_a_prompt_keeps_its_first_space(sentencepiece: Tokenizer) -> None:
    prompt = [sentencepiece.token_to_id("<s>"), *sentencepiece.encode("a", add_special_tokens=False).ids]
    ids = sentencepiece.encode("the the", add_special_tokens=False).ids
    controls = control_ids(sentencepiece)
    behind = StreamDecoder(sentencepiece, prompt_ids=prompt, control_ids=controls)
    assert "".join(map(behind.push, ids)) + behind.finish() == " the the"
    alone = StreamDecoder(sentencepiece, prompt_ids=prompt[:1], control_ids=controls)
    assert "".join(map(alone.push, ids)) + alone.finish() == "the the"


def test_damaged_bytes_are_not_held_for_ever(sentencepiece: Tokenizer) -> None:
    decoder = StreamDecoder(sentencepiece)
    damaged = [sentencepiece.token_to_id("<0xF0>")] * 40
    assert "".join(map(decoder.push, damaged)).count("\ufffd") >= 36
    decoder.finish()
    assert decoder.text == "\ufffd" * 40


def expected_cut(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return None
    end, _, stop = min(ends)
    return end - len(stop), stop


@pytest.mark.parametrize(
    ("text", "stops", "kept", "matched"),
    [
        ("the\n\nquick", ("\n\n",), "the", "\n\n"),
        ("the END of", ("END",), "the ", "END"),
        ("END of", ("END",), "", "END"),
        ("abcd", ("abc", "ab"), "", "ab"),
        ("xabcd", ("abcd", "bc"), "xa", "bc"),
        ("xabcd", ("bc", "abc"), "x", "abc"),
        ("aab", ("ab",), "a", "ab"),
        ("ababac", ("abac",), "ab", "abac"),
        ("世界。END", ("界。",), "世", "界。"),
        ("the EN", ("END",), "the EN", None),
        ("the", ("\n",), "the", None),
    ],
)
def test_the_earliest_end_wins_and_among_equal_ends_the_earliest_start(
    text: str, stops: tuple[str, ...], kept: str, matched: str | None, byte_level: Tokenizer
) -> None:
    for ids in (byte_level.encode(text).ids, letters(byte_level, text)):
        for order in (stops, stops[::-1]):
            decoder, joined = stream(byte_level, ids, order)
            assert (joined, decoder.text, decoder.matched_stop) == (kept, kept, matched)


def test_text_that_may_begin_a_stop_is_held_back_and_released(byte_level: Tokenizer) -> None:
    decoder = StreamDecoder(byte_level, ("END",))
    pushed = [decoder.push(token) for token in letters(byte_level, "aENxEN")]
    assert pushed == ["a", "", "", "ENx", "", ""]
    assert decoder.finish() == "EN"
    assert decoder.matched_stop is None


def test_tokens_behind_the_stop_are_ignored(byte_level: Tokenizer) -> None:
    decoder = StreamDecoder(byte_level, ("END",))
    for token in letters(byte_level, "aEND"):
        decoder.push(token)
    assert [decoder.push(token) for token in letters(byte_level, "more")] == [""] * 4
    assert (decoder.finish(), decoder.text, decoder.kept_tokens) == ("", "a", 1)


def test_a_stop_inside_a_token_leaves_the_rest_behind_the_kept_tokens(byte_level: Tokenizer) -> None:
    tool = byte_level.token_to_id("<tool>")
    the = byte_level.encode("the ").ids
    decoder, joined = stream(byte_level, [*the, tool], ("ool",))
    assert joined == "the <t"
    assert (decoder.kept_tokens, decoder.text_behind_ids) == (len(the), "<t")


def test_kept_tokens_never_end_inside_a_character(byte_level: Tokenizer) -> None:
    ids = letters(byte_level, "a界.")
    decoder, joined = stream(byte_level, ids, ("界",))
    assert (joined, decoder.kept_tokens, decoder.text_behind_ids) == ("a", 1, "")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("abE界\n🚀 ", max_size=14), st.lists(st.text("abE界\n🚀 ", min_size=1, max_size=4), max_size=4), st.booleans())
def test_stops_cut_like_a_search_over_the_whole_text(byte_level: Tokenizer, text: str, stops: list[str], merged: bool) -> None:
    ids = byte_level.encode(text).ids if merged else letters(byte_level, text)
    decoder, joined = stream(byte_level, ids, tuple(stops))
    cut = expected_cut(text, stops)
    assert decoder.matched_stop == (cut[1] if cut else None)
    assert joined == decoder.text == (text[: cut[0]] if cut else text)
    assert byte_level.decode(ids[: decoder.kept_tokens]) + decoder.text_behind_ids == decoder.text
    whole_tokens = [n for n in range(len(ids) + 1) if text[: cut[0] if cut else None].startswith(byte_level.decode(ids[:n]))]
    assert decoder.kept_tokens == max(whole_tokens)


def test_long_random_streams_hold_back_no_more_than_a_stop_could_claim(byte_level: Tokenizer) -> None:
    rng = random.Random(3)
    text = "".join(rng.choice("abEN\n世") for _ in range(600))
    decoder = StreamDecoder(byte_level, ("END", "\n\n\n\n\n\n"))
    pushed = ""
    ids = letters(byte_level, text)
    for count, token in enumerate(ids, start=1):
        pushed += decoder.push(token)
        seen = byte_level.decode(ids[:count]).rstrip("\ufffd")
        assert 0 <= len(seen) - len(pushed) <= 5


@pytest.mark.parametrize("stops", [("",), "END", ("a", 1)])
def test_a_stop_must_be_a_non_empty_string(stops: tuple[str, ...], byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidArgumentError, match="non-empty strings"):
        StreamDecoder(byte_level, stops)


# ---- the figures of R15: bulk, on the embedded model's vocabulary and on one with byte fallback ------------------------
NUM_STRINGS = 5_000
NUM_ID_SEQUENCES = 4_000
SOAK_SEEDS = 20
SOAK_ID_SEQUENCES = 50_000

Figure = Callable[[str, Mapping[str, int]], None]


@pytest.fixture(scope="module")
def smollm(embedded_codec: LocalCodec) -> Tokenizer:
    return embedded_codec._trusted


def pieces_of(text: str, cut: int, tokenizer: Tokenizer) -> list[int]:
    """Ids of both sides of the cut, encoded apart as a program would whose text arrives in two pieces."""
    return [id_ for side in (text[:cut], text[cut:]) for id_ in tokenizer.encode(side, add_special_tokens=False).ids]


def mixed_text(rng: random.Random) -> str:
    """Up to three scripts in one string, cut anywhere: words and clusters of characters need not be whole."""
    parts = []
    for _ in range(rng.randint(1, 3)):
        script = SCRIPTS[rng.choice(list(SCRIPTS))]
        start = rng.randrange(len(script))
        parts.append(script[start : start + rng.randint(1, 12)])
    return rng.choice(["", " ", "\n", "  "]).join(parts)


def assert_streams_to_its_decode(tokenizer: Tokenizer, ids: Sequence[int], specials: frozenset[int]) -> None:
    decoder = StreamDecoder(tokenizer, control_ids=specials)
    joined = "".join(map(decoder.push, ids)) + decoder.finish()
    assert joined == decoder.text == tokenizer.decode(list(ids), skip_special_tokens=True)
    assert decoder.kept_tokens == len(ids)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_prefix_and_suffix_of_every_split_streams_to_its_decode(script: str, smollm: Tokenizer, figure: Figure) -> None:
    text, specials = SCRIPTS[script], control_ids(smollm)
    sequences = set()
    for cut in range(len(text) + 1):
        ids = pieces_of(text, cut, smollm)
        sequences |= {tuple(part) for end in range(len(ids) + 1) for part in (ids[:end], ids[end:])}
    for part in sequences:
        assert_streams_to_its_decode(smollm, part, specials)
    figure("R15 detokeniser", {"splits of scripts": len(text) + 1, "token sequences": len(sequences)})


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_split_streams_to_its_decode_with_byte_fallback(script: str, sentencepiece: Tokenizer, figure: Figure) -> None:
    """Splits of whole characters only: ``decode`` turns a whole run of byte tokens into U+FFFD when one of them is damaged,
    characters included that a stream has handed out long before.
    """
    text, specials = SCRIPTS[script], control_ids(sentencepiece)
    for cut in range(len(text) + 1):
        assert_streams_to_its_decode(sentencepiece, pieces_of(text, cut, sentencepiece), specials)
    figure("R15 detokeniser", {"splits of scripts": len(text) + 1, "token sequences": len(text) + 1})


@pytest.mark.parametrize("kind", ["smollm", "sentencepiece"])
def test_thousands_of_strings_stream_to_their_decode(kind: str, request: pytest.FixtureRequest, figure: Figure) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    rng, specials = random.Random(15), control_ids(tokenizer)
    for _ in range(NUM_STRINGS):
        text = mixed_text(rng)
        assert_streams_to_its_decode(tokenizer, pieces_of(text, rng.randint(0, len(text)), tokenizer), specials)
    figure("R15 detokeniser", {"strings": NUM_STRINGS})


def test_a_replacement_character_of_the_text_itself_harms_nothing_behind_it(sentencepiece: Tokenizer) -> None:
    for text in ("\ufffdр", "\ufffd\ufffd界", "a\ufffd🚀"):
        ids = sentencepiece.encode(text, add_special_tokens=False).ids
        assert stream(sentencepiece, ids)[1] == sentencepiece.decode(ids) == text


def stream_random_ids(tokenizer: Tokenizer, seed: int, count: int, specials: frozenset[int]) -> None:
    """Ids from the whole vocabulary, and in every other sequence mostly from what spells single bytes."""
    rng = random.Random(seed)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    fragments = sorted({id_ for text in SCRIPTS.values() for id_ in tokenizer.encode(text, add_special_tokens=False).ids})
    for index in range(count):
        pool: Sequence[int] = fragments if index % 2 else range(size)
        assert_streams_to_its_decode(tokenizer, rng.choices(pool, k=rng.randint(1, 24)), specials)


def test_thousands_of_random_id_sequences_stream_to_their_decode(smollm: Tokenizer, figure: Figure) -> None:
    stream_random_ids(smollm, 1, NUM_ID_SEQUENCES, control_ids(smollm))
    figure("R15 detokeniser", {"random id sequences": NUM_ID_SEQUENCES})


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SOAK_SEEDS))
def test_a_million_random_id_sequences_stream_to_their_decode(smollm: Tokenizer, seed: int, figure: Figure) -> None:
    stream_random_ids(smollm, 100 + seed, SOAK_ID_SEQUENCES, control_ids(smollm))
    figure("R15 detokeniser", {"random id sequences": SOAK_ID_SEQUENCES})


def test_stops_across_the_seams_of_every_script_cut_text_and_ids_alike(smollm: Tokenizer, figure: Figure) -> None:
    rng = random.Random(16)
    seams = 0
    for text in SCRIPTS.values():
        for cut in range(1, len(text)):
            stop = text[max(0, cut - rng.randint(1, 3)) : cut + rng.randint(1, 3)]
            ids = pieces_of(text, cut, smollm)
            decoder, joined = stream(smollm, ids, (stop,))
            expected = text[: text.index(stop)]
            assert (joined, decoder.text, decoder.matched_stop) == (expected, expected, stop)
            kept = ids[: decoder.kept_tokens]
            assert smollm.decode(kept) + decoder.text_behind_ids == expected
            assert not expected.startswith(smollm.decode(ids[: decoder.kept_tokens + 1])), "a whole token was dropped"
            seams += 1
    figure("R15 detokeniser", {"stops across seams": seams})


def test_a_decoder_that_emits_every_token_at_once_would_be_caught(smollm: Tokenizer) -> None:
    """The comparison above notices the classic fault: decoding each token by itself."""
    ids = [id_ for text in SCRIPTS.values() for id_ in smollm.encode(text).ids]
    assert "".join(smollm.decode([id_]) for id_ in ids) != smollm.decode(ids)
