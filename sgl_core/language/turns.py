"""Turns nest one deep: the rule that interpreter and tracer share, with its errors for authors."""

from __future__ import annotations

from collections.abc import Iterable

from sgl_core.errors import ProgramError
from sgl_core.language.ir import Expr, RoleBegin, RoleEnd
from sgl_core.language.places import at_user_line

__all__ = ["role_after"]


def role_after(role: str | None, nodes: Iterable[Expr]) -> str | None:
    """The turn that is open after ``nodes``.

    Args:
        role: the turn that is open before them; None if there is none.
        nodes: in order; those that are no turns are passed over.

    Raises:
        ProgramError: a turn is opened inside another, or closed that is not open.
    """
    for node in nodes:
        match node:
            case RoleBegin(role=opened):
                if role is not None:
                    what = f"{_a_turn(opened)} is opened inside {_a_turn(role)}; close it first with s.{role}_end()"
                    raise ProgramError(at_user_line(what))
                role = opened
            case RoleEnd(role=closed):
                if role != closed:
                    given = f"no turn is open; open it first with s.{closed}_begin()"
                    if role is not None:
                        given = f"the open turn is {role!r}; close that one with s.{role}_end()"
                    raise ProgramError(at_user_line(f"{_a_turn(closed)} is closed, but {given}"))
                role = None
    return role


def _a_turn(role: str) -> str:
    return f"{'an' if role == 'assistant' else 'a'} {role!r} turn"
