"""A conversation as the prompt of a request.

Turns are joined as the language joins those of a program, so all doors find each other's prefixes in the cache. A reply that was
generated here goes back in as the ids it was generated as, see ``replies``. Pure; called by the adapters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sgl_core.backend import TextCodec
from sgl_core.chat.replies import Reply, ReplyMemory
from sgl_core.errors import TemplateError
from sgl_core.language.ir import ConstantText, Expr, RoleBegin, RoleEnd, TokenIds
from sgl_core.language.position import Position
from sgl_core.types import TurnState

__all__ = ["Message", "Prompt", "Turn", "render"]

_ASSISTANT: Final = "assistant"

Part = str | Reply
"""Of a turn: text, or ids that are known."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, as a framework gives it.

    Args:
        role: system, user or assistant.
        text: its text; it can never become a control token.
        reply_key: of an assistant's message, what it is remembered under if it was generated here; None looks nothing up.
    """

    role: str
    text: str
    reply_key: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn, as the model's template takes it.

    Args:
        role: where the template refuses a system turn, that is a user's.
        parts: in order; white space that the template would strip is gone.
    """

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to where the answer goes on.

    Args:
        turns: all of them, closed.
        start_ids: ids up to where the assistant's answer begins.
        opening: how the answer is made to begin. ``opening_ids``: its ids.
    """

    turns: tuple[Turn, ...]
    start_ids: tuple[int, ...]
    opening: str = ""
    opening_ids: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt of a request."""
        return self.start_ids + self.opening_ids

    def nodes(self) -> tuple[Expr, ...]:
        """The same as expressions of the language: appended to an empty stream they give ``ids``."""
        nodes: list[Expr] = []
        for turn in self.turns:
            nodes += (RoleBegin(turn.role), *map(_node, turn.parts), RoleEnd(turn.role))
        nodes.append(RoleBegin(_ASSISTANT))
        if self.opening:
            nodes.append(TokenIds(self.opening_ids, self.opening))
        return tuple(nodes)


def render(codec: TextCodec, messages: Iterable[Message], *, opening: str = "", replies: ReplyMemory | None = None) -> Prompt:
    """Join a conversation and open the assistant's turn behind it.

    Args:
        codec: vocabulary and template of the model.
        messages: in order.
        opening: text that the answer begins with; it is a part of the prompt, encoded alone.
        replies: where replies with a key are looked up.

    Raises:
        TemplateError: the model has no chat template, or it refuses this order of roles.
    """
    position = Position()
    turns: list[Turn] = []
    for message in messages:
        before = position.turns
        role, position = _opened(position, message.role, codec)
        reply = _known(position, message, codec, replies)
        parts = (reply,) if reply is not None else _given(message.text, role, before, codec)
        for part in parts:
            position = _appended(position, part, codec)
        position = position.close_turn(role, codec)
        turns.append(Turn(role, parts))
    start_ids = position.open_turn(_ASSISTANT, codec).settled(codec).ids.flat()
    return Prompt(tuple(turns), start_ids, opening, codec.encode(opening) if opening else ())


def _opened(position: Position, role: str, codec: TextCodec) -> tuple[str, Position]:
    """A system turn that the template refuses at its place is a user's: some models know no other."""
    try:
        return role, position.open_turn(role, codec)
    except TemplateError:
        if role != "system":
            raise
        return "user", position.open_turn("user", codec)


def _known(position: Position, message: Message, codec: TextCodec, replies: ReplyMemory | None) -> Reply | None:
    if replies is None or message.reply_key is None:
        return None
    return replies.find(position.settled(codec).ids.flat(), message.reply_key)


def _given(text: str, role: str, before: TurnState, codec: TextCodec) -> tuple[Part, ...]:
    """A body as the template would show it: stripped where it strips, behind what a generation would write itself."""
    strips_left, strips_right = codec.body_trim(role, before)
    text = text.lstrip() if strips_left else text
    text = text.rstrip() if strips_right else text
    lead = tuple(piece if isinstance(piece, str) else Reply((piece,), "") for piece in codec.body_lead(role, before))
    return (*lead, text)


def _appended(position: Position, part: Part, codec: TextCodec) -> Position:
    if isinstance(part, str):
        return position.add_text(part)
    settled = position.settled(codec)
    return settled.add_generated(settled.ids, part.ids, part.text, part.text_behind_ids)


def _node(part: Part) -> Expr:
    return ConstantText(part) if isinstance(part, str) else TokenIds(part.ids, part.text, part.text_behind_ids)
