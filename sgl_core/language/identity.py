"""Finds ``value is None`` and its like: no value of a trace can hook it, so it would be False in silence.

Asked by ``recorder`` with each node: does the function that runs test a name by identity (``is``, ``type(name) is``, ``case
None``, ``case {...}``) that holds a value now? It goes by the source; a function without source is not looked at.
"""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

__all__ = ["IdentityTest", "identity_tests"]


class IdentityTest(NamedTuple):
    """One test.

    Args:
        name: the local name that is tested; empty where it is an expression.
        first_line, last_line: where it stands.
        is_of_constant: it asks for None, True or False.
    """

    name: str
    first_line: int
    last_line: int
    is_of_constant: bool


@functools.lru_cache(maxsize=1024)
def identity_tests(code: CodeType) -> tuple[IdentityTest, ...]:
    """The tests in a function."""
    last = max((line for _, _, line in code.co_lines() if line is not None), default=0)
    tests = _tests_in(tuple(linecache.getlines(code.co_filename)))
    return tuple(test for test in tests if code.co_firstlineno <= test.first_line <= last)


@functools.lru_cache(maxsize=64)
def _tests_in(lines: tuple[str, ...]) -> tuple[IdentityTest, ...]:
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError):
        return ()
    return tuple(test for node in ast.walk(tree) for test in _tests_at(node))


def _tests_at(node: ast.AST) -> Iterator[IdentityTest]:
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            if isinstance(op, ast.Is | ast.IsNot):
                for operand, other in ((left, right), (right, left)):
                    if not isinstance(operand, ast.Constant):
                        yield _test(operand, node, is_of_constant=isinstance(other, ast.Constant))
    elif isinstance(node, ast.Match):
        for pattern in (found for case in node.cases for found in ast.walk(case.pattern)):
            if isinstance(pattern, ast.MatchSingleton | ast.MatchMapping):
                yield _test(node.subject, node.subject, is_of_constant=isinstance(pattern, ast.MatchSingleton))


def _test(operand: ast.expr, around: ast.expr, *, is_of_constant: bool) -> IdentityTest:
    if isinstance(operand, ast.Call) and isinstance(operand.func, ast.Name) and operand.func.id == "type" and operand.args:
        operand = operand.args[0]
    name = operand.id if isinstance(operand, ast.Name) else ""
    return IdentityTest(name, around.lineno, around.end_lineno or around.lineno, is_of_constant)
