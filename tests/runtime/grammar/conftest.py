"""The embedded model's vocabulary, read once for all tests of the grammar room that need a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgl_core.runtime.grammar.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def vocabulary(embedded_folder: Path) -> Vocabulary:
    """A real one: masks over few tokens would hide what is slow."""
    vocabulary = Vocabulary((embedded_folder / "tokenizer.json").read_text(), 49_152, [2])
    assert vocabulary.tokenizer.vocab_size > 40_000
    return vocabulary
