"""Repair of tokenizers converted from GGUF files.

A GGUF file names how text is split before BPE (``tokenizer.ggml.pre``) and transformers' conversion ignores the name: it
always splits like GPT-2. The merges are right and the ids are wrong wherever the model was trained on another split. The
model loader calls this once, before the tokenizer is used and before ``LocalCodec`` copies it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import decoders, pre_tokenizers

from sgl_core.errors import ModelFormatError

__all__ = ["gguf_pre", "repair_gguf_tokenizer"]

_PRE_FIELD = "tokenizer.ggml.pre"


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


_SPLITS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {"gpt-2": _gpt2, "smollm": _single_digits}
"""What each known value means. Checked against an independent BPE; a value that was not checked does not belong here."""


def gguf_pre(reader: Any) -> str | None:
    """The name of the pre-tokenizer in an open GGUF file; None if the file has none.

    Args:
        reader: a ``gguf.GGUFReader``; opening one parses the whole vocabulary, so the loader opens it once.

    Raises:
        ModelFormatError: the field is no text.
    """
    field = reader.get_field(_PRE_FIELD)
    value = None if field is None else field.contents()
    if value is None or isinstance(value, str):
        return value
    raise ModelFormatError(f"{_PRE_FIELD}: is {type(value).__name__}, expected text; fetch the file again.")


def repair_gguf_tokenizer(tokenizer: Any, pre: str | None) -> None:
    """Give a converted tokenizer the split that its GGUF file names, in place.

    Args:
        tokenizer: a transformers fast tokenizer, not used yet.
        pre: the file's ``tokenizer.ggml.pre``. None (an old file, or a SentencePiece vocabulary, which splits nothing)
            means GPT-2's split for byte-level vocabularies and no change for others.

    Raises:
        ModelFormatError: an unknown value; guessing would give ids the model was not trained on.
    """
    backend = tokenizer.backend_tokenizer
    byte_level = isinstance(backend.decoder, decoders.ByteLevel)
    if pre is None and not byte_level:
        return
    build = _SPLITS.get(pre if pre is not None else "gpt-2")
    if build is None or not byte_level:
        raise ModelFormatError(
            f"{_PRE_FIELD}: got {pre!r}, expected one of {', '.join(sorted(_SPLITS))} with a byte-level vocabulary. "
            "Use the safetensors release of this model, which carries its own tokenizer."
        )
    backend.pre_tokenizer = build()
