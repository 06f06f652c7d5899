"""Finds an ``except`` around a read: a trace never fails there, so the handler would be lost in silence.

Asked by ``recorder`` where a body reads a value, joins forks or calls host code. ``except`` is found in the bytecode's table
of handlers, which is exact and needs no source; ``contextlib.suppress`` in the source, where there is one.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import dis
import functools
import linecache
import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, Final

from sgl_core.language.places import is_user_code

__all__ = ["frame_that_catches"]

_MATCHES: Final = frozenset({"CHECK_EXC_MATCH", "CHECK_EG_MATCH"})
_ENDS_OF_MATCH: Final = frozenset(
    {"PUSH_EXC_INFO", "POP_TOP", "POP_EXCEPT", "RERAISE", "RETURN_VALUE", "STORE_FAST", "STORE_NAME"}
)


def frame_that_catches(base: CodeType, *, is_async: bool) -> tuple[FrameType, str] | None:
    """The innermost frame of the author's that catches what is raised here, and with what.

    Args:
        base: of the function that started the body; its frame and those around it are not looked at.
        is_async: the body runs on a loop of its own: look at the tasks that wait for this one, too.
    """
    for frame in _frames(base, is_async=is_async):
        if not is_user_code(frame):
            continue
        if _is_in_except(frame.f_code, frame.f_lasti):
            return frame, "try/except"
        if _is_in_suppress(frame):
            return frame, "contextlib.suppress"
    return None


def _frames(base: CodeType, *, is_async: bool) -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not base:
        yield frame
        frame = frame.f_back
    if is_async:
        current = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not current:
                yield from _suspended_frames(task.get_coro())


def _suspended_frames(awaitable: Any) -> Iterator[FrameType]:
    """The frames of a coroutine that waits, outermost first."""
    while (frame := getattr(awaitable, "cr_frame", None)) is not None:
        yield frame
        awaitable = awaitable.cr_await


# ---- except: the bytecode --------------------------------------------------------------------------------------------
def _is_in_except(code: CodeType, offset: int) -> bool:
    """Whether an ``except`` of this code gets what is raised at ``offset``; ``with`` and ``finally`` pass it on."""
    handlers, catching = _handlers_of(code)
    passed: set[int] = set()
    while True:
        target = next((target for start, end, target in handlers if start <= offset < end), None)
        if target is None or target in passed:
            return False
        if target in catching:
            return True
        passed.add(target)
        offset = target  # it raises again, inside whatever stands around it


@functools.lru_cache(maxsize=1024)
def _handlers_of(code: CodeType) -> tuple[tuple[tuple[int, int, int], ...], frozenset[int]]:
    """Ranges of offsets with the handler that they go to, and those handlers that are an ``except``."""
    handlers = tuple(_exception_table(code.co_exceptiontable))
    instructions = list(dis.get_instructions(code))
    places = {instruction.offset: index for index, instruction in enumerate(instructions)}
    targets = {target for _, _, target in handlers}
    names = [instruction.opname for instruction in instructions]
    return handlers, frozenset(target for target in targets if _is_except(names[places[target] :]))


def _is_except(names: list[str]) -> bool:
    """Whether a handler is an ``except``: it compares the exception, or, without a type, drops it at once."""
    if names[0] != "PUSH_EXC_INFO":
        return False
    if names[1] == "POP_TOP":
        return True
    for name in names[1:]:
        if name in _MATCHES:
            return True
        if name in _ENDS_OF_MATCH:
            return False
    return False


def _exception_table(table: bytes) -> Iterator[tuple[int, int, int]]:
    """The entries of a code object's table of handlers: start, end and target, in bytes.

    Source: CPython, Objects/exception_handling_notes.txt.
    """
    numbers = _varints(table)
    for start, length, target, _ in zip(numbers, numbers, numbers, numbers, strict=False):
        yield 2 * start, 2 * (start + length), 2 * target


def _varints(table: bytes) -> Iterator[int]:
    value = 0
    for byte in table:
        value = (value << 6) | (byte & 63)
        if not byte & 64:
            yield value
            value = 0


# ---- suppress: the source --------------------------------------------------------------------------------------------
def _is_in_suppress(frame: FrameType) -> bool:
    """Whether a ``with`` block of this frame around its line suppresses exceptions."""
    line = frame.f_lineno
    return any(
        block.body[0].lineno <= line <= (block.body[-1].end_lineno or 0)
        for block in _with_blocks_of(frame.f_code)
        if any(_is_suppress(item.context_expr, frame) for item in block.items)
    )


@functools.lru_cache(maxsize=1024)
def _with_blocks_of(code: CodeType) -> tuple[ast.With, ...]:
    """The ``with`` blocks that begin behind the first line of a function: those around it are not its own."""
    blocks = _with_blocks(tuple(linecache.getlines(code.co_filename)))
    return tuple(block for block in blocks if block.lineno >= code.co_firstlineno)


@functools.lru_cache(maxsize=64)
def _with_blocks(lines: tuple[str, ...]) -> tuple[ast.With, ...]:
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError):
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.With))


def _is_suppress(expr: ast.expr, frame: FrameType) -> bool:
    """Whether an expression is ``contextlib.suppress(...)``, by whatever name."""
    thing = _looked_up(expr.func if isinstance(expr, ast.Call) else expr, frame)
    return thing is contextlib.suppress or type(thing) is contextlib.suppress


def _looked_up(expr: ast.expr, frame: FrameType) -> object:
    """What a name, or an attribute of a module, stands for; None if it is anything else."""
    if isinstance(expr, ast.Name):
        for names in (frame.f_locals, frame.f_globals, vars(builtins)):
            if expr.id in names:
                found: object = names[expr.id]
                return found
    if isinstance(expr, ast.Attribute):
        owner = _looked_up(expr.value, frame)
        return getattr(owner, expr.attr, None) if owner is contextlib else None
    return None
