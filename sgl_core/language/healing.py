"""Token healing: prompts that end in the middle of what the model would have written as one token.

"The capital of France is " ends in a lone space, which a model has hardly ever read before a word: there the space belongs
to the word (" Paris"). So the last token of the author's text is taken back, and the model writes its characters again, in
whatever tokens fit what follows. Called by the stream for every gen; ``select`` needs none of it, see ``sgl_core.spans``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sgl_core.errors import InvalidArgumentError
from sgl_core.language.ir import Heal
from sgl_core.language.position import Position, TokenRope, Trail
from sgl_core.types import GenResult, SegmentKind

if TYPE_CHECKING:
    from sgl_core.backend import Capabilities, TextCodec

__all__ = ["DEFAULT_HEAL", "GenPrompt", "check_heal", "continued", "prompt_of"]

DEFAULT_HEAL: Final = "space"

_BLANKS: Final = " \t"
_LINE_ENDS: Final = "\r\n"


@dataclass(frozen=True, slots=True)
class GenPrompt:
    """What a gen continues.

    Args:
        ids: all ids that the request sends.
        heal: the author's text behind them, which the model spells itself; empty where nothing is healed.
    """

    ids: TokenRope
    heal: str = ""


def check_heal(heal: object) -> None:
    """Refuse what is no way of healing.

    Raises:
        InvalidArgumentError: it is none of the three.
    """
    if heal is not False and heal not in ("space", "token"):
        raise InvalidArgumentError("heal", heal, '"space", "token" or False')


def prompt_of(position: Position, codec: TextCodec, heal: Heal, capabilities: Capabilities) -> GenPrompt:
    """The prompt at ``position``: its tail encoded, less the last token if that is to be healed.

    A prompt of one token stays as it is: nothing would be left to continue.
    """
    begun = position.begun(codec)
    ids = codec.encode(position.tail) if position.tail else ()
    dropped = ""
    if heal and ids and begun.ids.length + len(ids) > 1 and capabilities.heal and capabilities.token_ids:
        dropped = _healed_text(position, codec, ids, heal)
    return GenPrompt(begun.ids.extend(ids[:-1] if dropped else ids), dropped)


def continued(position: Position, codec: TextCodec, prompt: GenPrompt, result: GenResult) -> Position:
    """Where a stream stands after ``result``. Healed ids are part of the prompt, whose text stays as its author wrote it."""
    ids, behind = result.healed_ids + result.token_ids, result.text_behind_ids
    if prompt.heal and not result.token_ids and codec.decode(result.healed_ids) != prompt.heal:
        # No whole token of the output was kept (a stop string cut through the first), so no id spells what was taken back.
        ids, behind = (), prompt.heal + behind
    return position.add_generated(prompt.ids, ids, result.text, behind)


def _healed_text(position: Position, codec: TextCodec, ids: tuple[int, ...], heal: Heal) -> str:
    """The text of the tail's last token if it may be healed, else nothing."""
    tail = position.tail
    if heal == "space" and tail[-1] not in _BLANKS:
        return ""  # most prompts, without decoding them
    whole, kept = codec.decode(ids), codec.decode(ids[:-1])
    text = whole[len(kept) :]
    if not text or whole != kept + text or not tail.endswith(text):
        return ""  # the token shares a character with the one before, or the vocabulary cannot spell the text exactly
    is_healable = not text.strip(_BLANKS) if heal == "space" else not any(end in text for end in _LINE_ENDS)
    return text if is_healable and _is_authored(position.trail, len(text)) else ""


def _is_authored(trail: Trail | None, num_chars: int) -> bool:
    """Whether the last characters of a stream's text are program or user text, and nothing but."""
    while num_chars > 0:
        if trail is None or (trail.piece.text and trail.piece.kind is not SegmentKind.TEXT):
            return False  # an output that a stop cut down to nothing stands between nothing
        num_chars -= len(trail.piece.text)
        trail = trail.parent
    return True
