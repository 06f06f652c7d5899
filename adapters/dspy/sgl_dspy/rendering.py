"""Messages to token ids, joined exactly as a native program joins its turns.

So a prompt that DSPy sends finds in the cache what a native program computed, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence

from sgl_core.backend import TextCodec
from sgl_core.errors import TemplateError
from sgl_core.language.position import Position

__all__ = ["render_turns"]


def render_turns(codec: TextCodec, messages: Sequence[tuple[str, str]], *, open_assistant: bool) -> tuple[int, ...]:
    """Ids of a conversation.

    Args:
        codec: vocabulary and template of the model.
        messages: (role, text) in order; the texts can never become control tokens.
        open_assistant: open an assistant turn at the end, for a generation.

    Raises:
        TemplateError: the model has no chat template, or it refuses this order of roles.
    """
    position = Position()
    for role, text in messages:
        position = _opened(position, role, codec).add_text(text)
        position = position.close_turn(position.turns.roles[-1], codec)
    if open_assistant:
        position = position.open_turn("assistant", codec)
    return position.settled(codec).ids.flat()


def _opened(position: Position, role: str, codec: TextCodec) -> Position:
    """A system turn that the template refuses at its place is a user's: some models know no other."""
    try:
        return position.open_turn(role, codec)
    except TemplateError:
        if role != "system":
            raise
        return position.open_turn("user", codec)
