"""The name under which DSPy knows a model: ``sgl/<model>@<quantisation or dtype>#<hash>``.

DSPy's answer cache asks for the name and not for the engine, so the name must change with everything that changes an answer:
the hash covers weights, tokenizer, chat template and the dtype that was asked for. Nothing here loads weights.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sgl_core.errors import InvalidArgumentError
from sgl_core.runtime.model_source import read_json

__all__ = ["check_label", "is_label", "model_label"]

_LABEL = re.compile(r"sgl/.+@[^@#]+#([0-9a-f]{8})")
_QUANTISED = re.compile(r"(.+)[.\-_](I?Q\d\w*|B?F16|F32)", re.IGNORECASE)
_UNSAFE = re.compile(r"[^\w.\-/]+")
_TAKEN_FOR_OPENAI = re.compile(r"(o\d|gpt-5)", re.IGNORECASE)  # DSPy gives such names OpenAI's rules for options


def model_label(name: str, fingerprint: str, path: Path | None, dtype: str | None) -> str:
    """The label of a model.

    Args:
        name: for people; a quantisation at its end moves behind the ``@``.
        fingerprint: of the model's files.
        path: its folder or file, to see the dtype that its weights are stored in.
        dtype: the dtype that was asked for, if one was.
    """
    match = _QUANTISED.fullmatch(name)
    base, stored = (match.group(1), match.group(2).lower()) if match else (name, _stored_dtype(path))
    organisation, slash, last = _UNSAFE.sub("-", base).strip("/").rpartition("/")
    if _TAKEN_FOR_OPENAI.match(last):
        last = f"local-{last}"
    digest = hashlib.sha256(f"{fingerprint}\0{dtype or ''}".encode()).hexdigest()[:8]
    return f"sgl/{organisation}{slash}{last}@{dtype or stored}#{digest}"


def is_label(text: str) -> bool:
    """Whether ``text`` is a whole label, as ``model_label`` writes them."""
    return _LABEL.fullmatch(text) is not None


def check_label(given: str, found: str) -> None:
    """Refuse a label that was written for other weights.

    Raises:
        InvalidArgumentError: the hashes differ.
    """
    if given.rpartition("#")[2] != found.rpartition("#")[2]:
        raise InvalidArgumentError(
            "model",
            given,
            f"the label of the model that was found, {found!r}",
            "The files are not those the label was written for: give the model's name or folder instead of its label.",
        )


def _stored_dtype(path: Path | None) -> str:
    if path is None:
        return "unknown"
    if path.is_file():
        return path.suffix.removeprefix(".")
    if not (path / "config.json").is_file():
        return "unknown"
    config = read_json(path / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")
