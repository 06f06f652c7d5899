"""The framework itself: a pipeline is a list of texts, some of them to be generated."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Blank:
    """A text that the model writes."""

    name: str


@dataclass(frozen=True)
class Pipeline:
    """Texts and blanks, in order."""

    steps: tuple[str | Blank, ...]
