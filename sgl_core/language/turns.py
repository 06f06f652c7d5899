"""Turns nest one deep: the one rule that interpreter, tracer and verifier share."""

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
                    what = f"a {opened!r} turn is opened inside a {role!r} turn; close it first with s.{role}_end()"
                    raise ProgramError(at_user_line(what))
                role = opened
            case RoleEnd(role=closed):
                if role != closed:
                    given = "no turn is open" if role is None else f"the open turn is {role!r}"
                    what = f"a {closed!r} turn is closed, but {given}; open it first with s.{closed}_begin()"
                    raise ProgramError(at_user_line(what))
                role = None
    return role
