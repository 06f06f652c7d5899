"""Is every invariant tested by breaking it? The assertions of a check against those that damage has set off.

An assertion that nothing has ever set off is decoration: it may hold of everything.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Place", "assertions_of", "place_of"]

Place: TypeAlias = tuple[str, int]
"""File and line."""


def assertions_of(*functions: Callable[..., Any]) -> set[Place]:
    """Where the functions themselves, not those that they call, ``assert`` or ``raise``."""
    places: set[Place] = set()
    for function in functions:
        lines, first = inspect.getsourcelines(function)
        path = inspect.getsourcefile(function)
        assert path is not None, "a function with source lines has a source file"
        for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
            if isinstance(node, ast.Assert | ast.Raise):
                places.add((path, first + node.lineno - 1))
    return places


def place_of(error: BaseException) -> Place:
    """Where an error was raised; of an ``assert`` over several lines, its first."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    assert frame.lineno is not None, "code with source has lines"
    return frame.filename, frame.lineno
