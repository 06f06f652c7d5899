"""Which tokens of a choice are scored: prompt and choice are encoded as one string, as the model would have read them.

Neighbours merge ("Answer: " + "yes" is not what a model saw in training). The tokens that all choices share stay in the
prompt, the rest of each is its span; where a choice merges with the end of the prompt, the merged tokens belong to the spans of
*all* choices, so that they stand on the same footing. Used by the language's ``select`` and by ``engine.score``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgl_core.backend import TextCodec
from sgl_core.errors import InvalidArgumentError

__all__ = ["ChoiceSpans", "encode_alone", "least_context", "plan_spans"]


@dataclass(frozen=True, slots=True)
class ChoiceSpans:
    """What to score.

    Args:
        shared: ids of the tail that all choices start with; they belong to the prompt.
        spans: the other ids of tail + choice, for each choice; none is empty.
    """

    shared: tuple[int, ...]
    spans: tuple[tuple[int, ...], ...]


def plan_spans(codec: TextCodec, tail: str, choices: Sequence[str]) -> ChoiceSpans:
    """Encode each choice together with the open text before it.

    Raises:
        InvalidArgumentError: a choice has no tokens.
    """
    if not tail:
        return ChoiceSpans((), encode_alone(codec, choices))
    settled, unsettled = _settled(codec, tail)
    joint = [codec.encode(unsettled + choice) for choice in choices]
    length = _common_length([codec.encode(unsettled), *joint])
    length = max(0, min(length, *(len(ids) - 1 for ids in joint)))  # a choice without tokens of its own borrows one
    return ChoiceSpans(settled + joint[0][:length], _nonempty([ids[length:] for ids in joint]))


def least_context(codec: TextCodec) -> tuple[int, ...]:
    """The least that a model can be asked to continue: for choices alone, or merged with all of the text before them."""
    return codec.begin() or codec.encode("\n")


def encode_alone(codec: TextCodec, choices: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Each choice without any context."""
    return _nonempty([codec.encode(choice) for choice in choices])


def _settled(codec: TextCodec, tail: str) -> tuple[tuple[int, ...], str]:
    """Ids of the tail that no choice can change, and the text behind them, of at least one token.

    A tail may be a book and the choices many: the book is encoded once and not with each of them.
    """
    ids = codec.encode(tail)
    settled = ids[: max(0, min(codec.stable_len(tail), len(ids) - 1))]
    text = codec.decode(settled)
    unsettled = tail[len(text) :]
    if text + unsettled != tail or settled + codec.encode(unsettled) != ids:
        return (), tail  # text that the vocabulary cannot spell exactly, or spells otherwise at a beginning
    return settled, unsettled


def _nonempty(spans: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    for index, span in enumerate(spans):
        if not span:
            raise InvalidArgumentError(
                f"choices[{index}]", "text without tokens", "text that the model's vocabulary can spell", "Reword it."
            )
    return tuple(spans)


def _common_length(sequences: Sequence[tuple[int, ...]]) -> int:
    length = 0
    for column in zip(*sequences, strict=False):
        if any(token != column[0] for token in column):
            break
        length += 1
    return length
