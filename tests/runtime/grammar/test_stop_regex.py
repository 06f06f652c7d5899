"""Stop patterns against a search of every span by Python's ``re`` on small, harmless patterns."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_core.errors import GrammarError
from sgl_core.runtime.codec import LocalCodec
from sgl_core.runtime.grammar.stop_regex import StopRegex

PATTERNS = [
    "ab",
    "a+b",
    "ab|bca|c{3}",
    "a.{2}c|b.a",
    "[ab]{2,3}c",
    "(a|b)*ca",
    "a[^a]*a",
    "é+b|ba",
    "(aa|b)+c",
    "b?c?a{2}",
    "a(b(c(a|é)?a)?c)?b",
    "é",
    r"\nab?a",
]
COMPILED = {pattern: StopRegex(pattern) for pattern in PATTERNS}


@pytest.fixture(scope="module")
def codec(tiny_model_folder: Callable[[str], Path]) -> LocalCodec:
    return LocalCodec.from_folder(tiny_model_folder("llama"))


def first_match(pattern: str, text: str, stops: tuple[str, ...] = ()) -> tuple[int, int] | None:
    """Start and end of the match that ends first, and among those the one that starts first: every span is tried."""
    whole = re.compile(pattern)
    for end in range(1, len(text) + 1):
        for start in range(end):
            if whole.fullmatch(text, start, end) or text[start:end] in stops:
                return start, end
    return None


def stream(codec: LocalCodec, pattern: str, ids: list[int], stops: tuple[str, ...] = ()) -> tuple[list[str], str | None, str]:
    """Deltas, the matched stop, and the whole text."""
    decoder = codec.stream_decoder(stops, stop_regex=(COMPILED.get(pattern) or StopRegex(pattern)).matcher())
    deltas = [decoder.push(token) for token in ids]
    deltas.append(decoder.finish())
    return deltas, decoder.matched_stop, decoder.text


texts = st.text(alphabet="abcé\n", max_size=24)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(st.sampled_from(PATTERNS), texts)
def test_the_match_that_ends_first_wins_and_of_those_the_longest(pattern: str, text: str) -> None:
    matcher = COMPILED[pattern].matcher()
    ended = next((index for index, char in enumerate(text, 1) if matcher.feed(char)), None)
    expected = first_match(pattern, text)
    assert (None if ended is None else (ended - len(matcher.stop), ended)) == expected
    if expected is not None:
        assert matcher.stop == text[slice(*expected)]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.sampled_from(PATTERNS), texts, texts)
def test_what_is_handed_out_never_belongs_to_a_later_match(pattern: str, text: str, more: str) -> None:
    matcher = COMPILED[pattern].matcher()
    released = 0
    for index, char in enumerate(text + more, 1):
        if matcher.feed(char):
            assert index - len(matcher.stop) >= released
            return
        assert index - matcher.matched >= released
        released = index - matcher.matched


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.sampled_from(PATTERNS), texts)
def test_nothing_is_held_back_that_no_continuation_could_claim(pattern: str, text: str) -> None:
    """What is held begins a match for some continuation: the shortest one is looked for."""
    matcher = COMPILED[pattern].matcher()
    if any(matcher.feed(char) for char in text) or not matcher.matched:
        return
    held = text[len(text) - matcher.matched :]
    level = [""]
    for _ in range(5):
        level = [tail + char for tail in level for char in "abcé\n"]
        if any(re.fullmatch(pattern, held + tail) for tail in level):
            return
    pytest.fail(f"{held!r} is held back for nothing")


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.sampled_from(PATTERNS), texts, st.integers(0, 2**24))
def test_deltas_concatenate_to_the_cut_text_whatever_the_tokens(codec: LocalCodec, pattern: str, text: str, cuts: int) -> None:
    pieces, piece = [], ""
    for index, char in enumerate(text):
        piece += char
        if cuts >> index & 1:
            pieces, piece = [*pieces, piece], ""
    ids = [token for part in (*pieces, piece) for token in codec.encode(part)]
    deltas, matched, whole = stream(codec, pattern, ids)
    expected = first_match(pattern, text)
    assert "".join(deltas) == whole == (text if expected is None else text[: expected[0]])
    assert matched == (None if expected is None else text[slice(*expected)])


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.sampled_from(PATTERNS), st.lists(st.text(alphabet="abcé", min_size=1, max_size=3), max_size=3), texts)
def test_between_stop_strings_and_a_pattern_the_earliest_end_wins(
    codec: LocalCodec, pattern: str, stops: list[str], text: str
) -> None:
    _, matched, whole = stream(codec, pattern, list(codec.encode(text)), tuple(stops))
    expected = first_match(pattern, text, tuple(stops))
    assert whole == (text if expected is None else text[: expected[0]])
    assert matched == (None if expected is None else text[slice(*expected)])


def test_whole_tokens_before_the_cut_are_kept(codec: LocalCodec) -> None:
    decoder = codec.stream_decoder(stop_regex=StopRegex("e+ q").matcher())
    ids = codec.encode("see the quick")
    for token in ids:
        decoder.push(token)
    assert (decoder.text, decoder.matched_stop) == ("see th", "e q")
    assert codec.decode(ids[: decoder.kept_tokens]) + decoder.text_behind_ids == "see th"


def test_a_pattern_is_no_longer_than_1024_characters() -> None:
    def ends(length: int) -> int | None:
        matcher = StopRegex("x[a-z]*;").matcher()
        text = "x" + "a" * (length - 2) + ";"
        return next((index for index, char in enumerate(text, 1) if matcher.feed(char)), None)

    assert ends(1024) == 1024
    assert ends(1025) is None


def test_at_most_1024_characters_are_held_back() -> None:
    matcher = StopRegex("x[^;]*;").matcher()
    for char in "xé" * 1500:
        assert not matcher.feed(char)
        assert matcher.matched <= 1024
    assert matcher.feed(";")
    assert matcher.stop == "xé" * 511 + ";"


def test_digits_are_ascii() -> None:
    matcher = StopRegex(r"\d").matcher()
    assert not matcher.feed("\uff11")
    assert matcher.feed("1")


def test_a_pattern_with_a_slash_or_a_newline_is_taken_as_it_stands() -> None:
    matcher = StopRegex("/\n").matcher()
    assert [matcher.feed(char) for char in "a/\n"] == [False, False, True]


@pytest.mark.parametrize("pattern", ["a*", "(a|)", "", "a?b?", "()", "^", "(?:x{0,3})"])
def test_a_pattern_that_matches_the_empty_text_is_refused(pattern: str) -> None:
    with pytest.raises(GrammarError, match="matches the empty text"):
        StopRegex(pattern)


@pytest.mark.parametrize(
    "pattern", ["a)(b", "a)|(b", "(?=a)b", r"(a)\1", "[", "a{2000}", "(?x)a #", "a\\", r"\bfoo", "a$b", "x\ud800"]
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str) -> None:
    with pytest.raises(GrammarError) as caught:
        StopRegex(pattern)
    assert caught.value.argument == "stop_regex"


def test_a_text_that_uses_the_automaton_up_is_followed_by_a_new_one() -> None:
    """``a[ab]{15}b`` anywhere has 2^16 states, more than an automaton may have; which of them occur depends on the text."""
    matcher = StopRegex("a[ab]{15}c").matcher()
    state = 1
    opened = matcher._anywhere
    for _ in range(20_000):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        assert not matcher.feed("ab"[state >> 16 & 1])
    assert matcher._anywhere is not opened
    assert [matcher.feed(char) for char in "a" + "b" * 15 + "c"] == [False] * 16 + [True]


def test_generations_do_not_share_state() -> None:
    compiled = StopRegex("ab")
    first, second = compiled.matcher(), compiled.matcher()
    assert not first.feed("a")
    assert not second.feed("b")
    assert first.feed("b")
    assert (first.stop, second.stop) == ("ab", "")
